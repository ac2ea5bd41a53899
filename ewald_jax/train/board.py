"""TensorBoard event files."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ewald_jax.train.files import writing


class Board:
    """Writes numbers for TensorBoard, or nothing. Use as a context manager.

    Not tensorboardX's `SummaryWriter`: it writes in a thread, and when the disk is full that
    thread dies, and the training waits for it for ever.
    """

    def __init__(self, directory: Path | None, step: int = 0):
        """Write to `directory`, None for nowhere; TensorBoard hides what is after `step`."""
        self._directory = directory
        self._writer: Any = None
        if directory is None:
            return
        # Imported late: protobuf is slow, and not everybody wants it.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        with self._writing():
            directory.mkdir(exist_ok=True)
            # The rest of the name is a second: resuming may take less.
            suffix = f".{time.time_ns() % 10**9:09d}"
            self._writer = EventsWriter(str(directory / "events"), suffix)
            restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(step=step + 1, session_log=restart)

    def __enter__(self) -> "Board":
        """Nothing to do."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Write what is left; the error that ends the training is not to be replaced."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by tag, at a step."""
        if self._writer is not None:
            entries = [
                self._summary.Value(tag=tag, simple_value=value)
                for tag, value in values.items()
            ]
            with self._writing():
                self._write(step=step, summary=self._summary(value=entries))

    def flush(self) -> None:
        """Write to disk."""
        if self._writer is not None:
            with self._writing():
                self._writer.flush()

    def _write(self, **fields: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), **fields))

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(f"{self._directory}", "the checkpoints are kept")
