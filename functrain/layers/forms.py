"""Which way a layer computes what it computes, where that matters for speed: the mathematics is the same.

The choice is a rule on shapes and on the backend, made while a program is traced; what each was measured to give is in
docs/speed.md. `using`, or the environment variable FUNCTRAIN_FORMS="convolution=lax,fence=off", forces one.
"""

import contextlib
import contextvars
import os
from collections.abc import Iterator

import jax
from jax import lax
from jax.extend import backend

FORMS = {
    "convolution": ("lax", "rows"),
    "fence": ("off", "on"),
    "product": ("plain", "transposed"),
    "attention": ("plain", "cudnn"),
}
"""By name, the ways there are."""

PLAIN = {"attention": "plain", "convolution": "lax", "fence": "off", "product": "plain"}
"""As a person would write each: for looking at a function, and for counting what it computes."""

_forced: contextvars.ContextVar[dict[str, str] | None] = contextvars.ContextVar("forced", default=None)
_noted: contextvars.ContextVar[set[tuple[str, str]] | None] = contextvars.ContextVar("noted", default=None)


@contextlib.contextmanager
def using(**forms: str) -> Iterator[None]:
    """Within it, what is traced has these forms, as in `using(convolution="lax")`.

    Raises:
      ValueError: no such form.

    >>> with using(fence="off"):
    ...     form("fence", "on")
    'off'
    """
    _check(forms)
    token = _forced.set((_forced.get() or {}) | forms)
    try:
        yield
    finally:
        _forced.reset(token)


@contextlib.contextmanager
def noted() -> Iterator[set[tuple[str, str]]]:
    """Within it, the forms that are taken are put into the set it gives.

    >>> with noted() as taken:
    ...     form("fence", "on")
    'on'
    >>> taken
    {('fence', 'on')}
    """
    taken: set[tuple[str, str]] = set()
    token = _noted.set(taken)
    try:
        yield taken
    finally:
        _noted.reset(token)


def form(name: str, rule: str) -> str:
    """The form to take: the one that is forced, or else the rule's."""
    found = (of_environment() | (_forced.get() or {})).get(name, rule)
    if (taken := _noted.get()) is not None:
        taken.add((name, found))
    return found


def fenced(x: jax.Array) -> jax.Array:
    """x; on a CPU, as an array that is written out, and so is its gradient.

    Before a norm it keeps XLA from computing the norm's gradient again in each copy that a matrix product makes of it:
    a GPT's step took 1.3 times as long without (4 layers of 128; the copies alone 39 ms in place of 5). Before a
    convolution, from computing norm and relu again, with strides, in the transposed copy that the kernel's gradient
    makes: a ResNet-20's step took 1.35 times as long without (the copies 135 ms in place of 26).
    """
    return lax.optimization_barrier(x) if form("fence", "on" if on_cpu() else "off") == "on" else x


def on_cpu() -> bool:
    """Whether programs are for a CPU where nothing else is said."""
    return jax.default_backend() == "cpu"


def on_cuda() -> bool:
    """Whether programs are for a GPU of NVIDIA's where nothing else is said."""
    return jax.default_backend() == "gpu" and "cuda" in backend.get_backend().platform_version.lower()


def of_environment() -> dict[str, str]:
    """What FUNCTRAIN_FORMS forces.

    Raises:
      ValueError: no such form.
    """
    pairs = (pair.partition("=") for pair in os.environ.get("FUNCTRAIN_FORMS", "").split(",") if pair)
    found = {name.strip(): value.strip() for name, _, value in pairs}
    _check(found)
    return found


def _check(forms):
    for name, value in forms.items():
        if value not in FORMS.get(name, ()):
            known = "; ".join(f"{name}: {', '.join(values)}" for name, values in FORMS.items())
            raise ValueError(f"found {name}={value}; expected of {known}")
