"""Generation by our own means: the cache changes nothing, nor does padding, streaming or the machine's programs."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from functrain import config, trained
from functrain.building import build
from functrain.built import first_state
from functrain.cli import main
from functrain.config import ConfigError
from functrain.experiment import Experiment
from functrain.generation import (
    Sampling,
    beam_search,
    begin,
    choose,
    generate,
    left_padded,
    more,
    stream,
    windowed,
)
from functrain.models import GPT
from functrain.sampling import SEPARATOR, Pieces, Writer, wanted, write
from functrain.train.checkpoint import Directory

pytestmark = pytest.mark.usefixtures("quick")

GREEDY = Sampling(temperature=0.0)
DRAWN = Sampling(temperature=1.3, repetition_penalty=1.2)
PROMPTS = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 1, 5]]
MODEL = GPT(inputs=(16,), outputs=11, layers=1, heads=2, width=8)


@pytest.fixture(scope="module")
def params():
    """Of a GPT whose tokens are far from equally likely."""
    return jax.tree.map(lambda p: 25 * p if p.ndim == 2 else p, jax.jit(MODEL.init)(jax.random.key(1))[0])


@pytest.fixture(scope="module")
def advance(params):
    """Of that GPT."""
    return Partial(MODEL.apply, params)


@pytest.fixture(scope="module")
def by_full_forward(params):
    """Tokens after one prompt, from the logits of all that it sees anew: `pick(logits, i)`."""
    forward = jax.jit(lambda x: MODEL.apply(params, {}, x)[0])

    def tokens_after(prompt, length, pick=lambda logits, i: logits.argmax(), sees=16):
        tokens = list(prompt)
        for i in range(length):
            seen = tokens[-sees:]
            logits = forward(jnp.array([seen + [0] * (16 - len(seen))]))[0, len(seen) - 1]
            tokens.append(int(pick(logits, i)))
        return tokens[len(prompt) :]

    return tokens_after


def test_the_cache_changes_nothing(advance, by_full_forward):
    """Greedy tokens are those of a full forward pass for each token."""
    tokens, real = generate(advance, MODEL.remember(4, 12), PROMPTS, length=10, end=-1, sampling=GREEDY)
    assert tokens.tolist() == [by_full_forward(prompt, 10) for prompt in PROMPTS]
    assert len(set(tokens.ravel().tolist())) > 4
    assert real.tolist() == [10] * 4


def test_draws_are_by_position(advance, by_full_forward):
    """Tokens drawn, with a penalty of those that occurred, by fold_in(key, position): by a full forward pass each."""
    key, row = jax.random.key(3), 2
    given = {"length": 10, "end": -1, "key": key, "sampling": DRAWN}
    tokens, _ = generate(advance, MODEL.remember(4, 12), PROMPTS, **given)
    seen, pick = list(PROMPTS[row]), jax.jit(choose)

    def draw(logits, i):
        """What a batch of four equal rows draws in this one."""
        occurred = jnp.isin(jnp.arange(11), jnp.array(seen + seen[:1] * (16 - len(seen))))
        four = (jnp.tile(v, (4, 1)) for v in (logits, occurred))
        token = pick(next(four), DRAWN, key=jax.random.fold_in(key, i), occurred=next(four))[row]
        seen.append(int(token))
        return token

    assert tokens[row].tolist() == by_full_forward(PROMPTS[row], 10, draw)


def test_left_padding_changes_nothing(advance, by_full_forward):
    """Prompts of different lengths in one batch, each as by itself."""
    prompts = [[5], [1, 2, 3], [6, 7], [8]]
    x, segments = left_padded(prompts, padding=10)
    tokens, _ = generate(advance, MODEL.remember(4, 12), x, segments=segments, length=10, end=-1, sampling=GREEDY)
    assert tokens.tolist() == [by_full_forward(prompt, 10) for prompt in prompts]


def test_streaming_is_generating(advance):
    """Bitwise the same tokens, in blocks that do not divide the length, where rows end early and where none does."""
    end = -1
    for ended in (False, True):
        given = {"length": 10, "key": jax.random.key(7), "sampling": DRAWN, "end": end}
        whole, real = generate(advance, MODEL.remember(4, 12), PROMPTS, **given)
        blocks = list(stream(advance, MODEL.remember(4, 12), PROMPTS, **given, block=4))
        assert [b.shape[1] for b in blocks[:2]] == [1, 4]
        streamed = np.concatenate(blocks, 1)
        assert streamed.tolist() == whole[:, : streamed.shape[1]].tolist()
        assert streamed.shape[1] == max(real)
        assert (min(real) < 10) == ended
        end = whole[0, 3]


def test_sampling_follows_the_distribution():
    """Chi-square of 20,000 draws against softmax of the warped logits; the excluded never come."""
    logits, draw = jnp.array([1.0, -0.5, 0.3, 2.0, 0.0, -3.0]), jax.jit(choose)
    for how, kept in ((Sampling(temperature=0.8), 6), (Sampling(top_k=4), 4), (Sampling(top_p=0.8), 3)):
        found = draw(jnp.broadcast_to(logits, (20000, 6)), how, key=jax.random.key(1))
        order = np.argsort(-np.asarray(logits))[:kept]
        expected = np.exp(np.asarray(logits, np.float64)[order] / float(how.temperature))
        expected *= 20000 / expected.sum()
        counts = np.bincount(found, minlength=6)
        assert counts[order].sum() == 20000
        assert (((counts[order] - expected) ** 2) / expected).sum() < 20.5  # 0.999 of five degrees of freedom


def test_compiled_once(params):
    """Other parameters, prompts, keys, ends and numbers of the sampling are no other program."""
    traced = []

    def decode(params, state, tokens):
        traced.append(tokens.shape)
        return MODEL.apply(params, state, tokens)

    def run(scale, temperature, seed, length):
        advance = Partial(decode, jax.tree.map(lambda p: scale * p, params))
        how = Sampling(temperature=temperature, repetition_penalty=1 + seed)
        given = {"sampling": how, "key": jax.random.key(seed), "end": seed}
        generate(advance, MODEL.remember(2, 12), [[1, seed], [2, 3]], length=5, **given)
        for _ in stream(advance, MODEL.remember(2, 12), [[1, seed], [2, 3]], length=length, block=3, **given):
            pass

    run(1.0, 0.7, 1, 5)
    assert traced == [(2, 2), (2, 1), (2, 1)]  # the prompt, the loop of `generate`, that of `stream`
    run(0.5, 1.1, 2, 9)
    run(2.0, 1.0, 3, 3)
    assert len(traced) == 3


def test_inside_another_compiled_function(params, by_full_forward):
    """A plain function of its parameters will do there."""

    @jax.jit
    def inside(params, prompt):
        def advance(state, tokens):
            return MODEL.apply(params, state, tokens)

        return generate(advance, MODEL.remember(1, 9), prompt, length=3, sampling=GREEDY)[0]

    assert inside(params, jnp.array([[1, 2]]))[0].tolist() == by_full_forward([1, 2], 3)


def test_it_stops_where_all_have_ended():
    """One call of `advance` for each token that some row still needs; after a row's end comes padding."""

    def count(state, tokens):
        return jax.nn.one_hot(tokens + 1, 30), {"calls": state["calls"] + 1}

    given = {"end": 7, "sampling": GREEDY, "padding": 25}
    going = begin(count, {"calls": jnp.int32(0)}, [[2], [4]], **given)
    tokens, going = more(count, going, 19, block=19, **given)
    assert going.state["calls"] == going.made == 5
    assert tokens.tolist() == [[4, 5, 6, 7, *[25] * 15], [6, 7, *[25] * 17]]
    assert going.real.tolist() == [5, 3]


