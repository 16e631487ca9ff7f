"""Stopping politely: the first SIGTERM or SIGINT asks, the second one acts at once."""

import signal
import threading
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A context in which SIGTERM and SIGINT (Ctrl-C) set ``requested`` instead of ending the process.

    The handlers that were there come back with the first signal and at the end of the context. In a thread other than
    the main one Python has no signals, and ``requested`` stays false.

    Example:
        >>> with StopRequest() as stop:
        ...     while not stop.requested:
        ...         signal.raise_signal(signal.SIGTERM)
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        else:
            self._previous = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
