"""The Transformer is torch.nn.Transformer between embeddings and their logits: outputs and all gradients."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functrain import tree
from functrain.models.torch_layout import from_torch, names_of, to_torch
from functrain.models.transformer import Transformer

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
torch.set_num_threads(1)

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.usefixtures("quick"),
    pytest.mark.filterwarnings("ignore:enable_nested_tensor"),  # torch says so of what it cannot make faster
]

LOGITS = {np.float32: 1e-5, np.float64: 1e-10}  # relative to the largest of what is compared
GRADIENTS = {np.float32: 1e-4, np.float64: 1e-10}  # relative to the largest of all gradients

BRANCHES = {"attention": "self_attn", "cross": "multihead_attn"}


class Theirs(torch.nn.Module):
    """torch.nn.Transformer between tables, written as PyTorch's own translation example has them."""

    def __init__(self, model, dtype):
        super().__init__()
        self.model = model
        self.core = torch.nn.Transformer(
            d_model=model.width,
            nhead=model.heads,
            num_encoder_layers=model.encoder_layers,
            num_decoder_layers=model.decoder_layers,
            dim_feedforward=model.hidden or 4 * model.width,
            dropout=0.0,
            activation=model.activation,
            batch_first=True,
            norm_first=model.norm_first,
        )
        self.target = torch.nn.Embedding(model.outputs, model.width)
        if model.tied != "all":
            self.source = torch.nn.Embedding(model.source_vocabulary or model.outputs, model.width)
        if model.tied == "none":
            self.head = torch.nn.Linear(model.width, model.outputs, bias=False)
        if model.positions == "learned":
            self.source_positions = torch.nn.Embedding(model.room, model.width)
            self.target_positions = torch.nn.Embedding(model.room, model.width)
        self.to(dtype)

    def embed(self, table, learned, tokens):
        if self.model.positions == "learned":
            rows = learned.weight[: tokens.shape[1]]
        else:
            rows = sinusoids(tokens.shape[1], self.model.width).to(table.weight.dtype)
        return table(tokens) * math.sqrt(self.model.width) + rows

    def forward(self, x, y):
        source = self.target if self.model.tied == "all" else self.source
        h = self.core(
            self.embed(source, getattr(self, "source_positions", None), x),
            self.embed(self.target, getattr(self, "target_positions", None), y),
            tgt_mask=torch.ones(y.shape[1], y.shape[1], dtype=torch.bool).triu(1),
            src_key_padding_mask=x == 0,
            tgt_key_padding_mask=y == 0,
            memory_key_padding_mask=x == 0,
        )
        return self.head(h) if self.model.tied == "none" else h @ self.target.weight.T


def sinusoids(length, width):
    """Section 3.5 of the paper, a number at a time."""
    rows = torch.zeros(length, width, dtype=torch.float64)
    for p in range(length):
        for i in range(width):
            angle = p / 10000 ** ((i - i % 2) / width)
            rows[p, i] = math.cos(angle) if i % 2 else math.sin(angle)
    return rows


def names(model):
    """Our path -> the name in the state dict of `Theirs`."""

    def module(path):
        parts = path.split("/")
        if parts[0] in ("encoder", "decoder"):
            if parts[1] == "norm":
                return f"core.{parts[0]}.norm"
            at = f"core.{parts[0]}.layers.{parts[1].removeprefix('block')}"
            if parts[2] == "feed_forward":
                return f"{at}.{ {'up': 'linear1', 'down': 'linear2'}[parts[3]] }"
            if parts[2] in BRANCHES:
                return f"{at}.{BRANCHES[parts[2]]}.{ {'qkv': 'in_proj', 'out': 'out_proj'}[parts[3]] }"
            return f"{at}.{parts[2]}"
        return "_".join(reversed(parts))

    params = jax.eval_shape(model.init, jax.random.key(0))[0]
    tables = {path for path in tree.by_path(params) if path.endswith("/table")}
    rest = tree.map_by_path(lambda path, leaf: None if path in tables else leaf, params)
    found = {path: name.replace("in_proj.", "in_proj_") for path, name in names_of(rest, {}, module).items()}
    return found | {f"params/{path}": module(path.removesuffix("/table")) + ".weight" for path in tables}


def tokens(seed, *lengths, vocabulary):
    """Rows of different lengths, filled up with 0 to two places more than the longest."""
    rng, rows = np.random.default_rng(seed), np.zeros((len(lengths), max(lengths) + 2), np.int32)
    for row, n in zip(rows, lengths):
        row[:n] = rng.integers(1, vocabulary, n)
    return rows


