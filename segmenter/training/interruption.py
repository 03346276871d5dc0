"""SIGINT and SIGTERM as a request to stop at the next good moment."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ECHO_S = 1.0  # a launcher passes on a signal that the batch system, or the terminal, has sent to all processes


class Interrupted(Exception):  # noqa: N818  (a request, as KeyboardInterrupt is, and no error)
    """Raised at a signal inside `Interruption.allowed`, where there is nothing to save."""


class Interruption:
    """Remembers a signal in `.signal`, its number or None; a second Ctrl-C is a KeyboardInterrupt as ever.

    An echo of the first is none. Processes of a job tell each other of a signal, so that `.signal` may be set before
    this one hears it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._heard_at: float | None = None
        self._at_once = False

    @contextmanager
    def listening(self) -> Iterator["Interruption"]:
        """Take over both signals inside the block; elsewhere than in the main thread they stay as they are."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Inside the block a signal raises Interrupted at once, and one that came before it does so on entry."""
        self._at_once = True
        try:
            if self.signal is not None:
                raise Interrupted
            yield
        finally:
            self._at_once = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._heard_at is None:
            self._heard_at = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._heard_at > _ECHO_S:
            raise KeyboardInterrupt
        self.signal = number
        if self._at_once:
            raise Interrupted
