"""Lightning, as quiet as it goes: no logger, no checkpoints, no bar; the batches of the PyTorch loop."""

import logging
import warnings

import lightning as L
import numpy as np

from peers.given import Given, now
from peers.torch_models import MODELS
from peers.torch_peer import Batches, loss_of, optimizer_of

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Module(L.LightningModule):
    """The model and its step."""

    def __init__(self, given: Given):
        super().__init__()
        self.given, self.model = given, MODELS[given.model["kind"]](given)

    def training_step(self, batch, _):
        """The loss; the last one is kept."""
        loss = loss_of(self.model, *batch)
        self.last = loss.detach()
        return loss

    def configure_optimizers(self):
        """The work's."""
        return optimizer_of(self.given, self.model)


class Clock(L.Callback):
    """What training takes, without what Trainer does before and after."""

    def on_train_start(self, *_):
        """Begin."""
        self.began = now()

    def on_train_end(self, *_):
        """End."""
        self.spent = now() - self.began


class Taken:
    """So many batches, as Lightning takes data."""

    def __init__(self, batches: Batches, at: int, steps: int):
        self.batches, self.at, self.steps = batches, at, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        return self.batches.take(self.at, self.steps)


class Fit:
    """A call of Trainer.fit a round."""

    def __init__(self, given: Given):
        warnings.filterwarnings("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        self.module, self.batches, self.at = Module(given), Batches(given), 0

    def after(self, n: int) -> float:
        """See `given`."""
        self.run(n + 1)
        return self.module.last.item()

    def run(self, n: int) -> np.ndarray:
        """See `given`."""
        clock = Clock()
        trainer = L.Trainer(max_epochs=1, accelerator="cpu", callbacks=[clock], **QUIET)
        trainer.fit(self.module, Taken(self.batches, self.at, n))
        self.at += n
        return clock.spent


def build(given: Given, name: str) -> Fit:
    """The one there is."""
    return Fit(given)
