"""The principal-axis frame of the voxel scheme, above all where it is degenerate."""

import functools

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structures import (
    REFLECTION,
    assert_close,
    generic_molecule,
    quick_compilation,  # noqa: F401
    rotation,
)

from ewald_jax import kspace

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

SLOTS = 12
ROWS = 14
KVECS = kspace.voxel_grid(0.4, 0.2)


def benzene():
    """Exactly six-fold: the coordinates of `ase.build` are rounded."""
    angle = np.arange(6) * np.pi / 3
    ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    return ase.Atoms("C6H6", np.concatenate([1.395 * ring, 2.482 * ring]))


def methane():
    tetrahedron = np.array([[1, 1, 1], [-1, -1, 1], [1, -1, -1], [-1, 1, -1]])
    return ase.Atoms("CH4", np.concatenate([np.zeros((1, 3)), 0.629 * tetrahedron]))


def sulfur_hexafluoride():
    axes = 1.56 * np.concatenate([np.eye(3), -np.eye(3)])
    return ase.Atoms("SF6", np.concatenate([np.zeros((1, 3)), axes]))


DEGENERATE = {
    "CO2": lambda: ase.Atoms("OCO", [[-1.16, 0, 0], [0, 0, 0], [1.16, 0, 0]]),
    "CO": lambda: ase.Atoms("CO", [[0, 0, 0], [0, 0, 1.128]]),
    "benzene": benzene,
    "methane": methane,
    "SF6": sulfur_hexafluoride,
    "atom": lambda: ase.Atoms("He", [[1.0, 2.0, 3.0]]),
    "nothing": lambda: ase.Atoms(),
}


def dense(atoms, turn=None):
    """Positions, features and mask in `SLOTS` slots; nonsense in the empty ones."""
    n = len(atoms)
    positions = np.full((SLOTS, 3), 7.0)
    positions[:n] = atoms.positions if turn is None else atoms.positions @ turn
    rng = np.random.default_rng(3)
    by_element = rng.normal(size=(119, 2))
    features = np.zeros((SLOTS, 2))
    features[:n] = by_element[atoms.numbers]
    return positions, features, np.arange(SLOTS) < n


def energy(positions, features, mask):
    """A number made of the damped sums in the frame, as the Ewald block makes them."""
    framed = kspace.svd_frame(positions, mask)
    damping = kspace.sinc_damping(framed, 0.2)
    kvecs = jnp.asarray(KVECS, positions.dtype)
    k = jnp.linalg.norm(kvecs, axis=-1)
    filter = jnp.stack([jnp.exp(-k), jnp.cos(3 * k)], axis=-1)
    message = kspace.ewald_message(features, framed, kvecs, filter, damping)
    return jnp.sum(jnp.where(mask[:, None], message, 0.0) ** 2)


energies = jax.jit(jax.vmap(energy))
gradients = jax.jit(jax.vmap(jax.grad(energy)))
# Reverse over reverse, the mode that lets no NaN hide behind a `where`.
hessians = jax.jit(jax.vmap(jax.jacrev(jax.grad(energy))))


def stacked(structures, dtype):
    """Filled up with the last one, so that all batches have one shape."""
    structures = list(structures) + [structures[-1]] * (ROWS - len(structures))
    positions, features, mask = (np.stack(x) for x in zip(*structures, strict=True))
    return jnp.asarray(positions, dtype), jnp.asarray(features, dtype), jnp.asarray(mask)


@functools.cache
def degenerate_batch(dtype):
    structures = [dense(make()) for make in DEGENERATE.values()]
    structures += [dense(make(), rotation(5)) for make in DEGENERATE.values()]
    batch = stacked(structures, dtype)
    return batch, gradients(*batch), hessians(*batch)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", DEGENERATE)
def test_derivatives_of_symmetric_molecules_are_bounded(name, dtype):
    batch, first, second = degenerate_batch(dtype)
    assert first.dtype == second.dtype == dtype
    rows = [list(DEGENERATE).index(name), list(DEGENERATE).index(name) + len(DEGENERATE)]
    scale = float(np.max(energies(*batch)))
    for row in rows:
        assert np.isfinite(first[row]).all() and np.isfinite(second[row]).all()
        assert np.abs(first[row]).max() < 10 * scale
        assert np.abs(second[row]).max() < 100 * scale
        mask = np.asarray(batch[2][row])
        assert not np.any(np.asarray(first[row])[~mask])


