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

import jax
import jax.numpy as jnp

from ewald_jax.typing import Array, Float


def k_dot_r(
    positions: Float[Array, "nodes 3"], kvecs: Float[Array, "kvecs 3"]
) -> Float[Array, "nodes kvecs"]:
    """Phases k.r at full precision: TF32 or bfloat16 would lose whole turns."""
    return jnp.matmul(positions, kvecs.T, precision=jax.lax.Precision.HIGHEST)


def phases(
    positions: Float[Array, "nodes 3"],
    kvecs: Float[Array, "kvecs 3"],
    damping: Float[Array, "nodes *kvecs"] | None = None,
) -> Float[Array, "nodes two_kvecs"]:
    """``[w cos(k.r), w sin(k.r)]``, the only thing that both sums need of the geometry.

    Args:
        positions: Å.
        kvecs: Half of the wave vectors, 1/Å.
        damping: Weight w of each node, [nodes], or of each node and wave vector; None is 1.

    Returns:
        [nodes, 2 kvecs].
    """
    angle = k_dot_r(positions, kvecs)
    return _damped(jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1), damping)


def lattice_phases(
    fractional: Float[Array, "nodes 3"],
    num_k: tuple[int, int, int],
    damping: Float[Array, " nodes"] | None = None,
) -> Float[Array, "nodes two_kvecs"]:
    """`phases` for the half box of `grids.half_box`, from products of per-axis phases.

    ``exp(i k.r) = exp(i n_x t_x) exp(i n_y t_y) exp(i n_z t_z)`` with ``t = 2 pi fractional``:
    a handful of sines and cosines per atom instead of one pair per atom and wave vector.

    Args:
        fractional: Positions in units of the lattice vectors.
        num_k: (nx, ny, nz) of the box.
        damping: Weight of each node; None is 1.

    Returns:
        [nodes, 2 kvecs] in the order of ``half_box(*num_k)``.
    """
    # Whole turns are removed first (their derivative is zero): small arguments keep float32
    # phases exact for atoms far outside the cell.
    wrapped = fractional - jax.lax.stop_gradient(jnp.round(fractional))
    x, y, z = (
        _axis_phases(wrapped[:, axis], 0 if axis == 0 else -n, n)
        for axis, n in enumerate(num_k)
    )
    yz = _outer(y, z)
    cos, sin = _outer(x, yz)
    # n_x runs over 0..nx only; of its first plane the half after the origin counts.
    origin = yz[0].shape[-1] // 2
    return _damped(jnp.concatenate([cos[:, origin + 1 :], sin[:, origin + 1 :]], -1), damping)


def structure_factor_from_phases(
    h: Float[Array, "nodes feat"], phases: Float[Array, "nodes two_kvecs"]
) -> Float[Array, "two_kvecs feat"]:
    """S(k) = P^T h: first the real parts, then minus the imaginary parts."""
    return phases.T @ h


def message_from_phases(
    h: Float[Array, "nodes feat"],
    phases: Float[Array, "nodes two_kvecs"],
    filter: Float[Array, "kvecs feat"],
    prefactor: float = 1.0,
) -> Float[Array, "nodes feat"]:
    """M = c P ([phi, phi] P^T h)."""
    sf = structure_factor_from_phases(h, phases)
    return phases @ (jnp.concatenate([filter, filter]) * (prefactor * sf))


def structure_factor(
    h: Float[Array, "nodes feat"],
    positions: Float[Array, "nodes 3"],
    kvecs: Float[Array, "kvecs 3"],
    damping: Float[Array, "nodes *kvecs"] | None = None,
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
    filter: Float[Array, "kvecs feat"],
    damping: Float[Array, "nodes *kvecs"] | None = None,
    prefactor: float = 1.0,
) -> Float[Array, "nodes feat"]:
    """The Fourier-space message of one structure; use `jax.vmap` for several.

    Args:
        h: Node features; zero rows for masked nodes.
        positions: Å.
        kvecs: Half of the wave vectors, 1/Å.
        filter: phi(k) per channel; [kvecs, 1] for one filter for all channels.
        damping: Weight of each node, [nodes] or [nodes, kvecs]; None is 1.
        prefactor: c.

    Returns:
        M, including each node's message to itself.
    """
    return message_from_phases(h, phases(positions, kvecs, damping), filter, prefactor)


def _axis_phases(
    fractional: Float[Array, " nodes"], first: int, last: int
) -> tuple[Array, Array]:
    """cos and sin of ``2 pi n fractional`` for n = first..last, each [nodes, n]."""
    n = jnp.arange(first, last + 1, dtype=fractional.dtype)
    angle = 2 * jnp.pi * fractional[:, None] * n[None, :]
    return jnp.cos(angle), jnp.sin(angle)


def _outer(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
    """Complex product of two phase tables over all pairs of columns."""
    (a, b), (c, d) = left, right
    cos = a[:, :, None] * c[:, None, :] - b[:, :, None] * d[:, None, :]
    sin = a[:, :, None] * d[:, None, :] + b[:, :, None] * c[:, None, :]
    return cos.reshape(len(a), -1), sin.reshape(len(a), -1)


def _damped(table: Array, damping: Array | None) -> Array:
    if damping is None:
        return table
    if damping.ndim == 2:
        return table * jnp.concatenate([damping, damping], axis=-1)
    return table * damping[:, None]
