"""A wave one sample after another, as codes: what WaveNet learns (van den Oord et al. 2016)."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from functrain import losses
from functrain.audio import mu_law_decode
from functrain.config import ConfigError, Count, Part, Positive, configclass
from functrain.data.sounds import write_wav
from functrain.generation import Sampling, generate
from functrain.metrics import Mean, mean_of
from functrain.observe.spectrogram_figure import spectrogram_picture
from functrain.tasks.base import OneLoss


@configclass
class Waveform(OneLoss):
    """Each code of a wave from those before it and, if wanted, its class; bits a sample as a metric.

    A batch has codes x [n, samples], their `length` [n], and the class y [n]. The first code is told from silence.
    After training each class is drawn once: figures/NAME.wav, to be listened to, and the spectrograms of all.
    """

    kind: Literal["waveform"] = "waveform"
    conditioned: bool = True
    """Whether the model is told the class of a wave."""
    temperature: Positive = 1.0
    """What the logits are divided by where waves are drawn."""
    codes: Count = 0
    """How many codes there are; taken from the data."""
    rate: Count = 0
    """Samples a second; taken from the data."""
    classes: Count = 0
    """How many classes there are; taken from the data."""
    model: Part = None
    learner: Part = None

    def sized(self, dataset) -> "Waveform":
        """The task with the numbers of the data."""
        if not dataset.vocabulary or not dataset.found.get("rate") or not dataset.classes:
            raise ConfigError("task.kind: waveform needs sounds as codes (data.features.kind = mu_law)")
        found = {"codes": dataset.vocabulary, "rate": dataset.found["rate"]}
        return dataclasses.replace(self, **found, classes=dataset.classes if self.conditioned else 0)

    def outputs(self, dataset) -> int:
        """One logit a code."""
        return dataset.vocabulary

    def assemble(self, model, learner) -> "Waveform":
        """The task with its model, told of the classes."""
        if not all(hasattr(model, name) for name in ("classes", "remember")):
            raise ConfigError("model.kind: task.kind = waveform needs a model of waves (wavenet)")
        return super().assemble(dataclasses.replace(model, classes=self.classes), learner)

    def full_loss(self, params, state, batch, *, key, train):
        """`loss` of the logits of each code from those before it."""
        codes = batch["x"]
        before = jnp.pad(codes[:, :-1], ((0, 0), (1, 0)), constant_values=self._silence)
        label = batch["y"] if self.conditioned else None
        logits, state = self.model.apply(params, state, before, label, key=key, train=train)
        loss, metrics = self.loss(logits, batch, train=train)
        return loss, state, metrics

    def loss(self, outputs, batch, *, train):
        """Cross-entropy of logits [n, samples, codes] with the codes, in nats a sample."""
        codes, mask = batch["x"], losses.weighted(batch.get("mask"), batch.get("weight"))
        there = (jnp.arange(codes.shape[1]) < batch["length"][:, None]).astype(jnp.float32)
        mask = losses.weighted(there, mask)
        loss = losses.cross_entropy(outputs, codes, mask=mask)
        metrics = {"bits": Mean(loss.total / math.log(2), loss.count)}
        return loss, metrics if train else metrics | {"accuracy": mean_of(outputs.argmax(-1) == codes, mask)}

    def outputs_of(self, train_state, x) -> dict[str, Any]:
        """`codes` of new waves that the trained model draws, as many and as long as x, of the classes 0, 1, 2 ..."""
        return {"codes": self.sample(train_state, *x.shape, key=jax.random.key(0))}

    def sample(self, train_state, n: int, length: int, *, key: jax.Array) -> jax.Array:
        """Codes [n, length] of new waves that the trained model draws, of the classes 0, 1, 2 ... over and over."""

        def draw(params, state, batch, *, key):
            memory = self.model.remember(n) | ({"label": jnp.arange(n) % self.classes} if self.conditioned else {})
            begin = jnp.full((n, 1), self._silence)
            sampling = Sampling(temperature=self.temperature)
            advance = Partial(self.model.apply, params)
            return generate(advance, memory, begin, length=length, key=key, sampling=sampling)[0]

        weights = self.learner.weights(train_state.players["model"])
        return self.learner.precision(draw)(weights, train_state.state, {}, key=key)

    @property
    def _silence(self) -> int:
        return self.codes // 2

    examples_drawn = 1000  # so that a real one of each class is among them

    def drawn(self, train_state, batch) -> dict[str, Any]:
        """`codes` of one new wave of each class; of a model without classes, of one."""
        length = batch["x"].shape[1]
        return {"codes": self.sample(train_state, max(self.classes, 1), length, key=jax.random.key(0))}

    def draw(self, outputs, batch, folder: Path, names: tuple[str, ...]) -> list[Path]:
        """A wave of each class as NAME.wav, and their spectrograms in one picture, each above a real wave of it."""
        waves, x = np.asarray(mu_law_decode(outputs["codes"], levels=self.codes)), np.asarray(batch["x"])
        if self.conditioned:
            titles = [str(names[c]) if c < len(names) else str(c) for c in range(self.classes)]
            real = [next(iter(x[np.asarray(batch["y"]) == c]), None) for c in range(self.classes)]
        else:
            titles, real = ["wave"], [x[0]]
        paths = [folder / (re.sub(r"[^-.\w ]", "_", title) + ".wav") for title in titles]
        for path, wave in zip(paths, waves):
            write_wav(path, wave, self.rate)
        paths.append(folder / "spectrograms.png")
        spectrogram_picture({"drawn": list(waves), "real": real}, self.rate, titles, paths[-1])
        return paths

    def predict(self, outputs) -> dict[str, Any]:
        """`codes` [n, length] of waves that the model draws."""
        return outputs
