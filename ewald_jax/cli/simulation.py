"""What relaxations and dynamics share: their start, their trajectory, their end."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import ase
import numpy as np
import typer

from ewald_jax.cli.common import note, progress_bar
from ewald_jax.cli.predict import read_frames
from ewald_jax.train.interrupt import Interruptible
from ewald_jax.typing import InputError

if TYPE_CHECKING:
    from ewald_jax.calculator import EwaldCalculator

STEP = "step"
"""Key of a frame's `info`: how many steps led to it."""

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
    if frame < 0:
        raise InputError(f"--frame must be at least 0, not {frame}")
    atoms = next(itertools.islice(read_frames(structures), frame, None), None)
    if atoms is None:
        raise InputError(f"{structures} has no structure {frame}, they count from 0")
    if not (resume and output.exists()):
        return atoms, 0
    *_, last = read_frames(output)
    if not np.array_equal(last.numbers, atoms.numbers):
        raise InputError(
            f"{output} is a run of other atoms than those of {structures}; nothing resumed"
        )
    return last, int(last.info.get(STEP, 0))


def load_calculator(
    checkpoint: Path, which: str, skin: float, strict: bool
) -> "EwaldCalculator":
    """The calculator of a checkpoint.

    Raises:
        InputError: As `EwaldCalculator.from_checkpoint`.
    """
    from ewald_jax.calculator import EwaldCalculator

    return EwaldCalculator.from_checkpoint(checkpoint, which, skin=skin, strict=strict)


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

    atoms.get_potential_energy()
    append = resume and output.exists()
    last = atoms.info.get(STEP) if append else None
    with Trajectory(str(output), "a" if append else "w", atoms) as file:

        def record(step: int, always: bool = False) -> None:
            nonlocal last
            if step != last and (always or step % interval == 0):
                atoms.info[STEP] = last = step
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


def note_calculator(calculator: "EwaldCalculator", output: Path) -> None:
    """Says on stderr where the frames are and what the calculator spared."""
    note(
        f"frames are in {output}; {calculator.compilations} compilations, "
        f"{calculator.neighbor_searches} neighbor searches"
    )
