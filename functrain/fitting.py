"""`functrain.fit`: the trainer for one's own pure functions and arrays, in a few lines of Python."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from functrain.building import build
from functrain.built import compile
from functrain.data import Arrays, dataset
from functrain.experiment import Experiment
from functrain.metrics import mean_of
from functrain.models import Pure
from functrain.observe import Observe
from functrain.optim import AdamW
from functrain.precision import Float32
from functrain.tasks import Classification, OneLoss, Regression
from functrain.train.checkpoint import InMemory, from_arrays
from functrain.train.evaluate import Evaluate
from functrain.train.loop import Best, Train, run
from functrain.trained import Trained


@dataclasses.dataclass(frozen=True)
class UserLoss(OneLoss):
    """A task from a function (outputs, y) -> losses [batch, ...]; their masked mean is the loss."""

    function: Callable[[Any, Any], Any]
    kind: str = "function"
    model: Any = None
    learner: Any = None

    def outputs(self, dataset) -> None:
        """As many as the function takes: nobody else knows."""

    def loss(self, outputs, batch, *, train):
        """The function's mean over the batch."""
        return mean_of(self.function(outputs, batch.get("y")), batch.get("mask")), {}

    def predict(self, outputs) -> dict[str, Any]:
        """The outputs themselves."""
        return {"outputs": outputs}


@dataclasses.dataclass(frozen=True)
class Fitted(Trained):
    """A trained model (see Trained), with its history: the lines that a run would write to metrics.jsonl."""

    history: tuple[dict[str, Any], ...] = ()


class _Memory:
    """A sink that remembers."""

    def __init__(self):
        self.lines: list[dict[str, Any]] = []

    def scalars(self, step, split, values):
        self.lines.append({"step": step, "split": split} | values)

    def pictures(self, step, paths):
        """None are kept."""

    def flush(self):
        """Nothing is held back."""

    def close(self):
        """Nothing to close."""


def fit(
    init: Callable[[jax.Array], Any],
    apply: Callable[..., Any],
    arrays: Mapping[str, Any],
    *,
    validation: Mapping[str, Any] | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    optimizer: Any = None,
    precision: Any = None,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int = 32,
    accumulate: int = 1,
    evaluate: Evaluate | None = None,
    seed: int = 0,
) -> Fitted:
    """Train `apply` on arrays: the loop, step and guard of `functrain train`, without a run directory.

    Args:
      init: key -> params, any pytree.
      apply: (params, x) -> outputs; may take `key` and `train` by keyword.
      arrays: {"x": [n, ...], "y": [n, ...]} and, if some count and others do not, "mask" [n].
      validation: like `arrays`; where given, what is returned is the best step by it.
      loss: (outputs, y) -> losses [batch, ...]; None is cross-entropy for integer labels, squared error for numbers.
      optimizer: a config such as functrain.optim.SGD(peak_lr=0.1); None is AdamW().
      precision: a config such as functrain.precision.BFloat16(); None is float32.
      steps, epochs: how long; one of them.
      batch_size, accumulate, seed: as in a config.
      evaluate: when, and what to choose by; None is once an epoch, by the loss.

    Raises:
      ConfigError: the arrays or settings do not fit one another.

    >>> import jax.numpy as jnp
    >>> x = jnp.linspace(-1, 1, 64)[:, None]
    >>> model = fit(lambda key: {"w": jnp.zeros((1, 1)), "b": jnp.zeros(1)},
    ...             lambda params, x: x @ params["w"] + params["b"],
    ...             {"x": x, "y": 3 * x + 1}, optimizer=AdamW(peak_lr=0.1, weight_decay=0.0), steps=200)
    >>> model(x[:1]).round(1).tolist()
    [[-2.0]]
    """
    splits = {"train": arrays} | ({"validation": validation} if validation else {})
    examples = dataset("arrays", splits)
    if loss is not None:
        task: Any = UserLoss(loss)
    else:
        task = Classification() if examples.classes else Regression()
    config = Experiment(
        task=task,
        model=Pure(init, apply),  # pyright: ignore[reportArgumentType]
        data=Arrays(examples=examples, batch_size=batch_size),  # pyright: ignore[reportArgumentType]
        optimizer=optimizer or AdamW(),
        precision=precision or Float32(),
        train=Train(steps=steps, epochs=epochs, seed=seed, accumulate=accumulate),
        evaluate=evaluate or Evaluate(),
        observe=Observe(tensorboard=False, figures=False),
    )
    built = build(config)
    compiled = compile(built)
    memory = _Memory()
    store = InMemory(built.monitor, built.config.evaluate.mode)
    best = Best(built.monitor, built.config.evaluate.mode)
    outcome = run(
        compiled.program,
        compiled.train_state,
        compiled.metrics,
        built.plan,
        best=best,
        sinks=[memory],
        store=store if validation else None,
    )
    step, train_state = outcome.step, outcome.train_state
    if store.best is not None:
        payload = {"state": train_state, "metrics": compiled.program.fresh()}
        step, train_state = store.best[0], from_arrays(store.best[1], payload)["state"]
    outputs = jax.jit(lambda ts, x: built.task.outputs_of(ts, x))
    return Fitted(built.config, built.task, step, train_state, lambda x: outputs(train_state, x), tuple(memory.lines))
