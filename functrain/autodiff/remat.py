"""Rematerialisation: what a backward pass keeps of the forward pass, and what it computes again.

remat(f, policy) -> a function with f's values and gradients, whose backward pass keeps

    none      everything that it needs
    dots      what matrix products and convolutions gave, those of attention's scores excepted
    blocks    what goes from one block to the next: each block is computed again in its turn (Chen et al. 2016)
    full      f's inputs alone: it is computed again by halves, these by halves, down to single blocks (Griewank 1992)
    offload   as dots, but without convolutions, in the host's memory for the time between

Blocks are known by their scopes, `jax.named_scope("block3")`, as the models here name theirs: no layer and no model
says a word about memory. f is traced to a jaxpr, its equations are cut where the scope changes, and each piece is
evaluated under `jax.checkpoint`. So f may be any function of arrays, and remat goes under and over grad, vmap, jit and
autocast.

One `jax.checkpoint` around the whole, with a policy, saves nothing: all of it would be computed again before the way
back begins. In pieces, each is computed again when the way back comes to it.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
from jax.extend import core, source_info_util

from functrain import _compat
from functrain.precision.equations import bind

Remat = Literal["none", "dots", "blocks", "full", "offload"]
"""What a backward pass keeps."""

_BLOCK = re.compile(r"block_?\d+(?=[/)]|$)", re.IGNORECASE)


def remat(f: Callable[..., Any], policy: str = "blocks") -> Callable[..., Any]:
    """f with the same values and gradients, and a backward pass that keeps less (see the module's first lines).

    Args:
      f: a function of pytrees of arrays.
      policy: none, dots, blocks, full or offload. Of a function without blocks, blocks keeps everything, and full cuts
        at its outermost scopes.

    Raises:
      ValueError: no such policy.

    >>> import jax.numpy as jnp
    >>> def f(w):
    ...     for i in range(3):
    ...         with jax.named_scope(f"block{i}"):
    ...             w = jnp.sin(w)
    ...     return 2 * w
    >>> len(jax.make_jaxpr(f)(1.0).eqns), len(jax.make_jaxpr(remat(f, "full"))(1.0).eqns)   # one piece, of pieces
    (4, 1)
    >>> bool(jax.grad(remat(f))(1.0) == jax.grad(f)(1.0))
    True
    """
    if policy not in get_args(Remat):
        raise ValueError(f"remat: found {policy!r}; expected one of: {', '.join(get_args(Remat))}")
    if policy == "none":
        return f

    @functools.wraps(f)
    def g(*args, **kwargs):
        leaves, form = jax.tree.flatten((args, kwargs))
        forms = []

        def flat(*leaves):
            args, kwargs = jax.tree.unflatten(form, leaves)
            outputs, out_form = jax.tree.flatten(f(*args, **kwargs))
            forms.append(out_form)
            return outputs

        jaxpr, consts = _compat.opened(jax.make_jaxpr(flat)(*leaves))
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *leaves], strict=True))
        _Cut(jaxpr).evaluate(_pieces(jaxpr, policy), values)
        return jax.tree.unflatten(forms[-1], [_read(values, v) for v in jaxpr.outvars])

    return g


def compiler_options(backend: str) -> dict[str, Any]:
    """Options of XLA's compiler for a program with barriers in it: of remat, and of layers (functrain.layers.forms).

    jaxlib 0.10.2's compiler for CPUs takes them out before it fuses operations and decides upon an order: pieces are
    computed again too early, and nothing is saved. That of 0.12.0 does not need the option, and fails with it where a
    barrier stands in a small loop.

    >>> compiler_options("gpu")
    {}
    """
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if backend == "cpu" and _compat.LOSES_BARRIERS else {}


class Piece(NamedTuple):
    """Equations start to end of a jaxpr, evaluated under `jax.checkpoint`, those of `pieces` under their own too.

    keeps: the policy; None is nothing.
    """

    start: int
    end: int
    keeps: Any = None
    pieces: tuple["Piece", ...] = ()


def _pieces(jaxpr: Any, policy: str) -> tuple[Piece, ...]:
    """What of a jaxpr is checkpointed."""
    parts = _parts(jaxpr)
    blocks = [part for part in parts if _BLOCK.search(part[0])]
    if policy == "blocks":
        return tuple(Piece(start, end) for _, start, end in blocks)
    if policy == "full":
        return _halves([Piece(start, end) for _, start, end in parts])
    keeps = _products if policy == "dots" else jax.checkpoint_policies.offload_dot_with_no_batch_dims(*_MEMORIES)
    return tuple(Piece(start, end, keeps) for _, start, end in parts) if blocks else (Piece(0, len(jaxpr.eqns), keeps),)


_MEMORIES = ("device", "pinned_host")
"""Where what is offloaded comes from and goes to."""


def _products(primitive, *_, **params):
    """Keeps convolutions, and products without batch axes: with them they are, as a rule, attention's scores."""
    if primitive.name == "dot_general":
        _, (left, right) = params["dimension_numbers"]
        return not left and not right
    return primitive.name == "conv_general_dilated"


def _halves(pieces: list[Piece]) -> tuple[Piece, ...]:
    """Pieces that follow one another as one piece of two halves, each of two halves again."""
    if len(pieces) < 2:
        return tuple(pieces)
    middle = len(pieces) // 2
    return (Piece(pieces[0].start, pieces[-1].end, None, _halves(pieces[:middle]) + _halves(pieces[middle:])),)


def _parts(jaxpr: Any) -> list[tuple[str, int, int]]:
    """(scope, start, end) of the runs of equations in one scope: down to a block, or else the outermost."""
    parts: list[tuple[str, int, int]] = []
    for i, equation in enumerate(jaxpr.eqns):
        stack = str(equation.source_info.name_stack)
        found = _BLOCK.search(stack)
        scope = stack[: found.end()] if found else stack.partition("/")[0]
        if parts and parts[-1][0] == scope:
            parts[-1] = (scope, parts[-1][1], i + 1)
        else:
            parts.append((scope, i, i + 1))
    return parts


class _Cut:
    """A jaxpr whose equations are evaluated in pieces."""

    def __init__(self, jaxpr: Any):
        self._equations = jaxpr.eqns
        self._made = {v: i for i, equation in enumerate(jaxpr.eqns) for v in equation.outvars}
        self._last = {v: i for i, equation in enumerate(jaxpr.eqns) for v in _variables(equation.invars)}
        self._last |= dict.fromkeys(_variables(jaxpr.outvars), len(jaxpr.eqns))

    def evaluate(self, pieces: tuple[Piece, ...], values: dict[Any, Any], start: int = 0, end: int | None = None):
        """Equations start to end, written into `values`."""
        at = start
        for piece in pieces:
            self._bind(at, piece.start, values)
            inputs, outputs = self._ends(piece)
            run = jax.checkpoint(functools.partial(self._run, piece, inputs, outputs), policy=piece.keeps)
            values.update(zip(outputs, run(*(values[v] for v in inputs)), strict=True))
            at = piece.end
        self._bind(at, len(self._equations) if end is None else end, values)

    def _run(self, piece, inputs, outputs, *given):
        values = dict(zip(inputs, given, strict=True))
        self.evaluate(piece.pieces, values, piece.start, piece.end)
        return [values[v] for v in outputs]

    def _ends(self, piece):
        """What a piece reads of what was there before, and what of its own is read after it."""
        equations = self._equations[piece.start : piece.end]
        read = dict.fromkeys(v for equation in equations for v in _variables(equation.invars))
        made = [v for equation in equations for v in equation.outvars]
        inputs = [v for v in read if self._made.get(v, -1) < piece.start]
        return inputs, [v for v in made if self._last.get(v, -1) >= piece.end]

    def _bind(self, start, end, values):
        for equation in self._equations[start:end]:
            info = equation.source_info
            stack = source_info_util.current_name_stack() + info.name_stack
            # Errors and profiles name the line that the user wrote, not this one.
            with source_info_util.user_context(info.traceback, name_stack=stack), equation.ctx.manager:
                outputs = bind(equation, [_read(values, v) for v in equation.invars])
            values.update(zip(equation.outvars, outputs, strict=True))


def _variables(atoms):
    return [v for v in atoms if not isinstance(v, core.Literal)]


def _read(values, v):
    return v.val if isinstance(v, core.Literal) else values[v]
