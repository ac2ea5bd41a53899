"""With the Coulomb filter the sums are Ewald's: Madelung constants, forces and stress."""

from typing import NamedTuple

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structures import assert_close, quick_compilation, random_cell, rotation  # noqa: F401

from ewald_jax import kspace
from ewald_jax.graph import neighbor_list

pytestmark = pytest.mark.usefixtures("quick_compilation")


@jax.jit
def coulomb_energy(positions, cell, charges, indices, edges, alpha):
    """Ewald's energy of point charges (Gaussian units): reciprocal, direct and self part."""
    kvecs = kspace.lattice_kvecs(indices, cell)
    filter = kspace.coulomb_filter(kvecs, kspace.cell_volume(cell), alpha)
    potential = kspace.ewald_message(charges[:, None], positions, kvecs, filter)[:, 0]
    shifts = jnp.asarray(edges.shifts, positions.dtype) @ cell
    vectors = positions[edges.senders] + shifts - positions[edges.receivers]
    distances = jnp.linalg.norm(vectors, axis=-1)
    direct = charges[edges.senders] * jax.scipy.special.erfc(alpha * distances) / distances
    potential += jax.ops.segment_sum(direct, edges.receivers, len(charges))
    # The sums hold the interaction of each smeared charge with itself.
    potential -= 2 * alpha / np.sqrt(np.pi) * charges
    return jnp.sum(charges * potential) / 2


class Edges(NamedTuple):
    senders: np.ndarray
    receivers: np.ndarray
    shifts: np.ndarray


def converged(atoms, alpha, digits=28.0):
    """Wave vectors and edges up to where both sums have decayed by exp(-digits)."""
    reach = np.sqrt(digits)
    indices = kspace.lattice_sphere(atoms.cell.array, 2 * alpha * reach)
    edges = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, reach / alpha)
    # Filled up with entries so far away that they add exactly zero: fewer compilations.
    indices = np.pad(indices, [(0, -len(indices) % 512), (0, 0)], constant_values=999)
    extra = -len(edges.senders) % 2048
    shifts = np.pad(edges.shifts, [(0, extra), (0, 0)], constant_values=999)
    pairs = (np.pad(x, (0, extra)) for x in (edges.senders, edges.receivers))
    return indices, Edges(*pairs, shifts)


def charges_of(atoms):
    valence = {"Na": 1.0, "Cl": -1.0, "Cs": 1.0, "Zn": 2.0, "S": -2.0, "O": -2.0}
    valence |= {"Ca": 2.0, "F": -1.0}
    return jnp.asarray([valence[symbol] for symbol in atoms.symbols])


def direct_energy(atoms, alpha):
    arrays = (jnp.asarray(x) for x in (atoms.positions, atoms.cell.array))
    return float(
        coulomb_energy(*arrays, charges_of(atoms), *converged(atoms, alpha), alpha)
    )


def rocksalt(d):
    return ase.build.bulk("NaCl", "rocksalt", a=2 * d)


def cesium_chloride(d):
    return ase.build.bulk("CsCl", "cesiumchloride", a=2 * d / 3**0.5)


def zincblende(d):
    return ase.build.bulk("ZnS", "zincblende", a=4 * d / 3**0.5)


def wurtzite(d):
    """Ideal: c/a = sqrt(8/3) and u = 3/8 make all four neighbors equally far."""
    ratio = np.sqrt(8 / 3)
    a = d / (0.375 * ratio)
    return ase.build.bulk("ZnO", "wurtzite", a=a, c=a * ratio, u=0.375)


def fluorite(d):
    return ase.build.bulk("CaF2", "fluorite", a=4 * d / 3**0.5)


