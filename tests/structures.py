"""Structures, transformations and arrays that several test files share."""

from pathlib import Path

import ase
import ase.build
import jax
import numpy as np
import pytest

REFERENCE = Path(__file__).resolve().parent / "reference"


@pytest.fixture
def quick_compilation():
    """Most of the time of small tests is XLA's; what is computed stays the same."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def reference(name):
    """All arrays of one file of the reference, by key."""
    with np.load(REFERENCE / f"{name}.npz", allow_pickle=False) as data:
        return {key: data[key] for key in data.files}


def assert_close(actual, expected, tolerance, what=""):
    """Largest difference against the largest value: entries near zero have no own scale."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, (what, actual.shape, expected.shape)
    if expected.size == 0:
        return
    error = np.max(np.abs(actual - expected)) / max(np.max(np.abs(expected)), 1e-300)
    assert error <= tolerance, f"{what}: relative error {error:.2e} > {tolerance:.0e}"


def rotation(seed=0):
    """A random proper rotation; rows of positions turn as ``positions @ rotation``."""
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return matrix * np.sign(np.linalg.det(matrix))


REFLECTION = np.eye(3) - 2 * np.outer([0.48, 0.6, 0.64], [0.48, 0.6, 0.64])


def transformed(atoms, matrix):
    """Positions and cell turned (or reflected, or strained) together."""
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell.array @ matrix)
    atoms.positions = atoms.positions @ matrix
    return atoms


def moved(atoms, displacement):
    """A copy with displaced atoms."""
    atoms = atoms.copy()
    atoms.positions = atoms.positions + displacement
    return atoms


def generic_molecule():
    """Ethanol off its equilibrium: three different principal axes, 9 atoms."""
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return atoms


def generic_crystal():
    """Rock salt in a sheared, rattled conventional cell, 8 atoms."""
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms = transformed(atoms, [[1.0, 0.03, -0.02], [0.0, 1.02, 0.04], [0.01, 0.0, 0.97]])
    atoms.rattle(0.05, seed=2)
    return atoms


def random_cell(rng, size=4.0, skew=0.6):
    """A triclinic cell, left- or right-handed, heights well above zero."""
    while True:
        cell = size * (np.eye(3) + skew * rng.uniform(-1, 1, (3, 3)))
        cell *= rng.choice([-1.0, 1.0], size=(1, 3))
        if np.min(heights(cell)) > 0.3 * size:
            return cell[rng.permutation(3)]


def heights(cell):
    """Distances between opposite faces."""
    return 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)


def as_dict(edges, positions, cell):
    keys = np.column_stack([edges.senders, edges.receivers, edges.shifts]).tolist()
    vectors = positions[edges.senders] + edges.shifts @ cell - positions[edges.receivers]
    assert len({tuple(key) for key in keys}) == len(keys)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), edges.distances, atol=1e-9)
    return {tuple(key): vector for key, vector in zip(keys, vectors, strict=True)}
