"""nanoGPT's arithmetic in torch, for gpu.py: torch.compile, fused AdamW, autocast, flash attention; a JSON line.

The model, its optimizer and how batches are read are those of github.com/karpathy/nanoGPT in our own words: norms and
linear layers without biases, gelu, the head tied to the embedding; decay of matrices alone, the gradient clipped to 1;
tokens of a mapped file at random places, sent from pinned memory.
"""

import contextlib
import json
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


class Block(nn.Module):
    """Attention and feed-forward, each after a norm and beside a way past it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x):
        """[batch, length, width]."""
        b, t, d = x.shape
        q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(d, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Tokens and targets -> the mean cross-entropy."""

    def __init__(self, size: dict):
        super().__init__()
        width = size["width"]
        self.tokens, self.positions = nn.Embedding(size["vocabulary"], width), nn.Embedding(size["block"], width)
        self.blocks = nn.ModuleList(Block(width, size["heads"]) for _ in range(size["layers"]))
        self.norm = nn.LayerNorm(width, bias=False)

    def forward(self, x, y):
        """x, y [batch, length]."""
        h = self.tokens(x) + self.positions.weight[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        logits = F.linear(self.norm(h), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), y.reshape(-1))

    @torch.no_grad()
    def start_from(self, arrays) -> None:
        """functrain's parameters; its kernels are [inputs, outputs]."""
        for name, parameter in self.named_parameters():
            *path, layer, _ = name.split(".")
            path = [f"block{path[1]}"] if path else []
            if layer in ("qkv", "out", "up", "down"):
                path.append("attention" if layer in ("qkv", "out") else "feed_forward")
                parameter.copy_(torch.from_numpy(arrays["/".join(["params", *path, layer, "kernel"])].T.copy()))
            else:
                kind = "table" if layer in ("tokens", "positions") else "scale"
                parameter.copy_(torch.from_numpy(arrays["/".join(["params", *path, layer, kind])]))


def optimizer_of(model: nn.Module, settings: dict) -> torch.optim.AdamW:
    """AdamW; matrices decay, norms do not."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": settings["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    betas = (settings["b1"], settings["b2"])
    return torch.optim.AdamW(groups, lr=settings["peak_lr"], betas=betas, eps=settings["epsilon"], fused=CUDA)


def batches(settings: dict, first):
    """(x, y) on the device: the first ones that are given, then at random places of the file."""
    size, rng = settings["size"], np.random.default_rng(1)
    for x, y in first:
        yield torch.from_numpy(x).long().to(DEVICE), torch.from_numpy(y).long().to(DEVICE)
    span = np.arange(size["block"] + 1)
    while True:
        tokens = np.memmap(settings["tokens"], "<u2", "r")
        at = rng.integers(0, len(tokens) - size["block"], size["batch"])
        rows = torch.from_numpy(tokens[at[:, None] + span].astype(np.int64))
        rows = rows.pin_memory().to(DEVICE, non_blocking=True) if CUDA else rows
        yield rows[:, :-1], rows[:, 1:]


def matmul_flops() -> float:
    """FLOP/s of a large product in bfloat16, the best of several."""
    n = 8192 if CUDA else 512
    a, best = torch.ones(n, n, device=DEVICE, dtype=torch.bfloat16), float("inf")
    for _ in range(20 if CUDA else 3):
        wait()
        start = time.perf_counter()
        torch.mm(a, a)
        wait()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def wait() -> None:
    """Until the device has done what it was given."""
    if CUDA:
        torch.cuda.synchronize()


def measured(settings: dict) -> dict:
    """What gpu.py wants to know."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high" if CUDA else "highest")
    size, low = settings["size"], settings["precision"] == "bfloat16"
    model, first = GPT(size), []
    if settings["checked"]:
        with np.load(settings["start"]) as arrays:
            model.start_from(arrays)
            first = list(zip(arrays["x"], arrays["y"], strict=True))
    model.to(DEVICE)
    optimizer = optimizer_of(model, settings["optimizer"])
    loss_of = model if settings["eager"] else torch.compile(model)
    feed, autocast = batches(settings, first), lambda: torch.autocast(DEVICE, torch.bfloat16)

    def step():
        x, y = next(feed)
        with autocast() if low else contextlib.nullcontext():
            loss = loss_of(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["optimizer"]["clip_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    losses, seconds = [], 0.0
    for _ in range(max(settings["checked"], 1)):
        losses.append(step().item())
        seconds = seconds or time.time() - settings["began"]
    rates, steps = [], settings["steps"]
    for i in range(settings["windows"] + 1):
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wait()
        if i:  # the first warms up
            rates.append(steps * size["batch"] * size["block"] / (time.perf_counter() - start))
    return {
        "precision": settings["precision"],
        "device": torch.cuda.get_device_name() if CUDA else "cpu",
        "versions": {"torch": torch.__version__},
        "parameters": sum(p.numel() for p in model.parameters()) - model.positions.weight.numel(),
        "losses": losses,
        "tokens_per_s": rates,
        "first_step_s": seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if CUDA else 0,
        "memory_by": "allocator" if CUDA else "unknown",
        "matmul_flops": matmul_flops(),
        "notes": {"compiled": not settings["eager"]},
    }


if __name__ == "__main__":
    print(json.dumps(measured(json.loads(sys.argv[1]))))
