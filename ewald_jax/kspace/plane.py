r"""The Coulomb channel of a slab where the wave vector in the plane vanishes.

There the atoms are charged planes at heights z. With v the values of the channel, which diverge
as 1/k^2, and :math:`\bar h` the mean over the atoms,

.. math::
    M_i = \sum_k w_k v_k\, \mathrm{Re}\Big[ e^{i k z_i}
        \sum_j (e^{-i k z_j} - 1)(h_j - \bar h) \Big]
        \;\to\; -2\pi \sum_j |z_i - z_j| (h_j - \bar h),

the potential of the planes in its closed two-dimensional form, smeared. The one stands for the
divergence, which is the same for all atoms and vanishes with the sum of what is sent. Without
taking the mean away (what leaving out k = 0 does in a crystal), a slab's potential would grow
with its thickness without bounds, and differ from that of the crystal it is cut from.

``cos - 1`` is stored as ``-2 sin^2`` of half the angle: of 1/k^2 times the difference of two
nearly equal numbers little would be left in float32. Both means and ones are matrices of rank
one, so that one table of phases serves both sums.
"""

import jax.numpy as jnp

from ewald_jax.kspace.boundary import WaveVectors
from ewald_jax.kspace.sums import PlaneSums, plane_waves
from ewald_jax.typing import Array, Bool, Float


def plane_phases(
    scaled: Float[Array, "nodes 3"], vectors: WaveVectors, mask: Bool[Array, " nodes"]
) -> tuple[Float[Array, "nodes two_kvecs"], PlaneSums]:
    """Phases of which those of plane waves are ``[cos - 1, sin]``.

    Args:
        scaled: From `scaled_positions`.
        vectors: Wave vectors; `WaveVectors.plane` says which are plane waves.
        mask: Atoms.

    Returns:
        The table, and what `message_from_phases` needs beside it.
    """
    plane, coordinates = vectors.plane, vectors.coordinates
    halved = jnp.where(plane[:, None], coordinates / 2, coordinates)
    ahead = jnp.where(plane, 0.0, 0.25).astype(coordinates.dtype)
    waves = plane_waves(
        scaled,
        jnp.concatenate([halved, coordinates]),
        jnp.concatenate([ahead, jnp.zeros_like(ahead)]),
    )
    less_one = jnp.concatenate([plane, jnp.zeros_like(plane)])
    table = jnp.where(less_one[None], -2 * waves**2, waves)
    both = jnp.concatenate([plane, plane])
    atoms = mask.astype(table.dtype)
    mean = jnp.sum(atoms[:, None] * table, axis=0) / jnp.maximum(jnp.sum(atoms), 1.0)
    return table, PlaneSums(jnp.where(both, mean, 0.0), less_one.astype(table.dtype))


def plane_basis(
    basis: Float[Array, "kvecs basis"], vectors: WaveVectors, coulomb: int | None
) -> Float[Array, "kvecs basis"]:
    """The basis of filters, with the Coulomb channel moved to the plane waves.

    Args:
        basis: From `channel_basis`.
        vectors: The wave vectors.
        coulomb: Place of the Coulomb channel in the basis, None if there is none.

    Returns:
        The basis: of plane waves that channel alone, of their twins all others.
    """
    others = jnp.where(vectors.plane[:, None], 0.0, basis)
    if coulomb is None:
        return others
    channel = jnp.where(vectors.twin, 0.0, basis[:, coulomb])
    return others.at[:, coulomb].set(channel)