@pytest.mark.parametrize("name", ["CO2", "CO", "atom"])
def test_linear_molecules_have_one_energy(name):
    """Axes across a line may point anywhere: no atom has a coordinate along them."""
    turns = [None, rotation(5), rotation(6), -rotation(7)]
    batch = stacked([dense(DEGENERATE[name](), turn) for turn in turns], "float64")
    assert_close(energies(*batch), np.repeat(energies(*batch)[0], ROWS), 1e-12)
    forces = np.asarray(gradients(*batch))[: len(turns)]
    for row, turn in zip(forces[1:], turns[1:], strict=True):
        np.testing.assert_allclose(row, forces[0] @ turn, atol=1e-9)


@pytest.mark.parametrize("name", ["CO2", "CO"])
def test_gradient_of_linear_molecules_is_the_finite_difference(name):
    positions, features, mask = dense(DEGENERATE[name](), rotation(5))
    direction = np.random.default_rng(0).normal(size=(SLOTS, 3))
    step = 1e-5
    shifted = [(positions + s * step * direction, features, mask) for s in (1, -1, 0)]
    batch = stacked(shifted, "float64")
    plus, minus = energies(*batch)[:2]
    along = np.sum(np.asarray(gradients(*batch)[2]) * direction)
    np.testing.assert_allclose((plus - minus) / (2 * step), along, rtol=1e-6)


def test_diatomic_is_only_centred_as_the_reference_does():
    positions, _, mask = dense(DEGENERATE["CO"](), rotation(2))
    framed = kspace.svd_frame(jnp.asarray(positions), jnp.asarray(mask), min_nodes=3)
    expected = positions[:2] - positions[:2].mean(axis=0)
    assert_close(framed[:2], expected, 1e-14)
    turned = kspace.svd_frame(jnp.asarray(positions), jnp.asarray(mask))
    assert_close(jnp.abs(turned[:2, 2]), np.full(2, 0.564), 1e-12)


def test_generic_molecule_does_not_depend_on_its_orientation():
    matrices = [np.eye(3), rotation(1), rotation(2), -rotation(3), REFLECTION]
    batch = stacked([dense(generic_molecule(), m) for m in matrices], "float64")
    result = energies(*batch)
    assert_close(result, np.repeat(result[0], ROWS), 1e-12)
    forces = gradients(*batch)
    for row, matrix in zip(forces, matrices, strict=False):
        assert_close(row, forces[0] @ matrix, 1e-10)


def test_gradient_is_the_finite_difference():
    positions, features, mask = dense(generic_molecule())
    direction = np.where(mask[:, None], np.random.default_rng(0).normal(size=(SLOTS, 3)), 0)
    step = 1e-4
    shifted = [(positions + s * step * direction, features, mask) for s in (1, -1, 0)]
    batch = stacked(shifted, "float64")
    plus, minus = energies(*batch)[:2]
    along = np.sum(np.asarray(gradients(*batch)) * direction, axis=(1, 2))
    np.testing.assert_allclose((plus - minus) / (2 * step), along[2], rtol=1e-7)
    curvature = np.einsum("ia,iajb,jb", direction, hessians(*batch)[2], direction)
    np.testing.assert_allclose((along[0] - along[1]) / (2 * step), curvature, rtol=1e-6)


def test_float32_gradient_of_a_generic_molecule():
    structure = dense(generic_molecule(), rotation(4))
    double = gradients(*stacked([structure], "float64"))
    assert_close(gradients(*stacked([structure], "float32")), double, 1e-4)


def test_batch_is_the_loop_and_empty_slots_are_ignored():
    made = [generic_molecule(), *(make() for make in DEGENERATE.values())]
    structures = [dense(atoms, rotation(9)) for atoms in made]
    positions, _, mask = stacked(structures, "float64")
    svd_frame = jax.jit(kspace.svd_frame)
    frames = svd_frame(positions, mask)
    assert not np.any(np.asarray(frames)[~np.asarray(mask)])
    poisoned = jnp.where(mask[..., None], positions, jnp.nan)
    np.testing.assert_array_equal(svd_frame(poisoned, mask), frames)
    one = np.asarray(kspace.svd_frame(positions[0, :9], mask[0, :9]))
    assert_close(np.abs(frames[0, :9]), np.abs(one), 1e-10)

    def square(positions):
        return jnp.sum(kspace.svd_frame(positions, mask)[..., 0] ** 2)

    assert np.isfinite(jax.jit(jax.grad(square))(poisoned)).all()


def test_axes_are_sorted_and_orthogonal():
    positions, _, mask = dense(generic_molecule(), rotation(8))
    framed = np.asarray(kspace.svd_frame(jnp.asarray(positions), jnp.asarray(mask)))
    scatter = framed.T @ framed
    np.testing.assert_allclose(scatter, np.diag(np.diag(scatter)), atol=1e-10)
    assert (np.diff(np.diag(scatter)) > 0).all()
    np.testing.assert_allclose(framed.sum(axis=0), 0, atol=1e-12)
