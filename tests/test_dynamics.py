"""Relaxations and dynamics with the calculator: energy kept, one compilation, right volumes.

Small networks with drawn weights have no equilibrium of their own, so a Lennard-Jones
potential of ASE keeps atoms apart where a test needs one (`SumCalculator`).
"""

import ase
import ase.build
import jax
import numpy as np
import pytest
from ase import units
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from ase.filters import FrechetCellFilter
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from structures import generic_molecule, quick_compilation
from tiny import drawn, tiny

import ewald_jax
from ewald_jax.analysis.drift import energy_drift
from ewald_jax.calculator import EwaldCalculator
from ewald_jax.cli.md import draw_velocities, integrator
from ewald_jax.data.statistics import Statistics

__all__ = ["quick_compilation"]

pytestmark = pytest.mark.usefixtures("quick_compilation")


def crystal(repeat=1):
    """8 or 64 atoms of rock salt, somewhat stretched."""
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.2, cubic=True).repeat(repeat)
    atoms.rattle(0.02, seed=2)
    return atoms


def pair():
    """Two molecules next to each other."""
    one, other = ase.build.molecule("H2O"), ase.build.molecule("NH3")
    other.positions += [3.2, 0.3, 0.2]
    return one + other


def calculator(name, dtype, scale, cutoff=5.0, **options):
    model = tiny(name, ewald={"k_cutoff": 1.2}, cutoff=cutoff)
    params = drawn(model, ewald_jax.batch_from_atoms([generic_molecule()], model))
    # Weak tails beside the repulsion: with charges of order one the crystals would collapse.
    params["ewald_filter"]["channels"] *= 0.1
    params = jax.tree.map(lambda x: np.asarray(x, dtype), params)
    return EwaldCalculator(model, params, Statistics(scale=scale), **options)


def with_repulsion(calc, sigma):
    # Well within the cutoff of the structures here, smooth to the second derivative.
    repulsion = LennardJones(sigma=sigma, epsilon=0.4, rc=5.5, ro=4.0, smooth=True)
    return SumCalculator([calc, repulsion])


def dynamics(calc, atoms, steps, timestep=0.5, temperature=300.0):
    """Times, ps, and total energies, eV, of velocity Verlet in steps of some fs."""
    atoms.calc = calc
    if temperature:
        draw_velocities(atoms, temperature, np.random.default_rng(0))
    run = VelocityVerlet(atoms, timestep * units.fs).irun(steps)
    found = [
        (step * timestep * 1e-3, atoms.get_total_energy()) for step, _ in enumerate(run)
    ]
    assert len(found) == steps + 1
    return np.array(found).T


def test_the_error_of_the_energy_is_that_of_the_integrator(x64):
    # Of the second order: forces are the derivative, and the energy never jumps.
    calc = calculator("schnet", np.float64, scale=0.3)
    errors = [
        np.ptp(dynamics(with_repulsion(calc, 2.6), crystal(), steps, timestep)[1]) / 8
        for steps, timestep in ((60, 1.0), (120, 0.5))
    ]
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
    assert calc.compilations == 1
    assert calc.neighbor_searches < 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:logm result may be inaccurate:RuntimeWarning")
@pytest.mark.parametrize("kind", ["crystal", "pair"])
@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_energy_is_kept(x64, name, kind):
    atoms, sigma = (crystal(2), 2.6) if kind == "crystal" else (pair(), 1.1)
    calc = with_repulsion(calculator(name, np.float64, scale=0.3), sigma)
    # Heat that is still on its way between positions and momenta looks like a drift: the
    # integrator's own energy differs from the total by a share of each.
    # Of few atoms with bonds to hydrogen, the total energy swings at 300 K by 1 meV per atom
    # with the integrator's error, and a line through a picosecond of that has any slope: they
    # are cold.
    atoms.calc = calc
    if kind == "crystal":
        BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.03, steps=40)
        dynamics(calc, atoms, 1000)
    else:
        assert BFGS(atoms, logfile=None).run(fmax=0.005, steps=400)
        dynamics(calc, atoms, 1000, temperature=20.0)
    for dtype in (np.float64, np.float32):
        jax.config.update("jax_enable_x64", dtype == np.float64)
        calc = calculator(name, dtype, scale=0.3)
        here = atoms.copy()
        times, energies = dynamics(
            with_repulsion(calc, sigma), here, 2000, temperature=None
        )
        drift = energy_drift(times, energies, len(atoms))
        print(name, kind, np.dtype(dtype).name, drift, calc.neighbor_searches)
        assert abs(drift.slope) < 1e-5
        assert calc.compilations == 1


