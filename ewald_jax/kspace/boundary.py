r"""Wave vectors on the device, for any boundary conditions of one structure.

With A the area, length or volume of the cell in its periodic directions, and m open directions,

.. math::
    M_i = \frac{6\pi^2}{k_c^3} \frac{1}{A} \sum_{k_\parallel} \int \frac{d^m k_\perp}{(2\pi)^m}
        \varphi(|k|)\, \mathrm{Re}\left[ e^{i k \cdot r_i} S(k) \right],
    \qquad |k|^2 = k_\parallel^2 + k_\perp^2 .

The constant gives a filter of one a self-message of one. In open directions the cell does not
matter: vectors there are replaced by unit vectors perpendicular to the periodic ones. The
integral over the length of k_perp runs in t with ``k_perp = k_par sinh t``, in which
``|k| = k_par cosh t`` is smooth, up to where |k| is the cutoff.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ewald_jax.kspace.grids import cell_volume, reciprocal_cell
from ewald_jax.typing import Array, Bool, Float, Int


class WaveVectors(NamedTuple):
    """Wave vectors of one structure.

    Attributes:
        coordinates: [kvecs, 3] in the reciprocal basis of `boundary_cell`.
        square: [kvecs] |k|^2, 1/Å^2.
        weights: [kvecs] what multiplies the filter.
        plane: [kvecs] True for the plane waves of a slab, see `kspace.plane`.
        twin: [kvecs] True for the same wave vectors with all else that is sent by them.
    """

    coordinates: Float[Array, "kvecs 3"]
    square: Float[Array, " kvecs"]
    weights: Float[Array, " kvecs"]
    plane: Bool[Array, " kvecs"]
    twin: Bool[Array, " kvecs"]


def boundary_cell(cell: Float[Array, "3 3"], pbc: Bool[Array, " 3"]) -> Float[Array, "3 3"]:
    """Periodic lattice vectors first, then unit vectors perpendicular to them.

    Args:
        cell: Rows are lattice vectors, Å; invertible.
        pbc: Periodic along each.

    Returns:
        Rows; those of a molecule are the Cartesian axes.
    """
    axes = jnp.eye(3, dtype=cell.dtype)
    # That of a molecule is never used, and may be anything.
    cell = jnp.where(jnp.any(pbc), cell, axes)
    first, second, third = cell[jnp.argsort(~pbc, stable=True)]
    unit = _unit(first)
    # Any perpendicular pair will do, but not one from a nearly parallel axis.
    beside = _unit(jnp.cross(unit, axes[jnp.argmin(jnp.abs(unit))]))
    kinds = (
        axes,
        jnp.stack([first, beside, jnp.cross(unit, beside)]),
        jnp.stack([first, second, _unit(jnp.cross(first, second))]),
        jnp.stack([first, second, third]),
    )
    count = jnp.sum(pbc)
    return jnp.select([count == n for n in range(4)], kinds)


def wave_vectors(
    indices: Int[Array, "kvecs 3"],
    directions: Float[Array, "kvecs 3"],
    nodes: Float[Array, " kvecs"],
    weights: Float[Array, " kvecs"],
    boundary: Float[Array, "3 3"],
    pbc: Bool[Array, " 3"],
    k_cutoff: float,
) -> WaveVectors:
    """The wave vectors that the host chose, in the present cell.

    Args:
        indices: See `waves.WaveSet`; likewise `directions`.
        directions: Of the open part.
        nodes: Of the quadrature over its length: t over its upper limit, or the length over
            the cutoff where the periodic part is zero.
        weights: Of the quadrature, 0 for padding.
        boundary: From `boundary_cell`.
        pbc: Periodic along each axis.
        k_cutoff: 1/Å.

    Returns:
        The vectors; weight 0 for those that have left the sphere.
    """
    reciprocal = reciprocal_cell(boundary)
    n = jnp.asarray(indices, boundary.dtype)
    lattice = sum(n[:, a, None] * reciprocal[None, a] for a in range(3))
    lattice_square = jnp.sum(lattice**2, axis=-1)
    num_open = 3 - jnp.sum(pbc)
    is_open = num_open > 0
    # Just below the cutoff the upper limit has an infinite slope, and the filter is zero.
    edge = k_cutoff**2 * jnp.where(is_open, 1 - 1e-6, 1.0)
    inside = (lattice_square > 0) & (lattice_square < edge)
    curved = inside & is_open
    length = jnp.sqrt(jnp.where(curved, lattice_square, 0.25 * k_cutoff**2))
    limit = jnp.arccosh(k_cutoff / length)
    along = lattice_square == 0
    # Length of the open part, and by how much it changes with the node.
    open_length = jnp.where(along, k_cutoff * nodes, length * jnp.sinh(nodes * limit))
    speed = jnp.where(along, k_cutoff, length * limit * jnp.cosh(nodes * limit))
    open_length = jnp.where(is_open & (along | inside), open_length, 0.0)
    # An integral in m dimensions has k^(m-1) dk.
    speed = speed * jnp.select(
        [num_open == 2, num_open == 3], [open_length, open_length**2], 1.0
    )
    speed = jnp.where(is_open, speed, 1.0)
    size = jnp.abs(cell_volume(boundary))
    scale = 6 * jnp.pi**2 / (k_cutoff**3 * size)
    down = directions[:, 2] < 0
    in_slab = along & (num_open == 1)
    return WaveVectors(
        n + directions * (open_length / (2 * jnp.pi))[:, None],
        lattice_square + open_length**2,
        jnp.where(along | inside, weights * speed * scale, 0.0),
        in_slab & down,
        in_slab & ~down,
    )


def scaled_positions(
    positions: Float[Array, "nodes 3"],
    boundary: Float[Array, "3 3"],
    pbc: Bool[Array, " 3"],
) -> Float[Array, "nodes 3"]:
    """Positions in units of the rows of `boundary_cell`, whole turns removed.

    Args:
        positions: Å; those of molecules near the origin, for the sake of precision.
        boundary: From `boundary_cell`.
        pbc: Periodic along each axis.

    Returns:
        ``2 pi coordinates @ result`` are the phases k.r.
    """
    inverse = reciprocal_cell(boundary) / (2 * jnp.pi)
    scaled = jnp.sum(positions[:, None, :] * inverse[None], axis=-1)
    turns = jnp.round(scaled)
    periodic = (jnp.arange(3) < jnp.sum(pbc))[None]
    return scaled - jnp.where(periodic, jax.lax.stop_gradient(turns), 0.0)


def _unit(vector: Float[Array, " 3"]) -> Float[Array, " 3"]:
    return vector / jnp.sqrt(jnp.sum(vector**2))
