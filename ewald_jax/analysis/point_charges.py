"""Coulomb energy of point charges, and the part of it beyond a distance."""

import ase
import numpy as np
from scipy.special import erfc

from ewald_jax.graph import neighbor_list
from ewald_jax.kspace import lattice_sphere
from ewald_jax.typing import Float, InputError
from ewald_jax.units import COULOMB_CONSTANT

_DECAY = 32.0
"""Both of Ewald's sums end where their terms have decayed to exp(-32)."""


def coulomb_energy(
    atoms: ase.Atoms, charges: Float[np.ndarray, " nodes"], beyond: float = 0.0
) -> float:
    """Energy of point charges with each other, from pairs farther apart than a distance.

    Every pair counts once, in a crystal those with images too. The total of a crystal is
    `ewald_sum`, of which the pairs within the distance are taken off one by one.

    Args:
        atoms: Open, or periodic along all three directions.
        charges: In units of the elementary charge.
        beyond: Å; 0 gives the total.

    Returns:
        eV.

    Raises:
        InputError: To be read after the name of the structure: if there are not as many
            charges as atoms, or not finite ones; if only some directions are periodic; if a
            periodic cell is charged; if two atoms are in one place.
    """
    charges = np.asarray(charges, np.float64)
    if charges.shape != (len(atoms),) or not np.isfinite(charges).all():
        raise InputError(
            f"has charges of shape {charges.shape}, expected {len(atoms)} finite numbers"
        )
    if not atoms.pbc.any():
        first, second = np.triu_indices(len(atoms), 1)
        vectors = atoms.positions[first] - atoms.positions[second]
        distances = np.linalg.norm(vectors, axis=1)
        return _pair_sum(charges[first] * charges[second], distances, distances > beyond)
    if not atoms.pbc.all():
        raise InputError(
            "is periodic along some directions only, expected all or none of them for the "
            "energy of point charges"
        )
    if abs(charges.sum()) > 1e-6 * max(1.0, np.abs(charges).sum()):
        raise InputError(
            f"has a charge of {charges.sum():.4g} e in a periodic cell, expected none"
        )
    total = ewald_sum(atoms, charges)
    if not beyond > 0:
        return total
    near = neighbor_list(atoms.positions, atoms.cell[:], atoms.pbc, beyond)
    products = charges[near.senders] * charges[near.receivers]
    return total - 0.5 * _pair_sum(products, near.distances)


def ewald_sum(atoms: ase.Atoms, charges: Float[np.ndarray, " nodes"]) -> float:
    """Energy of the charges of a neutral cell and all of its images, per cell.

    Ewald's sum (Ann. Phys. 369, 253, 1921) in conducting surroundings, in float64, with as
    much work in either space.

    Args:
        atoms: Periodic along all three directions.
        charges: [nodes], of sum zero, in units of the elementary charge.

    Returns:
        eV.

    Raises:
        InputError: If two atoms are in one place, or the cell is flat.
    """
    volume = atoms.cell.volume
    if not volume > 0:
        raise InputError("has a cell without volume, expected three independent vectors")
    alpha = np.sqrt(np.pi) * (len(atoms) / volume**2) ** (1 / 6)
    reach = np.sqrt(_DECAY)
    near = neighbor_list(atoms.positions, atoms.cell[:], atoms.pbc, reach / alpha)
    screened = erfc(alpha * near.distances)
    products = charges[near.senders] * charges[near.receivers]
    direct = 0.5 * _pair_sum(products * screened, near.distances)
    # Half of the wave vectors, each for two.
    indices = lattice_sphere(atoms.cell[:], 2 * alpha * reach)
    kvecs = 2 * np.pi * indices @ np.linalg.inv(atoms.cell[:]).T
    squares = np.sum(kvecs**2, axis=1)
    factors = np.exp(-1j * (kvecs @ atoms.positions.T)) @ charges
    smooth = np.exp(-squares / (4 * alpha**2)) / squares @ np.abs(factors) ** 2
    own = alpha / np.sqrt(np.pi) * np.sum(charges**2)
    return float(direct + COULOMB_CONSTANT * (4 * np.pi / volume * smooth - own))


def _pair_sum(
    products: np.ndarray, distances: np.ndarray, chosen: np.ndarray | slice = slice(None)
) -> float:
    if len(distances) and not distances.min() > 0:
        raise InputError("has two atoms in one place, expected atoms apart")
    return float(COULOMB_CONSTANT * np.sum(products[chosen] / distances[chosen]))
