"""autocast: a function with each primitive computed in a dtype of its own, chosen by rules.

    g = autocast(f)          matrix products in bfloat16, exponentials and sums in float32; the same types in and out
    jax.jit(jax.grad(g)), jax.vmap(g), jax.checkpoint(g), autocast(jax.grad(f)) ...

The function is traced to a jaxpr, and each of its equations is bound again with its inputs cast to what the rules say
(`functrain.precision.rules`). Loops, branches and nested jits are bound again around bodies that were rewritten the
same way (`functrain.precision.nested`), so that shardings, donation and remat policies stay theirs.

Three points decide how good the result is:

- A single number follows the other inputs, and so does what is broadcast from it: x + 1 stays in x's dtype. So does a
  bias that is added to a product, as in torch's linear layers.
- Elementwise steps on the way into a float32 primitive are in float32 too: in softmax, that is the subtraction of the
  maximum before the exponential. XLA fuses them, so that nothing more is stored.
- A value is cast for each of its uses, so that the gradients of them are summed in its own dtype.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core, source_info_util

from functrain import _compat
from functrain.precision.equations import are_numbers, as_written, asks_for_more, bind, cast, dtype_of, made_of_bits
from functrain.precision.nested import HANDLERS
from functrain.precision.rules import EXEMPT, TABLE, Rules, class_of


def autocast(f: Callable[..., Any], rules: Rules = TABLE) -> Callable[..., Any]:
    """The function with every primitive in it computed as the rules say.

    Args:
      f: any function of pytrees of arrays; what else it needs (a flag, a string) is bound to it first.
      rules: see `functrain.precision.rules`.

    Returns:
      A function of the same arguments, which gives the dtypes that f gives.

    >>> w, x = jnp.full((3, 3), 0.1), jnp.ones((2, 3))
    >>> f = lambda w, x: jax.nn.softmax(x @ w).max()
    >>> jax.make_jaxpr(autocast(f))(w, x).eqns[0].params["new_dtype"]
    dtype(bfloat16)
    >>> autocast(f)(w, x).dtype, jax.jit(jax.grad(autocast(f)))(w, x).dtype
    (dtype('float32'), dtype('float32'))
    """

    @functools.wraps(f)
    def g(*args, **kwargs):
        return Interpreter(rules).evaluate(lambda args, kwargs: f(*args, **kwargs), (args, kwargs), pinned=True)

    return g


@dataclasses.dataclass(frozen=True)
class Interpreter:
    """Evaluates jaxprs by rules.

    tap: called with (equation, scope, outputs) after each primitive, where somebody watches.
    """

    rules: Rules
    tap: Callable[[Any, str, list[Any]], None] | None = None

    def evaluate(
        self,
        f: Callable[..., Any],
        written: Sequence[Any],
        given: Sequence[Any] | None = None,
        *,
        scope: str = "",
        pinned: bool = False,
        likes: bool = False,
    ) -> Any:
        """f traced for the arguments `written`, and evaluated with those `given`, which may have other dtypes.

        Args:
          given: None are those written.
          scope: in which it stands.
          pinned: whether outputs are cast to the dtypes that f itself gives.
          likes: whether to give (outputs, a tree like them of scalars in the dtypes that f itself gives).
        """
        leaves, form = jax.tree.flatten(list(written))
        forms = []

        def flat(*leaves):
            outputs, out_form = jax.tree.flatten(f(*jax.tree.unflatten(form, leaves)))
            forms.append(out_form)
            return outputs

        jaxpr, consts = _compat.opened(jax.make_jaxpr(flat)(*leaves))
        outputs = self.run(jaxpr, consts, leaves if given is None else jax.tree.leaves(list(given)), scope)
        if pinned:  # a constant of the program as an array, as jax itself gives it
            outputs = [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in as_written(outputs, jaxpr.outvars)]
        outputs = jax.tree.unflatten(forms[-1], outputs)
        if not likes:
            return outputs
        return outputs, jax.tree.unflatten(forms[-1], [jnp.zeros((), v.aval.dtype) for v in jaxpr.outvars])

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], scope: str = "") -> list[Any]:
        """The outputs of a jaxpr, in whatever dtypes they come out; scope: of the equation whose body it is."""
        frame = _Frame(self, jaxpr, scope)
        frame.write([*jaxpr.constvars, *jaxpr.invars], [*consts, *args])
        for equation in jaxpr.eqns:
            info = equation.source_info
            stack = source_info_util.current_name_stack() + info.name_stack
            # Errors and profiles name the line that the user wrote, not this one.
            with source_info_util.user_context(info.traceback, name_stack=stack), equation.ctx.manager:
                frame.write(equation.outvars, frame.outputs(equation))
        return [frame.read(v) for v in jaxpr.outvars]

    def rewritten(self, body: Any, dtypes: tuple[Any, ...], scope: str, outputs: tuple[Any, ...] = ()) -> Any:
        """An equation's body for inputs of these dtypes, as a jaxpr of the same kind.

        outputs: dtypes that the first outputs are cast to.
        """
        if not (self.rules.scoped or self.tap):
            scope = EXEMPT * (EXEMPT in scope)  # one body for all places
        return _rewritten(self, body, dtypes, scope, outputs)

    def function(self, body: Any, dtypes: tuple[Any, ...], scope: str) -> tuple[Callable[..., list[Any]], list[Any]]:
        """An equation's body as a function of inputs of these dtypes, and the dtypes that it gives."""
        found = self.rewritten(body, dtypes, scope)
        return core.jaxpr_as_fun(found), [getattr(v.aval, "dtype", None) for v in _compat.opened(found)[0].outvars]

    held: ClassVar[Any] = None
    """Arrays that evaluating needs; functions with custom rules are given them, which must not close over any."""

    def holding(self, held: Any) -> "Interpreter":
        """The same with other arrays in their place."""
        return self

    def for_tangents(self) -> "Interpreter":
        """What evaluates the rules of custom_jvp: their tangents must stay transposable."""
        return self

    def choose(self, equation: Any, scope: str) -> Any:
        """What the rules say of an equation: see `Rules.choose`."""
        if EXEMPT in scope:
            return "as written"
        chosen = self.rules.choose(equation.primitive.name, scope)
        if isinstance(chosen, np.dtype) and chosen.itemsize == 2 and asks_for_more(equation):
            return "as written"
        return chosen


