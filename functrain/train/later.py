"""Work that is done in a thread of its own while a run trains: compiling what it needs some steps later."""

import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

_THREAD = ThreadPoolExecutor(1, "compiling")


class Later:
    """What `work` gives, in time: begun by `start`, one piece of work after another.

    It runs with what was set where it was made: forms of layers, 64-bit types.

    >>> Later(lambda: 1 + 1).result()
    2
    """

    def __init__(self, work: Callable[[], Any]):
        context, x64 = contextvars.copy_context(), jax.config.values["jax_enable_x64"]

        def there():
            with jax.enable_x64(x64):  # jax keeps it by thread
                return context.run(work)

        self._there, self._pending = there, None

    def start(self) -> Future:
        """Begin, where that was not done before."""
        if self._pending is None:
            self._pending = _THREAD.submit(self._there)
        return self._pending

    def result(self) -> Any:
        """It, or what it raised, when it is done."""
        return self.start().result()


def shape(x: Any, sharding: Any = None) -> Any:
    """What a program is compiled for, of an argument that may be donated before it is; with another sharding."""
    if not isinstance(x, (jax.Array, jax.ShapeDtypeStruct)):
        return x
    sharding = x.sharding if sharding is None else sharding
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding, weak_type=getattr(x, "weak_type", False))
