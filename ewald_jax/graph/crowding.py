"""How many neighbors a structure will have, before memory is taken for them.

Atoms in the same place are all neighbors of one another: a file of a megabyte can ask for
terabytes of edges. Counting atoms in bins of the size of the cutoff tells beforehand.
"""

import numpy as np

from ewald_jax.typing import Float, InputError

_FEW = 10**6
"""Pairs of which a list does no harm, however they came about."""

_MOST = 10**8
_DENSEST = 1.0
"""Atoms per Å^3; diamond has 0.18, and hydrogen as a metal at 500 GPa 0.6."""

_FAR = 2.0**40


class TooCloseError(InputError):
    """Atoms are closer than those of any real structure."""


def check_crowding(
    positions: Float[np.ndarray, "nodes 3"],
    cell: Float[np.ndarray, "3 3"],
    pbc: np.ndarray,
    cutoff: float,
    closest: float,
) -> None:
    """Refuses structures whose list of neighbors would be absurdly large.

    The number of pairs is at most that of two atoms in bins next to each other, and estimated
    by the mean density about an atom, which the squares of the counts in the bins give.

    Args:
        positions: Å.
        cell: Rows are lattice vectors, Å; must be invertible.
        pbc: [3] bool.
        cutoff: Å.
        closest: Distance that no two atoms of a real structure go below, Å.

    Raises:
        TooCloseError: If atoms are certainly closer than `closest`.
        InputError: If an atom has more neighbors than matter has, or all of them too many.
    """
    count = len(positions)
    inverse = np.linalg.inv(cell)
    heights = 1.0 / np.sqrt(np.sum(inverse**2, axis=0))
    images = np.where(pbc, 2.0 * np.ceil(cutoff / heights) + 1.0, 1.0)
    if count * float(count) * images.prod() <= _FEW:
        return
    fractions = positions @ inverse
    fractions = np.where(pbc, fractions % 1.0, fractions)
    _check_places(fractions @ cell, closest)
    # Along periodic directions a whole number of bins, elsewhere bins of the cutoff.
    widths = np.where(pbc, heights / np.maximum(np.floor(heights / cutoff), 1.0), cutoff)
    in_bin = _counts(fractions * heights / widths).astype(np.float64)
    sphere = 4.0 / 3.0 * np.pi * cutoff**3
    bin_volume = abs(float(np.linalg.det(cell))) * float(np.prod(widths / heights))
    pairs = float(np.sum(in_bin**2)) * sphere / bin_volume
    most = 64.0 + _DENSEST * sphere
    if pairs > _FEW and pairs / count > most:
        raise InputError(
            f"has some {pairs / count:.3g} neighbors per atom within {cutoff:g} Å "
            f"({count} atoms), expected at most {most:.3g}: more than any matter is dense"
        )
    if pairs > _MOST:
        raise InputError(
            f"has some {pairs:.3g} pairs of atoms within {cutoff:g} Å ({count} atoms), "
            f"expected at most {_MOST:.3g}; a smaller cutoff gives fewer"
        )


def _check_places(positions: Float[np.ndarray, "nodes 3"], closest: float) -> None:
    """Two atoms in a cube whose diagonal is `closest` are no further apart."""
    positions = positions[np.abs(positions).max(axis=1) < _FAR]
    cubes = _cubes(positions * (np.sqrt(3.0) / closest))
    _, first, inverse = np.unique(cubes, axis=0, return_index=True, return_inverse=True)
    twice = np.flatnonzero(first[inverse.reshape(-1)] != np.arange(len(cubes)))
    if len(twice):
        i, j = first[inverse.reshape(-1)[twice[0]]], twice[0]
        distance = np.linalg.norm(positions[i] - positions[j])
        raise TooCloseError(
            f"has atoms {i} and {j} at {distance:.3f} Å and {len(twice)} atoms in all as close "
            f"to others, expected at least {closest} Å"
        )


def _counts(coordinates: np.ndarray) -> np.ndarray:
    return np.unique(_cubes(coordinates), axis=0, return_counts=True)[1]


def _cubes(coordinates: np.ndarray) -> np.ndarray:
    """The unit cubes that points are in; whatever is far away is in the last."""
    return np.floor(np.clip(coordinates, -_FAR, _FAR)).astype(np.int64)
