r"""The `radial` message of crystals on a grid, in O(N log N).

.. math:: M = c\, G^T F^{-1} \frac{\varphi(|k|)}{b(k)^2} F G\, h

G spreads the features with cardinal B-splines (`kspace.windows`), F is the fast Fourier
transform, and b the Fourier factor of the B-splines. The filter ends at the cutoff: with grid
points closer than pi / k_cutoff all its waves are on the grid, k = 0 included, and what is left
of the error is aliasing, see `mesh_rule.mesh_error`. Derivatives are exactly those of the
message on the grid; so the forces on all atoms add up to zero only within the error.

Of the waves along the last axis only those within the cutoff are computed, some three fifths at
the default order and accuracy: by matrix products, before fast transforms of the other two
axes. (This and the order of the arrays is what was fastest on CPUs.)

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

_FULL = jax.lax.Precision.HIGHEST
"""TF32 would lose what the mesh is fine enough for."""

_PRODUCTS = 256
"""Points along the last axis up to which products take the place of a fast transform: measured
up to 140, their operations grow as its square."""

_FEATURES = 16
"""Features on grids at the same time: with more a CPU's cache holds fewer of the points that an
atom sees, with fewer the atoms' weights are read more often."""


def mesh_basis(
    indices: tuple[Int[Array, " k1"], Int[Array, " k2"], Int[Array, " k3"]],
    cell: Float[Array, "3 3"],
    k_cutoff: float,
    num_rbf: int,
    channels: tuple[str, ...],
    order: int,
    num_waves: int,
) -> Float[Array, "num_waves k1 k2 basis"]:
    """Basis of the filters at the waves of a grid, over the B-splines' factor squared.

    The last axis comes first: fast transforms act on the last two.

    Args:
        indices: Of the waves along each reciprocal lattice vector, as `numpy.fft.fftfreq` has
            them.
        cell: Rows are lattice vectors, Å.
        k_cutoff: 1/Å.
        num_rbf: Gaussians.
        channels: Of `CHANNELS`.
        order: Of the B-splines.
        num_waves: Of the last axis, from `mesh_rule.waves_within`: 0 to num_waves - 1; the
            others are beyond the cutoff.

    Returns:
        Values times the message's c.
    """
    shape = tuple(len(n) for n in indices)
    indices = (*indices[:2], indices[2][:num_waves])
    x, y, z = (fourier_factor(size, order) ** 2 for size in shape)
    # Along each axis at most (pi / 2)^(2 p), which float32 holds.
    factor = z[:num_waves, None, None] * x[None, :, None] * y[None, None, :]
    reciprocal = reciprocal_cell(cell)
    sides = [
        n.astype(cell.dtype)[:, None] * row[None]
        for n, row in zip(indices, reciprocal, strict=True)
    ]
    k = sides[2][:, None, None] + sides[0][None, :, None] + sides[1][None, None, :]
    square = jnp.sum(k**2, axis=-1)
    basis = channel_basis(square / k_cutoff**2, num_rbf, channels)
    scale = 6 * jnp.pi**2 / (k_cutoff**3 * jnp.abs(cell_volume(cell)))
    factor /= np.prod(shape)  # by which the inverse transform divides
    return basis * (scale / jnp.asarray(factor, cell.dtype))[..., None]