# E = -M z^2 e^2 / d for each formula unit, d the nearest-neighbor distance, z the common
# divisor of the charges. Fluorite is four zincblendes minus one rock salt of half its edge.
MADELUNG = {
    rocksalt: 1.7475645946331822,
    cesium_chloride: 1.76267477307099,
    zincblende: 1.63805505338879,
    wurtzite: 1.64132162737,
    fluorite: 4 * 1.63805505338879 - 1.7475645946331822 * 3**0.5 / 2,
}


@pytest.mark.parametrize("crystal", MADELUNG, ids=lambda f: f.__name__)
def test_madelung_constants(crystal, x64):
    def constant(atoms, d, alpha):
        z = float(min(abs(charges_of(atoms))))
        formulas = len(atoms) / (3 if crystal is fluorite else 2)
        return -direct_energy(atoms, alpha) * d / z**2 / formulas

    expected = MADELUNG[crystal]
    skewed = crystal(1.0)
    skewed.set_cell([[1, 0, 0], [1, 1, 0], [0, -1, -1]] @ skewed.cell.array)
    assert skewed.cell.handedness == -crystal(1.0).cell.handedness
    for atoms, d, alpha in (
        (crystal(1.0), 1.0, 1.2),
        (crystal(2.8), 2.8, 0.6),
        (skewed, 1.0, 1.4),
        (crystal(1.0).repeat((2, 1, 1)), 1.0, 1.3),
    ):
        assert abs(constant(atoms, d, alpha) - expected) < 1e-8


def test_fluorite_constant_of_the_tables():
    assert abs(MADELUNG[fluorite] - 5.03878487985) < 1e-10


def test_box_and_sphere_of_wave_vectors_agree_when_converged(x64):
    atoms, alpha = rocksalt(1.0), 0.9
    _, edges = converged(atoms, alpha)
    arrays = (jnp.asarray(atoms.positions), jnp.asarray(atoms.cell.array))
    boxed = coulomb_energy(
        *arrays, charges_of(atoms), kspace.half_box(5, 5, 5), edges, alpha
    )
    assert abs(boxed - direct_energy(atoms, alpha)) < 1e-10


def test_coulomb_forces_and_stress_are_finite_differences(x64):
    rng, alpha, step = np.random.default_rng(4), 1.0, 2e-5
    atoms = rocksalt(1.0).repeat((2, 1, 1))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.1 * rng.normal(size=(3, 3))), True)
    atoms.positions += 0.1 * rng.normal(size=atoms.positions.shape)
    charges, (indices, edges) = charges_of(atoms), converged(atoms, alpha)
    cell, positions = jnp.asarray(atoms.cell.array), jnp.asarray(atoms.positions)

    @jax.jit
    def energy(displacement, strain):
        deformation = jnp.eye(3) + strain
        moved = (positions + displacement) @ deformation
        return coulomb_energy(moved, cell @ deformation, charges, indices, edges, alpha)

    still = (jnp.zeros_like(positions), jnp.zeros((3, 3)))
    gradients = jax.jit(jax.grad(energy, (0, 1)))(*still)
    np.testing.assert_allclose(gradients[0].sum(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(gradients[1], gradients[1].T, atol=1e-10)
    # The virial theorem of a 1/r energy.
    np.testing.assert_allclose(np.trace(gradients[1]), -energy(*still), rtol=1e-9)
    for which in (0, 1):
        direction = jnp.asarray(rng.normal(size=still[which].shape))
        plus, minus = (
            energy(
                *(s * step * direction if n == which else x for n, x in enumerate(still))
            )
            for s in (1, -1)
        )
        expected = jnp.sum(gradients[which] * direction)
        np.testing.assert_allclose((plus - minus) / (2 * step), expected, rtol=1e-6)
    # Wave vectors and edges chosen anew for a strained cell give the same energy.
    strain = 0.02 * rng.normal(size=(3, 3))
    strained = atoms.copy()
    strained.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    anew = direct_energy(strained, alpha)
    np.testing.assert_allclose(energy(still[0], jnp.asarray(strain)), anew, rtol=1e-8)
