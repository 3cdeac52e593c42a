"""Whether a derivative is right: reverse mode against differences, the complex step and forward mode, in float64.

gradient_check(f)(params, *args)   -> Checked, a `Row` for each leaf of params and each way to check it

All three are of derivatives along random directions d, each of length 1, so that the cost is some evaluations of f for
each leaf, however large the leaf is:

differences     <gradient, d> against (f(p + h d) - f(p - h d)) / 2h, extrapolated to h = 0
complex step    <gradient, d> against Im f(p + i h d) / h, exact to rounding, where f is analytic
forward mode    <gradient, d> against J d, two programs that jax derives from the same rules
"""

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from functrain import _compat, tree

Verdict = Literal["ok", "kink", "skipped", "unclear", "wrong"]

WHOLE = "*"
"""The path of what is checked along directions in all leaves at once."""

_STEPS = 4.0 ** -np.arange(2, 14)  # 0.06 to 1.5e-8: truncation is the larger error of the first, rounding of the last
_COLUMNS = 4  # of the tableau: an estimate looks at this many steps at most, so that it need not cross a far kink
_SAFETY = 10.0  # the tolerance, in estimated errors
_RESOLUTION = 1e-5  # differences that err by more than this share of a derivative decide nothing
_FLOOR = 1e-6  # no derivative is taken for smaller than this share of f and of the whole gradient
_ROUNDING = 1e-12  # of a derivative by jax, as a share of the whole gradient
_EPSILON = np.finfo(np.float64).eps
_IMAGINARY = 1e-20  # the complex step: its square is nothing beside 1
_SHIFTS, _SHIFT = 3, 1e-3  # points tried where the first lies at a kink; how far, as a share of each number, of 1 for 0
_FEW = 8  # numbers that are tried one by one


