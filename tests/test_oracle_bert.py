"""BERT is the same mathematics as transformers': logits and gradients from the same weights, and exact counts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hugging_face import transformers

from functrain import trained, tree
from functrain.cli import main
from functrain.config import ConfigError, read
from functrain.models.bert import BERT, from_huggingface
from functrain.models.torch_layout import from_torch, to_torch

library = transformers()
import torch  # noqa: E402 - there, where transformers is

torch.set_num_threads(1)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("quick")]

TOLERANCES = {"float32": (5e-6, 1e-5), "float64": (1e-10, 1e-9)}
"""Of logits and of gradients, relative to the largest."""

SIZES = {
    "vocab_size": 23,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 17,
    "max_position_embeddings": 11,
    "type_vocab_size": 3,
    "num_labels": 5,
}
CASES = {
    "masked": (library.BertForMaskedLM, {"hidden_act": "gelu"}),
    "classes": (library.BertForSequenceClassification, {"hidden_act": "relu", "num_hidden_layers": 1}),
    "span": (library.BertForQuestionAnswering, {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "num_labels": 2}),
    "tags": (library.BertForTokenClassification, {"hidden_act": "silu", "pad_token_id": 7}),
}


def ours_of(config, theirs):
    """Our model of a config and a class of theirs, with as many outputs."""
    model = from_huggingface(config.to_dict() | {"architectures": [theirs.__name__]})
    return model.sized((9,), config.vocab_size if model.head == "masked" else config.num_labels).build()


def made(head, dtype=None, **changes):
    """Their model with every parameter drawn, and ours with its arrays."""
    theirs, own = CASES[head]
    torch.manual_seed(3)
    theirs = theirs(library.BertConfig(**SIZES | own | changes)).eval().to(dtype or torch.float64)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.normal_(0, 0.3)
            if "LayerNorm.weight" in name:
                p.add_(1)
    model = ours_of(theirs.config, type(theirs))
    tensors = {name: p.detach() for name, p in theirs.named_parameters()}
    params, state = from_torch(model.huggingface_names(), tensors, *jax.eval_shape(model.init, jax.random.key(0)))
    return theirs, model, jax.tree.map(jnp.asarray, params), state


def drawn(model):
    """Parameters, drawn where no program need be compiled."""
    rng, (shapes, _) = np.random.default_rng(0), jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.3, p.shape), p.dtype), shapes)


def rows(model, side, n=3, length=9, types=True):
    """(tokens, segments, types): rows of 9, 4 and 1 tokens, filled up on a side."""
    rng = np.random.default_rng(5)
    x = rng.integers(8, model.vocabulary, (n, length))
    real = np.arange(length) < np.array([9, 4, 1])[:, None]
    real = real[:, ::-1] if side == "left" else real
    x = np.where(real, x, model.padding)
    return x, real.astype(np.int32), rng.integers(0, model.types, x.shape) if types else None


def compare(head, dtype, side, types=True):
    """Logits at the real places, and gradients of a weighted sum of them; the largest errors, relative."""
    theirs, model, params, state = made(head, getattr(torch, dtype))
    x, real, types = rows(model, side, types=types)
    given = {"attention_mask": torch.tensor(real), "position_ids": torch.tensor(np.maximum(real.cumsum(1) - 1, 0))}
    if types is not None:
        given["token_type_ids"] = torch.tensor(types)
    out = theirs(torch.tensor(x), **given)
    logits = torch.stack([out.start_logits, out.end_logits], -1) if head == "span" else out.logits
    weights = np.random.default_rng(6).normal(size=logits.shape).astype(dtype)
    if head != "classes":
        weights = weights * real[..., None].astype(dtype)
    (logits * torch.tensor(weights)).sum().backward()

    def ours(params):
        y, _ = model.apply(params, state, jnp.asarray(x), types=None if types is None else jnp.asarray(types))
        return (y * weights).sum(), y

    gradients, y = jax.jit(jax.grad(ours, has_aux=True))(params)
    assert y.dtype == dtype
    counted = np.asarray(weights != 0)
    wrong = np.abs(np.asarray(y) - logits.detach().numpy())[counted].max() / logits.abs().max().item()
    found = to_torch(model.huggingface_names(), gradients, {})
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    assert set(found) == set(expected)
    largest = max(g.abs().max().item() for g in expected.values())
    off = max(np.abs(found[name] - g.numpy()).max() for name, g in expected.items()) / largest
    return wrong, off


@pytest.mark.parametrize(
    ("head", "side", "types", "dtype"),
    [("masked", "right", True, "float64"), ("masked", "left", False, "float32"), ("classes", "right", True, "float64")]
    + [("classes", "right", True, "float32"), ("span", "left", True, "float64"), ("tags", "right", False, "float64")],
)
def test_logits_and_gradients(head, side, types, dtype):
    """Rows of different lengths, in float32 and in float64."""
    with jax.enable_x64(dtype == "float64"):
        wrong, off = compare(head, dtype, side, types)
    assert wrong <= TOLERANCES[dtype][0]
    assert off <= TOLERANCES[dtype][1]


@pytest.mark.usefixtures("float64")
def test_a_row_does_not_depend_on_its_padding():
    """On either side, by `padding` or by segments, or packed beside another: the same logits; when pooled, too."""
    _, model, params, _ = made("tags", pad_token_id=0)
    x = jnp.array([[9, 8, 13, 10], [11, 11, 12, 9]])
    padded = jnp.concatenate([x[:1], 0 * x[:1]], 1)
    padded = jnp.concatenate([padded, jnp.roll(padded, 4, 1), x.reshape(1, 8)])
    segments = jnp.array([[1] * 4 + [0] * 4, [0] * 4 + [3] * 4, [1] * 4 + [2] * 4])
    apply = jax.jit(model.apply)
    alone = apply(params, {}, x)[0]
    told = apply(params, {}, padded, segments)[0]
    plain = apply(params, {}, padded[:2])[0]
    for y in (told[0, :4], told[1, 4:], told[2, :4], plain[0, :4], plain[1, 4:]):
        np.testing.assert_allclose(y, alone[0], atol=1e-12)
    np.testing.assert_allclose(told[2, 4:], alone[1], atol=1e-12)
    for pool in ("first", "mean"):
        _, model, params, _ = made("classes")
        apply = jax.jit(BERT(**{**vars(model), "pool": pool}).apply)
        wanted = apply(params, {}, x[:1])[0][0]
        for y in apply(params, {}, padded[:2])[0]:
            np.testing.assert_allclose(y, wanted, atol=1e-12)


def test_the_mean_is_that_of_the_real_tokens():
    """Of a model whose pooler and last layer are the identity."""
    model = BERT(head="classes", pool="mean", layers=1, heads=1, width=4, vocabulary=9, inputs=(5,), outputs=4)
    params = drawn(model)
    params["pooler"] = params["head"] = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
    tags = BERT(head="tags", layers=1, heads=1, width=4, vocabulary=9, inputs=(5,), outputs=4)
    x = jnp.array([[3, 4, 5, 0, 0]])
    hidden = jax.jit(tags.apply)(params, {}, x)[0]
    pooled = jax.jit(model.apply)(params, {}, x)[0]
    np.testing.assert_allclose(pooled, jnp.tanh(hidden[:, :3].mean(1)), rtol=1e-5)


def test_dropout_needs_a_key_and_has_its_share():
    """In training alone; each place of the hidden state apart."""
    model = BERT(head="tags", layers=1, heads=2, width=8, vocabulary=9, inputs=(7,), outputs=3, head_dropout=0.5)
    params = drawn(model)
    x = jnp.ones((64, 7), int)
    plain = jax.jit(model.apply)(params, {}, x)[0]
    apply = jax.jit(lambda key: model.apply(params, {}, x, key=key, train=True)[0])
    dropped = [apply(jax.random.key(i)) for i in range(2)]
    assert not np.allclose(*dropped)
    np.testing.assert_allclose(np.mean(dropped), plain.mean(), atol=0.1 * float(jnp.abs(plain).max()))
    with pytest.raises(ValueError, match="needs a key"):
        model.apply(params, {}, x, train=True)


def test_bert_base_has_its_parameters():
    """109,482,240 in the bare model with its pooler, and theirs for each head."""
    counts = {}
    for head, (theirs, _) in CASES.items():
        config = library.BertConfig(num_labels=2)
        model = ours_of(config, theirs)
        counts[head] = tree.by_path(jax.eval_shape(model.init, jax.random.key(0))[0])
        with torch.device("meta"):
            expected = sum(p.numel() for p in theirs(config).parameters())
        assert sum(math.prod(p.shape) for p in counts[head].values()) == expected
    bare = {path: p for path, p in counts["classes"].items() if not path.startswith("head/")}
    assert sum(math.prod(p.shape) for p in bare.values()) == 109_482_240


@pytest.mark.parametrize("head", list(CASES))
def test_their_config_and_back(head):
    """to_huggingface gives what from_huggingface reads; theirs reads it too."""
    _, model, params, _ = made(head)
    config = model.to_huggingface()
    assert from_huggingface(config).sized(model.inputs, model.outputs) == model
    theirs = CASES[head][0](library.BertConfig(**config))
    assert {name: tuple(p.shape) for name, p in theirs.named_parameters()} == {
        name: array.shape for name, array in to_torch(model.huggingface_names(), params, {}).items()
    }


def test_what_is_not_done_is_refused():
    """One line with the key, what was found and what would be right."""
    config = BERT(inputs=(5,), outputs=9).to_huggingface()
    for change, words in (
        (
            {"architectures": ["BertForMultipleChoice"]},
            "architectures: found 'BertForMultipleChoice'; legal here: BertModel",
        ),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type: found 'relative_key'"),
        ({"is_decoder": True}, "is_decoder: found True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings: found False"),
        ({"hidden_act": "quick_gelu"}, "hidden_act: found 'quick_gelu'; legal here: gelu"),
    ):
        with pytest.raises(ConfigError, match=words):
            from_huggingface(config | change)
    assert from_huggingface(config | {"architectures": None}).head == "masked"
    with pytest.raises(ConfigError, match=r"model\.pool: found 'mean'"):
        BERT(head="classes", pool="mean", inputs=(5,), vocabulary=9, outputs=2).to_huggingface()
    for model, words in (
        (BERT(width=10, outputs=9), "model.heads: found 4; it does not divide model.width = 10"),
        (BERT(head="tags", outputs=9), "model.vocabulary: missing"),
        (BERT(head="span", outputs=3, vocabulary=9), "model.head: span gives 2 outputs"),
    ):
        with pytest.raises(ConfigError, match=words):
            model.build()
    for model, shape, words in (
        (BERT(), (3, 3), "bert takes sequences"),
        (BERT(positions=8), (9,), "model.positions: found 8; too small for sequences of 9 tokens"),
        (BERT(vocabulary=8), (9,), "model.vocabulary: found 8; too small for the 9 tokens"),
    ):
        with pytest.raises(ConfigError, match=words):
            model.sized(shape, 9)
    model = BERT(inputs=(8,), outputs=3)
    with pytest.raises(ValueError, match="a sequence of 9; the model has 8 positions"):
        jax.eval_shape(lambda key: model.apply(model.init(key)[0], {}, jnp.ones((1, 9), int)), jax.random.key(0))


TOML = """
[task]
kind = "classification"
[model]
kind = "huggingface"
folder = "{folder}"
head = "classes"
dropout = 0.3
[start]
fresh = ["^head", "^pooler"]
[data]
kind = "labelled_text"
path = "{text}"
longest = 7
batch_size = 8
[train]
steps = 3
"""


def test_fine_tuning_a_folder(tmp_path, capsys):
    """Classes from a masked language model: its head and pooler are new, transformers loads what is exported."""
    config = library.BertConfig(
        vocab_size=40,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=17,
        max_position_embeddings=9,
    )
    library.BertForMaskedLM(config).save_pretrained(tmp_path / "theirs")
    words = ["one", "two", "three", "four", "five"]
    rows = [f"{words[i % 5]} {words[i % 3]} {words[i % 4]},{'abc'[i % 3]}" for i in range(60)]
    (tmp_path / "text.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (tmp_path / "tune.toml").write_text(TOML.format(folder=tmp_path / "theirs", text=tmp_path / "text.csv"))
    assert main(["train", str(tmp_path / "tune.toml"), "--out", str(tmp_path / "run")]) == 0
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out"), "--layout", "huggingface"]) == 0
    capsys.readouterr()
    model = trained.load(tmp_path / "run")
    found = read(tmp_path / "run" / "config.toml").data["model"]
    assert (found["dropout"], found["attention_dropout"]) == (0.3, 0.3)  # theirs were 0.1
    x = np.array([[2, 3, 4, 5, 0, 0, 0], [6, 2, 2, 3, 4, 5, 6]])
    loaded = library.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert loaded.config.num_labels == 3
    with torch.no_grad():
        wanted = loaded(torch.tensor(x), attention_mask=torch.tensor(x != 0).long()).logits
    np.testing.assert_allclose(model(x), wanted, rtol=1e-5, atol=5e-6)
