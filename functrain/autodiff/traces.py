"""Every intermediate value of a function, and the derivative of its output by each of them.

    traced = trace(loss)(params, x)
    for node in traced.nodes:
        print(node, node.value.norm, node.gradient.norm)

The function is traced to a jaxpr and evaluated with a zero added to each floating-point result; the derivative by that
zero is the derivative by the result (the perturbation trick). Nothing in the function is edited: nested jits and remat
are looked into, loops by `scan` step by step, branches too; custom derivative rules are kept and count as one step, and
so does a `while`, which has no reverse mode.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core, source_info_util

from functrain import _compat, tree
from functrain.layers import forms


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What an array holds, by step of the loops that it stands in: each is an array [*loops], of numpy.

    minimum, maximum, norm and mean are over what is finite; the norm is Euclidean. zeros, nans and infs are counts.
    """

    minimum: Any
    maximum: Any
    mean: Any
    norm: Any
    zeros: Any
    nans: Any
    infs: Any

    @property
    def finite(self) -> Any:
        """Whether all of it is finite, [*loops]."""
        return (self.nans == 0) & (self.infs == 0)


@dataclasses.dataclass(eq=False)
class Node:
    """An argument, or a result of an equation.

    name: of an argument its path, such as params/layer0/kernel; of a result the primitive.
    scope: the names of the scopes, jits and loops that it stands in, joined by "/".
    source: "file:line (function)" of the user's own line.
    shape, dtype: of one step.
    loops: how often each `scan` around it runs, from the outermost.
    inputs: the nodes that it is computed from; what else it takes holds no floats, or is a constant.
    branch: whether it stands in a branch of a `cond`: where another one is taken, it is all zeros.
    value, gradient: their `Statistics`.
    values, gradients: themselves, [*loops, *shape]; None where they were not kept.
    """

    name: str
    scope: str
    source: str
    shape: tuple[int, ...]
    dtype: Any
    loops: tuple[int, ...] = ()
    inputs: tuple["Node", ...] = ()
    branch: bool = False
    argument: bool = False
    value: Any = None
    gradient: Any = None
    values: Any = None
    gradients: Any = None

    def __str__(self):
        where = f"{self.scope}/{self.name}" if self.scope else self.name
        return f"{where} {np.dtype(self.dtype).name}{list(self.shape)}" + (f" at {self.source}" if self.source else "")


@dataclasses.dataclass(frozen=True)
class Trace:
    """A function's output, and its nodes in the order in which they are computed, arguments first."""

    output: Any
    nodes: tuple[Node, ...]


