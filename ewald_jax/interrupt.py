"""Ctrl-C that lets what is in progress finish."""

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any


class Interruptible:
    """A context in which Ctrl-C and SIGTERM (a cluster's notice) are requests, not errors.

    A training step donates its state: an exception in the middle of it would lose the
    training. Processes that are being started are lost sight of by an exception, and one
    that is raised in a callback of the garbage collector is ignored. The second Ctrl-C is an
    exception again. Outside the main thread, where Python allows no signal handlers, nothing
    changes.

    Attributes:
        requested: Whether somebody asked to stop.
    """

    def __init__(self, signals: Sequence[int] = (signal.SIGINT, signal.SIGTERM)):
        """Not yet active.

        Args:
            signals: Those that are requests.
        """
        self.requested = False
        self._signals = signals
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruptible":
        """Installs the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
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
