"""PyTorch: a loop as one would write it, eager, or with torch.compile and the fused optimizer."""

import os
from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional as F

from peers.given import Given, timed
from peers.torch_models import MODELS

torch.set_num_threads(len(os.sched_getaffinity(0)))


def loss_of(model, x, y):
    """The mean cross-entropy."""
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())


def optimizer_of(given: Given, model, fused: bool = False) -> torch.optim.Optimizer:
    """Adam or AdamW, by the config."""
    settings = given.config["optimizer"]
    common = {"lr": settings["peak_lr"], "betas": (settings["b1"], settings["b2"]), "eps": settings["epsilon"]}
    common["fused"] = fused or None
    if settings["kind"] == "adam":
        return torch.optim.Adam(model.parameters(), **common)
    return torch.optim.AdamW(model.parameters(), weight_decay=settings["weight_decay"], **common)


class Batches:
    """Tensors in memory; a step's batch is one look-up by index."""

    def __init__(self, given: Given):
        self.block, self.order = given.block, torch.from_numpy(given.order).long()
        self.data = {name: torch.from_numpy(array) for name, array in given.data.items()}
        self.normal = given.normal and tuple(map(torch.from_numpy, given.normal))
        self.span = torch.arange(given.block + 1)

    def take(self, at: int, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(x, y) of the steps from `at` on."""
        for i in range(at, at + steps):
            row = self.order[i % len(self.order)]
            if self.block:
                tokens = self.data["tokens"][row[:, None] + self.span].long()
                yield tokens[:, :-1], tokens[:, 1:]
            else:
                x = self.data["x"][row].float().div_(255)
                if self.normal is not None:
                    x.sub_(self.normal[0]).div_(self.normal[1])
                yield x, self.data["y"][row].long()


class Loop:
    """The loop."""

    def __init__(self, given: Given, compiled: bool):
        self.model, self.batches, self.at = MODELS[given.model["kind"]](given), Batches(given), 0
        self.optimizer = optimizer_of(given, self.model, fused=compiled)
        self.loss = torch.compile(loss_of) if compiled else loss_of

    def steps(self, n: int) -> float:
        """Train; the last step's loss."""
        for x, y in self.batches.take(self.at, n):
            self.optimizer.zero_grad()
            loss = self.loss(self.model, x, y)
            loss.backward()
            self.optimizer.step()
        self.at += n
        return loss.item()

    def after(self, n: int) -> float:
        """See `given`."""
        return self.steps(n + 1)

    def run(self, n: int) -> np.ndarray:
        """See `given`."""
        return timed(lambda: self.steps(n))[0]


def build(given: Given, name: str) -> Loop:
    """torch-eager or torch-compile."""
    return Loop(given, compiled=name == "torch-compile")