def trace(f: Callable[..., Any], *, keep: bool = True) -> Callable[..., Trace]:
    """The function, as one that gives its `Trace`; what its output does not need is left out.

    Args:
      f: any function of pytrees of arrays that gives one float.
      keep: whether nodes hold the arrays themselves; else statistics alone, for large models.

    Raises:
      TypeError: f gives anything but one float.

    >>> def f(a, b):
    ...     return jnp.tanh(a * b) + a
    >>> for node in trace(f)(2.0, 0.5).nodes:
    ...     print(node.name, round(float(node.values), 3), round(float(node.gradients), 3))
    a 2.0 1.21
    b 0.5 0.84
    mul 1.0 0.42
    tanh 0.762 1.0
    add 2.762 1.0
    """

    def traced(*args) -> Trace:
        leaves, form = jax.tree.flatten(args)
        with forms.using(**forms.PLAIN):
            closed = jax.make_jaxpr(lambda *leaves: f(*jax.tree.unflatten(form, leaves)))(*leaves)
        consts = _compat.opened(closed)[1]
        jaxpr = _compat.live_jaxpr(closed, keep_inputs=True)
        outputs: list[Any] = [v.aval for v in jaxpr.outvars]
        if len(outputs) != 1 or outputs[0].shape or not _is_float(outputs[0]):
            found = ", ".join(f"{aval.dtype.name}{list(aval.shape)}" for aval in outputs)
            raise TypeError(f"found a function that gives {found}; expected one float")
        given = _arguments(f, args, jaxpr)
        plan = _plan(jaxpr, consts, dict(zip(jaxpr.invars, given)))
        floats = [i for i, v in enumerate(jaxpr.invars) if _is_float(v.aval)]

        def run(leaves):
            def perturbed(moved, perturbations):
                filled = list(leaves)
                for i, x in zip(floats, moved):
                    filled[i] = x
                outputs, values = _run(plan, filled, perturbations)
                return outputs[0], values

            zeros = jax.tree.map(lambda node: jnp.zeros((*node.loops, *node.shape), node.dtype), plan.nodes())
            moved = [jnp.asarray(leaves[i]) for i in floats]
            output, pull, values = jax.vjp(perturbed, moved, zeros, has_aux=True)
            by_argument, by_result = pull(jnp.ones_like(output))
            found = [*moved, *jax.tree.leaves(values)], [*by_argument, *jax.tree.leaves(by_result)]
            if on_device:
                found = [[_statistics(x, len(n.loops), jnp) for x, n in zip(each, nodes)] for each in found]
            return output, found

        nodes = [node for node in given if node is not None] + jax.tree.leaves(plan.nodes())
        size = sum(math.prod(node.loops) * math.prod(node.shape) * node.dtype.itemsize for node in nodes)
        on_device = not keep and size > _FETCHED  # many small sums take long to compile
        output, (values, gradients) = jax.device_get(jax.jit(run)(leaves))
        for node, value, gradient in zip(nodes, values, gradients, strict=True):
            if keep:
                node.values, node.gradients = value, gradient
            if not on_device:
                value, gradient = (_statistics(x, len(node.loops), np) for x in (value, gradient))
            node.value, node.gradient = Statistics(**value), Statistics(**gradient)
        return Trace(output, tuple(nodes))

    return traced


def _arguments(f, args, jaxpr):
    """A node for each leaf of floats, None for each other one."""
    try:
        own = list(inspect.signature(f).parameters)
    except (TypeError, ValueError):
        own = []
    names = []
    for i, arg in enumerate(args):
        name = own[i] if i < len(own) else str(i)
        paths = [tree.path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(arg)]
        names += [f"{name}/{path}" if path else name for path in paths]
    return [
        Node(name, "", "", v.aval.shape, v.aval.dtype, argument=True) if _is_float(v.aval) else None
        for name, v in zip(names, jaxpr.invars, strict=True)
    ]


_FETCHED = 2**30
"""Bytes of results up to which they are fetched, and their statistics are taken on the host."""


def _statistics(x, loops, xp):
    """xp: jax.numpy, or numpy."""
    x = xp.asarray(x)
    axes = tuple(range(loops, x.ndim))
    wide = x.astype(np.float64 if xp is np else np.promote_types(x.dtype, np.float32))
    finite = xp.isfinite(x)
    there, count = xp.where(finite, wide, 0), xp.maximum(finite.sum(axes), 1)
    return {
        "minimum": xp.where(finite, wide, np.inf).min(axes, initial=np.inf),
        "maximum": xp.where(finite, wide, -np.inf).max(axes, initial=-np.inf),
        "mean": there.sum(axes) / count,
        "norm": xp.sqrt((there**2).sum(axes)),
        "zeros": (x == 0).sum(axes),
        "nans": xp.isnan(x).sum(axes),
        "infs": xp.isinf(x).sum(axes),
    }


# -- the plan: what is looked into, and a node for each result -----------------------------------------

INLINE = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
}


@dataclasses.dataclass
class _Step:
    """An equation: with a node or None for each output, or with the plans of the bodies that it holds."""

    equation: Any
    results: list[Node | None] = dataclasses.field(default_factory=list)
    bodies: list["_Plan"] = dataclasses.field(default_factory=list)

    def nodes(self) -> Any:
        if self.bodies:
            return [body.nodes() for body in self.bodies]
        return [node for node in self.results if node is not None]


@dataclasses.dataclass
class _Plan:
    jaxpr: Any
    consts: list[Any]
    steps: list[_Step]
    outputs: list[Node | None]

    def nodes(self) -> Any:
        """A tree of nodes, of the form that perturbations and values have."""
        return [step.nodes() for step in self.steps]