def test_one_beam_is_greedy(advance):
    """Token for token, with an end that comes, whatever the penalty."""
    tokens, real = generate(advance, MODEL.remember(4, 12), PROMPTS, length=10, end=6, sampling=GREEDY)
    assert len(set(real.tolist())) > 2
    for penalty in (0.0, 2.0):
        given = {"beams": 1, "length": 10, "end": 6, "length_penalty": penalty}
        beam, _ = beam_search(advance, MODEL.remember(4, 12), PROMPTS, **given)
        assert beam[:, 0].tolist() == tokens.tolist()


def test_enough_beams_find_the_best():
    """With as many beams as there are sequences it is exhaustive search, by a full forward pass of each."""
    small = GPT(inputs=(8,), outputs=4, layers=1, heads=2, width=8)
    weights = jax.tree.map(lambda p: 20 * p if p.ndim == 2 else p, jax.jit(small.init)(jax.random.key(2))[0])
    end, prompt, best = 0, [1, 2], {}
    tails = list(itertools.product(range(4), repeat=3))
    whole = jax.jit(small.apply)(weights, {}, jnp.array([[*prompt, *tail] for tail in tails]))[0]
    log_p = np.asarray(jax.nn.log_softmax(whole))
    for i, tail in enumerate(tails):
        length = tail.index(end) + 1 if end in tail else 3
        kept = (*tail[:length], *[0] * (3 - length))
        best[kept] = sum(log_p[i, 1 + t, tail[t]] for t in range(length)) / length**0.6
    ranked = sorted(best, key=best.__getitem__, reverse=True)[:5]
    given = {"beams": 64, "length": 3, "end": end, "length_penalty": 0.6, "early_stopping": "never"}
    tokens, scores = beam_search(Partial(small.apply, weights), small.remember(1, 4), [prompt], **given)
    assert tokens[0, :5].tolist() == [list(t) for t in ranked]
    np.testing.assert_allclose(scores[0, :5], [best[t] for t in ranked], rtol=1e-4)