def off(ours, theirs, size=None):
    """The largest difference, by the largest of theirs or `size`."""
    ours, theirs = np.asarray(ours, np.float64), theirs.detach().numpy().astype(np.float64)
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / (np.abs(theirs).max() if size is None else size)


def compare(model, dtype):
    """Weights drawn by torch go into ours: logits at all tokens that are no padding, gradients of a weighted sum."""
    torch.manual_seed(0)
    theirs = Theirs(model, torch.float64 if dtype == np.float64 else torch.float32).train()
    for name, p in theirs.named_parameters():  # no bias of zeros, no scale of ones
        torch.nn.init.normal_(p, mean=float("norm" in name and p.dim() == 1), std=0.3)
    with jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext():
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        params, _ = from_torch(names(model), theirs.state_dict(), *shapes)
        x = tokens(1, 6, 1, 9, vocabulary=model.source_vocabulary or model.outputs)
        y = tokens(2, 4, 7, 1, vocabulary=model.outputs)
        weights = np.random.default_rng(3).normal(size=(*y.shape, model.outputs)).astype(dtype) * (y != 0)[..., None]

        def ours(params):
            logits, _ = model.apply(params, {}, x, y, train=False)
            return (logits * weights).sum(), logits

        gradients, logits = jax.jit(jax.grad(ours, has_aux=True))(params)
        torch_logits = theirs(torch.tensor(x).long(), torch.tensor(y).long())
        (torch_logits * torch.tensor(weights)).sum().backward()
        real = y != 0
        assert logits.dtype == dtype
        assert off(logits[real], torch_logits[torch.tensor(real)]) <= LOGITS[dtype]
        slopes = {name: p.grad for name, p in theirs.named_parameters()}
        largest = max(float(g.abs().max()) for g in slopes.values())
        turned = to_torch(names(model), gradients, {})
        assert turned.keys() == slopes.keys()
        for name, slope in slopes.items():
            assert turned[name].dtype == dtype
            assert off(turned[name], slope, largest) <= GRADIENTS[dtype], name


SMALL = {"encoder_layers": 1, "decoder_layers": 2, "heads": 3, "width": 15, "hidden": 7, "inputs": (11,), "outputs": 13}


@pytest.mark.parametrize("norm_first", [False, True], ids=["post_norm", "pre_norm"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transformer(dtype, norm_first):
    """Odd widths, unequal stacks, padding of either side; dropout is there and off in evaluation."""
    compare(Transformer(**SMALL, norm_first=norm_first, dropout=0.3), dtype)


@pytest.mark.parametrize(
    "settings",
    [
        {"tied": "none", "source_vocabulary": 17, "activation": "gelu"},
        {"tied": "output", "source_vocabulary": 8, "positions": "learned"},
        {"positions": "learned", "longest": 12, "norm_first": True, "hidden": 0},
    ],
    ids=["untied", "output", "learned"],
)
def test_vocabularies_and_positions(settings):
    """Two vocabularies, tables that are one or not, learned positions, the other activation."""
    compare(Transformer(**{**SMALL, "decoder_layers": 1} | settings), np.float64)


def test_the_base_model_has_torchs_parameters():
    """Vaswani et al. 2017, table 3: 65 million, with 37,000 tokens in one table."""
    model = Transformer(inputs=(64,), outputs=37000)
    params = jax.eval_shape(model.init, jax.random.key(0))[0]
    with torch.device("meta"):
        core = sum(p.numel() for p in torch.nn.Transformer(512, 8, 6, 6, 2048, batch_first=True).parameters())
    assert core == 44_140_544
    assert tree.size(params) == core + 37000 * 512


def test_it_starts_as_torch_does():
    """The same bound on the uniform draws of each kernel, biases of zero; tables of deviation 1 / sqrt(width)."""
    model = Transformer(inputs=(8,), outputs=2000, encoder_layers=1, decoder_layers=1, heads=2, width=64)
    torch.manual_seed(0)
    core = torch.nn.Transformer(64, 2, 1, 1, 256, batch_first=True).state_dict()
    params = model.init(jax.random.key(0))[0]
    turned = to_torch(names(model), params, {})
    for name, theirs in core.items():
        ours, theirs = turned[f"core.{name}"], theirs.numpy()
        assert ours.shape == theirs.shape
        if theirs.ndim == 2:
            assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.01), name
            assert ours.std() == pytest.approx(theirs.std(), rel=0.03), name
        elif "linear" not in name:  # torch's own draw of these biases is left as torch.nn.Linear has it
            np.testing.assert_array_equal(ours, theirs, name)
    assert float(jnp.std(params["target"]["table"])) == pytest.approx(1 / 8, rel=0.02)
