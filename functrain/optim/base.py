"""What a learner asks of an optimizer, whatever its kind.

An optimizer is a config that builds an optax pair. Its update is given gradients, the parameters and, by name, what
optax's own line searches take (`value`, `grad`, `value_fn`), the `objective` itself and a `key`: so a stage may ask the
loss for more than one gradient, as second-order methods do, or for values alone (see `functrain.optim.objective`).
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import optax

from functrain import tree
from functrain.config import ConfigError, configclass

S = TypeVar("S")


def matches(patterns: Iterable[str], path: str) -> bool:
    """Whether any of the patterns is found in the path."""
    return any(re.search(pattern, path) for pattern in patterns)


def take(params: Any, chosen: Any) -> Any:
    """The chosen parameters, by a tree of booleans; the others leave an `optax.MaskedNode`, which holds nothing.

    >>> take({"a": 1.0, "b": 2.0}, {"a": False, "b": True})
    {'a': MaskedNode(), 'b': 2.0}
    """
    return jax.tree.map(lambda p, c: p if c else optax.MaskedNode(), params, chosen)


def put(taken: Any, params: Any) -> Any:
    """All the parameters, with those that were taken (see `take`) in their places.

    >>> put({"a": optax.MaskedNode(), "b": 3.0}, {"a": 1.0, "b": 2.0})
    {'a': 1.0, 'b': 3.0}
    """
    empty = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(lambda t, p: p if empty(t) else t, taken, params, is_leaf=empty)


def stage(init: Callable[..., Any], update: Callable[..., Any]) -> optax.GradientTransformationExtraArgs:
    """A stage of an update that is called with what it asks for by name: `value`, `objective`, `key` and the like."""
    return optax.GradientTransformationExtraArgs(init, update)


@configclass
class Optimizer(ABC):
    """The part that all optimizers share: parameters that never change."""

    freeze: tuple[str, ...] = ()
    """Patterns of the parameters that never change."""

    by_gradient = True  # whether it is given gradients; else zeros, and it asks the objective for values
    sparse = ()  # patterns of the tables of which a step touches only the rows that its batch reads
    weight_decay = 0.0

    @abstractmethod
    def stages(self) -> optax.GradientTransformation:
        """What makes updates of the gradients of the trained parameters."""

    def build(self) -> optax.GradientTransformationExtraArgs:
        """`stages` for the trained parameters; the frozen ones have no state and stay as they are."""
        if not self._freezes:
            return optax.with_extra_args_support(self.stages())
        frozen = optax.masked(optax.set_to_zero(), lambda params: tree.map_by_path(lambda p, _: self._still(p), params))
        return optax.chain(optax.masked(self.stages(), self.trainable), frozen)

    def sized(self, steps: int) -> Any:
        """The optimizer with the run's length known."""
        del steps
        return self

    def patterns(self) -> dict[str, tuple[str, ...]]:
        """Key -> patterns, each of which must match a parameter."""
        return {"freeze": self.freeze}

    def check(self, params: Any, section: str = "optimizer") -> None:
        """Raises a ConfigError where a pattern matches no parameter, or nothing is left to train."""
        for key, patterns in self.patterns().items():
            try:
                tree.select(patterns, params)
            except ValueError as error:
                raise ConfigError(f"{section}.{key}: {error}") from None
        if all(self._still(path) for path in tree.by_path(params)) and self._freezes:
            raise ConfigError(f"{section}: every parameter is frozen; nothing is left to train")

    def rate(self, count: Any) -> Any:
        """The learning rate at update `count`, by the schedule; None where there is no such thing."""
        del count

    def current_rate(self, optimizer_state: Any) -> Any:
        """The learning rate that the next update will use; None where there is no such thing."""
        del optimizer_state

    def notes(self, optimizer_state: Any) -> dict[str, Any]:
        """Numbers of its own that a step logs, by name."""
        del optimizer_state
        return {}

    def weights(self, optimizer_state: Any, params: Any) -> Any:
        """The parameters that evaluation uses."""
        del optimizer_state
        return params

    def decays(self, params: Any) -> Any:
        """A tree of booleans: which parameters decay."""
        return jax.tree.map(lambda _: False, params)

    def trainable(self, params: Any) -> Any:
        """A tree of booleans, False where a parameter is frozen; None where none is."""
        return tree.map_by_path(lambda path, _: not self._still(path), params) if self._freezes else None

    def trained_size(self, params: Any) -> int:
        """How many numbers are trained."""
        return sum(p.size for path, p in tree.by_path(params).items() if not self._still(path))

    def stage_state(self, optimizer_state: Any, kind: type[S] | tuple[type[S], ...]) -> S | None:
        """The state of the stage of that kind, or None."""
        stages = optimizer_state[0].inner_state if self._freezes else optimizer_state
        stages = stages if type(stages) is tuple else (stages,)
        return next((state for state in stages if isinstance(state, kind)), None)

    def _decaying(self, patterns: tuple[str, ...], params: Any) -> Any:
        """Which of the trained parameters match; without patterns those of two axes up: biases and norms have one."""

        def decays(path, p):
            return not self._still(path) and (matches(patterns, path) if patterns else p.ndim >= 2)

        return tree.map_by_path(decays, params)

    @property
    def _freezes(self) -> bool:
        return bool(self.freeze)

    def _still(self, path: str) -> bool:
        """Whether a parameter is frozen."""
        return matches(self.freeze, path)
