"""Running sums of a training that stay on the device until somebody reads them."""

import statistics
import time

import jax
import numpy as np

from ewald_jax.train.metrics import Sums, merge
from ewald_jax.train.state import TrainState
from ewald_jax.typing import Array


class Meter:
    """Collects the sums of each step, and times the steps, without waiting for the device.

    Attributes:
        sums: Sums and counts read so far, float64 on the host. Added step by step, so that
            they do not depend on when they are read.
    """

    def __init__(self, sums: Sums | None = None, seconds: float = 0.0):
        """Start from what a checkpoint kept, or from nothing."""
        self.sums = dict(sums or {})
        self._begin = time.perf_counter() - seconds
        self._pending: list[Sums] = []
        self._windows: list[tuple[float, int]] = []
        self.start()

    def start(self) -> None:
        """Starts the clock anew: what lies before is not training."""
        self._clock, self._steps = time.perf_counter(), 0

    def add(self, sums: Sums, compiled: bool = False) -> None:
        """Takes the sums of a step; one that was compiled just now is not timed."""
        self._pending.append(sums)
        if compiled:
            jax.block_until_ready(sums)
            self.start()
        else:
            self._steps += 1

    def read(self, state: TrainState) -> tuple[Sums, np.ndarray, np.ndarray]:
        """Waits for the device and adds what is pending.

        Args:
            state: After the last step.

        Returns:
            The sums since the last reading, whether all steps were healthy, and the number
            of healthy steps since the start of the training; the latter two [members] for an
            ensemble. Unhealthy sums are not added.
        """
        pulled, healthy, step = jax.device_get((self._pending, state.healthy, state.step))
        if self._steps:
            self._windows.append((time.perf_counter() - self._clock, self._steps))
        self._pending = []
        self.start()
        window: Sums = {}
        if np.all(healthy):
            for sums in pulled:
                window = merge(window, as_floats(sums))
                self.sums = merge(self.sums, as_floats(sums))
        return window, healthy, step

    def reset(self) -> None:
        """Starts a new period: forgets sums and seconds."""
        self.sums, self._begin = {}, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the period began."""
        return time.perf_counter() - self._begin

    @property
    def seconds_per_step(self) -> float | None:
        """Median over the readings, compilations left out; None if all steps compiled."""
        if not self._windows:
            return None
        return statistics.median(seconds / steps for seconds, steps in self._windows)


def as_floats(sums: Sums) -> dict[str, tuple[Array, Array]]:
    """Host numbers in float64, of which no data set has too many to count."""
    number = lambda x: np.asarray(x, np.float64) if np.ndim(x) else float(x)
    return {name: (number(total), number(count)) for name, (total, count) in sums.items()}
