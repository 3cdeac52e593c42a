"""Ending early on request: SIGTERM and Ctrl-C are noted, and acted on between two steps."""

import signal
from types import FrameType

EXIT_STATUS = {signal.SIGTERM: 75, signal.SIGINT: 130}
"""75 is EX_TEMPFAIL: try again (with --resume); 130 is what a shell reports for Ctrl-C."""


class Stop:
    """Whether a signal asked the run to end. The handler only notes it; a second Ctrl-C interrupts at once.

    Use as a context: the handlers before it are put back at its end.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Stop":
        for number in EXIT_STATUS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None
