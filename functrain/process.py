"""What the `functrain` command sets for its own process; importing the library sets nothing."""

import ctypes
import importlib.util
import os

from functrain.config import ConfigError

SETTING = "FUNCTRAIN_KEEP_MEMORY"
"""The environment variable that says whether the process keeps what it frees: 1 or 0; the rule's answer where unset."""

_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1
"""Parameters of mallopt, by <malloc.h>."""


def keep_memory() -> None:
    """Have the process keep the memory that it frees, for its next allocation.

    A program of XLA on a CPU asks for all its intermediate values at once and frees them at its end. By itself, glibc
    gives so much back to the system each time, and the system gives the pages anew, each cleared when it is first
    touched: a GPT's step of 157 MB paid for 38,500 of them, a quarter of its time (docs/speed.md).

    Called before the first thread is started, since what a thread allocates from is chosen once. What was decided is
    put into the environment, and so into the record of a run.

    Raises:
      ConfigError: the environment variable is neither 0 nor 1.
    """
    wanted = os.environ.get(SETTING, "")
    if wanted not in ("", "0", "1"):
        raise ConfigError(f"{SETTING}: found {wanted!r}; expected 0 or 1")
    keeps = (wanted == "1" or (not wanted and _for_cpu())) and _is_glibc()
    if keeps:
        mallopt = ctypes.CDLL(None).mallopt
        # One arena, the heap's: of the others, none is larger than 64 MB, and mmap serves what is.
        for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            mallopt(parameter, value)
    os.environ[SETTING] = "1" if keeps else "0"


def _for_cpu() -> bool:
    """Whether jax will compute on a CPU, as far as can be known without importing it."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" if platforms else not any(map(importlib.util.find_spec, ("jax_plugins", "libtpu")))


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError):  # no such function, or name, there
        return False
