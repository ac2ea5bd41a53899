r"""The `radial` message of crystals on a grid, in O(N log N).

.. math:: M = c\, G^T F^{-1} \frac{\varphi(|k|)}{b(k)^2} F G\, h

G spreads the features with cardinal B-splines (`kspace.windows`), F is the fast Fourier
transform, and b the Fourier factor of the B-splines. The filter ends at the cutoff: with grid
points closer than pi / k_cutoff all its waves are on the grid, k = 0 included, and what is left
of the error is aliasing, see `mesh_rule.mesh_error`. Derivatives are exactly those of the
message on the grid; so the forces on all atoms add up to zero only within the error.

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
from ewald_jax.kspace.grids import cell_volume, reciprocal_cell
from ewald_jax.kspace.windows import gather, kept_of, spread
from ewald_jax.typing import Array, Float, Int

_FEATURES = 16
"""Features on grids at the same time, which bounds the memory."""


def mesh_basis(
    indices: tuple[Int[Array, " k1"], Int[Array, " k2"], Int[Array, " k3"]],
    cell: Float[Array, "3 3"],
    k_cutoff: float,
    num_rbf: int,
    channels: tuple[str, ...],
    order: int,
) -> Float[Array, "k1 k2 k3_half basis"]:
    """Basis of the filters at the waves of a grid, over the B-splines' factor squared.

    Args:
        indices: Of the waves along each reciprocal lattice vector, as `numpy.fft.fftfreq` has
            them.
        cell: Rows are lattice vectors, Å.
        k_cutoff: 1/Å.
        num_rbf: Gaussians.
        channels: Of `CHANNELS`.
        order: Of the B-splines.

    Returns:
        Values times the message's c; half of the waves of the last axis, as `rfftn` has them.
    """
    shape = tuple(len(n) for n in indices)
    half = shape[-1] // 2 + 1
    indices = (*indices[:2], indices[2][:half])
    factors = [fourier_factor(size, order) ** 2 for size in shape]
    x, y, z = factors[0], factors[1], factors[2][:half]
    # Along each axis at most (pi / 2)^(2 p), which float32 holds.
    factor = x[:, None, None] * y[None, :, None] * z[None, None, :]
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
    weights: Float[Array, "nodes order order order"],
    filters: Float[Array, "heads k1 k2 k3_half"],
    size: int,
) -> Float[Array, "nodes feat"]:
    """The message of one crystal, one filter for each head of the features.

    A few features are on the grid at a time; derivatives compute their grids again.

    Args:
        h: Node features; zero rows for masked nodes.
        first: From `bspline.grid_windows`.
        weights: From `bspline.grid_windows`.
        filters: From `mesh_basis`.
        size: Grid points along the last axis.

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
    shape = (*filters.shape[1:3], size)

    # In a loop nothing could be merged with the forward pass, and need not be kept from it.
    @partial(jax.checkpoint, prevent_cse=False)
    def of_block(h, filter, weights):
        return gather(first, weights, convolve(spread(shape, first, weights, h), filter))

    def of_head(part):
        blocks, filter = part
        return jax.lax.map(lambda h: of_block(h, filter, weights), blocks)

    message = jnp.moveaxis(jax.lax.map(of_head, (parts, filters)), 2, 0)
    message = message.reshape(nodes, heads, blocks * width)[:, :, :each]
    return message.reshape(nodes, heads * each)[:, :feat]


@jax.custom_vjp
def convolve(
    grid: Float[Array, "feat k1 k2 k3"], filter: Float[Array, "k1 k2 k3_half"]
) -> Float[Array, "feat k1 k2 k3"]:
    """A real filter in Fourier space; symmetric in the grid.

    The derivative by the filter is `correlate`, and that of `correlate` is this again: in
    reverse mode each costs real transforms, where those of `rfftn` itself are complex ones.

    Args:
        grid: Periodic.
        filter: Of half of the waves.

    Returns:
        A grid.
    """
    return _back(filter[None] * _waves(grid), grid.shape[1:])


@jax.custom_vjp
def correlate(
    a: Float[Array, "feat k1 k2 k3"], b: Float[Array, "feat k1 k2 k3"]
) -> Float[Array, "k1 k2 k3_half"]:
    """Sum over features of the spectra's products: of <a, convolve(b, filter)> by the filter.

    Args:
        a: A grid.
        b: Another.

    Returns:
        For each of the half of the waves.
    """
    shape = a.shape[1:]
    a, b = _waves(a), _waves(b)
    products = jnp.sum(a.real * b.real + a.imag * b.imag, axis=0)
    # The waves that are left out are complex conjugates of those that are not their own.
    twice = np.full(products.shape[-1], 2.0)
    twice[0] = 1.0
    if shape[-1] % 2 == 0:
        twice[-1] = 1.0
    return products * jnp.asarray(twice / np.prod(shape), products.dtype)[None, None]


def _waves(grid: Array) -> Array:
    return jnp.fft.rfftn(grid, axes=(1, 2, 3))


def _back(spectrum: Array, shape: tuple[int, ...]) -> Array:
    return jnp.fft.irfftn(spectrum, shape, axes=(1, 2, 3))


def _convolve_forward(grid, filter):
    return convolve(grid, filter), kept_of(grid, filter)


def _convolve_backward(kept, slope):
    grid, filter = kept
    return convolve(slope, filter), correlate(grid, slope)


def _correlate_forward(a, b):
    return correlate(a, b), kept_of(a, b)


def _correlate_backward(kept, slope):
    a, b = kept
    return convolve(b, slope), convolve(a, slope)


convolve.defvjp(_convolve_forward, _convolve_backward)
correlate.defvjp(_correlate_forward, _correlate_backward)
