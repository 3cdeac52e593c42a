"""Which equations of a traced function are layers: kernels and biases told from all other parameters.

By each axis of a value it is known which factors it is made of, so that leaves and products can be followed through
reshapes and transposes without evaluating anything.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Factor(NamedTuple):
    """A factor of an axis; those of size 1 are left out.

    stride: in the raveled leaf, or among a product's columns; None where a leaf is the same all along the factor, and
      where a product has its rows there.
    """

    size: int
    stride: int | None


Axis = tuple[Factor, ...]


@dataclass(frozen=True)
class Layout:
    """How a leaf of the parameters is the matrix [d_in, d_out] of its layer.

    rows, columns: the factors, of the leaf, that the matrix's two axes are made of.

    >>> turned = Layout((3, 2), rows=(Factor(2, 1),), columns=(Factor(3, 2),))
    >>> turned.matrix(jnp.arange(6).reshape(3, 2)).tolist()
    [[0, 2, 4], [1, 3, 5]]
    """

    shape: tuple[int, ...]
    rows: Axis
    columns: Axis

    def matrix(self, leaf: jax.Array) -> jax.Array:
        """The leaf, or its gradient, as [d_in, d_out]."""
        order = self._order()
        sizes = [self._factors[i].size for i in order]
        return leaf.reshape(sizes).transpose(np.argsort(order)).reshape(_length(self.rows), _length(self.columns))

    def leaf(self, matrix: jax.Array) -> jax.Array:
        """The inverse of `matrix`."""
        return matrix.reshape([f.size for f in self._factors]).transpose(self._order()).reshape(self.shape)

    @property
    def _factors(self):
        return (*self.rows, *self.columns)

    def _order(self):
        """The factors in the order in which they stand in the leaf."""
        return np.array(sorted(range(len(self._factors)), key=lambda i: -(self._factors[i].stride or 0)), int)


@dataclass(frozen=True)
class Layer:
    """A use of a kernel: y = a W + b for each row a.

    kernel, bias: paths of the leaves, as of `tree.by_path`; bias is None where none is added.
    kind: "dense", a matrix product, or "conv".
    positions: rows, of which a convolution has one for each place of its output.
    inputs, outputs: d_in and d_out. A convolution's rows are patches, in the order of the kernel's own axes.
    layout: how the kernel's leaf is W. The bias, raveled, has the order of W's columns.
    settings: of a convolution its window_strides, padding, lhs_dilation and rhs_dilation.
    """

    kernel: str
    bias: str | None
    kind: Literal["dense", "conv"]
    positions: int
    inputs: int
    outputs: int
    layout: Layout
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(eq=False)
class Value:
    """A value of a traced function: an argument, a constant, or what an equation gives."""

    aval: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return getattr(self.aval, "shape", ())


@dataclass(eq=False)
class Step:
    """An equation that is evaluated as it is."""

    equation: Any
    inputs: list[Value]
    outputs: list[Value]

    @property
    def name(self) -> str:
        return self.equation.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        return self.equation.params


@dataclass(eq=False)
class Use:
    """A layer in its equation.

    given: what the kernel is multiplied with.
    rows: the value of `given` -> [positions, d_in].
    columns: what the equation gives, or the gradient by it -> [positions, d_out].
    axes: of what the equation gives.
    """

    layer: Layer
    step: Step
    given: Value
    rows: Callable[[jax.Array], jax.Array]
    columns: Callable[[jax.Array], jax.Array]
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class _Moved:
    """A leaf (by its path) or what a layer gives, rearranged."""

    source: str | Use
    axes: tuple[Axis, ...]


def layers_of(
    steps: list[Step], results: list[Value], leaves: dict[str, Value]
) -> tuple[dict[str, Use], dict[str, str]]:
    """(uses by the kernel's path, in the order of the steps; why each other leaf is of no layer)."""
    moved = {v: _Moved(path, _axes(v.shape)) for path, v in leaves.items()}
    readers = Counter([v for step in steps for v in step.inputs] + results)
    told: dict[str, list[Any]] = {path: [] for path in leaves}  # by use: a `Use`, of a bias (Use, step), else a reason
    for step in steps:
        found = [(i, moved[v]) for i, v in enumerate(step.inputs) if v in moved]
        if len(step.inputs) == 1 and found:
            [(_, one)] = found
            axes = _rearranged(step, one.axes)
            if axes is not None:
                # What else reads a product has a part in the gradient by it, and none in the bias's.
                if isinstance(one.source, str) or readers[step.inputs[0]] == 1:
                    moved[step.outputs[0]] = _Moved(one.source, axes)
                continue
        of_leaves = [(i, m) for i, m in found if isinstance(m.source, str)]
        for i, leaf in of_leaves:
            use: Any = f"{'inside' if step.name in _BODIES else 'used by'} {step.name}"
            others = [m.source for j, m in of_leaves if j != i]
            if step.name in _PRODUCTS and others:
                use = f"multiplied with {others[0] or 'itself'}"
            elif step.name in _PRODUCTS:
                use = _PRODUCTS[step.name](step, i, str(leaf.source), leaf.axes, leaves[str(leaf.source)].shape)
            elif step.name == "add" and not others and readers[step.inputs[1 - i]] == 1:
                product = moved.get(step.inputs[1 - i])
                if product is not None and _is_bias(step, 1 - i, product, leaf, leaves):
                    use = (product.source, step)
            told[str(leaf.source)].append(use)
            if isinstance(use, Use):
                moved[step.outputs[0]] = _Moved(use, use.axes)
    for v in results:
        if v in moved and isinstance(moved[v].source, str):
            told[str(moved[v].source)].append("an output")

    single = {path: uses[0] for path, uses in told.items() if len(uses) == 1}
    kernels = {path: use for path, use in single.items() if isinstance(use, Use)}
    biases = {use[0].layer.kernel: path for path, use in single.items() if isinstance(use, tuple)}
    order = {step: i for i, step in enumerate(steps)}
    for path, use in sorted(kernels.items(), key=lambda item: order[item[1].step]):
        use.layer = replace(use.layer, bias=biases.get(path))
        kernels[path] = kernels.pop(path)
    held = {*kernels, *(bias for kernel, bias in biases.items() if kernel in kernels)}
    return kernels, {path: _reason(uses) for path, uses in told.items() if path not in held}


_BODIES = ("scan", "while", "cond", "shard_map", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")


def _reason(uses):
    words = []
    for use in uses:
        if isinstance(use, tuple):
            words.append(f"added to a product of {use[0].layer.kernel or 'a leaf'}")
        else:
            words.append(f"used by {use.step.name}" if isinstance(use, Use) else use)
    if len(words) == 1 and isinstance(uses[0], tuple):
        return f"{words[0]}, which is no layer"
    if len(words) > 1:
        return f"used {len(words)} times: {', '.join(word.removeprefix('used ') for word in words)}"
    return words[0] if words else "not used"


# -- layers -------------------------------------------------------------------------------------------


def _dense(step, operand, path, axes, shape):
    """The `Use` of a kernel with these axes in a `dot_general`, or why it is none."""
    contracted, batched = step.params["dimension_numbers"]
    if batched[operand]:
        return "batch dimensions of dot_general"
    if _repeats(axes):
        return "repeated before dot_general"
    other, given = 1 - operand, step.inputs[1 - operand]
    pairs = _leading(zip(contracted[operand], contracted[other]), axes)
    free = [i for i in range(len(given.shape)) if i not in contracted[other]]
    columns = [i for i in range(len(axes)) if i not in contracted[operand]]
    layout = Layout(shape, _joined(axes[i] for i, _ in pairs), _joined(axes[i] for i in columns))
    d_in, d_out = _length(layout.rows), _length(layout.columns)
    positions = math.prod(given.shape[i] for i in free)
    sizes = [step.inputs[operand].shape[i] for i in columns]
    made = [_over_rows(given.shape[i]) for i in free]
    made = [*_axes(sizes), *made] if operand == 0 else [*made, *_axes(sizes)]

    def rows(x):
        return x.transpose(*free, *(j for _, j in pairs)).reshape(positions, d_in)

    def by_column(y):
        return y.reshape(d_out, positions).T if operand == 0 else y.reshape(positions, d_out)

    return Use(Layer(path, None, "dense", positions, d_in, d_out, layout), step, given, rows, by_column, tuple(made))


def _conv(step, operand, path, axes, shape):
    """The `Use` of a kernel with these axes in a `conv_general_dilated`, or why it is none."""
    params, given = step.params, step.inputs[0]
    for groups in ("feature_group_count", "batch_group_count"):
        if params[groups] != 1:
            return f"{groups} {params[groups]}"
    if operand == 0 or _repeats(axes):
        return "repeated before conv_general_dilated" if operand else "convolved, not the kernel"
    lhs, rhs, out = params["dimension_numbers"]
    own = [i for i, _ in _leading([(i, None) for i in rhs[1:]], axes)]  # channels and space, as the leaf has them
    layout = Layout(shape, _joined(axes[i] for i in own), axes[rhs[0]])
    d_in, d_out = _length(layout.rows), _length(layout.columns)
    made_shape, size = step.outputs[0].shape, [step.inputs[1].shape[i] for i in rhs[2:]]
    positions = math.prod(made_shape) // d_out
    made = [_over_rows(n) for n in made_shape]
    made[out[1]] = _axes((d_out,))[0]
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    settings = {name: params[name] for name in names}

    def rows(x):
        patches = _patches(x.transpose(lhs), size, **settings)  # [n, channels, *kernel, *space]
        order = [0, *range(1 + len(rhs) - 1, patches.ndim), *(rhs[1:].index(i) + 1 for i in own)]
        return patches.transpose(order).reshape(positions, d_in)

    def by_column(y):
        return y.transpose(out[0], *out[2:], out[1]).reshape(positions, d_out)

    layer = Layer(path, None, "conv", positions, d_in, d_out, layout, settings)
    return Use(layer, step, given, rows, by_column, tuple(made))


_PRODUCTS = {"dot_general": _dense, "conv_general_dilated": _conv}


def _patches(x, size, *, window_strides, padding, lhs_dilation, rhs_dilation):
    """x [n, channels, *space] -> [n, channels, *size, *places]: what each element of the kernel meets at each place.

    Slices, axis by axis: exact, where a convolution with a kernel of ones and zeros may round.
    """
    config = [(low, high, d - 1) for (low, high), d in zip(padding, lhs_dilation)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *config])
    n = len(size)
    for i, (k, stride, dilation) in enumerate(zip(size, window_strides, rhs_dilation)):
        axis = 2 + 2 * i  # before it stand (kernel, place) of the axes that are done
        places = max(0, (x.shape[axis] - dilation * (k - 1) - 1) // stride + 1)
        spans = [(t * dilation, t * dilation + stride * (places - 1) + 1) for t in range(k)]
        x = jnp.stack([lax.slice_in_dim(x, a, b, stride, axis) for a, b in spans], axis)
    return x.transpose(0, 1, *range(2, 2 + 2 * n, 2), *range(3, 3 + 2 * n, 2))


def _is_bias(step, i, product, leaf, leaves):
    """Whether the leaf is added to the layer's output, operand i, the same for each row and in the order of columns."""
    if isinstance(product.source, str) or step.inputs[i].shape != step.outputs[0].shape:
        return False
    if math.prod(leaves[leaf.source].shape) != product.source.layer.outputs:
        return False
    return all(_strided(a) == _strided(b) for a, b in zip(product.axes, leaf.axes, strict=True))


def _strided(axis):
    """An axis with neighbouring factors made one where they can be; () where nothing in it has a stride."""
    merged: list[Factor] = []
    for size, stride in axis:
        if merged:
            before = merged[-1]
            both_none = stride is None and before.stride is None
            if both_none or (stride is not None and before.stride == size * stride):
                merged[-1] = Factor(before.size * size, stride)
                continue
        merged.append(Factor(size, stride))
    return () if all(f.stride is None for f in merged) else tuple(merged)


# -- axes ---------------------------------------------------------------------------------------------


def _rearranged(step, axes):
    """The axes of what an equation of one input gives; None where it does more than rearrange, repeat or cast."""
    params, before, after = step.params, step.inputs[0], step.outputs[0]
    if step.name == "reshape":
        return _regrouped(axes, after.shape) if params["dimensions"] is None else None
    if step.name == "transpose":
        return tuple(axes[i] for i in params["permutation"])
    if step.name == "squeeze":
        return tuple(axis for i, axis in enumerate(axes) if i not in params["dimensions"])
    if step.name == "broadcast_in_dim":
        made = [_over_rows(n) for n in after.shape]
        for place, axis in zip(params["broadcast_dimensions"], axes):
            if axis:
                made[place] = axis
        return tuple(made)
    if step.name == "convert_element_type":
        return axes if all(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in (before, after)) else None
    return axes if step.name in ("copy", "name") else None


def _regrouped(axes, shape):
    """The axes after a reshape; None where it cuts through a factor in a way that leaves none."""
    factors, made = [f for axis in axes for f in axis], []
    if 0 in shape:
        return None
    for n in shape:
        axis = []
        while n > 1:
            size, stride = factors.pop(0)
            if n % size == 0:
                axis.append(Factor(size, stride))
                n //= size
            elif size % n == 0:
                rest = size // n
                axis.append(Factor(n, None if stride is None else stride * rest))
                factors.insert(0, Factor(rest, stride))
                n = 1
            else:
                return None
        made.append(tuple(axis))
    return tuple(made)


def _axes(shape):
    return tuple((Factor(n, math.prod(shape[i + 1 :])),) if n != 1 else () for i, n in enumerate(shape))


def _over_rows(n):
    return (Factor(n, None),) if n != 1 else ()


def _joined(axes):
    return tuple(f for axis in axes for f in axis)


def _length(axis):
    return math.prod(f.size for f in axis)


def _repeats(axes):
    return any(f.stride is None for f in _joined(axes))


def _leading(pairs, axes):
    """Pairs (axis, anything) in the order in which the axes stand in the leaf."""
    return sorted(pairs, key=lambda pair: -max((f.stride for f in axes[pair[0]]), default=0))