def mesh_message(
    h: Float[Array, "nodes feat"],
    first: Int[Array, "nodes 3"],
    weights: Float[Array, "nodes order order order"],
    filters: Float[Array, "heads num_waves k1 k2"],
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
    shape = (*filters.shape[2:], size)

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
    grid: Float[Array, "k1 k2 k3 feat"], filter: Float[Array, "num_waves k1 k2"]
) -> Float[Array, "k1 k2 k3 feat"]:
    """A real filter in Fourier space; symmetric in the grid.

    The derivative by the filter is `correlate`, and that of `correlate` is this again. JAX's
    own derivatives would keep and transform complex grids.

    Args:
        grid: Periodic.
        filter: Of the waves of which the last index is 0 to num_waves - 1, and of those that
            are complex conjugates of them; the others are left out.

    Returns:
        A grid.
    """
    return _back(filter[None] * _waves(grid, len(filter)), grid.shape[2])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def correlate(
    num_waves: int, a: Float[Array, "k1 k2 k3 feat"], b: Float[Array, "k1 k2 k3 feat"]
) -> Float[Array, "num_waves k1 k2"]:
    """Sum over features of the spectra's products: derivative of <a, convolve(b, filter)>.

    Args:
        num_waves: Along the last axis.
        a: A grid.
        b: Another.

    Returns:
        By each value of the filter.
    """
    shape = a.shape[:3]
    a, b = _waves(a, num_waves), _waves(b, num_waves)
    products = jnp.sum(a.real * b.real + a.imag * b.imag, axis=0)
    weights = _multiplicity(num_waves, shape[-1]) / np.prod(shape)
    return products * jnp.asarray(weights, products.dtype)[:, None, None]


def _multiplicity(num_waves: int, size: int) -> Float[np.ndarray, " num_waves"]:
    """How often a wave counts: with its complex conjugate, unless that is itself."""
    wave = np.arange(num_waves)
    return np.where((wave == 0) | (2 * wave == size), 1.0, 2.0)


def _wave_table(num_waves: int, size: int) -> Float[np.ndarray, "two_num_waves size"]:
    """Real and imaginary parts of the waves along the last axis, in float64."""
    product = np.outer(np.arange(num_waves), np.arange(size)) % size
    angle = 2 * np.pi / size * product
    return np.concatenate([np.cos(angle), -np.sin(angle)])


def _waves(grid: Array, num_waves: int) -> Array:
    """[feat, num_waves, k1, k2] of a grid."""
    # Features first within each plane, which is in the cache. Without the barrier XLA makes one
    # pass over the whole grid of this and the next transpose: a quarter more time at 140^3.
    grid = jax.lax.optimization_barrier(jnp.moveaxis(grid, -1, 1))
    size = grid.shape[-1]
    if size > _PRODUCTS:
        waves = jnp.fft.rfft(grid, axis=-1)[..., :num_waves]
        waves = jnp.moveaxis(waves, (0, -1), (2, 1))
    else:
        table = jnp.asarray(_wave_table(num_waves, size), grid.dtype)
        parts = jnp.einsum("kz,xfyz->fkxy", table, grid, precision=_FULL)
        waves = jax.lax.complex(parts[:, :num_waves], parts[:, num_waves:])
    return jnp.fft.fft2(waves)


def _back(waves: Array, size: int) -> Array:
    """The grid of `_waves`."""
    num_waves = waves.shape[1]
    waves = jnp.fft.ifft2(waves)
    if size > _PRODUCTS:
        # Waves that are not there are zeros.
        grid = jnp.fft.irfft(jnp.moveaxis(waves, (2, 1), (0, -1)), size, axis=-1)
    else:
        weights = np.tile(_multiplicity(num_waves, size) / size, 2)
        table = weights[:, None] * _wave_table(num_waves, size)
        parts = jnp.concatenate([waves.real, waves.imag], axis=1)
        table = jnp.asarray(table, parts.dtype)
        grid = jnp.einsum("kz,fkxy->xfyz", table, parts, precision=_FULL)
    # As in `_waves`.
    return jnp.moveaxis(jax.lax.optimization_barrier(grid), 1, -1)


def _convolve_forward(grid, filter):
    return convolve(grid, filter), kept_of(grid, filter)


def _convolve_backward(kept, slope):
    grid, filter = kept
    return convolve(slope, filter), correlate(len(filter), grid, slope)


def _correlate_forward(num_waves, a, b):
    return correlate(num_waves, a, b), kept_of(a, b)


def _correlate_backward(num_waves, kept, slope):
    a, b = kept
    return convolve(b, slope), convolve(a, slope)


convolve.defvjp(_convolve_forward, _convolve_backward)
correlate.defvjp(_correlate_forward, _correlate_backward)
