"""Sinc damping of the `voxel` scheme: the average of a plane wave over one voxel.

A finite grid of wave vectors makes a molecule periodic with 2 pi / delta_k; averaging over
the voxels instead of sampling their centres fades the images out.
"""

from typing import Literal

import jax.numpy as jnp

from ewald_jax.typing import Array, Float

_SINC_TERMS = 10
"""Of the power series, for |u| < 1; the first one left out is below 1e-22."""


def sinc_damping(
    positions: Float[Array, "*batch nodes 3"],
    delta_k: float,
    form: Literal["exact", "normalized"] = "exact",
) -> Float[Array, "*batch nodes"]:
    """Product over the axes of ``sin(u) / u`` with ``u = delta_k x / 2``.

    Args:
        positions: Relative to the molecule's centre, in the axes of the grid, Å.
        delta_k: Spacing of the grid, 1/Å.
        form: "exact", the average over the voxel; "normalized" is the reference's
            ``sin(pi u) / (pi u)``, which changes sign 10 Å from the centre at
            ``delta_k = 0.2``. Only for its weights.

    Returns:
        Damping of each node.
    """
    u = positions * (delta_k / 2 if form == "exact" else jnp.pi * delta_k / 2)
    return jnp.prod(sinc(u), axis=-1)


def sinc(u: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """``sin(u) / u``, with derivatives of every order at full precision.

    Those of the quotient (and of `jnp.sinc`) cancel near zero: in float32 the slope at 1e-6 is
    wrong by 0.06, which is where the atoms of a planar molecule lie.

    Args:
        u: Any values.

    Returns:
        sinc, 1 at 0.
    """
    near = jnp.abs(u) < 1
    far = jnp.where(near, 1.0, u)
    square = jnp.where(near, u, 0.0) ** 2
    series = jnp.ones_like(u)
    for n in range(_SINC_TERMS, 0, -1):
        series = 1 - square / (2 * n * (2 * n + 1)) * series
    return jnp.where(near, series, jnp.sin(far) / far)
