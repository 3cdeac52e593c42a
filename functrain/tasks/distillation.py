"""A student learns from a teacher's answers beside the labels (Hinton, Vinyals, Dean 2015)."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from functrain import losses, tree
from functrain.config import ConfigError, NonNegative, Part, Positive, Share, configclass, off
from functrain.layers import linear
from functrain.metrics import mean_of
from functrain.tasks.base import OneLoss
from functrain.tasks.classification import Classification
from functrain.tasks.teacher import Teacher

_OWN = ("teacher",)


@configclass
class Distillation(Classification):
    """Classification with a trained model of the same classes as teacher:

        hard      (1 - soft) times the loss of the labels
        soft      soft T^2 KL(softmax(teacher / T) || softmax(student / T))
        features  matching times the mean of (student's features W + b - teacher's)^2, W and b learned along

    (Hinton et al. 2015, section 2; Romero et al. 2015, eq. 3, with the features that the last layer is given). The
    teacher is asked in evaluation mode about the very inputs that the student sees, augmented as they are. Evaluation
    is that of classification, with `teacher_accuracy` and `agreement`, how often both choose the same class.
    """

    kind: Literal["distillation"] = "distillation"  # pyright: ignore[reportIncompatibleVariableOverride]
    teacher: Teacher
    """The run of the teacher."""
    temperature: Positive = 4.0
    """T: how far both distributions are evened out before they are compared."""
    soft: Share = 0.7
    """What the teacher's answers weigh; the labels weigh 1 less this."""
    matching: NonNegative = 0.0
    """What matching the teacher's features weighs; 0 is off."""
    model: Part = None
    learner: Part = None

    constant = _OWN

    def assemble(self, model: Any, learner: Any) -> "Distillation":
        """The task with its student."""
        if not off(self.matching):
            self.teacher.check_features("task.teacher.run")
            if not hasattr(model, "features"):
                raise ConfigError("task.matching: this model gives no features; lenet, cnn, mlp and others do")
        return super().assemble(model, learner)

    def init(self, key: jax.Array) -> tuple[dict[str, Any], Any]:
        """The student's parameters and state; beside them `regressor`, and `teacher` in the state."""
        student_key, teacher_key, key = jax.random.split(key, 3)
        params, state = self.model.init(student_key)
        held = self.teacher.init(teacher_key)
        if not off(self.matching):
            x = jax.ShapeDtypeStruct((1, *self.model.inputs), jnp.float32)
            mine = jax.eval_shape(lambda x: self.model.features(params, state, x)[0], x)
            theirs = jax.eval_shape(lambda x: self.teacher.features(held, x), x)
            params = params | {"regressor": linear.init(key, mine.shape[-1], theirs.shape[-1])}
        return {"model": params}, state | {"teacher": held}

    def full_loss(self, params, state, batch, *, key, train):
        """The parts as a dict of means; in evaluation the loss of the labels alone."""
        own = {name: part for name, part in state.items() if name not in _OWN}
        held, x, mask = state["teacher"], batch["x"], batch.get("mask")
        outputs, new = self.model.apply(params, own, x, key=key, train=train)
        logits, answers = tree.wide(outputs), self.teacher.apply(held, x)
        if logits.shape != answers.shape:
            raise ConfigError(
                f"task.teacher.run: its outputs are {list(answers.shape[1:])}; expected {list(logits.shape[1:])}"
            )
        hard, metrics = self.loss(logits, batch, train=train)
        if not train:
            metrics["teacher_accuracy"] = mean_of(answers.argmax(-1) == batch["y"], mask)
            metrics["agreement"] = mean_of(answers.argmax(-1) == logits.argmax(-1), mask)
            return hard, state | new, metrics
        weights = losses.weighted(mask, batch.get("weight"))
        soft = losses.kl_divergence(logits / self.temperature, answers / self.temperature, mask=weights)
        means = {"hard": hard.times(1 - self.soft), "soft": soft.times(self.soft * self.temperature**2)}
        if not off(self.matching):
            mine, _ = self.model.features(params, own, x, key=key, train=train)
            theirs = self.teacher.features(held, x)
            apart = losses.squared_error(tree.wide(linear.apply(params["regressor"], mine)), theirs, mask=weights)
            means["features"] = apart.times(self.matching)
        return means, state | new, metrics

    def outputs_of(self, train_state: Any, x: Any, **beside: Any) -> Any:
        """The student's logits."""
        own = {name: part for name, part in train_state.state.items() if name not in _OWN}
        return OneLoss.outputs_of(self, train_state.replace(state=own), x, **beside)
