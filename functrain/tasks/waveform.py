"""A wave one sample after another, as codes: what WaveNet learns (van den Oord et al. 2016)."""

import dataclasses
import math
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
        n, length = x.shape

        def draw(params, state, batch, *, key):
            memory = self.model.remember(n) | ({"label": jnp.arange(n) % self.classes} if self.conditioned else {})
            begin = jnp.full((n, 1), self._silence)
            sampling = Sampling(temperature=self.temperature)
            advance = Partial(self.model.apply, params)
            return generate(advance, memory, begin, length=length, key=jax.random.key(0), sampling=sampling)[0]

        weights = self.learner.weights(train_state.players["model"])
        return {"codes": self.learner.precision(draw)(weights, train_state.state, {}, key=None)}

    @property
    def _silence(self) -> int:
        return self.codes // 2

    def draw(self, outputs, batch, folder: Path, names: tuple[str, ...]) -> list[Path]:
        """A wave of each class as NAME.wav, and their spectrograms in one picture, beside those of real waves."""
        folder.mkdir(parents=True, exist_ok=True)
        waves = np.asarray(mu_law_decode(outputs["codes"], levels=self.codes))
        paths = []
        for i, found in enumerate(waves[: max(self.classes, 1)]):
            paths.append(folder / f"{names[i] if i < len(names) else i}.wav")
            write_wav(paths[-1], found, self.rate)
        y = np.asarray(batch["y"])
        real = [next(iter(np.asarray(batch["x"])[y == c]), None) for c in range(max(self.classes, 1))]
        rows = {"drawn": list(waves[: len(real)]), "real": real}
        paths.append(folder / "spectrograms.png")
        spectrogram_picture(rows, self.rate, names, paths[-1])
        return paths

    def predict(self, outputs) -> dict[str, Any]:
        """`codes` [n, length] of waves that the model draws."""
        return outputs
