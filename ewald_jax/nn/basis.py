"""Radial and angular bases of the short-range networks.

e3nn_jax and jax.scipy have neither trainable frequencies nor spherical Bessel functions, and
e3nn_jax's Legendre functions need a function that newer versions of JAX lack; so these are
written out here and tested against scipy and e3nn_jax.
"""

import functools
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from scipy import optimize, special

from ewald_jax.kspace.damping import sinc
from ewald_jax.kspace.filters import gaussian_rbf, polynomial_envelope
from ewald_jax.typing import Array, Float

__all__ = [
    "SineBasis",
    "cosine_cutoff",
    "enveloped_gaussians",
    "gaussian_rbf",
    "legendre_basis",
    "polynomial_envelope",
    "spherical_bessel",
    "spherical_bessel_basis",
]

_SERIES_TERMS = 20
"""Of the power series of j_l, for x < l + 1; the first one left out is below 1e-17."""


def cosine_cutoff(
    distance: Float[Array, "*batch"], cutoff: float
) -> Float[Array, "*batch"]:
    """``(cos(pi d / cutoff) + 1) / 2`` up to `cutoff`, zero beyond.

    Args:
        distance: Å.
        cutoff: Å.

    Returns:
        Weights from 1 to 0 with a continuous first derivative.
    """
    inside = distance < cutoff
    angle = jnp.pi / cutoff * jnp.where(inside, distance, cutoff)
    return jnp.where(inside, 0.5 * (jnp.cos(angle) + 1), 0.0)


def enveloped_gaussians(
    distance: Float[Array, " edges"], cutoff: float, num: int, exponent: int = 5
) -> Float[Array, "edges basis"]:
    """Gaussians of d / cutoff on [0, 1] times the polynomial envelope (GemNet, PaiNN).

    Args:
        distance: Å.
        cutoff: Å.
        num: Number of Gaussians.
        exponent: p of the envelope.

    Returns:
        The basis, zero from `cutoff` on.
    """
    x = distance / cutoff
    gaussians = gaussian_rbf(x, 0.0, 1.0, num, float32_centres=True)
    return polynomial_envelope(x, exponent)[:, None] * gaussians


class SineBasis(nn.Module):
    """``u(x) sin(f_n x) / x`` with x = d / cutoff and trainable f_n that start at n pi.

    Source: Gasteiger, Groß, Günnemann, "Directional message passing" (ICLR 2020), eq. 7
    without its constant factor.

    Attributes:
        num: Number of functions.
        cutoff: Å.
        exponent: p of the envelope, counted as in the paper's code (one less than eq. 8's).
    """

    num: int
    cutoff: float
    exponent: int = 5

    @nn.compact
    def __call__(self, distance: Float[Array, " edges"]) -> Float[Array, "edges basis"]:
        """Evaluates the basis; zero from the cutoff on."""
        start = lambda key: jnp.pi * jnp.arange(1, self.num + 1, dtype=jnp.float32)
        frequencies = self.param("frequencies", start)
        x = distance / self.cutoff
        envelope = polynomial_envelope(x, self.exponent + 1)
        return envelope[:, None] * frequencies[None] * sinc(frequencies[None] * x[:, None])


