r"""The `radial` message of a molecule: no wave vectors, a kernel of the distances.

Without a cell the sum over wave vectors is an integral, and its angular part is known:

.. math::
    M_i = \sum_j K(r_{ij})\, h_j, \qquad
    K(r) = \frac{3}{k_c^3} \int_0^{k_c} k^2\, \varphi(k)\, \mathrm{sinc}(k r)\, dk .

This is the limit of the periodic sum for a large cell, exactly: rotations, reflections and
far-apart fragments come out right because nothing but distances enters. The integral is a
Gauss-Legendre sum over few nodes k_q, and for few filters, each shared by many features, the
kernel is a table [nodes, nodes, filters], made from one sinc for each pair i < j and node of
the sum; nothing of size nodes x nodes x features is formed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ewald_jax import ops
from ewald_jax.kspace.bessel import bessel_ratio
from ewald_jax.kspace.quadrature import gauss_legendre, num_radial
from ewald_jax.typing import Array, Float, InputError


def radial_nodes(num: int) -> tuple[np.ndarray, np.ndarray]:
    """X = k / k_cutoff of the quadrature and ``3 x^2 dx``, which add up to one (host).

    Args:
        num: Number of nodes, from `quadrature.num_radial`; 0 for none.

    Returns:
        Nodes in (0, 1) and weights, [num] each.
    """
    x, w = gauss_legendre(num)
    x = (x + 1) / 2
    return x, 1.5 * w * x**2


def pair_kernel(
    square: Float[Array, "*batch"],
    k_square: Float[Array, " quad"],
    filter: Float[Array, "quad rank"],
) -> Float[Array, "*batch rank"]:
    """K(r) of filters given at the nodes, their weights included.

    Args:
        square: r^2, Å^2.
        k_square: k_q^2, 1/Å^2.
        filter: Weight times phi(k_q).

    Returns:
        The kernel of each filter.
    """
    k_square = jnp.reshape(k_square, (1,) * square.ndim + (-1,))
    waves = bessel_ratio(square[..., None] * k_square)
    # Distances of molecules many k_cutoff wide take many nodes with alternating signs.
    return ops.full_matmul(waves, filter)


def pair_message(
    h: Float[Array, "nodes feat"], kernel: Float[Array, "nodes nodes heads"]
) -> Float[Array, "nodes feat"]:
    """M_i = sum over j of K(r_ij) h_j, with one kernel for each head of features.

    Args:
        h: Node features; zero rows for masked nodes. Heads are equal parts of the features, in
            order; the last ones are smaller, or empty, where they do not divide evenly.
        kernel: From `pair_kernel`.

    Returns:
        The message.
    """
    nodes, features = h.shape
    heads = kernel.shape[-1]
    h = jnp.pad(h, ((0, 0), (0, -features % heads))).reshape(nodes, heads, -1)
    highest = jax.lax.Precision.HIGHEST
    message = jnp.einsum("ijb,jbf->ibf", kernel, h, precision=highest)
    return message.reshape(nodes, -1)[:, :features]


def open_message(
    h: Float[Array, "nodes feat"],
    positions: Float[Array, "nodes 3"],
    filter_fn: Callable[[Array], Array],
    k_cutoff: float,
    num_nodes: int | None = None,
    width: float = 1 / 15,
) -> Float[Array, "nodes feat"]:
    """The message of one structure without a cell, for any radial filter.

    Args:
        h: Node features; zero rows for masked nodes.
        positions: Å.
        filter_fn: Gives phi of |k| [quad], 1/Å: [quad] for one filter for all channels or
            [quad, feat].
        k_cutoff: Largest |k|, 1/Å.
        num_nodes: Nodes of the integral over k; None chooses them from the diameter to an error
            of 1e-10 of a filter of one, for which the positions must not be traced.
        width: Of the finest structure of the filter, in units of the cutoff.

    Returns:
        M, including each node's message to itself.

    Raises:
        InputError: If `k_cutoff` is not positive, or the number of nodes cannot be known.
    """
    if not k_cutoff > 0:
        raise InputError(f"k_cutoff must be larger than 0, not {k_cutoff}")
    if num_nodes is None:
        if isinstance(positions, jax.core.Tracer):
            raise InputError(
                "open_message needs num_nodes under jit, grad or vmap, where the size of the "
                "structure is not known; kspace.num_radial gives it for a diameter"
            )
        extent = np.asarray(positions, np.float64)
        extent = extent - extent.mean(axis=0)
        reach = 2 * float(np.sqrt(np.max(np.sum(extent**2, axis=1))))
        num_nodes = num_radial(k_cutoff, width, reach)
    x, weights = radial_nodes(num_nodes)
    k = jnp.asarray(k_cutoff * x, positions.dtype)
    phi = filter_fn(k)
    phi = (phi[:, None] if phi.ndim == 1 else phi) * jnp.asarray(weights, h.dtype)[:, None]
    difference = positions[:, None, :] - positions[None, :, :]
    square = jnp.sum(difference**2, axis=-1)

    def add(total, node):
        k_square, factor = node
        sent = ops.full_matmul(bessel_ratio(square * k_square), h)
        return total + sent * factor[None], None

    # One node at a time: any rank of filter in the memory of one table of pairs.
    return jax.lax.scan(add, jnp.zeros_like(h), (k**2, phi.astype(h.dtype)))[0]
