"""Sinc damping of the `voxel` scheme: the average of a plane wave over one voxel.

A finite grid of wave vectors makes a molecule periodic with 2 pi / delta_k; averaging over
the voxels instead of sampling their centres fades the images out.
"""

from typing import Literal

import jax.numpy as jnp

from ewald_jax.typing import Array, Float


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
    u = positions * (delta_k / 2)
    # jnp.sinc is the normalised one.
    return jnp.prod(jnp.sinc(u / jnp.pi if form == "exact" else u), axis=-1)
