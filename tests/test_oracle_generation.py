"""Generation is that of the library transformers: processors on equal logits, greedy and beam search of one GPT-2."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from float64 import draw
from hugging_face import transformers as library
from jax.tree_util import Partial

from functrain import generation
from functrain.generation import Sampling, beam_search, generate, left_padded
from functrain.models import GPT

transformers = library()
import torch  # noqa: E402

torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("quick", "float64")]

END, PAD, WORDS, LENGTH = 8, 16, 17, 9
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6], [5], [3, 5, 8, 9], [7, 9], [11, 2, 12], [13], [8, 4, 6, 2]]


def _logits(kind):
    """[7, 19] float64: as drawn; of few values, so with ties; and with some excluded already."""
    logits = 3 * draw(5, 7, 19)
    if kind == "ties":
        return np.round(logits / 2)
    return np.where(draw(6, 7, 19) > 0.8, -np.inf, logits) if kind == "excluded" else logits


def _same(ours, theirs):
    """The same tokens excluded, the others equal in float64."""
    ours, theirs = np.asarray(ours), theirs.numpy()
    assert ours.dtype == np.float64
    np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-14)


@pytest.mark.parametrize("kind", ["drawn", "ties", "excluded"])
def test_processors(kind, monkeypatch):
    """Each processor, with k beyond the vocabulary, k and p at their ends, and tokens that occurred twice."""
    # torch leaves open in which order equal numbers are sorted, and with it which of equals top_p keeps.
    monkeypatch.setattr(torch, "sort", functools.partial(torch.sort, stable=True))
    logits = _logits(kind)
    their_logits = torch.tensor(logits)
    for value in (0.3, 1.0, 2.5):
        theirs = transformers.TemperatureLogitsWarper(value)(None, their_logits)
        _same(generation.temperature(logits, value), theirs)
    for k in (1, 2, 5, 19, 40):
        _same(generation.top_k(logits, k), transformers.TopKLogitsWarper(k)(None, their_logits))
    for p in (1e-6, 0.1, 0.5, 0.77, 0.95, 1.0):
        _same(generation.top_p(logits, p), transformers.TopPLogitsWarper(p)(None, their_logits))
    for p in (0.0, 0.05, 0.3, 1.0):
        _same(generation.min_p(logits, p), transformers.MinPLogitsWarper(p)(None, their_logits))
    tokens = np.random.default_rng(8).integers(0, 19, (7, 6))
    ignored = np.array([0, 1, 2, 3, 0, 5, 0])
    counted = np.arange(6) >= ignored[:, None]
    for penalty in (0.7, 1.0, 1.3):
        processor = transformers.RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=torch.tensor(ignored))
        theirs = processor(torch.tensor(tokens), their_logits.clone())
        _same(generation.repetition_penalty(logits, tokens, counted, penalty), theirs)


@pytest.fixture(scope="module")
def gpt2():
    """A GPT-2 of random weights in float64, and ours with them: (theirs, advance, fresh state)."""
    torch.manual_seed(1)
    sizes = {"vocab_size": WORDS, "n_positions": 24, "n_embd": 12, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(**sizes, initializer_range=0.6, eos_token_id=None, bos_token_id=None)
    theirs = transformers.GPT2LMHeadModel(config).double().eval()
    weights = {name: p.detach().numpy() for name, p in theirs.transformer.named_parameters()}

    def affine(name, kernel="kernel"):
        return {kernel: weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    params = {"tokens": {"table": weights["wte.weight"]}, "positions": {"table": weights["wpe.weight"]}}
    for i in range(2):
        at = f"h.{i}"
        params[f"block{i}"] = {
            "norm1": affine(f"{at}.ln_1", "scale"),
            "attention": {"qkv": affine(f"{at}.attn.c_attn"), "out": affine(f"{at}.attn.c_proj")},
            "norm2": affine(f"{at}.ln_2", "scale"),
            "feed_forward": {"up": affine(f"{at}.mlp.c_fc"), "down": affine(f"{at}.mlp.c_proj")},
        }
    params["norm"] = affine("ln_f", "scale")
    ours = GPT(inputs=(24,), outputs=WORDS, layers=2, heads=2, width=12, activation="gelu_tanh")
    # jax takes float64 as it is only inside the fixture float64
    return theirs, lambda: Partial(ours.apply, jax.tree.map(jnp.asarray, params)), ours.remember


def _theirs(model, **given):
    """transformers' generate on the prompts: (tokens after them, filled up [rows, LENGTH], scores)."""
    longest = max(map(len, PROMPTS))
    x = torch.tensor([[PAD] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])
    with torch.no_grad():
        made = model.generate(
            x,
            attention_mask=mask,
            max_new_tokens=LENGTH,
            do_sample=False,
            pad_token_id=PAD,
            return_dict_in_generate=True,
            output_scores=True,
            **given,
        )
    tokens = made.sequences[:, longest:].numpy()
    tokens = np.pad(tokens, ((0, 0), (0, LENGTH - tokens.shape[1])), constant_values=PAD)
    return tokens, made.get("sequences_scores")


