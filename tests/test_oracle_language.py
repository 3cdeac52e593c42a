"""The character model of configs/shakespeare_gpt_cpu.toml trains as a twin in PyTorch does, loss by loss."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

from functrain import tree
from functrain.building import build
from functrain.built import first_state
from functrain.config import parse, read
from functrain.experiment import Experiment
from functrain.metrics import read as metrics_of
from functrain.metrics import scalars
from functrain.train import step

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'functrain[oracle]'")
F = torch.nn.functional

pytestmark = pytest.mark.oracle

CONFIG = Path(__file__).parent.parent / "configs" / "shakespeare_gpt_cpu.toml"
STEPS = 200


@pytest.fixture(scope="module")
def built():
    """The shipped config on the real text, for 200 steps; skipped where the text is not."""
    folder = os.environ.get("FUNCTRAIN_DATA", "")
    if not (Path(folder) / "tinyshakespeare" / "input.txt").is_file():
        pytest.skip("tiny Shakespeare is not where FUNCTRAIN_DATA points: functrain data get tiny_shakespeare")
    return build(parse(Experiment, read(CONFIG, [f"train.steps={STEPS}"])))


def forward(p, tokens, heads):
    """A GPT without biases: pre-norm blocks, learned positions, tied output."""
    n, length, width = *tokens.shape, p["tokens/table"].shape[1]

    def norm(name, h):
        return F.layer_norm(h, (width,), p[f"{name}/scale"])

    h = p["tokens/table"][tokens] + p["positions/table"][:length]
    for i in range(sum(name.endswith("qkv/kernel") for name in p)):
        at = f"block{i}"
        q, k, v = (norm(f"{at}/norm1", h) @ p[f"{at}/attention/qkv/kernel"]).split(width, -1)
        q, k, v = (t.view(n, length, heads, -1).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, length, width)
        h = h + y @ p[f"{at}/attention/out/kernel"]
        up = F.gelu(norm(f"{at}/norm2", h) @ p[f"{at}/feed_forward/up/kernel"])
        h = h + up @ p[f"{at}/feed_forward/down/kernel"]
    return norm("norm", h) @ p["tokens/table"].T


def test_every_loss_of_200_steps(built):
    """From equal weights, on equal batches: AdamW with decay of matrices alone, clipping, warmup and cosine."""
    train_state, feed = first_state(built), built.feeds["train"]
    optimizer = built.config.optimizer
    p = {
        name: torch.tensor(np.asarray(a), requires_grad=True)
        for name, a in tree.by_path(train_state.players["model"].params).items()
    }
    decayed = [a for a in p.values() if a.ndim >= 2]
    others = [a for a in p.values() if a.ndim < 2]
    theirs = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": optimizer.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=1.0,
        betas=(optimizer.b1, optimizer.b2),
        eps=optimizer.epsilon,
    )
    rate = optimizer.rate
    ours = jax.jit(step.make_step(built.task), donate_argnums=0)
    batch_of = jax.jit(feed.batch)
    window, losses = feed.window(0, 1), []
    for i in range(STEPS):
        batch = batch_of(window, np.int32(i))
        train_state, metrics = ours(train_state, batch)
        x, y = (torch.tensor(np.asarray(batch[name])).long() for name in ("x", "y"))
        loss = F.cross_entropy(forward(p, x, built.config.model.heads).flatten(0, 1), y.flatten())
        losses.append((scalars(metrics_of(metrics))["loss"], loss.item()))
        for group in theirs.param_groups:
            group["lr"] = float(rate(i))
        theirs.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(p.values(), optimizer.clip_norm)
        theirs.step()
    a, b = np.array(losses).T
    assert a[0] > 4
    assert a[-10:].mean() < 2.6  # it learned
    assert np.abs(a - b).max() <= 2e-3, (np.abs(a - b).argmax(), np.abs(a - b).max())
