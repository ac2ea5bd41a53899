r"""Cardinal B-splines: what the points of a periodic grid see of an atom.

An atom at u (in grid points along a lattice vector) is seen by the grid point m with the weight
:math:`M_p(u - m)`, in three dimensions with the product: by a window of p^3 points.

Source: Essmann et al., J. Chem. Phys. 103, 8577 (1995), eqs. 3.4 and 4.1 to 4.6.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ewald_jax.typing import Array, Float, Int

_ROD = 4
"""Grid points across the rods by which atoms are sorted."""


def spline_weights(
    offset: Float[Array, "*batch"], order: int
) -> Float[Array, "*batch order"]:
    """Weights of the p grid points around an atom, from the lowest point on.

    Args:
        offset: From the highest grid point below the atom, from 0 to 1.
        order: p, at least 1.

    Returns:
        ``M_p(offset + p - 1)`` to ``M_p(offset)``; they add up to 1.
    """
    values = [jnp.ones_like(offset)]
    for n in range(2, order + 1):
        padded = [0.0, *values, 0.0]
        values = [
            ((offset + j) * padded[j + 1] + (n - offset - j) * padded[j]) / (n - 1)
            for j in range(n)
        ]
    return jnp.stack(values[::-1], axis=-1)


def fourier_factor(size: int, order: int) -> Float[np.ndarray, " size"]:
    """Fourier transform of the B-spline at the waves of a grid, without its phase.

    Args:
        size: Grid points along the axis.
        order: p.

    Returns:
        ``sinc(n / size)^p`` in the order of `numpy.fft.fftfreq`; at least (2 / pi)^p.
    """
    return np.sinc(np.fft.fftfreq(size)) ** order


def spline_tables(
    offset: Float[Array, "*batch"], order: int, degree: int
) -> Float[Array, "*batch degrees order"]:
    """`spline_weights` and their derivatives by the offset.

    Args:
        offset: As there.
        order: p.
        degree: Of the highest derivative.

    Returns:
        Of the degrees 0 to `degree`; those from p on are zeros.
    """
    tables = []
    for n in range(degree + 1):
        lower = order - n
        table = spline_weights(offset, lower) if lower > 0 else offset[..., None][..., :0]
        # M_p'(x) = M_{p-1}(x) - M_{p-1}(x - 1)
        for _ in range(n):
            table = jnp.pad(table, ((0, 0),) * offset.ndim + ((1, 1),))
            table = table[..., :-1] - table[..., 1:]
        tables.append(table[..., :order])
    return jnp.stack(tables, axis=-2)


def grid_places(
    scaled: Float[Array, "nodes 3"], shape: tuple[int, int, int]
) -> tuple[Int[Array, "nodes 3"], Float[Array, "nodes 3"]]:
    """Where each atom is on a grid, and so where its window begins.

    The grid is shifted by p - 1 points against the atoms, alike for spreading and gathering, so
    that no index is negative.

    Args:
        scaled: Positions in units of the lattice vectors.
        shape: Grid points along each.

    Returns:
        Lowest point along each axis, from 0 to size - 1, and the offset from it, 0 to 1.
    """
    size = jnp.asarray(shape, scaled.dtype)[None]
    inside = scaled - jax.lax.stop_gradient(jnp.floor(scaled))
    places = inside * size
    # In float32 a small negative number lies at 1: the last point, offset 1, is right there.
    first = jnp.minimum(jnp.floor(places), size - 1)
    return first.astype(jnp.int32), places - jax.lax.stop_gradient(first)


def sorting(
    scaled: Float[Array, "nodes 3"], shape: tuple[int, int, int]
) -> Int[Array, " nodes"]:
    """An order of the atoms in which neighbors in space follow each other.

    Args:
        scaled: Positions in units of the lattice vectors.
        shape: Grid points along each.

    Returns:
        Indices: along rods of some points' width, of which a few are in the cache.
    """
    inside = scaled - jnp.floor(scaled)
    rods = jnp.floor(inside[:, :2] * (jnp.asarray(shape[:2], scaled.dtype)[None] / _ROD))
    return jnp.lexsort((inside[:, 2], rods[:, 1], rods[:, 0]))
