r"""The `radial` message of crystals on a grid, in O(N log N).

.. math:: M = c\, G^T F^{-1} \frac{\varphi(|k|)}{b(k)^2} F G\, h

G spreads the features with cardinal B-splines (`kspace.windows`), F is the fast Fourier
transform (`kspace.convolution`), and b the Fourier factor of the B-splines. The filter ends at
the cutoff: with grid points closer than pi / k_cutoff all its waves are on the grid, k = 0
included, and what is left of the error is aliasing, see `mesh_rule.mesh_error`. Derivatives are
exactly those of the message on the grid; so the forces on all atoms add up to zero only within
the error.

Source: Essmann et al., J. Chem. Phys. 103, 8577 (1995); there one charge per atom, and the
Coulomb filter. The factor b is that of the continuous transform, sinc^p, as in Hockney and
Eastwood's P3M, whose error is about half that of b at the grid points alone.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ewald_jax.kspace.bspline import fourier_factor
from ewald_jax.kspace.channels import channel_basis
from ewald_jax.kspace.convolution import convolve
from ewald_jax.kspace.grids import cell_volume, reciprocal_cell
from ewald_jax.kspace.windows import SLOPES, gather, spread
from ewald_jax.typing import Array, Float, Int

_KEPT = jax.checkpoint_policies.save_only_these_names(SLOPES)
"""For derivatives by the positions; the grids that they are taken from are not."""

_FEATURES = 16
"""Features on grids at the same time: with more a CPU's cache holds fewer of the points that an
atom sees, with fewer there are more loops over the atoms."""


def mesh_basis(
    indices: tuple[Int[Array, " k1"], Int[Array, " k2"], Int[Array, " k3"]],
    cell: Float[Array, "3 3"],
    k_cutoff: float,
    num_rbf: int,
    channels: tuple[str, ...],
    order: int,
    num_waves: int,
) -> Float[Array, "num_waves k2 k3 basis"]:
    """Basis of the filters at the waves of a grid, over the B-splines' factor squared.

    Args:
        indices: Of the waves along each reciprocal lattice vector, as `numpy.fft.fftfreq` has
            them.
        cell: Rows are lattice vectors, Å.
        k_cutoff: 1/Å.
        num_rbf: Gaussians.
        channels: Of `CHANNELS`.
        order: Of the B-splines.
        num_waves: Of the first axis, from `mesh_rule.waves_within`: 0 to num_waves - 1; the
            others are beyond the cutoff.

    Returns:
        Values times the message's c.
    """
    shape = tuple(len(n) for n in indices)
    indices = (indices[0][:num_waves], *indices[1:])
    x, y, z = (fourier_factor(size, order) ** 2 for size in shape)
    # Along each axis at most (pi / 2)^(2 p), which float32 holds.
    factor = x[:num_waves, None, None] * y[None, :, None] * z[None, None, :]
    reciprocal = reciprocal_cell(cell)
    sides = [
        n.astype(cell.dtype)[:, None] * row[None]
        for n, row in zip(indices, reciprocal, strict=True)
    ]
    k = sides[0][:, None, None] + sides[1][None, :, None] + sides[2][None, None, :]
    square = jnp.sum(k**2, axis=-1)
    basis = channel_basis(square / k_cutoff**2, num_rbf, channels)
    scale = 6 * jnp.pi**2 / (k_cutoff**3 * jnp.abs(cell_volume(cell)))
    factor /= np.prod(shape)  # by which the inverse transform divides
    return basis * (scale / jnp.asarray(factor, cell.dtype))[..., None]


def mesh_message(
    h: Float[Array, "nodes feat"],
    first: Int[Array, "nodes 3"],
    offset: Float[Array, "nodes 3"],
    filters: Float[Array, "heads num_waves k2 k3"],
    order: int,
    size: int,
) -> Float[Array, "nodes feat"]:
    """The message of one crystal, one filter for each head of the features.

    A few features are on the grid at a time. Of their grids only the slopes at the atoms are
    kept for derivatives; those by the filters compute the grids again.

    Args:
        h: Node features; zero rows for masked nodes.
        first: From `bspline.grid_places`.
        offset: From `bspline.grid_places`.
        filters: From `mesh_basis`.
        order: Of the B-splines.
        size: Grid points along the first axis, without the halo.

    Returns:
        The message.
    """
    nodes, feat = h.shape
    heads = len(filters)
    each = -(-feat // heads)
    blocks = -(-each // _FEATURES)
    width = -(-each // blocks)
    padded = jnp.pad(h, ((0, 0), (0, heads * each - feat))).reshape(nodes, heads, each)
    padded = jnp.pad(padded, ((0, 0), (0, 0), (0, blocks * width - each)))
    parts = jnp.moveaxis(padded.reshape(nodes, heads, blocks, width), 0, 2)
    halo = order - 1
    points = tuple(n + halo for n in (size, *filters.shape[2:]))

    # In a loop nothing could be merged with the forward pass, and need not be kept from it.
    @partial(jax.checkpoint, prevent_cse=False, policy=_KEPT)
    def of_block(h, filter, offset):
        grid = convolve(halo, spread(points, order, first, offset, h), filter)
        return gather(order, first, offset, grid)

    def of_head(part):
        blocks, filter = part
        return jax.lax.map(lambda h: of_block(h, filter, offset), blocks)

    message = jnp.moveaxis(jax.lax.map(of_head, (parts, filters)), 2, 0)
    message = message.reshape(nodes, heads, blocks * width)[:, :, :each]
    return message.reshape(nodes, heads * each)[:, :feat]
