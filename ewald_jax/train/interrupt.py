"""Ctrl-C that lets the step in progress finish."""

import signal
import threading
from types import FrameType
from typing import Any


class Interruptible:
    """A context in which Ctrl-C and SIGTERM (a cluster's notice) are requests, not errors.

    The step donates its state: an exception in the middle of it would lose the training. The
    second Ctrl-C is an exception again. Outside the main thread, where Python allows no
    signal handlers, nothing changes.

    Attributes:
        requested: Whether somebody asked to stop.
    """

    def __init__(self):
        """Not yet active."""
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruptible":
        """Installs the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        """Restores the handlers that were there."""
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
