"""Sets of wave vectors. The host decides how many (integers), the device where (cell).

Integer indices are numpy and never traced; ``k = indices @ reciprocal_cell(cell)`` is
computed on the device, so that derivatives with respect to the cell are right.
"""

import jax.numpy as jnp
import numpy as np

from ewald_jax.typing import Array, Float, InputError, Int

# -- host: numpy, static sizes ---------------------------------------------------------------


def half_box(nx: int, ny: int, nz: int) -> Int[np.ndarray, "kvecs 3"]:
    """Integer indices of half a box around the origin (the paper's periodic set).

    The box {-nx..nx} x {-ny..ny} x {-nz..nz} in lexicographic order, entries after the middle
    one. The other half has the complex-conjugate structure factors, and (0, 0, 0) is left out.

    Args:
        nx: Largest index along the first reciprocal lattice vector; likewise `ny`, `nz`.
        ny: Second.
        nz: Third.

    Returns:
        ((2 nx + 1)(2 ny + 1)(2 nz + 1) - 1) / 2 indices.

    Raises:
        InputError: If a bound is negative or all are zero.
    """
    if min(nx, ny, nz) < 0 or max(nx, ny, nz) == 0:
        raise InputError(
            f"the index box needs bounds >= 0, one of them > 0, not ({nx}, {ny}, {nz})"
        )
    box = _box(nx, ny, nz)
    return box[len(box) // 2 + 1 :]


def voxel_grid(
    k_cutoff: float, delta_k: float, float32_prune: bool = False
) -> Float[np.ndarray, "kvecs 3"]:
    """Half of a cubic grid of wave vectors within a sphere (the paper's aperiodic set).

    Args:
        k_cutoff: Largest |k|, 1/Å.
        delta_k: Grid spacing, 1/Å.
        float32_prune: Compare ``|k|^2 <= k_cutoff^2`` in float32 as the reference does, which
            loses the points that lie exactly on the sphere for some cutoffs (13 instead of 16
            at 0.4). Only for its weights.

    Returns:
        Wave vectors in lexicographic order, the origin left out, float64.

    Raises:
        InputError: If `k_cutoff` < `delta_k` or either is not positive.
    """
    if not (k_cutoff > 0 and delta_k > 0):
        raise InputError(f"k_cutoff and delta_k must be > 0, not {k_cutoff} and {delta_k}")
    # The small slack only protects the integer bound against rounding of the division.
    bound = int(np.floor(k_cutoff / delta_k * (1 + 1e-9)))
    if bound < 1:
        raise InputError(
            f"delta_k = {delta_k} must not be larger than k_cutoff = {k_cutoff}: the grid "
            "would be empty"
        )
    indices = half_box(bound, bound, bound)
    if float32_prune:
        # Squared in float32 per axis, against the float32 rounding of the exact square.
        kvecs = indices.astype(np.float32) * np.float32(delta_k)
        inside = np.sum(kvecs**2, axis=1) <= np.float32(k_cutoff**2)
    else:
        square = np.sum(indices**2, axis=1)
        inside = square <= (k_cutoff / delta_k) ** 2 * (1 + 1e-9)
    return indices[inside] * np.float64(delta_k)


def lattice_sphere(
    cell: Float[np.ndarray, "3 3"], k_cutoff: float
) -> Int[np.ndarray, "kvecs 3"]:
    """Integer indices of half the reciprocal lattice vectors with |k| <= `k_cutoff`.

    Args:
        cell: Rows are lattice vectors, Å.
        k_cutoff: 1/Å.

    Returns:
        Indices sorted lexicographically, without the origin; may be empty for a small cell.

    Raises:
        InputError: If `k_cutoff` is not positive or the cell is singular.
    """
    cell = np.asarray(cell, np.float64)
    if not k_cutoff > 0:
        raise InputError(f"k_cutoff must be larger than 0, not {k_cutoff}")
    if abs(np.linalg.det(cell)) < 1e-12:
        raise InputError(
            f"the cell {cell.tolist()} is singular, it has no reciprocal lattice"
        )
    # |n_a| = |k . a_a| / 2 pi <= k_cutoff |a_a| / 2 pi bounds the search exactly.
    bounds = np.floor(k_cutoff * np.linalg.norm(cell, axis=1) / (2 * np.pi) + 1e-9).astype(
        int
    )
    box = _box(*bounds)
    half = box[len(box) // 2 + 1 :]
    kvecs = half @ (2 * np.pi * np.linalg.inv(cell).T)
    return half[np.sum(kvecs**2, axis=1) <= k_cutoff**2]


def _box(nx: int, ny: int, nz: int) -> Int[np.ndarray, "box 3"]:
    axes = [np.arange(-n, n + 1) for n in (nx, ny, nz)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


# -- device: jax, differentiable -------------------------------------------------------------


def reciprocal_cell(cell: Float[Array, "*batch 3 3"]) -> Float[Array, "*batch 3 3"]:
    """Reciprocal lattice vectors, in rows, with the 2 pi: ``cell @ result.T = 2 pi``.

    Written as cross products over the signed volume, which is exact to rounding, works for
    left-handed cells, and needs no linear solver.

    Args:
        cell: Rows are lattice vectors, Å; invertible.

    Returns:
        1/Å.
    """
    a, b, c = cell[..., 0, :], cell[..., 1, :], cell[..., 2, :]
    rows = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=-2)
    return 2 * jnp.pi * rows / cell_volume(cell)[..., None, None]


def cell_volume(cell: Float[Array, "*batch 3 3"]) -> Float[Array, "*batch"]:
    """Signed volume of the cell, Å^3: negative for a left-handed one."""
    a, b, c = cell[..., 0, :], cell[..., 1, :], cell[..., 2, :]
    return jnp.sum(a * jnp.cross(b, c), axis=-1)


def lattice_kvecs(
    indices: Int[Array, "kvecs 3"], cell: Float[Array, "*batch 3 3"]
) -> Float[Array, "*batch kvecs 3"]:
    """Wave vectors ``n_x b_1 + n_y b_2 + n_z b_3`` of integer indices, 1/Å."""
    reciprocal = reciprocal_cell(cell)
    n = jnp.asarray(indices, reciprocal.dtype)
    return sum(n[:, axis, None] * reciprocal[..., None, axis, :] for axis in range(3))


def fractional(
    positions: Float[Array, "*batch nodes 3"], cell: Float[Array, "*batch 3 3"]
) -> Float[Array, "*batch nodes 3"]:
    """Fractional coordinates: ``positions = result @ cell``, at full precision."""
    inverse = reciprocal_cell(cell) / (2 * jnp.pi)
    return jnp.sum(positions[..., :, None, :] * inverse[..., None, :, :], axis=-1)