def _plan(jaxpr, consts, made, scope="", source="", loops=(), branch=False) -> _Plan:
    """made: variable -> the node that it holds."""
    steps, made = [], dict(made)

    def node_of(v):
        return None if isinstance(v, core.Literal) else made.get(v)

    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        stack = str(equation.source_info.name_stack)
        own = "/".join(part for part in (scope, stack) if part)
        line = source_info_util.summarize(equation.source_info)
        line = line if line and not line.startswith("<") else source
        step = _Step(equation)
        if name in INLINE:
            inner = [(params[INLINE[name]], equation.invars, params.get("name", ""), loops, branch)]
        elif name == "scan":
            times = params["length"]
            inner = [(params["jaxpr"], equation.invars, f"scan[{times}]", (*loops, times), branch)]
        elif name == "cond":
            bodies = enumerate(params["branches"])
            inner = [(body, equation.invars[1:], f"branch{i}", loops, True) for i, body in bodies]
        else:
            inner = []
            inputs = tuple(dict.fromkeys(node for v in equation.invars if (node := node_of(v)) is not None))
            for v in equation.outvars:
                aval = v.aval
                label = _compat.rule_name(params) or name
                node = (
                    Node(label, own, line, aval.shape, aval.dtype, loops, inputs, branch) if _is_float(aval) else None
                )
                step.results.append(node)
        for body, given, label, inner_loops, inner_branch in inner:
            inner_jaxpr, inner_consts = _compat.opened(body)
            inner_scope = "/".join(part for part in (own, label) if part)
            names = {v: node for v, w in zip(inner_jaxpr.invars, given) if (node := node_of(w)) is not None}
            step.bodies.append(_plan(inner_jaxpr, inner_consts, names, inner_scope, line, inner_loops, inner_branch))
        outputs = step.results or step.bodies[0].outputs
        for other in step.bodies[1:]:
            outputs = [a or b for a, b in zip(outputs, other.outputs)]
        made.update({v: node for v, node in zip(equation.outvars, outputs) if node is not None})
        steps.append(step)
    return _Plan(jaxpr, consts, steps, [node_of(v) for v in jaxpr.outvars])


def _run(plan, args, perturbations):
    """(outputs, values of the nodes), each result moved by its perturbation."""
    jaxpr, values = plan.jaxpr, []
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*plan.consts, *args], strict=True))

    def read(v):
        return v.val if isinstance(v, core.Literal) else known[v]

    for step, moves in zip(plan.steps, perturbations, strict=True):
        equation, inputs = step.equation, [read(v) for v in step.equation.invars]
        with equation.ctx.manager:
            if equation.primitive.name == "scan":
                outputs, found = _scan(step.bodies[0], equation.params, inputs, moves[0])
                found = [found]
            elif equation.primitive.name == "cond":
                outputs, found = _cond(step.bodies, inputs, moves)
            elif step.bodies:
                outputs, found = _run(step.bodies[0], inputs, moves[0])
                found = [found]
            else:
                bound = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
                outputs, moves = list(bound) if equation.primitive.multiple_results else [bound], iter(moves)
                outputs = [x if node is None else x + next(moves) for x, node in zip(outputs, step.results)]
                found = [x for x, node in zip(outputs, step.results) if node is not None]
        values.append(found)
        known.update(zip(equation.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars], values


def _scan(body, params, inputs, moves):
    first, carried = _compat.scan_counts(params)

    def one(carry, given):
        xs, moves = given
        outputs, values = _run(body, [*inputs[:first], *carry, *xs], moves)
        return outputs[:carried], (outputs[carried:], values)

    start, xs = inputs[first : first + carried], inputs[first + carried :]
    carry, (ys, values) = lax.scan(one, start, (xs, moves), params["length"], params["reverse"])
    return [*carry, *ys], values


def _cond(bodies, inputs, moves):
    def branch(i):
        def taken(args, moves):
            outputs, values = _run(bodies[i], args, moves[i])
            return outputs, [values if j == i else tree.zeros_like(other) for j, other in enumerate(moves)]

        return taken

    return lax.switch(inputs[0], [branch(i) for i in range(len(bodies))], inputs[1:], list(moves))


def _is_float(aval):
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.floating)


