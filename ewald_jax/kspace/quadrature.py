"""Gauss quadrature of k-space integrals (host side): how many nodes, and where.

An integrand here is a filter, no narrower than one Gaussian of its basis, times a plane wave
``exp(i k z)`` with z up to the size of the structure. Gauss-Legendre nodes resolve it once
their number exceeds half of its bandwidth; from there on the error falls faster than
exponentially. The margins below leave 1e-10 of a filter of one (tests/test_radial_kspace.py).
"""

import functools
import math

import numpy as np

from ewald_jax.typing import Float

_GAUSSIAN_BANDWIDTH = 6.8
"""exp(-x^2 / 2) has a spectrum of exp(-w^2 / 2), which is 1e-10 at this w."""

_WIDEST = 0.2
"""In units of the cutoff: with fewer Gaussians the envelope and the channels are narrower."""

_MARGIN = 5.0
_TAIL = 0.6
"""The turning point of a Bessel function widens with the cubic root of its argument."""


@functools.lru_cache(maxsize=1024)
def gauss_legendre(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the integral from -1 to 1; none for `num` = 0."""
    if num == 0:
        return np.zeros(0), np.zeros(0)
    nodes, weights = np.polynomial.legendre.leggauss(num)
    nodes.setflags(write=False)
    weights.setflags(write=False)
    return nodes, weights


def num_radial(k_cutoff: float, width: float, reach: float) -> int:
    """Nodes of an integral over |k| from 0 to the cutoff.

    Args:
        k_cutoff: 1/Å.
        width: Of the narrowest Gaussian of the filter, in units of the cutoff.
        reach: Largest distance that the plane waves span, Å.

    Returns:
        Number of nodes.
    """
    turns = k_cutoff * reach
    bandwidth = 0.5 * (turns + _GAUSSIAN_BANDWIDTH / min(width, _WIDEST))
    return math.ceil(0.5 * bandwidth + _TAIL * turns ** (1 / 3) + _MARGIN)


def num_stretched(
    k_cutoff: float,
    width: float,
    reach: float,
    k_lattice: Float[np.ndarray, " kvecs"],
    symmetric: bool,
) -> np.ndarray:
    """Nodes of an integral over the open directions at lattice vectors of given length.

    The variable t of ``k_open = k_lattice sinh t`` takes the branch points of
    ``|k| = k_lattice cosh t`` out of the way, however close they are.

    Args:
        k_cutoff: 1/Å.
        width: Of the narrowest Gaussian of the filter, in units of the cutoff.
        reach: Largest distance in the open directions, Å.
        k_lattice: Lengths in (0, k_cutoff), 1/Å.
        symmetric: The integral runs over [-T, T] and not [0, T].

    Returns:
        [kvecs] numbers of nodes.
    """
    x = np.linspace(0.0, 1.0, 33)
    limit = np.arccosh(np.maximum(k_cutoff / k_lattice, 1.0))[:, None]
    t, slope = (limit * x, limit) if symmetric else (limit * (x + 1) / 2, limit / 2)
    width = k_cutoff * min(width, _WIDEST)
    speed = np.cosh(t) * reach + np.sinh(t) * _GAUSSIAN_BANDWIDTH / width
    bandwidth = np.max(k_lattice[:, None] * slope * speed * np.sqrt(1 - x**2), axis=1)
    tail = _TAIL * (k_cutoff * reach) ** (1 / 3)
    return np.ceil(0.5 * bandwidth + tail + _MARGIN + limit[:, 0]).astype(int)


def num_angular(turns: float) -> int:
    """Degree up to which plane waves of `turns` radians are resolved on a circle or sphere."""
    return math.ceil(turns + 7 * turns ** (1 / 3) + 8)


def half_circle(num: int) -> Float[np.ndarray, "half 2"]:
    """Half of an even number (at least `num`) of equally spaced unit vectors."""
    half = -(-num // 2)
    angle = np.pi / half * np.arange(half)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def half_sphere(degree: int) -> tuple[Float[np.ndarray, "half 3"], np.ndarray]:
    """Half of a product quadrature of the sphere, without the antipodes.

    Args:
        degree: Of the highest spherical harmonic that is integrated exactly.

    Returns:
        Unit vectors and weights, which add up to 2 pi.
    """
    heights, weights = gauss_legendre(-(-(degree + 1) // 2))
    circle = half_circle(degree + 1)
    sine = np.sqrt(1 - heights**2)
    points = np.empty((len(heights), len(circle), 3))
    points[..., :2] = sine[:, None, None] * circle
    points[..., 2] = heights[:, None]
    weights = np.repeat(weights * np.pi / len(circle), len(circle))
    return points.reshape(-1, 3), weights
