"""What a training shows: a table with one line per evaluation, and a live bar."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class _Column(NamedTuple):
    title: str
    key: str
    width: int
    form: str
    factor: float = 1.0


_COLUMNS = (
    _Column("epoch", "epoch", 6, "d"),
    _Column("step", "step", 8, "d"),
    _Column("lr", "lr", 9, ".2e"),
    _Column("train loss", "train_loss", 11, ".5f"),
    _Column("val loss", "val_loss", 10, ".5f"),
    _Column("E MAE/meV", "val_energy_mae", 10, ".2f", 1e3),
    _Column("F MAE/(meV/Å)", "val_forces_mae", 14, ".2f", 1e3),
    _Column("seconds", "seconds", 8, ".1f"),
)


class Display:
    """Lines and, on a terminal, a bar with the time left and the running loss.

    Use as a context manager.
    """

    def __init__(self, enabled: bool, num_steps: int, console: Console | None = None):
        """Prepare to show a training of `num_steps` steps; shows nothing if not enabled."""
        # Piped output is read by other programs: their lines must not be folded.
        self._console = console or Console(soft_wrap=True, highlight=False)
        self._enabled = enabled
        self._num_steps = num_steps
        self._header: tuple[_Column, ...] = ()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
            disable=not (enabled and self._console.is_terminal),
        )
        self._task = self._bar.add_task("training", total=num_steps, note="")
        self._evaluation = self._bar.add_task("evaluating", visible=False, note="")

    def __enter__(self) -> "Display":
        """Start the bar."""
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove the bar."""
        self._bar.stop()

    def print(self, text: str) -> None:
        """One line of text."""
        if self._enabled:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, step: int) -> None:
        """Steps taken."""
        self._bar.update(self._task, completed=step)

    def note(self, metrics: Mapping[str, float]) -> None:
        """Running losses beside the bar."""
        text = "  ".join(
            f"{name.removesuffix('_loss')} {value:.4g}"
            for name, value in metrics.items()
            if name != "grad_norm"
        )
        self._bar.update(self._task, note=text)

    def evaluating(self, done: int, total: int) -> None:
        """Batches of an evaluation done; the bar vanishes with the last."""
        self._bar.update(
            self._evaluation, completed=done, total=total, visible=done < total
        )

    def record(self, record: Mapping[str, Any]) -> None:
        """One line of the table, under a header when its columns change."""
        columns = tuple(column for column in _COLUMNS if column.key in record)
        if columns != self._header:
            self._header = columns
            self.print(" ".join(f"{c.title:>{c.width}}" for c in columns))
        cells = (
            f"{record[c.key] * c.factor if c.factor != 1 else record[c.key]:>{c.width}{c.form}}"
            for c in columns
        )
        self.print(" ".join(cells))
