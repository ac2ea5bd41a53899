"""What all verbs share: how mistakes end, how results are printed."""

import contextlib
import functools
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from ewald_jax.typing import InputError

MISTAKE = 2
INTERRUPTED = 130

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Progress = Annotated[bool, typer.Option(help="Show progress.")]
BatchSize = Annotated[int, typer.Option("-b", "--batch-size", min=1, help="Structures.")]
Checkpoint = Annotated[
    Path,
    typer.Argument(help="A directory written by `train`, or pretrained:NAME."),
]
Precision = Annotated[
    str | None,
    typer.Option(help="float32, tf32, bfloat16 or float64; the model's own if unset."),
]
Which = Annotated[str, typer.Option(help="Parameters to use: best or last.")]


def command(function: Callable) -> Callable:
    """A verb whose mistakes end in one sentence on stderr and exit code 2, without traceback.

    What counts as a mistake: `InputError`, and what the operating system refuses (a missing
    file, a full disk, a folder that may not be written). Everything else is our bug and shows
    its traceback.
    """

    @functools.wraps(function)
    def run(*args, **kwargs):
        try:
            with _no_interruption_lost():
                return function(*args, **kwargs)
        except InputError as error:
            _stop(str(error))
        except KeyboardInterrupt as error:
            # A verb may say what is left of its work.
            _stop(str(error) or "interrupted", INTERRUPTED)
        except OSError as error:
            if error.errno is None:
                raise
            place = f"{error.filename}: " if error.filename is not None else ""
            _stop(f"{place}{os.strerror(error.errno)}")

    return run


@contextlib.contextmanager
def _no_interruption_lost() -> Iterator[None]:
    """JAX has a callback in the garbage collector, and exceptions in those are ignored."""
    before = sys.unraisablehook

    def again(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # A little later: it would be ignored here as well.
            main = threading.main_thread().ident
            threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
        else:
            before(unraisable)

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


def _stop(message: str, code: int = MISTAKE) -> NoReturn:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(code) from None


def note(message: str) -> None:
    """A line for people, on stderr, so that stdout holds results only."""
    typer.echo(message, err=True)


@contextlib.contextmanager
def progress_bar(what: str, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, moved by calling with what is done and what there is to do.

    Where nobody knows how much there is to do, None, it shows what is done and for how long.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    options = {"console": Console(stderr=True), "transient": True, "disable": not shown}
    with Bar(*columns, TimeElapsedColumn(), **options) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_json(values: Mapping[str, Any]) -> None:
    """One JSON object on stdout; NaN and infinity, which JSON has not, become null."""
    typer.echo(json.dumps(_finite(values), indent=2))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on stdout; numbers to the right, at four significant digits."""
    from rich.console import Console
    from rich.table import Table

    rows = [list(row) for row in rows]
    table = Table(title=title or None, title_justify="left")
    for number, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[number]) for row in rows)
        justify = "right" if numeric else "left"
        table.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(_text(entry) for entry in row))
    console = Console()
    if not console.is_terminal:
        # Piped output has no width of its own, and 80 columns would fold the numbers.
        console = Console(width=200)
    console.print(table)


def print_metrics(title: str, metrics: Mapping[str, float]) -> None:
    """Metrics with their units."""
    rows = [(name, value, _unit(name)) for name, value in metrics.items()]
    print_table(title, ("metric", "value", "unit"), rows)


def split_arguments(arguments: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Config files and `key=value` overrides, which the command line mixes."""
    paths, overrides = [], []
    for argument in arguments:
        is_override = "=" in argument and not Path(argument).exists()
        (overrides if is_override else paths).append(argument)
    return [Path(path) for path in paths], overrides


def split_numbers(text: str, option: str, least: int = 1) -> list[int]:
    """Whole numbers that an option takes with commas between them.

    Raises:
        InputError: Naming the option, if there are none, one is no number or too small.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < least:
        raise InputError(
            f"{option} is {text!r}, expected whole numbers >= {least} with commas between "
            "them, such as 1000,4000"
        )
    return numbers


def _unit(name: str) -> str:
    words = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å^3"}
    if not name.endswith(("mae", "rmse", "std")):
        return ""
    return next((unit for word, unit in words.items() if name.startswith(word)), "")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