# -- the first number that is not finite --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class NonFinite:
    """Where a number first is not finite.

    what: "nan" or "inf".
    node: whose value, or whose gradient, it is; of a gradient, the node whose derivative made it.
    step: of the loops around the node.
    inputs: (node, smallest, largest) of what it was computed from, at that step.
    """

    what: str
    backward: bool
    node: Node
    step: tuple[int, ...]
    inputs: tuple[tuple[Node, float, float], ...]

    def __str__(self):
        told = f"{'backward' if self.backward else 'forward'}: the first {self.what} is {_role(self)} {self.node}"
        if self.step:
            told += f", step {', '.join(map(str, self.step))} of the loop"
        given = "; ".join(f"{node.name} from {low:.6g} to {high:.6g}" for node, low, high in self.inputs)
        return told + (f"; computed from {given}" if given else "")


def _role(found):
    return "made by the derivative of" if found.backward else "the value of"


def first_nonfinite(traced: Trace) -> list[NonFinite]:
    """Where the value, and where the gradient, first is not finite: none, one or two.

    Forward, the result that is not finite while all that it is computed from is; a nan before an infinity, and an
    infinity only where the output is not finite itself, for a mask of -inf that softmax takes away is no mistake. Of
    results in a loop, the earliest step counts. Backward, where the output is finite: the equation whose derivative
    turns finite gradients into others, looked for from the output back.

    >>> [found] = first_nonfinite(trace(lambda x: jnp.sqrt(x * 0.0))(1.0))
    >>> found.backward, found.node.name, found.what
    (True, 'sqrt', 'inf')
    """
    output = np.asarray(traced.output)
    if not np.isfinite(output):
        found = _forward(traced, "nan" if np.isnan(output) else "inf")
        return [found] if found else []
    found = _backward(traced)
    return [found] if found else []


def _steps(statistics, what):
    """At which steps of the loops it is so, [*loops]."""
    return np.asarray(statistics.nans > 0 if what == "nan" else ~statistics.finite)


def _at(own, step, loops, shared):
    """Whether a property [*own loops] of a node holds at a step of another's loops, of which they share some."""
    return bool(np.any(own[step[: min(len(loops), len(shared))]]))


def _forward(traced, what):
    best = None
    for order, node in enumerate(traced.nodes):
        bad = _steps(node.value, what)
        for step in map(tuple, np.argwhere(bad)) if node.loops else ([()] if bad else []):
            if not any(_at(_steps(i.value, what), step, i.loops, node.loops) for i in node.inputs):
                if best is None or _earlier(node, step, order, best):
                    best = (node, step, order)
                break
    if best is None:
        return None
    node, step, _ = best
    return NonFinite(what, False, node, tuple(map(int, step)), _ranges(node, step))


def _earlier(node, step, order, best):
    """Within the same loops by step first, else by order."""
    other, its_step, its_order = best
    return (step, order) < (its_step, its_order) if node.loops == other.loops else order < its_order


def _backward(traced):
    users: dict[int, list[Node]] = {}
    for node in traced.nodes:
        for given in node.inputs:
            users.setdefault(id(given), []).append(node)
    for node in reversed(traced.nodes):
        bad = _steps(node.gradient, "inf")
        if not bad.any():
            continue
        step = tuple(map(int, np.argwhere(bad)[-1])) if node.loops else ()
        # Its gradient is the sum of what its users' derivatives give: one of them made it of a finite one.
        for user in reversed(users.get(id(node), [])):
            there = step[: min(len(user.loops), len(step))]
            if np.all(np.asarray(user.gradient.finite)[there]):
                what = "nan" if np.any(np.asarray(node.gradient.nans)[there] > 0) else "inf"
                full = step if len(step) == len(user.loops) else (*step, *(n - 1 for n in user.loops[len(step) :]))
                return NonFinite(what, True, user, full, _ranges(user, full))
    return None


def _ranges(node, step):
    def at(x, loops):
        x = np.asarray(x)[step[: min(len(loops), len(step))]]
        return x.min(), x.max()

    return tuple(
        (i, float(at(i.value.minimum, i.loops)[0]), float(at(i.value.maximum, i.loops)[1])) for i in node.inputs
    )
