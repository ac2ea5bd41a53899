"""What relaxations and dynamics share: their start, their trajectory, their end."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import ase
import numpy as np
import typer

from ewald_jax.cli.common import (
    INTERRUPTED,
    note,
    print_json,
    print_table,
    progress_bar,
)
from ewald_jax.cli.predict import read_frames
from ewald_jax.interrupt import Interruptible
from ewald_jax.typing import InputError

if TYPE_CHECKING:
    from ewald_jax.calculator import EwaldCalculator

STEP = "step"
"""Key of a frame's `info`: how many steps led to it."""

Structures = Annotated[Path, typer.Argument(help="A file with the structure.")]
Output = Annotated[
    Path, typer.Option("-o", "--output", help="ASE trajectory to write, .traj.")
]
Frame = Annotated[int, typer.Option(help="Which structure of the file, from 0.")]
Interval = Annotated[int, typer.Option(min=1, help="Steps between frames written.")]
Skin = Annotated[float, typer.Option(help="Skin of the neighbor list, Å.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse elements without training data.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last frame of OUTPUT.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT.")]


def starting_point(
    structures: Path, frame: int, output: Path, resume: bool, overwrite: bool
) -> tuple[ase.Atoms, int]:
    """The structure to start from, and the steps that led to it.

    Args:
        structures: A file of structures.
        frame: Which of them.
        output: Of this run or of the one to resume.
        resume: Start from the last frame of `output` if there is one.
        overwrite: Allow for an output that exists.

    Raises:
        InputError: If a file is missing, broken, in the way, or of another structure.
    """
    if output.suffix != ".traj":
        raise InputError(f"{output} would be an ASE trajectory, expected a name with .traj")
    if not output.parent.is_dir():
        raise InputError(f"there is no folder {output.parent} to write {output.name} into")
    if output.exists() and not (resume or overwrite):
        raise InputError(f"{output} exists; use --resume or --overwrite")
    atoms = nth_structure(structures, frame)
    if not (resume and output.exists()):
        return atoms, 0
    *_, last = read_frames(output)
    if not np.array_equal(last.numbers, atoms.numbers):
        raise InputError(
            f"{output} is a run of other atoms than those of {structures}; nothing resumed"
        )
    return last, int(last.info.get(STEP, 0))


def nth_structure(structures: Path, frame: int) -> ase.Atoms:
    """A structure of a file.

    Raises:
        InputError: If there is none, or the file is missing or broken.
    """
    if frame < 0:
        raise InputError(f"--frame must be at least 0, not {frame}")
    atoms = next(itertools.islice(read_frames(structures), frame, None), None)
    if atoms is None:
        raise InputError(f"{structures} has no structure {frame}, they count from 0")
    return atoms


def check_pressure(atoms: ase.Atoms, pressure: float) -> None:
    """Refuses a pressure on vacuum.

    Raises:
        InputError: If there is one, and the structure is no crystal.
    """
    if pressure and not atoms.pbc.all():
        raise InputError("--pressure needs a crystal: vacuum cannot be under pressure")


def load_calculator(
    checkpoint: Path, which: str, skin: float, strict: bool, precision: str | None
) -> "EwaldCalculator":
    """The calculator of a checkpoint.

    Raises:
        InputError: As `EwaldCalculator.from_checkpoint`.
    """
    from ewald_jax.calculator import EwaldCalculator

    options = {"skin": skin, "strict": strict, "precision": precision}
    return EwaldCalculator.from_checkpoint(checkpoint, which, **options)


@contextlib.contextmanager
def trajectory(
    output: Path, atoms: ase.Atoms, resume: bool, interval: int
) -> Iterator[Callable[[int, bool], None]]:
    """Writes frames into an ASE trajectory, every `interval` steps and on demand.

    The energy is computed before the file is opened: what the calculator refuses leaves an
    older file alone.

    Yields:
        A function of the step and of whether its frame must be written; no frame is written
        twice.
    """
    from ase.io.trajectory import Trajectory

    from ewald_jax.calculator.results import SPREADS

    atoms.get_potential_energy()
    append = resume and output.exists()
    last = atoms.info.get(STEP) if append else None
    with Trajectory(str(output), "a" if append else "w", atoms) as file:

        def record(step: int, always: bool = False) -> None:
            nonlocal last
            if step != last and (always or step % interval == 0):
                atoms.info[STEP] = last = step
                if SPREADS[0] in atoms.calc.results:  # of an ensemble
                    atoms.info[SPREADS[0]] = float(atoms.calc.results[SPREADS[0]])
                file.write()

        yield record


def drive(
    steps: Iterable[Any],
    first: int,
    total: int,
    record: Callable[[int, bool], None],
    observe: Callable[[int], None],
    progress: bool,
    output: Path,
) -> tuple[int, bool]:
    """Runs to the end, or to Ctrl-C, with the last state in the trajectory either way.

    Args:
        steps: Yields after the initial state and after each step (ASE's `irun`).
        first: Number of the initial state.
        total: Number of the last one, for the bar.
        record: From `trajectory`.
        observe: Called with the number of each state.
        progress: Show a bar.
        output: Of the trajectory, for messages.

    Returns:
        Number of the last state, and whether somebody asked to stop.

    Raises:
        InputError: What the calculator refuses on the way, with what is kept.
    """
    step = first
    with progress_bar("steps", progress) as advance, Interruptible() as interrupt:
        try:
            for step, _ in enumerate(steps, first):  # noqa: B007
                observe(step)
                record(step, False)
                advance(step, total)
                if interrupt.requested:
                    break
        except InputError as error:
            raise InputError(
                f"after step {step}: {error}; the frames before are in {output}"
            ) from None
    record(step, True)
    return step, interrupt.requested


def ending(atoms: ase.Atoms, output: Path) -> dict[str, Any]:
    """What every run has at its end, plain values."""
    return {
        "output": str(output),
        "energy": float(atoms.get_potential_energy()),
        "volume": float(atoms.get_volume()) if atoms.cell.rank == 3 else None,
        "compilations": atoms.calc.compilations,
        "neighbor_searches": atoms.calc.neighbor_searches,
    }


def report(
    found: Mapping[str, Any],
    as_json: bool,
    interrupted: bool,
    title: str,
    header: tuple[str, str],
    shown: Iterable[str],
) -> None:
    """Prints what came out, and where the frames are and what the calculator spared.

    Args:
        found: The entries, those of `ending` among them.
        as_json: Print them all as JSON, in place of a table of those that are `shown`.
        interrupted: End with the exit code of an interruption.
        title: Of the table.
        header: Of the table.
        shown: Keys of its rows.
    """
    if as_json:
        print_json(found)
    else:
        rows = [(key.replace("_", " "), str(found[key])) for key in shown]
        print_table(title, header, rows)
        note(
            f"frames are in {found['output']}; {found['compilations']} compilations, "
            f"{found['neighbor_searches']} neighbor searches"
        )
    if interrupted:
        raise typer.Exit(INTERRUPTED)
