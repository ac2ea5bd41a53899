"""Placing two molecules: surface distance, approach along a ray, orientations."""

from __future__ import annotations

import numpy as np

# Bondi's radii in Å (A. Bondi, J. Phys. Chem. 68, 441, 1964; boron: M. Mantina et al.,
# J. Phys. Chem. A 113, 5806, 2009)
VDW_RADII = {1: 1.20, 5: 1.92, 6: 1.70, 7: 1.55, 8: 1.52, 9: 1.47, 16: 1.80, 17: 1.75}


def surface_distance(numbers: list[np.ndarray], parts: list[np.ndarray]) -> float:
    """The smallest distance between the van der Waals surfaces of two molecules.

    Args:
        numbers: Atomic numbers of the two molecules, ``[n_a]`` and ``[n_b]``.
        parts: Their positions in Å, ``[n_a, 3]`` and ``[n_b, 3]``.

    Returns:
        min over atom pairs of (distance - both Bondi radii) in Å. Zero is contact; a
        hydrogen bond is negative.
    """
    radii = [np.array([VDW_RADII[int(z)] for z in group]) for group in numbers]
    gaps = np.linalg.norm(parts[0][:, None] - parts[1][None], axis=-1)
    return float((gaps - radii[0][:, None] - radii[1]).min())


def place(
    numbers: list[np.ndarray],
    parts: list[np.ndarray],
    direction: np.ndarray,
    distance: float,
) -> list[np.ndarray]:
    """Shift the second molecule along a direction to a surface distance.

    Args:
        numbers: Atomic numbers of the two molecules.
        parts: Their positions in Å, each around the origin.
        direction: ``[3]`` unit vector from the first to the second.
        distance: Wanted ``surface_distance`` in Å.

    Returns:
        The positions with the second molecule shifted.
    """
    reach = sum(np.linalg.norm(part, axis=1).max() for part in parts) + 4.0
    shift = distance + reach
    # the distance changes by at most the shift, so these steps from outside cannot cross
    # the outermost solution
    for _ in range(1000):
        moved = [parts[0], parts[1] + shift * direction]
        excess = surface_distance(numbers, moved) - distance
        if excess < 1e-6:
            break
        shift -= excess
    return moved


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A uniformly random rotation matrix ``[3, 3]``."""
    from scipy.spatial.transform import Rotation

    return Rotation.random(rng=rng).as_matrix()


def facing_rotation(
    positions: np.ndarray, face: tuple[int, ...], sign: float
) -> np.ndarray:
    """The rotation that turns some atoms of a molecule towards ``sign`` x.

    The molecule's flattest direction goes to z as far as possible, so that two planar
    molecules come out coplanar.

    Args:
        positions: ``[n_atoms, 3]`` in Å around the origin.
        face: Indices of the atoms that should face the partner.
        sign: +1 or -1.

    Returns:
        ``[3, 3]`` matrix ``R``, to be used as ``positions @ R.T``.
    """
    x = positions[list(face)].mean(axis=0) - positions.mean(axis=0)
    x = sign * x / np.linalg.norm(x)
    _, _, axes = np.linalg.svd(positions)
    normal = next(axis for axis in axes[::-1] if abs(axis @ x) < 0.9)
    z = normal - (normal @ x) * x
    z /= np.linalg.norm(z)
    return np.stack([x, np.cross(z, x), z])