class _Frame:
    """The values of one jaxpr while it is evaluated."""

    def __init__(self, interpreter: Interpreter, jaxpr: Any, scope: str):
        self._interpreter, self._outer = interpreter, scope
        self._values: dict[Any, Any] = {}
        # Single numbers that the function was given or holds, and what is made of them alone.
        self._followers = {v for v in [*jaxpr.constvars, *jaxpr.invars] if _is_number(v)}
        self._drawn: set[Any] = set()  # floats made of random bits, and what is made of them alone
        self._products: set[Any] = set()  # what products gave, moved or not
        self._given = {*jaxpr.constvars, *jaxpr.invars}  # what the function was given, moved or not
        self._widened = self._on_the_way_to_float32(jaxpr)

    def write(self, variables, values):
        self._values.update(zip(variables, values, strict=True))

    def read(self, v, dtype=None):
        """A value; where a dtype is given and the value is of floats that may be cast, in it."""
        value = v.val if isinstance(v, core.Literal) else self._values[v]
        if dtype is None or not self._casts(value) or dtype_of(value) == dtype:
            return value
        if isinstance(v, core.Literal):
            return np.asarray(value, dtype)  # no equation for a constant
        return cast(value, dtype)  # for each use, so that gradients are summed in float32; XLA makes one of them

    def outputs(self, equation):
        """An equation's outputs."""
        interpreter, inputs, name = self._interpreter, equation.invars, equation.primitive.name
        scope, values = self._scope(equation), [self.read(v) for v in equation.invars]
        if name in HANDLERS and EXEMPT not in scope:
            return HANDLERS[name](interpreter, equation, values, scope)
        chosen = interpreter.choose(equation, scope)
        dtypes = [dtype_of(x) for x in values if self._casts(x)]
        if drawn := made_of_bits(equation, self._drawn):
            self._drawn.update(equation.outvars)
        if name == "convert_element_type" and dtypes and EXEMPT not in scope:
            outputs = self._converted(equation)
        elif chosen == "as written" or not dtypes or drawn or any(map(self._holds, values)):
            outputs = bind(equation, as_written(values, inputs))
        else:
            dtype = self._dtype(chosen, equation, dtypes)
            outputs = bind(equation, [self._given_to(equation, v, dtype) for v in inputs], dtype)
        if inputs and all(map(self._follows, inputs)) and class_of(name) not in ("matmul", "reduction"):
            self._followers.update(equation.outvars)
        if chosen == "moved":
            for known in (self._products, self._given):
                if all(isinstance(v, core.Literal) or v in known for v in inputs):
                    known.update(equation.outvars)
        elif class_of(name) == "matmul":
            self._products.update(equation.outvars)
        if interpreter.tap is not None:
            interpreter.tap(equation, scope, outputs)
        return outputs

    def _dtype(self, chosen, equation, dtypes):
        """In what an equation is computed, some of whose inputs are floats of these dtypes."""
        if isinstance(chosen, np.dtype) and chosen.itemsize == 2 and are_numbers(equation):
            chosen = "widest"  # a rate, a scale: nothing is won
        if isinstance(chosen, np.dtype):
            # A float32 primitive takes wider inputs as they are.
            return chosen if chosen.itemsize == 2 else functools.reduce(jnp.promote_types, dtypes, chosen)
        leading = [v for v in equation.invars if not (self._follows(v) or self._is_bias(equation, v))]
        if are_numbers(equation):  # a running total keeps its digits
            leading = [v for v in equation.invars if not isinstance(v, core.Literal)]
        leading = [dtype_of(self.read(v)) for v in leading if self._casts(self.read(v))] or dtypes
        if chosen == "widest" and any(v in self._widened for v in equation.outvars):
            leading.append(np.dtype("float32"))
        return functools.reduce(jnp.promote_types, leading)

    def _converted(self, equation):
        """What the program itself casts: to another dtype, or to the one that it has, which says nothing."""
        (v,) = equation.invars
        before, after, rules = v.aval.dtype, equation.params["new_dtype"], self._interpreter.rules
        if before == after:
            return [self.read(v)]
        if rules.casts(after) and rules.carried(after) != after:
            return [cast(self.read(v), rules.carried(after))]
        return bind(equation, [self.read(v)])

    def _scope(self, equation):
        stack = str(equation.source_info.name_stack)
        return f"{self._outer}/{stack}" if self._outer and stack else self._outer or stack

    def _is_bias(self, equation, v):
        """Whether v is added to a product, as torch's linear layers and convolutions add theirs: in its dtype."""
        output = equation.outvars[0]
        if equation.primitive.name != "add" or self._follows(v) or v not in self._given or output in self._widened:
            return False
        others = (other for other in equation.invars if not isinstance(other, core.Literal))
        smaller = math.prod(v.aval.shape) < math.prod(output.aval.shape)
        return smaller and any(other in self._products for other in others)

    def _given_to(self, equation, v, dtype):
        """An input in the dtype that its equation is computed in."""
        value, shape = self.read(v), equation.outvars[0].aval.shape
        repeated = class_of(equation.primitive.name) == "elementwise" and math.prod(v.aval.shape) < math.prod(shape)
        if repeated and self._casts(value) and dtype_of(value) != dtype and not isinstance(v, core.Literal):
            # Repeated first, so that its gradient is summed in its own dtype.
            return cast(jnp.broadcast_to(value, shape), dtype)
        return self.read(v, dtype)

    def _follows(self, v):
        return isinstance(v, core.Literal) or v in self._followers

    def _casts(self, value):
        """Whether a value is of floats that may be cast."""
        dtype = dtype_of(value)
        return dtype is not None and self._interpreter.rules.casts(dtype)

    def _holds(self, value):
        """Whether a value keeps its equation as it was written: of float64, of complex numbers, no array at all."""
        dtype = dtype_of(value)
        return dtype is None or (jnp.issubdtype(dtype, jnp.inexact) and not self._interpreter.rules.casts(dtype))

    def _on_the_way_to_float32(self, jaxpr):
        """Variables that a float32 primitive reads, itself or after elementwise steps."""
        found: set[Any] = set()
        for equation in reversed(jaxpr.eqns):
            chosen = self._interpreter.choose(equation, self._scope(equation))
            wide = isinstance(chosen, np.dtype) and chosen.itemsize > 2
            if wide or (chosen in ("widest", "moved") and any(v in found for v in equation.outvars)):
                found.update(v for v in equation.invars if not isinstance(v, core.Literal))
        return found


def _is_number(v):
    """Whether a variable is a single number, or weakly typed, as Python's numbers are."""
    return getattr(v.aval, "shape", None) == () or getattr(v.aval, "weak_type", False)


@functools.lru_cache(1024)  # so that a nested jit that is called again is neither traced nor compiled again
def _rewritten(interpreter, body, dtypes, scope, outputs):
    jaxpr, consts = _compat.opened(body)
    types = [_compat.with_dtype(v.aval, dtype) for v, dtype in zip(jaxpr.invars, dtypes, strict=True)]

    def run(*args):
        found = interpreter.run(jaxpr, consts, args, scope)
        return [cast(x, dtype) for x, dtype in zip(found, outputs)] + found[len(outputs) :]

    return _compat.closed_like(body, jax.make_jaxpr(run)(*types))
