r"""How fine a mesh has to be, and when it pays (host side).

On a grid with spacing d along a lattice vector, a B-spline of order p sees beside the wave k,
with :math:`x = |k| d / 2\pi < 1/2`, its aliases at x + m. Over the factor that corrects the
wave itself they have the amplitude

.. math:: \eta(x) = \sum_{m \ne 0} \left| \frac{x}{x + m} \right|^p , \qquad
    \varepsilon = (1 + \eta)^3 - 1

along one axis and in all three, whatever the shape of the cell. They enter once where features
are spread and once where they are gathered: what one atom sends to another is wrong by at most
:math:`c \sum_k |\varphi(k)| (2 \varepsilon + \varepsilon^2)`. `mesh_error` is this bound for a
filter as large as the envelope u of all filters,

.. math:: \frac{3}{k_c^3} \int_0^{k_c} k^2\, u(k) (2 \varepsilon + \varepsilon^2)\, dk ,

in units in which a filter of one has a self-message of one. Terms have all signs, and errors
of messages are some ten times smaller. Halving the spacing divides the bound by about 2^p.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft

from ewald_jax.kspace.quadrature import gauss_legendre
from ewald_jax.typing import Float, InputError

MIN_ORDER, MAX_ORDER = 4, 10
"""Below, forces have kinks, and losses of them no derivative; above, windows are too large."""

MARGIN = 1.05
"""By which factor a cell may grow and its wave vectors, or its mesh, still be enough. Vectors a
little beyond the cutoff are kept: their filter is zero, but after a strain it may not be."""

_MAX_POINTS = 2**26
"""Grid points at most: a grid of the few features that are on it at a time then takes 4.3 GB,
more with its halo, and more than one such array is there at once."""

_ALIASES = np.arange(1, 33)

# Times per feature on one CPU core, in those of one operation of a matrix product: of an
# operation of a transform, and of one point of a window.
_TRANSFORM = 3.0
_WINDOW = 16.0


@dataclass(frozen=True)
class MeshRule:
    """What decides the grid of a crystal.

    Attributes:
        order: Of the B-splines.
        spacing: Largest distance of grid points along a lattice vector, Å.
        always: Also where the direct sum is cheaper.
    """

    order: int
    spacing: float
    always: bool = False


def mesh_error(order: int, spacing: float, k_cutoff: float) -> float:
    """Bound of the aliasing error of a message, see the module.

    Args:
        order: Of the B-splines.
        spacing: Of the grid points along each lattice vector, Å.
        k_cutoff: 1/Å.

    Returns:
        The bound; infinite if the grid does not hold the filter, from pi / k_cutoff on.
    """
    edge = k_cutoff * spacing / (2 * np.pi)
    if edge >= 0.5:
        return math.inf
    nodes, w = gauss_legendre(64)
    y = (nodes + 1) / 2
    x = edge * y[:, None]
    alias = np.sum((x / (_ALIASES - x)) ** order + (x / (_ALIASES + x)) ** order, axis=1)
    one = (1 + alias) ** 3 - 1
    envelope = 1 + y**6 * (-10 + y**2 * (15 - 6 * y**2))
    return float(np.sum(1.5 * w * y**2 * envelope * (2 * one + one**2)))


def mesh_spacing(order: int, accuracy: float, k_cutoff: float) -> float:
    """The largest spacing, Å, with `mesh_error` at most `accuracy`; rounded down to 0.1 %."""
    low, high = 1e-3 / k_cutoff, np.pi / k_cutoff
    while high > 1.0005 * low:
        middle = math.sqrt(low * high)
        fine = mesh_error(order, middle, k_cutoff) <= accuracy
        low, high = (middle, high) if fine else (low, middle)
    return low


def check_mesh(order: int, spacing: float, accuracy: float, k_cutoff: float) -> None:
    """Refuses a mesh too coarse for the filter.

    Raises:
        InputError: With the spacing that would do.
    """
    error = mesh_error(order, spacing, k_cutoff)
    if error > accuracy:
        wrong = (
            f"has an error of up to {error:.2g}, more than ewald.mesh_accuracy = {accuracy:g}"
            if math.isfinite(error)
            else "does not hold the filter"
        )
        raise InputError(
            f"ewald.mesh_spacing = {spacing:g} Å {wrong}, for ewald.k_cutoff = {k_cutoff:g} "
            f"and ewald.mesh_order = {order}; expected at most "
            f"{_floor(mesh_spacing(order, accuracy, k_cutoff)):g} Å"
        )


def mesh_shape(cell: Float[np.ndarray, "3 3"], rule: MeshRule) -> tuple[int, int, int]:
    """Grid points along each lattice vector, of sizes that transforms are fast for.

    Args:
        cell: Rows are lattice vectors, Å.
        rule: Order and spacing.

    Returns:
        The shape; fine enough also for a cell larger by `MARGIN`.
    """
    lengths = np.linalg.norm(np.asarray(cell, np.float64), axis=1)
    return fast_shape(np.maximum(lengths * MARGIN / rule.spacing, rule.order))


def waves_within(size: int, spacing: float, k_cutoff: float) -> int:
    r"""How many of the waves 0, 1, ... along a lattice vector a may be within the cutoff.

    As :math:`n = k \cdot a / 2\pi`, those up to :math:`k_c |a| / 2\pi`: enough for a lattice
    vector of at most size x spacing, which `mesh_shape` sees to if the grid is made by the same
    rule, also after the cell has grown by `MARGIN`.

    Args:
        size: Grid points along the lattice vector.
        spacing: Of the rule, Å.
        k_cutoff: 1/Å.

    Returns:
        At most all that a grid has.
    """
    return min(math.floor(size * spacing * k_cutoff / (2 * math.pi)), size // 2) + 1


def check_shape(shape: tuple[int, int, int], rule: MeshRule) -> None:
    """Refuses meshes larger than any memory.

    Raises:
        InputError: With the size.
    """
    if math.prod(shape) > _MAX_POINTS:
        raise InputError(
            f"needs a mesh of {' x '.join(map(str, shape))} points {rule.spacing:.3g} Å apart, "
            f"expected at most {_MAX_POINTS} points; lower ewald.k_cutoff, or give a cell "
            "that is less skewed (ase.build.niggli_reduce) or less empty"
        )


def fast_shape(least: Float[np.ndarray, " 3"]) -> tuple[int, int, int]:
    """The next sizes that transforms are fast for."""
    return tuple(scipy.fft.next_fast_len(math.ceil(n)) for n in least)


def mesh_pays(
    n_node: int, num_kvecs: float, shape: tuple[int, int, int], order: int
) -> bool:
    """Whether the mesh is faster than the direct sum.

    The direct sum takes 8 nodes x kvecs operations in matrix products for each feature. The
    mesh takes what amounts to two transforms of 2.5 points log2(points) operations, which are
    slower (`kspace.convolution` does part of them by products), and two passes over the windows
    of nodes x order^3 points, which wait for memory. At 0.05 atoms per cubic Å and
    k_cutoff = 2 / Å they meet at some 1000 atoms on a CPU, where this was measured.

    Args:
        n_node: Atoms.
        num_kvecs: Wave vectors of the direct sum.
        shape: Of the grid.
        order: Of the B-splines.
    """
    points = math.prod(shape)
    transforms = _TRANSFORM * 5 * points * math.log2(points)
    return transforms + _WINDOW * 2 * n_node * order**3 < 8 * n_node * num_kvecs


def _floor(value: float) -> float:
    """Three digits, rounded down: what a user copies must do."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return math.floor(value / unit) * unit