def test_a_window_slides(params, by_full_forward):
    """A model without a cache: of the tokens before each the last ones count, as many as the window has."""
    whole = Partial(lambda p, x: MODEL.apply(p, {}, x)[0], params)
    prompts = jnp.array(PROMPTS[:2])
    given = {"length": 9, "sampling": GREEDY}
    slid, _ = generate(*windowed(whole, prompts[:, :0], 5), prompts, **given)
    assert slid.tolist() == [by_full_forward(prompt, 9, sees=5) for prompt in PROMPTS[:2]]
    again, _ = generate(*windowed(whole, prompts[:, :2], 5), prompts[:, 2:], **given)
    assert again.tolist() == slid.tolist()


def test_mistakes_in_calls(advance):
    """A draw without a key, no token, no length."""
    state = MODEL.remember(1, 4)
    with pytest.raises(ValueError, match="needs a key"):
        generate(advance, state, [[1]], length=2)
    with pytest.raises(ValueError, match="expected at least 1"):
        generate(advance, state, [[1]], length=0, sampling=GREEDY)
    with pytest.raises(ValueError, match="one token or more"):
        generate(advance, state, jnp.zeros((1, 0), int), length=2, sampling=GREEDY)
    with pytest.raises(ValueError, match="which tokens occurred"):
        choose(jnp.zeros((1, 3)), Sampling(repetition_penalty=2.0), key=jax.random.key(0))
    for wrong in ({"temperature": -1.0}, {"top_p": 1.5}, {"min_p": -0.1}, {"repetition_penalty": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            config.parse(Sampling, wrong)


# -- the command ----------------------------------------------------------------------------------

TEXT = "Now is the winter of our discontent\nMade glorious summer by this sun of York;\n" * 40

MINE = """
import jax, jax.numpy as jnp

def causal(inputs, outputs):
    'A mean of the tokens up to each, and a table: it knows no cache, and no segments.'
    def init(key):
        a, b = jax.random.split(key)
        return {"in": jax.random.normal(a, (outputs, 8)), "out": jax.random.normal(b, (8, outputs))}
    def apply(params, x):
        h = params["in"][x]
        return (h + jnp.cumsum(h, 1) / (1 + jnp.arange(x.shape[1]))[:, None]) @ params["out"]
    return init, apply
"""


SETTINGS = """
[task]
kind = "language"
[model]
kind = "gpt"
layers = 1
heads = 2
width = 16
[data]
kind = "text"
path = "text.txt"
block = 8
batch_size = 8
[optimizer]
peak_lr = 3e-2
[average]
kind = "ema"
decay = 0.5
[train]
steps = 20
[evaluate]
every = 20
[observe]
tensorboard = false
figures = false
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with run directories as training leaves them, with a checkpoint at step 3 and weights made up.

    A GPT by characters, whose average alone is far from where it began; one by bytes in bfloat16; a model of one's
    own without a cache; and no language model.
    """
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(TEXT)
    (folder / "mine.py").write_text(MINE)
    (folder / "c.toml").write_text(SETTINGS)
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, changes in (
            ("gpt", []),
            ("bytes", ["data.level=byte", "precision.kind=bfloat16"]),
            ("mine", ["model={kind='custom', target='mine:causal'}"]),
            ("digits", ["task.kind=classification", "model={kind='mlp'}", "data={kind='digits'}"]),
        ):
            found = build(config.parse(Experiment, config.read("c.toml", changes)))
            drawn = first_state(found)
            player = drawn.players["model"]
            wide = jax.tree.map(lambda p: 25 * p if p.ndim == 2 else p, player.average.params)
            average = player.average.replace(params=wide, count=jnp.int32(1))
            made = drawn.replace(players={"model": dataclasses.replace(player, average=average)})
            store = Directory(folder / name / "checkpoints")
            store.save(3, {"state": made}, {"loss": 1.0})
            store.close()
            (folder / name / "config.toml").write_text(config.dump(found.config))
    return folder


@pytest.fixture
def here(runs, monkeypatch, capsys):
    """The folder as working directory, and a function from arguments to (status, stdout, stderr)."""
    monkeypatch.chdir(runs)

    def sample(*arguments):
        capsys.readouterr()
        status = main(["sample", *map(str, arguments)])
        return status, *capsys.readouterr()

    return sample


def _by_hand(run, prompts, count):
    """The likeliest continuation of each, by the trained model's outputs for the whole of what it sees."""
    model = trained.load(run)
    data, texts = model.config.data, []
    for prompt in prompts:
        seen, made = data.encode(prompt).tolist()[-8:], []
        while len(made) < count:
            if len(seen) > 8:
                seen = seen[-4:] if run == "gpt" else seen[-8:]
            whole = np.array([seen + [0] * (8 - len(seen))])
            made.append(int(model(whole)[0, len(seen) - 1].argmax()))
            seen.append(made[-1])
        texts.append(f"{prompt}{data.decode(made)}".removesuffix("\n") + "\n")
    return texts


@pytest.mark.parametrize("run", ["gpt", "mine"])
def test_the_command_goes_on_from_prompts(here, runs, run):
    """The likeliest text, far beyond the block, is that of the model's outputs with the average's weights."""
    prompts = ["Now", "Made glorious", "s"]
    (runs / "prompts.txt").write_text("\n".join(prompts) + "\n\n")
    status, out, err = here(run, "--file", "prompts.txt", "--tokens", 23, "--temperature", 0)
    assert status == 0
    assert out == f"{SEPARATOR}\n".join(_by_hand(run, prompts, 23))
    assert err.startswith("functrain: 69 tokens in ")
    assert "tokens/s; before them" in err
    assert here(run, "--prompt", "Now", "--tokens", 5, "--temperature", 0)[1] == _by_hand(run, ["Now"], 5)[0]


def test_the_command_draws(here):
    """Another text for another seed, and the same for the same; several are several; without a prompt."""
    how = ["gpt", "--tokens", 20, "--number", 2, "--top-k", 9, "--temperature", 1.5]
    _, one, _ = here(*how)
    assert here(*how, "--seed", 1)[1] != one == here(*how)[1]
    first, second = one.split(f"{SEPARATOR}\n")
    assert first != second
    assert {*first} <= {*TEXT}
    assert here("bytes", "--tokens", 8, "--min-p", 0.1, "--top-p", 0.9, "--repetition-penalty", 1.2)[0] == 0


def test_the_command_searches(here):
    """Beams: one is the likeliest token at each step, several are several texts."""
    for run in ("gpt", "mine"):
        assert here(run, "--prompt", "of", "--tokens", 6, "--beams", 1)[:2] == (0, _by_hand(run, ["of"], 6)[0])
    status, out, _ = here("gpt", "--prompt", "of", "--tokens", 6, "--beams", 4, "--number", 3)
    assert status == 0
    assert len({*out.split(f"{SEPARATOR}\n")}) == 3


def test_text_is_shown_while_it_is_made(runs, monkeypatch):
    """In blocks, and never half a character."""
    monkeypatch.chdir(runs)
    shown = []
    told = write(Writer(trained.load("gpt")), ["Now"], wanted(tokens=40, top_k=9, temperature=1.5), shown.append)
    assert told["tokens"] == 40
    assert len([piece for piece in shown if piece]) > 4
    text = "naïve €5 \U0001f600 ok"
    for size in (1, 2, 3):
        pieces = Pieces(lambda tokens: bytes(tokens).decode("utf-8", "replace"))
        code = text.encode()
        parts = [pieces.add(code[i : i + size]) for i in range(0, len(code), size)]
        assert "".join(parts) == text
        assert not any("\ufffd" in part for part in parts)
    assert pieces.add(b"\xe2\x82") + pieces.rest() == "\ufffd"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "nothing"),
        (["digits"], "digits: task.kind = 'classification'"),
        (["gpt", "--prompt", "{"], "--prompt: character '{' is not in the vocabulary"),
        (["gpt", "--temperature", "-1"], "--temperature: found -1.0; expected a number from 0"),
        (["gpt", "--temperature", "nan"], "--temperature: found nan"),
        (["gpt", "--top-p", "0"], "--top-p: found 0.0; expected a number above 0, at most 1"),
        (["gpt", "--top-p", "1.1"], "--top-p: found 1.1"),
        (["gpt", "--top-k", "0"], "--top-k: found 0"),
        (["gpt", "--min-p", "2"], "--min-p: found 2.0"),
        (["gpt", "--repetition-penalty", "0"], "--repetition-penalty: found 0.0"),
        (["gpt", "--tokens", "0"], "--tokens: found 0; expected a whole number from 1"),
        (["gpt", "--number", "0"], "--number: found 0"),
        (["gpt", "--seed", "-1"], "--seed: found -1"),
        (["gpt", "--beams", "0"], "--beams: found 0"),
        (["gpt", "--beams", "2", "--top-k", "3"], "--beams: looks for the likeliest text; --top-k"),
        (["gpt", "--beams", "2", "--number", "3"], "--number: found 3"),
        (["gpt", "--beams", "2", "--tokens", "9"], "--tokens: found 9; after a prompt of 1 tokens, with --beams"),
        (["gpt", "--step", "7"], "--step: found 7"),
        (["gpt", "--file", "absent.txt"], "--file: absent.txt: cannot be read: No such file"),
        (["gpt", "--file", "empty.txt"], "--file: empty.txt: holds no prompt"),
        (["gpt", "--file", "strange.txt"], "--file: strange.txt: character '{'"),
    ],
)
def test_mistakes_of_the_command(here, runs, arguments, message):
    """One line that says where, and status 2."""
    (runs / "empty.txt").write_text("\n\n")
    (runs / "strange.txt").write_text("{\n")
    status, out, err = here(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("functrain: ")
    assert err.count("\n") == 1
    assert message in err