def spherical_bessel_basis(
    distance: Float[Array, " edges"],
    cutoff: float,
    num_spherical: int,
    num_radial: int,
    exponent: int = 5,
) -> Float[Array, "edges spherical radial"]:
    r"""``u(x)/x N_ln j_l(z_ln x)`` with x = d / cutoff: the radial half of DimeNet's 2D basis.

    z_ln is the n-th zero of j_l, and :math:`N_{ln} = \sqrt{2 / j_{l+1}(z_{ln})^2}`.

    Source: Gasteiger, Groß, Günnemann (ICLR 2020), eq. 6, with the factors of its code.

    Args:
        distance: Å, larger than 0 for edges within the cutoff.
        cutoff: Å.
        num_spherical: Number of l.
        num_radial: Number of n.
        exponent: As in `SineBasis`.

    Returns:
        The basis, zero from `cutoff` on.
    """
    x = distance / cutoff
    outside = x >= 1
    envelope = polynomial_envelope(x, exponent + 1) / jnp.where(outside, 1.0, x)
    zeros, norms = _bessel_tables(num_spherical, num_radial)
    columns = []
    for order in range(num_spherical):
        scaled = jnp.asarray(zeros[order], x.dtype)[None] * x[:, None]
        norm = jnp.asarray(norms[order], x.dtype)[None]
        columns.append(norm * spherical_bessel(order, scaled))
    return envelope[:, None, None] * jnp.stack(columns, axis=1)


def legendre_basis(
    cosine: Float[Array, "*batch"], num_spherical: int
) -> Float[Array, "*batch spherical"]:
    r"""Spherical harmonics of order 0: :math:`\sqrt{(2l+1)/4\pi}\, P_l(\cos\theta)`.

    Args:
        cosine: Cosine of the angle.
        num_spherical: Number of l.

    Returns:
        One function for each l from 0.
    """
    values = [jnp.ones_like(cosine), cosine][:num_spherical]
    for order in range(2, num_spherical):
        next_one = (2 * order - 1) * cosine * values[-1] - (order - 1) * values[-2]
        values.append(next_one / order)
    factors = [math.sqrt((2 * order + 1) / (4 * math.pi)) for order in range(num_spherical)]
    return jnp.stack([f * v for f, v in zip(factors, values, strict=True)], axis=-1)


def spherical_bessel(order: int, x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Spherical Bessel function j_l.

    The recurrence in l loses all digits for x well below l, so a power series is used there.

    Args:
        order: l.
        x: At least 0.

    Returns:
        j_l(x), to the precision of the type of `x`.
    """
    if order == 0:
        return sinc(x)
    near = x < order + 1
    small = jnp.where(near, x, 0.0)
    square, series = 0.5 * small**2, jnp.ones_like(x)
    for n in range(_SERIES_TERMS, 0, -1):
        series = 1 - square / (n * (2 * (order + n) + 1)) * series
    double_factorial = float(np.prod(np.arange(2 * order + 1, 0, -2, dtype=np.float64)))
    large = jnp.where(near, 1.0, x)
    previous, current = jnp.sin(large) / large, jnp.sin(large) / large**2
    current = current - jnp.cos(large) / large
    for n in range(1, order):
        previous, current = current, (2 * n + 1) / large * current - previous
    return jnp.where(near, small**order / double_factorial * series, current)


@functools.cache
def _bessel_tables(num_spherical: int, num_radial: int) -> tuple[np.ndarray, np.ndarray]:
    """Zeros z_ln and norms N_ln, [spherical, radial].

    Rounded to float32 as in the code of DimeNet, so that its weights mean the same.
    """
    count = num_radial + num_spherical
    roots = np.arange(1, count + 1) * np.pi
    zeros = [roots[:num_radial]]
    for order in range(1, num_spherical):
        # Zeros of j_l lie between those of j_(l-1).
        function = functools.partial(special.spherical_jn, order)
        roots = np.array(
            [optimize.brentq(function, *pair, xtol=1e-13) for pair in _pairs(roots)]
        )
        zeros.append(roots[:num_radial])
    z = np.stack(zeros).astype(np.float32)
    orders = np.arange(num_spherical, dtype=np.float32)[:, None]
    bessel = np.sqrt(np.float32(np.pi) / (2 * z)) * special.jv(orders + np.float32(1.5), z)
    norms = 1 / np.sqrt(np.float32(0.5) * bessel**2)
    return z.astype(np.float64), norms.astype(np.float64)


def _pairs(values: np.ndarray):
    return zip(values[:-1], values[1:], strict=True)
