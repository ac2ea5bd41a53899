r"""The two sums of Ewald message passing, for one structure.

.. math::
    S(k) = \sum_j w_j(k)\, h_j\, e^{-i k \cdot r_j}
    \qquad
    M_i = c \sum_k w_i(k)\, \varphi(k)\, \mathrm{Re}\left[ e^{i k \cdot r_i} S(k) \right]

over half of the wave vectors: those of k and -k are complex conjugates, so each term stands
for both. With cosines and sines side by side, ``P = [cos(k.r), sin(k.r)]`` of shape
[nodes, 2 kvecs], both sums are matrix products, ``S = P^T h`` and ``M = P ([phi, phi] S)``.
Nothing of size nodes x kvecs x features is ever formed.

Source: Kosmala et al., ICML 2023, eqs. 8 to 11; there h is the embedding, S(k) the structure
factor s_k and phi(k) the frequency filter. Everything is linear in h, and maps over
structures with `jax.vmap`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ewald_jax import ops
from ewald_jax.kspace.turns import sine_of_turns
from ewald_jax.typing import Array, Float, Int


class PlaneSums(NamedTuple):
    """What the sums over a table of `plane_phases` add to those over ordinary phases.

    Attributes:
        mean: [2 kvecs] mean of the columns of plane waves over the atoms, 0 for others.
        one: [2 kvecs] 1 for the cosines of plane waves, 0 for others.
    """

    mean: Float[Array, " two_kvecs"]
    one: Float[Array, " two_kvecs"]


def k_dot_r(
    positions: Float[Array, "nodes 3"], kvecs: Float[Array, "kvecs 3"]
) -> Float[Array, "nodes kvecs"]:
    """Phases k.r at full precision: TF32 or bfloat16 would lose whole turns."""
    dtype = jnp.result_type(positions, kvecs)
    return _products(jnp.asarray(positions, dtype), jnp.asarray(kvecs, dtype))


@jax.custom_jvp
def _products(positions: Array, kvecs: Array) -> Array:
    # Elementwise, so that it fuses with the sine that follows.
    products = (positions[:, i, None] * kvecs[None, :, i] for i in range(3))
    return sum(products)


@_products.defjvp
def _products_jvp(primals, tangents):
    # Derivatives are sums over atoms or wave vectors: matrix products.
    (positions, kvecs), (moved, changed) = primals, tangents
    tangent = ops.full_matmul(moved, kvecs.T) + ops.full_matmul(positions, changed.T)
    return _products(positions, kvecs), tangent


def phases(
    positions: Float[Array, "nodes 3"],
    kvecs: Float[Array, "kvecs 3"],
    damping: Float[Array, "nodes ..."] | None = None,
) -> Float[Array, "nodes two_kvecs"]:
    """``[w cos(k.r), w sin(k.r)]``, the only thing that both sums need of the geometry.

    Args:
        positions: Å.
        kvecs: Half of the wave vectors, 1/Å.
        damping: Weight w of each node, [nodes], or of each node and wave vector; None is 1.

    Returns:
        [nodes, 2 kvecs].
    """
    return turn_phases(positions, kvecs / (2 * jnp.pi), damping)


def turn_phases(
    scaled: Float[Array, "nodes 3"],
    coordinates: Float[Array, "kvecs 3"],
    damping: Float[Array, "nodes ..."] | None = None,
) -> Float[Array, "nodes two_kvecs"]:
    """`phases` for ``k.r = 2 pi n.s``.

    Args:
        scaled: s.
        coordinates: n.
        damping: As in `phases`.

    Returns:
        [nodes, 2 kvecs].
    """
    # A cosine is the sine a quarter ahead: one table, without putting two together.
    coordinates = jnp.asarray(coordinates, scaled.dtype)
    quarter = jnp.full_like(coordinates[:, 0], 0.25)
    ahead = jnp.concatenate([quarter, jnp.zeros_like(quarter)])
    table = plane_waves(scaled, jnp.concatenate([coordinates, coordinates]), ahead)
    return _damped(table, damping)


def plane_waves(
    scaled: Float[Array, "nodes 3"],
    coordinates: Float[Array, "waves 3"],
    ahead: Float[Array, " waves"],
) -> Float[Array, "nodes waves"]:
    """``sin(2 pi (n.s + a))`` of positions s, wave vectors n and shifts a in turns."""
    turns = k_dot_r(scaled, coordinates)
    return sine_of_turns(turns - jnp.round(turns) + ahead[None])


def lattice_phases(
    fractional: Float[Array, "nodes 3"],
    indices: Int[np.ndarray, "kvecs 3"],
    damping: Float[Array, " nodes"] | None = None,
) -> Float[Array, "nodes two_kvecs"]:
    """`phases` for wave vectors given as integer indices on the reciprocal lattice.

    ``k.r = 2 pi n.s`` with fractional coordinates s. Whole turns are removed first (their
    derivative is zero): phases are exact to float32 rounding of small numbers also for atoms
    far outside the cell.

    Args:
        fractional: Positions in units of the lattice vectors.
        indices: From `grids.half_box` or `grids.lattice_sphere`.
        damping: Weight of each node; None is 1.

    Returns:
        [nodes, 2 kvecs].
    """
    # One sine per atom, index and part: products of per-axis tables, though fewer operations,
    # were slower on CPU (experiments/README.md).
    wrapped = fractional - jax.lax.stop_gradient(jnp.round(fractional))
    return turn_phases(wrapped, jnp.asarray(indices, fractional.dtype), damping)


def structure_factor_from_phases(
    h: Float[Array, "nodes feat"], phases: Float[Array, "nodes two_kvecs"]
) -> Float[Array, "two_kvecs feat"]:
    """S(k) = P^T h: first the real parts, then minus the imaginary parts."""
    return ops.full_matmul(phases.T, h)


def message_from_phases(
    h: Float[Array, "nodes feat"],
    phases: Float[Array, "nodes two_kvecs"],
    filter: Float[Array, "kvecs ..."],
    prefactor: float = 1.0,
    planes: PlaneSums | None = None,
) -> Float[Array, "nodes feat"]:
    """M = c P ([phi, phi] P^T h); with `planes` P holds the phases of `kspace.plane`."""
    if filter.ndim == 1:  # or it would broadcast along the channels where the sizes agree
        filter = filter[:, None]
    sf = structure_factor_from_phases(h, phases)
    if planes is not None:
        sf = sf - planes.mean[:, None] * jnp.sum(h, axis=0, keepdims=True)
    sf = jnp.concatenate([filter, filter]) * (prefactor * sf)
    message = ops.full_matmul(phases, sf)
    return message if planes is None else message + ops.full_matmul(planes.one, sf)[None]


def structure_factor(
    h: Float[Array, "nodes feat"],
    positions: Float[Array, "nodes 3"],
    kvecs: Float[Array, "kvecs 3"],
    damping: Float[Array, "nodes ..."] | None = None,
) -> tuple[Float[Array, "kvecs feat"], Float[Array, "kvecs feat"]]:
    """Structure factor as the pair of its cosine and sine sums.

    Args:
        h: Node features; zero rows for masked nodes.
        positions: Å.
        kvecs: Wave vectors, 1/Å.
        damping: Weight of each node, [nodes] or [nodes, kvecs]; None is 1.

    Returns:
        ``(sum w h cos(k.r), sum w h sin(k.r))``: real part and minus the imaginary part of
        S(k), each [kvecs, feat].
    """
    sf = structure_factor_from_phases(h, phases(positions, kvecs, damping))
    return sf[: len(kvecs)], sf[len(kvecs) :]


def ewald_message(
    h: Float[Array, "nodes feat"],
    positions: Float[Array, "nodes 3"],
    kvecs: Float[Array, "kvecs 3"],
    filter: Float[Array, "kvecs ..."],
    damping: Float[Array, "nodes ..."] | None = None,
    prefactor: float = 1.0,
) -> Float[Array, "nodes feat"]:
    """The Fourier-space message of one structure; use `jax.vmap` for several.

    Args:
        h: Node features; zero rows for masked nodes.
        positions: Å.
        kvecs: Half of the wave vectors, 1/Å.
        filter: phi(k) per channel, [kvecs, feat]; [kvecs] for one filter for all channels.
        damping: Weight of each node, [nodes] or [nodes, kvecs]; None is 1.
        prefactor: c.

    Returns:
        M, including each node's message to itself.
    """
    return message_from_phases(h, phases(positions, kvecs, damping), filter, prefactor)


def _damped(table: Array, damping: Array | None) -> Array:
    if damping is None:
        return table
    if damping.ndim == 2:
        return table * jnp.concatenate([damping, damping], axis=-1)
    return table * damping[:, None]
