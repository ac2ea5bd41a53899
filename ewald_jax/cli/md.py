"""`ewald-jax md`: molecular dynamics, thin over ASE's integrators."""

from typing import Annotated, Any, Literal

import ase
import numpy as np
import typer
from ase import units

from ewald_jax.analysis.drift import Drift, energy_drift
from ewald_jax.cli import simulation as run
from ewald_jax.cli.common import AsJson, Checkpoint, Precision, Progress, Which, command
from ewald_jax.typing import InputError

_FEWEST_FOR_DRIFT = 10

Ensemble = Literal["nve", "nvt", "npt"]


@command
def md(
    checkpoint: Checkpoint,
    structures: run.Structures,
    output: run.Output,
    ensemble: Annotated[
        Ensemble, typer.Option(help="Velocity Verlet, Langevin, or Martyna-Tobias-Klein.")
    ] = "nve",
    steps: Annotated[int, typer.Option(min=0, help="Of all runs together.")] = 1000,
    timestep: Annotated[float, typer.Option(help="fs.")] = 0.5,
    temperature: Annotated[
        float, typer.Option(help="K; of drawn velocities, and of the heat bath.")
    ] = 300.0,
    friction: Annotated[float, typer.Option(help="Of nvt, 1/ps.")] = 10.0,
    pressure: Annotated[float, typer.Option(help="Of npt, GPa.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of velocities and heat bath.")] = 0,
    frame: run.Frame = 0,
    interval: run.Interval = 10,
    resume: run.Resume = False,
    overwrite: run.Overwrite = False,
    which: Which = "best",
    skin: run.Skin = 0.5,
    strict: run.Strict = False,
    precision: Precision = None,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Run molecular dynamics, write an ASE trajectory, and report the drift of the energy.

    Velocities are those of the file, or drawn if it has none. Ctrl-C stops after the step in
    progress, with its frame in the trajectory; --resume goes on from there: nve exactly, nvt
    with other random numbers, npt with its thermostats at rest. In npt, crystals keep their
    shape, and slabs and wires change along their periodic lattice vectors only.
    """
    for name, value in (("timestep", timestep), ("friction", friction)):
        if not (value > 0 and np.isfinite(value)):
            raise InputError(f"--{name} must be above 0, not {value}")
    if not (temperature > 0 or (temperature == 0 and ensemble == "nve")):
        raise InputError(f"--temperature must be above 0 K for {ensemble}")
    atoms, first = run.starting_point(structures, frame, output, resume, overwrite)
    if first > steps:
        raise InputError(
            f"{output} has {first} steps already, expected --steps {first} or more"
        )
    atoms.calc = run.load_calculator(checkpoint, which, skin, strict, precision)
    rng = np.random.default_rng((seed, first))
    if not atoms.get_momenta().any():
        draw_velocities(atoms, temperature, rng)
    fs = timestep * units.fs
    dynamics = integrator(atoms, ensemble, fs, temperature, friction, pressure, rng)
    conserved = getattr(dynamics, "get_conserved_energy", atoms.get_total_energy)
    seen: list[tuple[float, float, float]] = []

    def observe(step: int) -> None:
        time = step * timestep / 1000
        seen.append((time, conserved(), atoms.get_temperature()))

    with run.trajectory(output, atoms, resume, interval) as record:
        last, interrupted = run.drive(
            dynamics.irun(max(steps - first, 0)),
            first,
            steps,
            record,
            observe,
            progress,
            output,
        )
    times, energies, temperatures = np.array(seen).T
    # A line through a handful of points says nothing.
    fitted = ensemble != "nvt" and len(seen) >= _FEWEST_FOR_DRIFT
    drift = energy_drift(times, energies, len(atoms)) if fitted else None
    found = {
        "finished": last >= steps,
        "steps": last,
        "picoseconds": last * timestep / 1000,
        "mean_temperature": float(temperatures.mean()),
        **_drift_entries(drift),
        **run.ending(atoms, output),
    }
    title, header = f"{ensemble}, {len(atoms)} atoms", ("dynamics", "ps, K, eV, eV/atom/ps")
    shown = [key for key in found if key not in ("output", "volume")]
    run.report(found, as_json, interrupted, title, header, shown)


def draw_velocities(atoms: ase.Atoms, temperature: float, rng: np.random.Generator) -> None:
    """Maxwell-Boltzmann velocities without drift, without rotation for molecules.

    Args:
        atoms: Gets momenta.
        temperature: K.
        rng: Of the numbers.
    """
    from ase.md.velocitydistribution import Stationary, ZeroRotation

    spread = np.sqrt(atoms.get_masses()[:, None] * units.kB * temperature)
    atoms.set_momenta(spread * rng.standard_normal((len(atoms), 3)))
    # Constraints hold the structure in place, and one atom has nothing but its drift.
    if atoms.constraints or len(atoms) < 2:
        return
    Stationary(atoms)
    if not atoms.pbc.any() and len(atoms) > 2:
        ZeroRotation(atoms)


def integrator(
    atoms: ase.Atoms,
    ensemble: Ensemble,
    timestep: float,
    temperature: float,
    friction: float,
    pressure: float,
    rng: np.random.Generator,
) -> Any:
    """ASE's dynamics of an ensemble.

    Args:
        atoms: With a calculator and momenta.
        ensemble: Which.
        timestep: In ASE's unit of time, as its dynamics take it.
        temperature: Of the heat bath, K.
        friction: Of nvt, 1/ps.
        pressure: Of npt, GPa.
        rng: Of nvt.

    Raises:
        InputError: If the structure cannot be in this ensemble.
    """
    if ensemble == "nve":
        from ase.md.verlet import VelocityVerlet

        return VelocityVerlet(atoms, timestep)
    if ensemble == "nvt":
        from ase.md.langevin import Langevin

        rate = friction / (1000 * units.fs)
        settings = {"temperature_K": temperature, "friction": rate, "rng": rng}
        return Langevin(atoms, timestep, **settings, fixcm=False)
    if not atoms.pbc.any() or atoms.cell.rank < 3:
        raise InputError("npt needs a periodic structure with three lattice vectors")
    if atoms.constraints:
        raise InputError("npt cannot hold constraints, which this structure has")
    run.check_pressure(atoms, pressure)
    try:
        from ase.md.nose_hoover_chain import IsotropicMTKNPT, MaskedMTKNPT
    except ImportError:
        raise InputError("npt needs ase 3.29 or newer (pip install -U ase)") from None
    settings = {
        "temperature_K": temperature,
        "pressure_au": pressure * units.GPa,
        "tdamp": 100 * timestep,
        "pdamp": 1000 * timestep,
    }
    if atoms.pbc.all():
        return IsotropicMTKNPT(atoms, timestep, **settings)
    return MaskedMTKNPT(atoms, timestep, **settings, mask=np.array(atoms.pbc))


def _drift_entries(drift: Drift | None) -> dict[str, float]:
    """Nothing for Langevin dynamics, which keeps no energy, and for a few steps."""
    if drift is None:
        return {}
    return {
        "energy_drift": drift.slope,
        "energy_drift_uncertainty": drift.uncertainty,
        "energy_fluctuation": drift.fluctuation,
    }
