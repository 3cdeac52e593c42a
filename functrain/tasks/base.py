"""What a task is.

A task is a machine over the train state (see `functrain.train.state`):

    learners                                -> {player's name: Learner, or None where nobody descends}
    init(key)                               -> ({player's name: params}, state)
    update(train_state, batch, *, key)      -> (train_state, metrics)
    evaluate(train_state, batch, *, key)    -> metrics

Most tasks are one model, one learner and one loss: `OneLoss`. A GAN calls two learners in its `update`, alternating
least squares none; the loop cannot tell them apart. Metrics are accumulators, by name.

The config of a task has two methods more, by which an experiment puts it together, and may have six others:

    outputs(dataset)           -> how many outputs its model needs, or None where the task owns its models
    assemble(model, learner)   -> the task; `learner(name)` gives the learner that the config wants for a player
    places(dataset)            -> at how many places of an example the model has outputs, where that is not one
    sized(dataset)             -> the config with what the data says (how many classes), where the task keeps that
    examples(dataset, split)   -> arrays whose rows are evaluated, where those are not the split's own
    whole(dataset)             -> all of the training part as arrays, where each step takes all of it
    draw(outputs, batch, folder, names) -> paths of pictures of what the model makes of `examples_drawn` examples (16);
                                  outputs are those of `drawn(train_state, batch)`, or without it of `outputs_of`
    averaged(outputs)          -> the outputs of several members of a run as those of one, for an ensemble
    readable(row)              -> what `functrain predict` prints of one example's prediction, in place of its numbers
"""

import dataclasses
from typing import Any

import jax

from functrain import tree
from functrain.metrics import Total
from functrain.optim import Scored


class OneLoss:
    """A model, a learner and a loss. A subclass gives

    loss(outputs, batch, *, train) -> (Mean or a dict of Means, metrics)

    or, where that is too narrow, overrides `full_loss`. `beside` names arrays of the batch that, where it has them, go
    to the model by name beside x. `likelihood` says of which distribution the loss is the negative logarithm, if any.
    """

    model: Any
    learner: Any
    beside = ()

    @property
    def likelihood(self) -> str:
        """The distribution of the targets, given outputs, of which the loss is the negative logarithm; "" for none."""
        return ""

    @property
    def learners(self) -> dict[str, Any]:
        """One player, called model."""
        return {"model": self.learner}

    def assemble(self, model: Any, learner: Any) -> Any:
        """The task with its model and learner."""
        return dataclasses.replace(self, model=model, learner=learner("model"))  # pyright: ignore

    def init(self, key: jax.Array) -> tuple[dict[str, Any], Any]:
        """The model's parameters and state."""
        params, state = self.model.init(key)
        return {"model": params}, state

    def loss(self, outputs: Any, batch: Any, *, train: bool) -> tuple[Any, dict[str, Any]]:
        """The loss of the model's outputs, with the task's metrics."""
        raise TypeError(f"{type(self).__name__} has no loss")

    def scored(self, *, train: bool) -> Scored:
        """The model applied to a batch's x, and `loss` of what it gives."""

        def predict(params, state, batch, *, key):
            outputs, state = self.model.apply(params, state, batch["x"], **beside(self, batch), key=key, train=train)
            return jax.tree.map(_widen, outputs), state

        def score(outputs, batch):
            with jax.named_scope("loss"):
                return self.loss(outputs, batch, train=train)

        return Scored(predict, score, self.likelihood)

    def full_loss(self, params, state, batch, *, key, train):
        """The loss by the parameters: what the learner and evaluation call."""
        return self.scored(train=train)(params, state, batch, key=key)

    def update(self, train_state: Any, batch: Any, *, key: jax.Array) -> tuple[Any, dict[str, Any]]:
        """One step of the learner on the loss."""

        def loss(params, state, batch, *, key):
            return self.full_loss(params, state, batch, key=key, train=True)

        if type(self).full_loss is OneLoss.full_loss:  # no more is asked of the model than outputs
            loss = self.scored(train=True)
        player, state, metrics = self.learner.update(
            loss, train_state.players["model"], train_state.state, batch, key=key
        )
        return train_state.replace(players={"model": player}, state=state), metrics

    def evaluate(self, train_state: Any, batch: Any, *, key: jax.Array) -> dict[str, Any]:
        """Loss and metrics of the weights that evaluation uses, in the precision of training."""

        def loss(params, state, batch, *, key):
            return self.full_loss(params, state, batch, key=key, train=False)

        weights = self.learner.weights(train_state.players["model"])
        means, _, metrics = self.learner.precision(loss)(weights, train_state.state, batch, key=key)
        if not isinstance(means, dict):
            return metrics | {"loss": means}
        return metrics | means | {"loss": Total(tuple(means.values()))}

    def outputs_of(self, train_state: Any, x: Any, **beside: Any) -> Any:
        """The trained model's outputs for inputs x [n, ...] and what goes with them, in at least float32."""

        def apply(params, state, batch, *, key):
            return self.model.apply(params, state, batch["x"], **batch["beside"], key=key, train=False)[0]

        weights = self.learner.weights(train_state.players["model"])
        outputs = self.learner.precision(apply)(weights, train_state.state, {"x": x, "beside": beside}, key=None)
        return jax.tree.map(_widen, outputs)

    def answers(self, train_state: Any, batch: Any) -> Any:
        """`outputs_of` for a batch."""
        return self.outputs_of(train_state, batch["x"], **beside(self, batch))


def beside(task: Any, batch: Any) -> dict[str, Any]:
    """What of a batch goes to the task's model by name, beside x; where a learner says where rows stand, that too."""
    named = {name: batch[name] for name in getattr(task, "beside", ()) if name in batch}
    return named | ({"rows": batch["rows"]} if isinstance(batch.get("rows"), dict) else {})


def of_player(name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of one player's learner by names of its own: generator_loss, gradient_norm/generator/conv0/kernel."""
    named = {}
    for metric, value in metrics.items():
        what, slash, path = metric.partition("/")
        named[f"{what}/{name}/{path}" if slash else f"{name}_{what}"] = value
    return named


def _widen(x):
    return tree.wide(x) if tree.is_float(x) else x
