r"""The basis of the `radial` filters: Gaussians, and channels with the right asymptotics.

All are functions of ``x = |k| / k_cutoff`` times an envelope that ends at the cutoff with two
continuous derivatives. The Gaussians are mirrored at 0, which makes them smooth functions of
k^2: a cusp at k = 0 would be a power-law tail in real space that nobody asked for. The tails
that physics has are channels of their own:

* ``coulomb``: exp(-k^2 / 4 alpha^2) / k^2, in real space erf(alpha r) / r, with
  alpha = k_cutoff / 4;
* ``dispersion``: the transform of r^-6 damped in the same way, of which |k|^3 is what decays
  as r^-6 (Williams, Acta Cryst. A 27, 452 (1971)).

Each channel is scaled to a self-message of one. The envelope, which cuts less than 2 % of the
Gaussian, changes them at short distances only.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from ewald_jax.kspace.filters import gaussian_rbf, polynomial_envelope
from ewald_jax.kspace.quadrature import gauss_legendre
from ewald_jax.typing import Array, Float

CHANNELS = ("coulomb", "dispersion")

_ALPHA = 0.25
"""alpha over the cutoff."""


def smooth_envelope(square: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """1 - 10 x^6 + 15 x^8 - 6 x^10, zero beyond x = 1; a polynomial in x^2.

    Args:
        square: x^2.

    Returns:
        The envelope.
    """
    return polynomial_envelope(square, 3)


def mirrored_gaussians(
    square: Float[Array, "*batch"], num: int
) -> Float[Array, "*batch basis"]:
    """Gaussians in x at equal distances from 0 to 1, each plus its mirror image, enveloped.

    Args:
        square: x^2.
        num: Number of Gaussians.

    Returns:
        Values.
    """
    x = _root(square)
    both = gaussian_rbf(x, 0.0, 1.0, num) + gaussian_rbf(-x, 0.0, 1.0, num)
    return both * smooth_envelope(square)[..., None]


def channel_basis(
    square: Float[Array, "*batch"], num_rbf: int, channels: tuple[str, ...]
) -> Float[Array, "*batch basis"]:
    """All basis functions of a radial filter.

    Args:
        square: x^2.
        num_rbf: Number of Gaussians.
        channels: Of `CHANNELS`, which follow them.

    Returns:
        [..., num_rbf + channels].
    """
    functions = {"coulomb": coulomb_channel, "dispersion": dispersion_channel}
    parts = [functions[name](square)[..., None] for name in channels]
    return jnp.concatenate([mirrored_gaussians(square, num_rbf), *parts], axis=-1)


def coulomb_channel(square: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The Coulomb channel; 0 at x = 0, where it has no value.

    Args:
        square: x^2.

    Returns:
        Values.
    """
    safe = jnp.where(square > 0, square, 1.0)
    return jnp.where(square > 0, _coulomb_scale() * _gaussian(square) / safe, 0.0)


def dispersion_channel(square: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The dispersion channel, finite at x = 0.

    Args:
        square: x^2.

    Returns:
        Values.
    """
    return _dispersion_scale() * _dispersion(square) * smooth_envelope(square)


def _gaussian(square: Array) -> Array:
    return jnp.exp(-square / (4 * _ALPHA**2)) * smooth_envelope(square)


def _dispersion(square: Array) -> Array:
    b = _root(square) / (2 * _ALPHA)
    smooth = (1 - 2 * b**2) * jnp.exp(-(b**2))
    return smooth + 2 * jnp.sqrt(jnp.pi) * b**3 * jax.scipy.special.erfc(b)


def _root(square: Array) -> Array:
    """Square root with a finite derivative at 0, where everything here is flat."""
    safe = jnp.where(square > 0, square, 1.0)
    return jnp.where(square > 0, jnp.sqrt(safe), 0.0)


# Constants of the channels, in numpy: they must not depend on the precision of a trace.


@functools.cache
def _coulomb_scale() -> float:
    x, w = gauss_legendre(64)
    return float(1 / np.sum(1.5 * w * _host_gaussian((x + 1) / 2)))


@functools.cache
def _dispersion_scale() -> float:
    x, w = gauss_legendre(64)
    x = (x + 1) / 2
    b = x / (2 * _ALPHA)
    cusp = 2 * np.sqrt(np.pi) * b**3 * np.array([math.erfc(v) for v in b])
    values = (1 - 2 * b**2) * np.exp(-(b**2)) + cusp
    return float(1 / np.sum(1.5 * w * x**2 * values * _host_envelope(x**2)))


def _host_gaussian(x: np.ndarray) -> np.ndarray:
    return np.exp(-(x**2) / (4 * _ALPHA**2)) * _host_envelope(x**2)


def _host_envelope(y: np.ndarray) -> np.ndarray:
    return 1 + y**3 * (-10 + y * (15 - 6 * y))
