"""When checkpoints are written: often enough to lose little, seldom enough to cost little."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ewald_jax.train.checkpoint import save_checkpoint
from ewald_jax.train.state import TrainState


class Keeper:
    """Writes the best and the last state of a training.

    A save takes a few tenths of a second, an epoch of a small data set less. So a new best
    state waits on the device until the last one is written too: a training that is killed in
    between continues from before both, and finds the same best state again.
    """

    def __init__(self, directory: Path, seconds: float):
        """Write to `directory`; `due` about every `seconds`."""
        self._directory, self._seconds = directory, seconds
        self._best: tuple[TrainState, dict[str, Any]] | None = None
        self._clock = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether enough time has passed since the last save."""
        return time.monotonic() - self._clock >= self._seconds

    def best(self, state: TrainState, record: Mapping[str, Any]) -> None:
        """Takes a copy of a state, which the next step would otherwise overwrite."""
        kept = state.replace(opt_state=())
        self._best = (jax.tree.map(jnp.copy, kept), dict(record))

    def last(self, state: TrainState, progress: Mapping[str, Any]) -> None:
        """Writes the best state, if it is new, and then this one.

        Raises:
            InputError: If the disk is full; the checkpoints before these then still stand.
        """
        self.flush()
        save_checkpoint(self._directory, "last", state, progress)
        self._clock = time.monotonic()

    def flush(self) -> None:
        """Writes the best state, if it is new."""
        if self._best is not None:
            save_checkpoint(self._directory, "best", *self._best)
            self._best = None
