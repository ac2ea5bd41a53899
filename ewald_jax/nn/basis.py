"""Radial bases of the short-range networks, parameter free."""

import jax.numpy as jnp

from ewald_jax.kspace.filters import gaussian_rbf, polynomial_envelope
from ewald_jax.typing import Array, Float

__all__ = ["cosine_cutoff", "gaussian_rbf", "polynomial_envelope"]


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