@dataclass(frozen=True)
class Row:
    """A leaf of the parameters, checked in one way.

    path: of the leaf; `WHOLE` for directions in all leaves at once.
    check: "differences", "complex step" or "forward mode".
    error: the largest of |reverse - found| over the directions, as a share of what such derivatives typically are.
    tolerance: how large it may be, on the same scale.
    verdict: "ok"; "kink": at these parameters the derivatives to both sides differ, and near by all is well; "skipped":
      this check says nothing of this f, `note` says why; "unclear": differences are too inexact to decide; "wrong".
    index: of the leaf's worst number where it is wrong, or None.
    reverse, found: the derivative by reverse mode and by the check: by that number, or else along the worst direction.
    note: why, where there is more to say.
    """

    path: str
    check: str
    error: float
    tolerance: float
    verdict: Verdict
    index: tuple[int, ...] | None = None
    reverse: float = float("nan")
    found: float = float("nan")
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the derivative."""
        return self.verdict in ("ok", "kink", "skipped")

    def __str__(self) -> str:
        """`kernel[3, 2]: reverse 0.5, differences 0.6: wrong`."""
        at = "" if self.index is None else f"[{', '.join(map(str, self.index))}]"
        note = f" ({self.note})" if self.note else ""
        return f"{self.path}{at}: reverse {self.reverse:.8g}, {self.check} {self.found:.8g}: {self.verdict}{note}"


@dataclass(frozen=True)
class Checked:
    """What `gradient_check` found: rows by leaf, in the tree's order, the whole last."""

    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether no row is wrong or unclear."""
        return all(row.passed for row in self.rows)

    @property
    def failed(self) -> tuple[Row, ...]:
        """The rows that are wrong or unclear."""
        return tuple(row for row in self.rows if not row.passed)

    @property
    def worst(self) -> Row:
        """Of the rows that failed, or else of all that were checked, the one whose error is most of its tolerance."""
        # The whole is wrong where a leaf is, so the leaf is named.
        found = sorted(self.failed or self.rows, key=lambda row: row.path == WHOLE)
        return max(found, key=lambda row: (_severity(row.verdict), row.path != WHOLE, row.error / row.tolerance))


def gradient_check(
    f: Callable[..., Any],
    *,
    directions: int = 3,
    seed: int = 0,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> Callable[..., Checked]:
    """`(params, *args) -> Checked`: whether jax's derivative of `f(params, *args)` by params is the derivative of f.

    Everything floating-point is computed in float64, params and args cast to it; what args hold of other types, keys
    of random numbers too, stays. The tolerances follow from estimated errors:

    - Differences: central ones at twelve steps, each a quarter of the last, are extrapolated to 0 (Ridders 1982; Press
      et al., Numerical Recipes, section 5.7). An estimate errs by how far it is from those that it was made of
      (truncation, h^2 f'''/6 at first), and by the noise of f over h (rounding). The estimate for which the two
      together are least is taken; the tolerance is ten times their sum. The noise is measured: by how far f is from a
      line over the smallest steps; no less than the rounding of its value.
    - Complex step (Squire, Trapp 1998): 1e-11 of the whole gradient's norm. It is skipped where f takes no complex
      numbers, gives a real value of them, or is not analytic (abs, conj, real): where it is not what differences are.
    - Forward mode: <J d, 1> = <d, J^T 1> to 1e-12 of the whole gradient's norm. It is skipped where f has no forward
      mode, as under jax.custom_vjp.

    Where the derivatives to both sides differ, the parameters lie at a kink (of relu, max, abs): there
    the check goes on at points shifted by a thousandth at random, and what it finds there decides. So reverse mode may
    have any value *at* a kink. Where a leaf is wrong, the fault is followed down to a single number by halving.

    A gradient that is meant not to be the derivative (`stop_gradient`, straight-through estimators) is wrong here; so
    may be that of an f which casts to float32, whose differences show the rounding: the row's note says so.

    Args:
      f: gives a float, []. Pure: what it draws at random, it draws from a key among its arguments.
      directions: how many random directions in each leaf alone, and in all.
      seed: of the directions.
      tell: called with how many of the leaves are done.

    Raises:
      ValueError: no float among the parameters, or a value that is no float.
      FloatingPointError: a value that is not finite at these parameters.

    >>> def cube(params, x):
    ...     return jnp.sum(x * params["w"] ** 3)
    >>> gradient_check(cube)({"w": jnp.array([1.0, 2.0])}, jnp.array([3.0, 4.0])).passed
    True
    >>> wrong = jax.custom_vjp(lambda w: jnp.sum(w**3))
    >>> wrong.defvjp(lambda w: (jnp.sum(w**3), w), lambda w, g: (g * 3 * w**2 * jnp.array([1.0, 1.01]),))
    >>> print(gradient_check(lambda params: wrong(params["w"]))({"w": jnp.array([1.0, 2.0])}).worst)
    w[1]: reverse 12.12, complex step 12: wrong
    """
    if directions < 1:
        raise ValueError(f"directions {directions}; expected at least 1")

    def check(params: Any, *args: Any) -> Checked:
        with jax.enable_x64(True):
            return Checked(tuple(_Check(f, params, args, directions, seed).rows(tell)))

    return check


class Slopes(NamedTuple):
    """The derivative of a function of one number at 0, by differences: central and to both sides, with their errors."""

    central: float
    error: float
    left: float
    left_error: float
    right: float
    right_error: float

    @property
    def kinked(self) -> bool:
        """Whether the one-sided derivatives differ by more than they err."""
        return abs(self.right - self.left) > _SAFETY * (self.left_error + self.right_error)


def slopes(phi: Callable[[float], Any], *, size: float = 1.0) -> Slopes:
    """The derivative of phi at 0 and how far it may be off: Ridders' extrapolation, and what rounding adds to it.

    size: of the numbers that move: the steps are 0.06 of it and less.

    >>> found = slopes(np.exp)
    >>> bool(abs(found.central - 1) < found.error < 1e-10), found.kinked, slopes(abs).kinked
    (True, False, True)
    """
    steps = _STEPS * size
    # All are asked for before any is waited for: the device computes while the host goes on.
    middle, above, below = phi(0.0), [phi(h) for h in steps], [phi(-h) for h in steps]
    start = float(middle)
    up, down = (np.array([float(y) for y in side]) for side in (above, below))
    with np.errstate(invalid="ignore", over="ignore"):  # far steps may leave the domain of f
        # Over steps so small, what is not linear is rounding; and a kink at 0 does not count, for sides are apart.
        bent = [y[i - 1] - 4 * y[i] + 3 * start for y in (up, down) for i in (-1, -2)]
        noise = max(_EPSILON * abs(start), 2 / 5 * float(np.median(np.abs(bent))))
        central = _extrapolated((up - down) / (2 * steps), 16.0, noise / steps)
        left = _extrapolated((start - down) / steps, 4.0, noise / steps)
        right = _extrapolated((up - start) / steps, 4.0, noise / steps)
    return Slopes(*central, *left, *right)


def _extrapolated(estimates, ratio, rounding):
    """(estimate, error) at step 0, of estimates at steps whose leading error falls by `ratio` from each to the next."""
    best, error = np.nan, np.inf
    column = estimates
    for j in range(1, _COLUMNS):
        after = column[1:] + (column[1:] - column[:-1]) / (ratio**j - 1)
        errors = np.maximum(np.abs(after - column[1:]), np.abs(after - column[:-1])) + 2 * rounding[j:]
        errors = np.where(np.isfinite(errors), errors, np.inf)
        i = int(np.argmin(errors))
        if errors[i] < error:
            best, error = float(after[i]), float(errors[i])
        column = after
    return best, error


class _Point(NamedTuple):
    """Parameters, and f with its gradient there."""

    x: Any
    value: float
    gradient: Any
    norm: float


@dataclass(frozen=True)
class _Found:
    """Differences along some directions at a point: the verdict, and its worst direction."""

    verdict: Verdict
    reverse: float
    found: float
    tolerance: float
    scale: float
    all: list[tuple[float, Slopes]] = field(default_factory=list)

    @property
    def off(self) -> float:
        """|reverse - found|, in tolerances."""
        off = abs(self.reverse - self.found)
        return off / self.tolerance if np.isfinite(off) and np.isfinite(self.tolerance) else float("inf")


class _Check:
    """One check: f compiled, the points it is checked at, and the way of each row."""

    def __init__(self, f, params, args, directions, seed):
        named = jax.tree_util.tree_leaves_with_path(params)
        leaves, form = [leaf for _, leaf in named], jax.tree.structure(params)
        floats = [i for i, x in enumerate(leaves) if _floating(x) and np.size(x)]
        if not floats:
            raise ValueError("the parameters hold no floating-point number")
        self.paths = [tree.path_of(named[i][0]) or "params" for i in floats]
        self.directions, self.random = directions, np.random.default_rng(seed)
        given, form_of_args = jax.tree.flatten(args)
        traced = [i for i, x in enumerate(given) if hasattr(x, "dtype") or isinstance(x, float)]
        given = [_wide(x) if i in traced else x for i, x in enumerate(given)]
        arrays = [given[i] for i in traced]
        x = [jnp.asarray(leaves[i], jnp.float64) for i in floats]
        # Leaves of no numbers are cast as well, so that f sees one dtype.
        others = [_wide(leaf) if hasattr(leaf, "dtype") else leaf for leaf in leaves]

        def of(x, arrays):
            whole, inputs = list(others), list(given)
            for i, leaf in zip(floats, x):
                whole[i] = leaf
            for i, array in zip(traced, arrays):
                inputs[i] = array
            return f(jax.tree.unflatten(form, whole), *jax.tree.unflatten(form_of_args, inputs))

        made = jax.eval_shape(of, x, arrays)
        if getattr(made, "shape", None) != () or not jnp.issubdtype(made.dtype, jnp.floating):
            raise ValueError(f"f gives {made}; expected a float, []")

        self.low = _low(jax.make_jaxpr(of)(x, arrays))
        moved = jax.jit(lambda x, d, h, arrays: of([a + h * b for a, b in zip(x, d)], arrays))
        both = jax.jit(jax.value_and_grad(of))
        forward = jax.jit(lambda x, d, arrays: jax.jvp(lambda x: of(x, arrays), (x,), (d,))[1])
        dot = jax.jit(lambda a, b: sum(jnp.vdot(u, v) for u, v in zip(a, b)))
        self.moved = lambda x, d, h: moved(x, d, h, arrays)
        self.both = lambda x: both(x, arrays)
        self.forward = lambda x, d: float(forward(x, d, arrays))
        self.dot = lambda a, b: float(dot(a, b))
        self.zeros = [jnp.zeros_like(a) for a in x]
        self.sizes = [_size(a) for a in x]
        self.points = [self.point(x)]

    def rows(self, tell):
        """The rows, leaf by leaf, then the whole."""
        start = self.points[0]
        if not np.isfinite(start.value):
            raise FloatingPointError(f"{start.value} at these parameters")
        skipped = self.no_complex(start), self.no_forward(start)
        groups: list[tuple[str, Sequence[int]]] = [(path, [i]) for i, path in enumerate(self.paths)]
        if len(groups) > 1:
            groups.append((WHOLE, range(len(self.paths))))
        for done, (path, leaves) in enumerate(groups):
            along = [self.direction(leaves) for _ in range(self.directions)]
            size = min(self.sizes[i] for i in leaves)
            yield from self.group(path, leaves, along, size, *skipped)
            tell(done + 1, len(groups))

    def group(self, path, leaves, along, size, no_complex, no_forward):
        """The rows of a leaf, or of the whole."""
        start = self.points[0]
        first = self.differences(start, along, size)
        found, point, note = first, start, ""
        if first.verdict in ("kink", "unclear"):
            # All of the points: where units lie to the dead side of their kinks, a wrong derivative is 0 as well.
            tried = [(self.differences(point, along, size), point) for point in self.shifted()]
            decided = [each for each in tried if each[0].verdict in ("ok", "wrong")]
            if decided:
                found, point = max(decided, key=lambda each: _severity(each[0].verdict))
                note = "at shifted parameters; at these there is a kink"
            else:
                note = (
                    f"differences err by {first.tolerance / _SAFETY / first.scale:.0e}, here and at each point near by"
                )
        verdict: Verdict = found.verdict
        if found is first and verdict == "kink":
            verdict = "unclear"
        elif found is not first and verdict == "ok":
            verdict = "kink"

        def differ(d):
            return slopes(lambda h: self.moved(point.x, d, np.float64(h)), size=size).central

        yield self.row(path, "differences", leaves, point, verdict, found, differ, note)

        reverse = [r for r, _ in first.all]
        bound = _bound(start)
        if not no_complex:
            # Differences know nothing of derivatives by rules, so where the two agree, f is analytic here.
            values = [self.complex_step(start.x, d) for d in along]
            clean = [s.error < _RESOLUTION * first.scale and not s.kinked for _, s in first.all]
            close = [abs(c - s.central) <= _SAFETY * (s.error + bound) for c, (_, s) in zip(values, first.all)]
            if not all(clean):
                no_complex = "differences are not exact enough here to say whether f is analytic"
            elif not all(close):
                no_complex = "f is not analytic: it takes abs, conj, real or the like of a complex number"
        if no_complex:
            yield Row(path, "complex step", 0.0, float("inf"), "skipped", note=no_complex)
        else:
            found = _compare(reverse, values, 10 * bound, first.scale)
            yield self.row(
                path, "complex step", leaves, start, found.verdict, found, partial(self.complex_step, start.x)
            )
        if no_forward:
            yield Row(path, "forward mode", 0.0, float("inf"), "skipped", note=no_forward)
        else:
            values = [self.forward(start.x, d) for d in along]
            found = _compare(reverse, values, bound, first.scale)
            yield self.row(path, "forward mode", leaves, start, found.verdict, found, partial(self.forward, start.x))

    def row(self, path, check, leaves, point, verdict, found, derivative, note=""):
        """A row; of a leaf that is wrong, with its worst number."""
        off = abs(found.reverse - found.found)
        error = off / found.scale if np.isfinite(off) else float("inf")
        if self.low and verdict in ("unclear", "wrong"):
            note = f"{note}; " * bool(note) + f"a part of f computes in {self.low}"
        common = (path, check, float(error), float(found.tolerance / found.scale), verdict)
        if verdict != "wrong" or path == WHOLE:
            return Row(*common, None, found.reverse, found.found, note)
        (leaf,) = leaves
        index, reverse, value = self.worst_number(leaf, point, derivative)
        return Row(*common, index, reverse, value, note)

    # -- points and directions

    def point(self, x):
        """f and its gradient at x."""
        value, gradient = self.both(x)
        return _Point(x, float(value), gradient, float(np.sqrt(self.dot(gradient, gradient))))

    def shifted(self):
        """Points near the first, one after another; each is computed once."""
        for i in range(1, _SHIFTS + 1):
            if i == len(self.points):
                sizes = [jnp.where(a == 0, 1, jnp.abs(a)) for a in self.points[0].x]
                away = [_SHIFT * size * self.random.normal(size=size.shape) for size in sizes]
                self.points.append(self.point([a + b for a, b in zip(self.points[0].x, away)]))
            if np.isfinite(self.points[i].value):
                yield self.points[i]

    def direction(self, leaves):
        """A random direction in these leaves alone."""
        drawn = {i: self.random.normal(size=self.zeros[i].shape) for i in leaves}
        length = np.sqrt(sum(np.sum(np.square(d)) for d in drawn.values()))
        return [jnp.asarray(drawn[i] / length) if i in drawn else zero for i, zero in enumerate(self.zeros)]

    def some(self, leaf, indices, signs):
        """The direction of some numbers of a leaf, by their places in the flattened leaf."""
        flat = np.zeros(self.zeros[leaf].size)
        flat[indices] = signs / np.sqrt(len(indices))
        return [jnp.asarray(flat.reshape(z.shape)) if i == leaf else z for i, z in enumerate(self.zeros)]

    # -- derivatives along directions

    def differences(self, point, along, size):
        """Reverse mode against differences at a point."""
        found = []
        for d in along:
            by_step = slopes(lambda h, d=d: self.moved(point.x, d, np.float64(h)), size=size)
            found.append((self.dot(point.gradient, d), by_step))
        scale = _scale(point, [r for r, _ in found], [s.central for _, s in found])
        trials = []
        for reverse, by_step in found:
            tolerance = _SAFETY * by_step.error + _bound(point)
            verdict: Verdict = "wrong"
            if np.isfinite(reverse):
                if by_step.kinked:  # also where reverse is the mean of both sides, which central differences are
                    verdict = "kink"
                elif _SAFETY * by_step.error > _RESOLUTION * scale:
                    verdict = "unclear"
                elif abs(reverse - by_step.central) <= tolerance:
                    verdict = "ok"
            trials.append(_Found(verdict, reverse, by_step.central, tolerance, scale, found))
        return max(trials, key=lambda t: (_severity(t.verdict), t.off))

    def complex_step(self, x, d):
        """Im f(x + i h d) / h."""
        return float(np.imag(self.moved(x, d, np.complex128(_IMAGINARY * 1j)))) / _IMAGINARY

    def no_complex(self, point):
        """Why there is no complex step of f; "" where there is."""
        d = self.direction(range(len(self.paths)))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                value = self.moved(point.x, d, np.complex128(_IMAGINARY * 1j))
            except Exception as error:  # whatever f raises of numbers that it was not written for
                return f"f takes no complex numbers: {_line(error)}"
        if any("imaginary" in str(warning.message) for warning in said):
            return "f drops the imaginary part of a complex number"
        return "" if jnp.iscomplexobj(value) else "f gives a real value of complex numbers"

    def no_forward(self, point):
        """Why there is no forward mode of f; "" where there is."""
        try:
            self.forward(point.x, self.direction(range(len(self.paths))))
        except (TypeError, ValueError, NotImplementedError) as error:
            return f"f has no forward mode: {_line(error)}"
        return ""

    def worst_number(self, leaf, point, derivative):
        """(index, by reverse mode, by the check) of the number of a leaf whose derivatives differ most, by halving.

        Of the halves goes on the one with more error along random signs: where many numbers are wrong it is one of the
        worst.
        """
        indices = np.arange(self.zeros[leaf].size)

        def off(indices):
            signs = self.random.choice([-1.0, 1.0], len(indices))
            d = self.some(leaf, indices, signs)
            error = abs(self.dot(point.gradient, d) - derivative(d)) * np.sqrt(len(indices))
            return error if np.isfinite(error) else np.inf

        while len(indices) > _FEW:
            indices = max(np.array_split(indices, 2), key=lambda half: max(off(half) for _ in range(2)))
        i = max(indices, key=lambda i: off(np.array([i])))
        d = self.some(leaf, np.array([i]), 1.0)
        index = tuple(int(k) for k in np.unravel_index(i, self.zeros[leaf].shape))
        return index, self.dot(point.gradient, d), derivative(d)


def _compare(reverse, values, tolerance, scale):
    """Derivatives along directions by two ways that are exact to rounding."""
    off = [abs(r - v) if np.isfinite(r - v) else np.inf for r, v in zip(reverse, values)]
    i = int(np.argmax(off))
    return _Found("ok" if off[i] <= tolerance else "wrong", reverse[i], values[i], tolerance, scale)


def _bound(point):
    """How far two derivatives that are exact to rounding may be apart."""
    norm = point.norm if np.isfinite(point.norm) else 0.0
    return max(_ROUNDING * norm + 10 * _EPSILON * abs(point.value), float(np.finfo(np.float64).tiny))


def _scale(point, *derivatives):
    """What a derivative along such directions typically is."""
    numbers = np.array([x for x in itertools.chain(*derivatives) if np.isfinite(x)])
    typical = float(np.sqrt(np.mean(np.square(numbers)))) if numbers.size else 0.0
    floor = max(abs(point.value), point.norm if np.isfinite(point.norm) else 0.0)
    return max(typical, _FLOOR * floor, float(np.finfo(np.float64).tiny))


def _severity(verdict):
    return ("skipped", "ok", "kink", "unclear", "wrong").index(verdict)


def _floating(x):
    return isinstance(x, float) or (hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating))


def _wide(x):
    return jnp.asarray(x, jnp.float64) if _floating(x) else x


def _size(x):
    """How far the numbers of a leaf may move: the smallest of them, at least 1."""
    return max(1.0, float(jnp.min(jnp.abs(x))))


def _low(closed):
    """The names of the floating-point types below float64 that a traced function computes in, as far as it matters."""

    def types(jaxpr):
        for equation in jaxpr.eqns:
            yield from (getattr(v.aval, "dtype", None) for v in equation.outvars)
            for inner in _compat.inner_jaxprs(equation):
                yield from types(inner)

    found = {t for t in types(_compat.live_jaxpr(closed)) if t is not None and jnp.issubdtype(t, jnp.floating)}
    return ", ".join(sorted(str(t) for t in found if t.itemsize < 8))


def _line(error):
    """The first line of an error, short."""
    said = f"{type(error).__name__}: {error}".strip().split("\n")[0]
    return said if len(said) <= 120 else said[:117] + "..."
