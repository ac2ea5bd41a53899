"""`ewald-jax relax`: the nearest minimum of the energy, thin over ASE's optimisers."""

from typing import Annotated, Literal

import ase
import numpy as np
import typer
from ase import units

from ewald_jax.cli import simulation as run
from ewald_jax.cli.common import AsJson, Checkpoint, Precision, Progress, Which, command
from ewald_jax.typing import InputError

Optimizer = Literal["fire", "bfgs", "lbfgs"]


@command
def relax(
    checkpoint: Checkpoint,
    structures: run.Structures,
    output: run.Output,
    optimizer: Annotated[Optimizer, typer.Option(help="Of ASE.")] = "lbfgs",
    fmax: Annotated[float, typer.Option(help="Largest force to end at, eV/Å.")] = 0.02,
    steps: Annotated[int, typer.Option(min=0, help="At most, of all runs.")] = 1000,
    cell: Annotated[
        bool, typer.Option("--cell", help="Relax the cell too, along periodic axes.")
    ] = False,
    pressure: Annotated[float, typer.Option(help="With --cell, GPa.")] = 0.0,
    frame: run.Frame = 0,
    interval: run.Interval = 1,
    resume: run.Resume = False,
    overwrite: run.Overwrite = False,
    which: Which = "best",
    skin: run.Skin = 0.5,
    strict: run.Strict = False,
    precision: Precision = None,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Relax a structure, and write its way into an ASE trajectory.

    Constraints of the file are kept. Ctrl-C stops after the step in progress, with the
    trajectory complete; --resume goes on from its last frame with a fresh optimiser. With
    --cell, the cell follows the stress; open directions keep theirs.
    """
    if not fmax > 0:
        raise InputError(f"--fmax must be a force above 0 eV/Å, not {fmax}")
    atoms, first = run.starting_point(structures, frame, output, resume, overwrite)
    atoms.calc = run.load_calculator(checkpoint, which, skin, strict, precision)
    target = cell_filter(atoms, pressure) if cell else atoms
    with run.trajectory(output, atoms, resume, interval) as record:
        optimization = _optimizer(optimizer)(target, logfile=None)
        last, interrupted = run.drive(
            optimization.irun(fmax=fmax, steps=max(steps - first, 0)),
            first,
            steps,
            record,
            lambda step: None,
            progress,
            output,
        )
    forces = target.get_forces()
    largest = float(np.sqrt(np.max(np.sum(forces**2, axis=1))))
    found = {
        "converged": largest < fmax,
        "steps": last,
        "largest_force": largest,
        **run.ending(atoms, output),
    }
    shown = ("converged", "steps", "energy", "largest_force", "volume")
    header = ("relaxation", "eV, eV/Å, Å^3")
    run.report(found, as_json, interrupted, "", header, shown)


def cell_filter(atoms: ase.Atoms, pressure: float):
    """Atoms and cell as one thing to relax.

    Args:
        atoms: With a calculator.
        pressure: GPa, for crystals only.

    Raises:
        InputError: If there is no stress to follow, or a pressure on vacuum.
    """
    from ase.filters import FrechetCellFilter

    if not atoms.pbc.any():
        raise InputError("--cell needs a periodic structure, this one is open all round")
    if atoms.cell.rank < 3:
        raise InputError(
            "--cell needs three lattice vectors, also along open directions (vacuum)"
        )
    run.check_pressure(atoms, pressure)
    return FrechetCellFilter(atoms, scalar_pressure=pressure * units.GPa)


def _optimizer(name: Optimizer):
    from ase import optimize

    return {"fire": optimize.FIRE, "bfgs": optimize.BFGS, "lbfgs": optimize.LBFGS}[name]
