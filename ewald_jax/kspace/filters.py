"""Filters: what multiplies the structure factor, one real number per wave vector and channel.

The learned filters are low rank: a basis over wave vectors [kvecs, basis], multiplied by two
weight matrices (basis x bottleneck, shared by all blocks, and bottleneck x features, one per
block). This file holds the parameter-free parts and the classical Coulomb filter.
"""

import jax.numpy as jnp
import numpy as np

from ewald_jax import ops
from ewald_jax.typing import Array, Float, InputError

_WIDE_OFFSET_RBF = 48
"""Up to this many Gaussians the reference stretches the radial axis by 0.1, else by 0.25."""


def polynomial_envelope(
    x: Float[Array, "*batch"], exponent: int = 5
) -> Float[Array, "*batch"]:
    r"""Smooth cutoff that is one at 0, zero beyond 1, with two continuous derivatives there.

    .. math:: u(x) = 1 - \tfrac{(p+1)(p+2)}{2} x^p + p(p+2) x^{p+1} - \tfrac{p(p+1)}{2} x^{p+2}

    Source: Gasteiger, Groß, Günnemann, "Directional message passing" (ICLR 2020), eq. 8,
    times x: without the factor 1/x.

    Args:
        x: Distance over cutoff, >= 0.
        exponent: p > 0.

    Returns:
        The envelope.
    """
    p = exponent
    inside = x < 1
    y = jnp.where(inside, x, 0.0)
    a, b, c = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
    return jnp.where(inside, 1 + y**p * (a + y * (b + y * c)), 0.0)


def gaussian_rbf(
    x: Float[Array, "*batch"],
    start: float,
    stop: float,
    num: int,
    float32_centres: bool = False,
) -> Float[Array, "*batch basis"]:
    """Gaussians at `num` equally spaced centres, as wide as their spacing.

    Args:
        x: Values.
        start: First centre.
        stop: Last centre.
        num: Number of Gaussians, at least 2.
        float32_centres: Round the centres to float32 whatever the type of `x`, as frameworks
            that store them in a buffer do: a float32 model is the same function in float64.

    Returns:
        ``exp(-(x - centre)^2 / (2 spacing^2))``.

    Raises:
        InputError: If `num` is below 2.
    """
    if num < 2:
        raise InputError(f"a Gaussian basis needs at least 2 functions, not {num}")
    centres = np.linspace(start, stop, num)
    spacing = (stop - start) / (num - 1)
    if float32_centres:
        centres = centres.astype(np.float32).astype(np.float64)
    centres = jnp.asarray(centres, x.dtype).reshape((1,) * x.ndim + (-1,))
    difference = (x[..., None] - centres) / spacing
    return jnp.exp(-0.5 * difference**2)


def radial_basis(
    k_norm: Float[Array, "*batch kvecs"], k_cutoff: float, num_rbf: int
) -> Float[Array, "*batch kvecs basis"]:
    """The paper's radial basis of aperiodic filters: Gaussians times an envelope.

    The axis is stretched a little beyond `k_cutoff` so that the envelope has not vanished on
    the last shell of the grid.

    Args:
        k_norm: |k|, 1/Å.
        k_cutoff: 1/Å.
        num_rbf: Number of Gaussians.

    Returns:
        Basis values.
    """
    x = k_norm / (k_cutoff + (0.1 if num_rbf <= _WIDE_OFFSET_RBF else 0.25))
    return gaussian_rbf(x, 0.0, 1.0, num_rbf) * polynomial_envelope(x)[..., None]


def low_rank_filter(
    basis: Float[Array, "*batch kvecs basis"],
    down: Float[Array, "basis bottleneck"],
    up: Float[Array, "bottleneck feat"],
) -> Float[Array, "*batch kvecs feat"]:
    """A learned filter of rank `bottleneck`: ``basis @ down @ up``."""
    return ops.full_matmul(ops.full_matmul(basis, down), up)


def coulomb_filter(
    kvecs: Float[Array, "kvecs 3"], volume: Float[Array, ""], alpha: float
) -> Float[Array, " kvecs"]:
    r"""The reciprocal part of the classical Ewald sum, over half the wave vectors.

    .. math:: \varphi(k) = 2 \cdot \frac{4\pi}{V} \frac{e^{-k^2 / 4\alpha^2}}{k^2}

    With it, ``ewald_message`` of charges over `half_box` without the origin is the potential
    of the smeared charges and a neutralising background, self-interaction included.

    Args:
        kvecs: Half of the reciprocal lattice, without the origin, 1/Å.
        volume: Of the cell, Å^3; the sign (that of a left-handed cell) does not matter.
        alpha: Ewald splitting parameter, 1/Å.

    Returns:
        Filter values in units of 1/Å (times e^2/(4 pi eps_0) for an energy).
    """
    square = jnp.sum(kvecs**2, axis=-1)
    return 8 * jnp.pi / jnp.abs(volume) * jnp.exp(-square / (4 * alpha**2)) / square