@pytest.mark.parametrize(("end", "penalty"), [(None, 1.0), (END, 1.0), (END, 1.4)])
def test_greedy(gpt2, end, penalty):
    """Left-padded prompts of different lengths, some of which end early; with a repetition penalty too."""
    theirs, advance, remember = gpt2
    wanted, _ = _theirs(theirs, eos_token_id=end, repetition_penalty=penalty)
    prompts, segments = left_padded(PROMPTS, PAD)
    state = remember(len(PROMPTS), prompts.shape[1] + LENGTH - 1)
    how = Sampling(temperature=0.0, repetition_penalty=penalty)
    given = {"length": LENGTH, "end": end, "sampling": how, "segments": segments, "padding": PAD}
    tokens, real = generate(advance(), state, prompts, **given)
    assert tokens.tolist() == wanted.tolist()
    if end is not None:
        lengths = [row.index(end) + 1 if end in row else LENGTH for row in wanted.tolist()]
        assert real.tolist() == lengths
        assert min(lengths) < LENGTH


def test_the_order_of_processors(gpt2):
    """What tokens are drawn from, with everything on at once, is what transformers' generate would draw from."""
    how = {"temperature": 0.8, "top_k": 6, "top_p": 0.9, "min_p": 0.1}
    config = transformers.GenerationConfig(do_sample=True, repetition_penalty=1.3, **how)
    processors = gpt2[0]._get_logits_processor(config, input_ids_seq_length=3, device="cpu")
    names = [type(processor).__name__ for processor in processors]
    assert len(names) == 5
    logits, tokens = 2 * draw(9, 6, WORDS), np.random.default_rng(10).integers(0, WORDS, (6, 3))
    theirs = processors(torch.tensor(tokens), torch.tensor(logits))
    penalised = generation.repetition_penalty(logits, tokens, None, 1.3)
    _same(generation.warp(penalised, Sampling(**how)), theirs)
    # and that is what `choose` draws from
    occurred = generation.occurring(tokens, None, WORDS)
    key = jax.random.key(1)
    ours = generation.choose(logits, Sampling(**how, repetition_penalty=1.3), key=key, occurred=occurred)
    assert ours.tolist() == jax.random.categorical(key, jnp.asarray(theirs.numpy())).tolist()


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
def test_beam_search(gpt2, early_stopping, length_penalty):
    """Every one of the four sequences of each prompt, and its score, with an end that occurs."""
    theirs, advance, remember = gpt2
    how = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    wanted, wanted_scores = _theirs(theirs, num_beams=4, num_return_sequences=4, eos_token_id=END, **how)
    prompts, segments = left_padded(PROMPTS, PAD)
    state = remember(len(PROMPTS), prompts.shape[1] + LENGTH - 1)
    given = {"beams": 4, "length": LENGTH, "end": END, "segments": segments, "padding": PAD}
    tokens, scores = beam_search(advance(), state, prompts, **given, **how)
    assert tokens.reshape(-1, LENGTH).tolist() == wanted.tolist()
    np.testing.assert_allclose(scores.reshape(-1), wanted_scores.numpy(), rtol=2e-6)  # theirs are in float32
    lengths = [row.index(END) + 1 if END in row else LENGTH for row in wanted.tolist()]
    assert len(set(lengths)) > 1


def test_beam_search_without_an_end(gpt2):
    """All sequences are of full length."""
    theirs, advance, remember = gpt2
    wanted, wanted_scores = _theirs(theirs, num_beams=3, num_return_sequences=3, eos_token_id=None)
    prompts, segments = left_padded(PROMPTS, PAD)
    state = remember(len(PROMPTS), prompts.shape[1] + LENGTH - 1)
    tokens, scores = beam_search(advance(), state, prompts, beams=3, length=LENGTH, segments=segments)
    assert tokens.reshape(-1, LENGTH).tolist() == wanted.tolist()
    np.testing.assert_allclose(scores.reshape(-1), wanted_scores.numpy(), rtol=2e-6)
