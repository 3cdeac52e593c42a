"""Cells of tables in text files: numbers in them, and how messages show them."""

import math
import re
from collections.abc import Iterable

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)


def number_in(cell: str) -> float | None:
    """The number; None where it is none, or beyond float64. Python's float() takes 1_000 and infinity too.

    >>> [number_in(cell) for cell in ("-1.5e3", ".5", "1_000", "inf", "")]
    [-1500.0, 0.5, None, None, None]
    """
    number = float(cell) if _NUMBER.fullmatch(cell) else math.inf
    return number if math.isfinite(number) else None


def short(text: str) -> str:
    """A cell as a message shows it: in quotes, 40 characters at most."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def short_list(names: Iterable[str]) -> str:
    """Names as a message shows them, 160 characters at most."""
    text = ", ".join(map(str, names))
    return text if len(text) <= 160 else text[:157] + "..."