def test_npt_of_a_slab_leaves_its_vacuum_alone(x64):
    calc = calculator("schnet", np.float64, scale=0.05)
    atoms, sigma = SYMMETRIC["slab"]
    atoms = atoms.copy()
    atoms.calc = with_repulsion(calc, sigma)
    cold_npt(atoms, 15)
    start = SYMMETRIC["slab"][0].cell.array
    np.testing.assert_allclose(atoms.cell.array[2], start[2], atol=1e-9)
    assert np.abs(atoms.cell.array[:2] - start[:2]).max() > 1e-4
    assert calc.compilations == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:logm result may be inaccurate:RuntimeWarning")
@pytest.mark.parametrize("kind", ["crystal", "slab"])
def test_cold_npt_ends_at_the_relaxed_volume(x64, kind):
    calc = calculator("schnet", np.float64, scale=0.05)
    atoms = SYMMETRIC["crystal"][0].copy()
    if kind == "slab":  # two layers: one alone buckles
        atoms = ase.build.fcc111("Cu", size=(2, 2, 2), vacuum=6.0)
    atoms.calc = with_repulsion(calc, 2.3)
    # The other calculator of the sum has stress across the slab too, ours has not.
    mask = [True, True, kind == "crystal", False, False, True]
    assert BFGS(FrechetCellFilter(atoms, mask), logfile=None).run(fmax=1e-3, steps=100)
    relaxed = atoms.get_volume()
    stretch = np.where(atoms.pbc, 1.003, 1.0)[:, None]
    atoms.set_cell(atoms.cell.array * stretch, scale_atoms=True)
    # It swings about the volume at rest, which nothing damps but the heat bath.
    volumes = cold_npt(atoms, 600)
    print(kind, relaxed, np.mean(volumes), np.ptp(volumes))
    assert volumes[0] > 1.005 * relaxed > min(volumes)
    assert np.mean(volumes) == pytest.approx(relaxed, rel=2e-3)
    assert calc.compilations == 1


def cold_npt(atoms, steps):
    """Volumes along npt at 5 K."""
    rng = np.random.default_rng(0)
    draw_velocities(atoms, 5.0, rng)
    run = integrator(atoms, "npt", units.fs, 5.0, 10.0, 0.0, rng)
    return [atoms.get_volume() for _ in run.irun(steps)]


def test_one_compilation_along_a_relaxation_and_in_npt(x64):
    calc = calculator("schnet", np.float64, scale=0.3)
    atoms = crystal()
    atoms.calc = with_repulsion(calc, 2.6)
    volumes = [atoms.get_volume()]
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.01, steps=25)
    volumes.append(atoms.get_volume())
    draw_velocities(atoms, 300.0, np.random.default_rng(0))
    bath = {"temperature_K": 300.0, "tdamp": 20 * units.fs, "pdamp": 100 * units.fs}
    IsotropicMTKNPT(atoms, units.fs, **bath, pressure_au=0.0).run(40)
    volumes.append(atoms.get_volume())
    assert np.ptp(volumes) > 0.01 * volumes[0]
    assert calc.compilations == len(calc._evaluator._compiled) == 1


# Close-packed, as Lennard-Jones wants it, and symmetric: no force at any length of the cell.
SYMMETRIC = {
    "crystal": (ase.build.bulk("Cu", "fcc", a=3.65, cubic=True), 2.3),
    "slab": (ase.build.fcc111("Cu", size=(2, 2, 1), vacuum=6.0), 2.3),
}


# A matrix logarithm of scipy's in ASE's filter, 1e-16 over its bound.
@pytest.mark.filterwarnings("ignore:logm result may be inaccurate:RuntimeWarning")
@pytest.mark.parametrize("kind", SYMMETRIC)
def test_cells_relax_to_where_a_scan_has_its_minimum(x64, kind):
    calc = calculator("schnet", np.float64, scale=0.05)
    atoms, sigma = SYMMETRIC[kind]
    atoms, height = atoms.copy(), atoms.cell[2, 2]
    atoms.calc = with_repulsion(calc, sigma)
    assert BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=100)
    if kind == "slab":
        assert atoms.cell[2, 2] == pytest.approx(height, abs=1e-9)
    axes = {"crystal": 3, "slab": 2}[kind]
    lengths, energies = np.linspace(0.99, 1.01, 5), []
    for length in lengths:
        scanned = atoms.copy()
        stretch = np.where(np.arange(3) < axes, length, 1.0)[:, None]
        scanned.set_cell(atoms.cell.array * stretch, scale_atoms=True)
        scanned.calc = atoms.calc
        energies.append(scanned.get_potential_energy())
        assert np.abs(scanned.get_forces()).max() < 1e-3
    fit = np.polynomial.Polynomial.fit(lengths, energies, 4)
    roots = fit.deriv().roots()
    (best,) = roots[np.isreal(roots) & (np.abs(roots - 1) < 0.01)].real
    assert abs(best - 1) < 1e-4
    assert calc.compilations == 1
