"""Robust classification: right on the examples, and on what an attack makes of them."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from functrain import losses, tree
from functrain.autodiff import attacks
from functrain.config import Count, Fraction, NonNegative, Part, Positive, Size, configclass, off
from functrain.metrics import Mean, mean_of
from functrain.tasks.base import OneLoss
from functrain.tasks.classification import Classification

_SMALL_START = 0.001
"""Deviation of the noise from which TRADES sets out: at the example itself its divergence has no slope."""


@configclass
class Robust(OneLoss):
    """One class for each example, learned against an attack on the inputs; accuracy with and without one as metrics.

    adversarial: cross-entropy at the points that PGD finds (Madry et al. 2018, eq. 2.1).
    fast: the same with one step of FGSM from a random start (Wong, Rice and Kolter 2020, algorithm 3).
    trades: cross-entropy, plus beta KL(p(x) || p(x')) at the x' that PGD finds to make it large (Zhang et al.
    2019, eq. 5, their 1/lambda as beta).
    none: cross-entropy, to see what an attack does to it.

    The inputs must lie in 0..1, where the attack stays: a source's `normalise` must be none. An attack sees the model
    in evaluation mode (batch norm by the statistics so far, no dropout); the pass that is learned from is in training
    mode and updates them. In trades that is first the examples, then the points near them, each by statistics of their
    own. Evaluation's `loss` and `accuracy` are of the examples, `robust_loss` and `robust_accuracy` of PGD's points. In
    training, `accuracy` is of what the cross-entropy is taken at.
    """

    kind: Literal["robust"] = "robust"
    defence: Literal["none", "adversarial", "trades", "fast"] = "adversarial"
    """What is learned from."""
    norm: attacks.Norm = "inf"
    """How far is measured: the largest change of a pixel (inf), or the Euclidean length of an image's change (l2)."""
    epsilon: NonNegative = 0.031
    """How far an attack may go, of pixels in 0..1."""
    steps: Size = 10
    """Steps of the attack in training; fast takes one."""
    step_size: NonNegative = 0.0
    """Length of each; 0 is 2.5 epsilon / steps, for fast 1.25 epsilon."""
    random_start: bool = True
    """Whether the attack in training begins at a random point near the example; trades always does."""
    ramp: Count = 0
    """Updates over which epsilon and step_size rise from nothing in training; 0 is none."""
    beta: Positive = 6.0
    """What the divergence weighs in trades."""
    label_smoothing: Fraction = 0.0
    """Share of each target spread evenly over the classes, in training; 0 is off."""
    evaluate_steps: Count = 40
    """Steps of PGD in evaluation; 0 attacks nothing there."""
    evaluate_step_size: NonNegative = 0.0
    """Length of each; 0 is 2.5 epsilon / evaluate_steps."""
    restarts: Size = 1
    """Random starts of the attack in evaluation; the worst of each example counts."""
    unroll: Count = 10
    """Steps of an attack up to which its program is written out; above it is a loop, in which a CPU is slower at
    convolutions, and which takes less time to compile."""
    model: Part = None
    learner: Part = None

    in_units = True  # whether the inputs must be as the source scales them, not normalised

    @property
    def _plain(self) -> Classification:
        return Classification(label_smoothing=self.label_smoothing)

    def outputs(self, dataset) -> int:
        """One logit a class."""
        return self._plain.outputs(dataset)

    def predict(self, outputs) -> dict[str, Any]:
        """`class` [n] and `probability` [n] of it, from logits [n, classes]."""
        return self._plain.predict(outputs)

    def update(self, train_state, batch, *, key):
        """One step of the learner, at the epsilon of this step."""
        task = self
        if self.ramp:
            share = jnp.minimum((train_state.step + 1) / self.ramp, 1)
            # A step of 0.0 is automatic, and stays so: it follows epsilon.
            step_size = self.step_size if off(self.step_size) else self.step_size * share
            task = dataclasses.replace(self, epsilon=self.epsilon * share, step_size=step_size)
        return OneLoss.update(task, train_state, batch, key=key)

    def full_loss(self, params, state, batch, *, key, train):
        """The defence's loss in training; in evaluation cross-entropy, and metrics with and without an attack."""
        if not train:
            return self._evaluated(params, state, batch, key)
        if self.defence == "none":
            return self._learned(params, state, batch, key)
        attack_key, key = jax.random.split(key)
        if self.defence == "trades":
            return self._trades(params, state, batch, attack_key, key)
        x = self._attacked(self._cross_entropy_near(params, state, batch), batch["x"], attack_key)
        return self._learned(params, state, batch | {"x": x}, key)

    def _attacked(self, loss, x, key):
        """The point near each example that `adversarial` and `fast` learn from."""
        if self.defence == "adversarial":
            length = self._length(self.step_size, 2.5 / self.steps)
            start = {"key": key, "random_start": self.random_start}
            return attacks.pgd(loss, x, step_size=length, steps=self.steps, **start, **self._within)
        start = x
        if self.random_start:
            # Not cut to pixels, as in the paper: one step would take nearly every pixel that was cut as far as it may
            # go, and what is learned from points so much alike withstands no other attack.
            free = {"low": -jnp.inf, "high": jnp.inf}
            start = attacks.random_point(x, key=key, epsilon=self.epsilon, norm=self.norm, **free)
        return attacks.ascend(
            loss, x, start=start, step_size=self._length(self.step_size, 1.25), steps=1, **self._within
        )

    @property
    def _within(self) -> dict[str, Any]:
        return {"epsilon": self.epsilon, "norm": self.norm, "unroll": self.unroll}

    def _length(self, given, share):
        """Of a step: as given, or a share of epsilon."""
        return self.epsilon * share if off(given) else given

    def _learned(self, params, state, batch, key, train=True):
        """Cross-entropy at a batch's x, with the model as it is learned."""
        logits, state = self.model.apply(params, state, batch["x"], key=key, train=train)
        means, metrics = self._plain.loss(tree.wide(logits), batch, train=train)
        return means, state, metrics

    def _near(self, params, state):
        """x -> logits as an attack sees them."""
        params, state = lax.stop_gradient((params, state))
        return lambda x: tree.wide(self.model.apply(params, state, x, train=False)[0])

    def _cross_entropy_near(self, params, state, batch):
        logits = self._near(params, state)
        labels = batch["y"][:, None]
        return lambda x: -jnp.take_along_axis(jax.nn.log_softmax(logits(x)), labels, -1)[:, 0]

    def _trades(self, params, state, batch, attack_key, key):
        logits, x = self._near(params, state), batch["x"]
        target = jax.nn.log_softmax(logits(x))

        def divergence(x):
            return (jnp.exp(target) * (target - jax.nn.log_softmax(logits(x)))).sum(-1)

        noise = _SMALL_START * jax.random.normal(attack_key, x.shape, tree.wide(x).dtype)
        step_size = self._length(self.step_size, 2.5 / self.steps)
        start = x + noise.astype(x.dtype)
        near = attacks.ascend(divergence, x, start=start, step_size=step_size, steps=self.steps, **self._within)

        a, b = jax.random.split(key)
        logits, state = self.model.apply(params, state, x, key=a, train=True)
        there, state = self.model.apply(params, state, near, key=b, train=True)
        loss, metrics = self._plain.loss(tree.wide(logits), batch, train=True)
        weights = losses.weighted(batch.get("mask"), batch.get("weight"))
        apart = losses.kl_divergence(there, logits, mask=weights)
        return Mean(loss.total + self.beta * apart.total, loss.count), state, metrics

    def _evaluated(self, params, state, batch, key):
        means, state, metrics = self._learned(params, state, batch, key, train=False)
        if self.evaluate_steps:
            x = attacks.pgd(
                self._cross_entropy_near(params, state, batch),
                batch["x"],
                key=key,
                step_size=self._length(self.evaluate_step_size, 2.5 / self.evaluate_steps),
                steps=self.evaluate_steps,
                restarts=self.restarts,
                **self._within,
            )
            logits = self._near(params, state)(x)
            weights = losses.weighted(batch.get("mask"), batch.get("weight"))
            metrics["robust_loss"] = losses.cross_entropy(logits, batch["y"], mask=weights)
            metrics["robust_accuracy"] = mean_of(logits.argmax(-1) == batch["y"], batch.get("mask"))
        return means, state, metrics
