"""What each dense and convolutional layer of a function is given, and the gradients by what it gives.

taps = tapped(f)(params, *args)
taps.layers["layer0/kernel"]            its bias, kind and sizes
taps.inputs["layer0/kernel"]            rows a [positions, d_in]
taps.pull(cotangents)["layer0/kernel"]  rows g [positions, d_out]: the kernel's gradient is a^T g, the bias's their sum
taps.others["norm0/scale"]              why this parameter is of no layer

Nothing in the function is edited: it is traced, layers are told by their equations, and a zero is added to what each of
them gives, the derivative by which is the derivative by the layer's output. With an axis of examples, as `by_example`
has it, these are what Kronecker factors and norms of gradients by example are made of.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from functrain import _compat, tree
from functrain.autodiff.kernels import Layer, Layout, Step, Value, layers_of
from functrain.autodiff.traces import INLINE
from functrain.layers import forms
from functrain.precision.equations import bind

__all__ = ["ExampleTaps", "Layer", "Layout", "Program", "Taps", "by_example", "example_of", "tapped"]


@dataclass(frozen=True)
class Taps:
    """What `tapped` found.

    outputs: what the function gives.
    layers: by the kernel's path, in the order in which they are computed.
    others: why each other parameter is neither kernel nor bias of a layer, by its path.
    inputs: rows [positions, d_in] by the kernel's path.
    pull: cotangents like the outputs -> rows [positions, d_out] by the kernel's path, the gradients by what the layers
      give before their biases. Under `jax.vmap` it pulls several cotangents side by side.
    """

    outputs: Any
    layers: dict[str, Layer]
    others: dict[str, str]
    inputs: dict[str, jax.Array]
    pull: Callable[[Any], dict[str, jax.Array]]


@dataclass(frozen=True)
class ExampleTaps:
    """What `by_example` found: as `Taps`, with axes of examples and of cotangents.

    outputs: of all examples, with the axis [n] first.
    inputs: [n, positions, d_in] by the kernel's path.
    gradients: [n, k, positions, d_out] by the kernel's path.
    """

    outputs: Any
    layers: dict[str, Layer]
    others: dict[str, str]
    inputs: dict[str, jax.Array]
    gradients: dict[str, jax.Array]


def tapped(f: Callable[..., Any]) -> Callable[..., Taps]:
    """`(params, *args) -> Taps` of a function `f(params, *args)` that gives a tree of floats.

    A layer is a `dot_general` or a `conv_general_dilated` of a leaf of the parameters and of something else. The leaf
    may have been reshaped, transposed or cast first. A leaf that is added to the product, the same for each row, is the
    bias. Nested jits and remat are looked into (remat then saves no memory). Of no layer, but among `others`, are

    - a parameter used more than once (tied or shared weights), or in any other way (scales, embeddings, W * mask),
    - one inside scan, while, cond, or a function with a derivative rule of its own, which is kept,
    - a kernel of groups: feature_group_count, batch_group_count, batch dimensions of a product.

    Raises:
      ValueError: a parameter that holds no floats.

    >>> f = lambda params, x: jnp.tanh(x @ params["kernel"] + params["bias"]) * params["scale"]
    >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2), "scale": jnp.ones(())}
    >>> taps = tapped(f)(params, jnp.zeros((5, 3)))
    >>> taps.layers["kernel"].bias, taps.inputs["kernel"].shape, taps.pull(taps.outputs)["kernel"].shape
    ('bias', (5, 3), (5, 2))
    >>> taps.others
    {'scale': 'used by mul'}
    """

    def run(params, *args) -> Taps:
        program = Program(f, params, *args)
        outputs, pull, inputs = program.pullback(params, *args)
        return Taps(outputs, program.layers, program.others, inputs, lambda cotangents: pull(cotangents)[0])

    return run


def by_example(
    f: Callable[[Any, Any], Any], cotangents: Callable[[Any, Any], Any]
) -> Callable[[Any, Any], ExampleTaps]:
    """`(params, batch) -> ExampleTaps` of a function of one example, for the examples of a batch side by side.

    Args:
      f: (params, example) -> outputs, a tree of floats; an example is a row of the batch.
      cotangents: (outputs, example) -> what is pulled back: trees like the outputs, along a new first axis [k].

    >>> f = lambda params, x: x @ params["kernel"]
    >>> taps = by_example(f, lambda y, x: jnp.eye(2))({"kernel": jnp.ones((3, 2))}, jnp.ones((5, 3)))
    >>> taps.inputs["kernel"].shape, taps.gradients["kernel"].shape
    ((5, 1, 3), (5, 2, 1, 2))
    """

    def run(params, batch) -> ExampleTaps:
        program = Program(f, params, example_of(batch))

        def one(example):
            outputs, pull, inputs = program.pullback(params, example)
            return outputs, inputs, jax.vmap(lambda u: pull(u)[0])(cotangents(outputs, example))

        outputs, inputs, gradients = jax.vmap(one)(batch)
        return ExampleTaps(outputs, program.layers, program.others, inputs, gradients)

    return run


def example_of(batch: Any) -> Any:
    """Shapes and dtypes of one row of a batch.

    Raises:
      ValueError: leaves of different lengths, of no length, or no leaf at all.

    >>> example_of({"x": jnp.zeros((5, 3))})
    {'x': ShapeDtypeStruct(shape=(3,), dtype=float32)}
    """
    lengths = {jnp.shape(x)[:1] for x in jax.tree.leaves(batch)}
    if len(lengths) != 1 or lengths in ({()}, {(0,)}):
        found = [jnp.shape(x) for x in jax.tree.leaves(batch)]
        raise ValueError(f"batch: found shapes {found}; expected arrays of the same first axis, of one example or more")
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), jax.tree.map(jnp.asarray, batch))


class Program:
    """A function traced for arguments of some shapes: its equations in one list, its layers, and how to run it.

    Args:
      f, params, args: as of `tapped`; the leaves are arrays, or their shapes and dtypes.

    Raises:
      ValueError: a parameter that holds no floats.
    """

    layers: dict[str, Layer]
    others: dict[str, str]

    def __init__(self, f: Callable[..., Any], params: Any, *args: Any):
        self._paths = list(tree.by_path(params))
        leaves, form = jax.tree.flatten((params, args))
        for path, leaf in zip(self._paths, leaves):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise ValueError(f"{path or 'parameters'}: found {jnp.result_type(leaf)}; expected floats")
        out_forms = []

        def flat(*leaves):
            params, args = jax.tree.unflatten(form, leaves)
            outputs, out_form = jax.tree.flatten(f(params, *args))
            out_forms.append(out_form)
            return outputs

        with forms.using(**forms.PLAIN):
            closed = jax.make_jaxpr(flat)(*leaves)
        jaxpr, consts = _compat.live_jaxpr(closed, keep_inputs=True), _compat.opened(closed)[1]
        self._form = out_forms[-1]
        self._constants: dict[Value, Any] = {}
        self._steps: list[Step] = []
        self._given = [Value(v.aval) for v in jaxpr.invars]
        self._results = self._flattened(jaxpr, consts, self._given)
        self._uses, self.others = layers_of(self._steps, self._results, dict(zip(self._paths, self._given)))
        self.layers = {path: use.layer for path, use in self._uses.items()}

    def _flattened(self, jaxpr, consts, given):
        """The results of a jaxpr, whose equations, those of inlined bodies too, are added to the steps."""
        known = dict(zip(jaxpr.invars, given, strict=True))

        def constant(v, value):
            made = Value(v.aval)
            self._constants[made] = value
            return made

        def read(v):
            return constant(v, v.val) if isinstance(v, core.Literal) else known[v]

        known |= {v: constant(v, value) for v, value in zip(jaxpr.constvars, consts, strict=True)}
        for equation in jaxpr.eqns:
            inputs, name = [read(v) for v in equation.invars], equation.primitive.name
            if name in INLINE:
                body, own = _compat.opened(equation.params[INLINE[name]])
                outputs = self._flattened(body, own, inputs)
            else:
                outputs = [Value(v.aval) for v in equation.outvars]
                self._steps.append(Step(equation, inputs, outputs))
            known.update(zip(equation.outvars, outputs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def pullback(self, params: Any, *args: Any, others: bool = False) -> tuple[Any, Callable[..., Any], Any]:
        """(outputs, pull, inputs of layers by path) for arrays of the shapes that the function was traced for.

        pull: cotangents -> (gradients by what layers give, gradients by the other parameters), by path; the second are
          there only if `others`.
        """
        leaves = jax.tree.leaves((params, args))
        given = dict(zip(self._given, leaves, strict=True))
        at = dict(zip(self._paths, self._given))
        free = {path: given[at[path]] for path in self.others} if others else {}

        def run(zeros, free):
            return self._run(given | {at[path]: x for path, x in free.items()}, zeros)

        shapes = {path: use.step.outputs[0].aval for path, use in self._uses.items()}
        zeros = {path: jnp.zeros(aval.shape, aval.dtype) for path, aval in shapes.items()}
        outputs, back, inputs = jax.vjp(run, zeros, free, has_aux=True)

        def pull(cotangents):
            by_layer, by_leaf = back(cotangents)
            return {path: self._uses[path].columns(g) for path, g in by_layer.items()}, by_leaf

        return outputs, pull, inputs

    def _run(self, given, zeros):
        known, inputs = self._constants | given, {}
        at = {use.step: path for path, use in self._uses.items()}
        for step in self._steps:
            with step.equation.ctx.manager:
                outputs = bind(step.equation, [known[v] for v in step.inputs])
            if step in at:
                path, use = at[step], self._uses[at[step]]
                outputs = [outputs[0] + zeros[path]]
                inputs[path] = use.rows(known[use.given])
            known.update(zip(step.outputs, outputs, strict=True))
        return jax.tree.unflatten(self._form, [known[v] for v in self._results]), inputs
