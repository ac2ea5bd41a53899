r"""The `radial` message of crystals on a grid, in O(N log N).

.. math:: M = c\, G^T F^{-1} \frac{\varphi(|k|)}{b(k)^2} F G\, h

G spreads the features with cardinal B-splines (`kspace.windows`), F is the fast Fourier
transform, and b the Fourier factor of the B-splines. The filter ends at the cutoff: with grid
points closer than pi / k_cutoff all its waves are on the grid, k = 0 included, and what is left
of the error is aliasing, see `mesh_rule.mesh_error`. Derivatives are exactly those of the
message on the grid; so the forces on all atoms add up to zero only within the error.

Of the waves along the first axis only those within the cutoff are computed, some three fifths
at the default order and accuracy: by matrix products, before fast transforms of the other two
axes, plane by plane. (This and the order of the arrays is what was fastest on CPUs.)

Source: Essmann et al., J. Chem. Phys. 103, 8577 (1995); there one charge per atom, and the
Coulomb filter. The factor b is that of the continuous transform, sinc^p, as in Hockney and
Eastwood's P3M, whose error is about half that of b at the grid points alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ewald_jax.kspace.bspline import fourier_factor
from ewald_jax.kspace.channels import channel_basis
from ewald_jax.kspace.grids import cell_volume, reciprocal_cell
from ewald_jax.kspace.windows import SLOPES, gather, kept_of, spread
from ewald_jax.typing import Array, Float, Int

_FULL = jax.lax.Precision.HIGHEST
"""TF32 would lose what the mesh is fine enough for."""

_KEPT = jax.checkpoint_policies.save_only_these_names(SLOPES)
"""For derivatives by the positions; the grids that they are taken from are not."""

_PRODUCTS = 256
"""Points along the first axis up to which products take the place of a fast transform: measured
up to 140, their operations grow as its square."""

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
        size: Grid points along the first axis.

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
    shape = (size, *filters.shape[2:])

    # In a loop nothing could be merged with the forward pass, and need not be kept from it.
    @partial(jax.checkpoint, prevent_cse=False, policy=_KEPT)
    def of_block(h, filter, offset):
        grid = convolve(spread(shape, order, first, offset, h), filter)
        return gather(order, first, offset, grid)

    def of_head(part):
        blocks, filter = part
        return jax.lax.map(lambda h: of_block(h, filter, offset), blocks)

    message = jnp.moveaxis(jax.lax.map(of_head, (parts, filters)), 2, 0)
    message = message.reshape(nodes, heads, blocks * width)[:, :, :each]
    return message.reshape(nodes, heads * each)[:, :feat]


@jax.custom_vjp
def convolve(
    grid: Float[Array, "k1 k2 k3 feat"], filter: Float[Array, "num_waves k2 k3"]
) -> Float[Array, "k1 k2 k3 feat"]:
    """A real filter in Fourier space; symmetric in the grid.

    The derivative by the filter is `correlate`, and that of `correlate` is this again. JAX's
    own derivatives would keep and transform complex grids.

    Args:
        grid: Periodic.
        filter: Of the waves of which the first index is 0 to num_waves - 1, and of those that
            are complex conjugates of them; the others are left out.

    Returns:
        A grid.
    """

    def of_plane(real, imag, filter):
        waves = jnp.fft.ifft2(filter[None] * _transformed(real, imag))
        # As in `_transformed`.
        parts = jax.lax.optimization_barrier((waves.real, waves.imag))
        return tuple(jnp.moveaxis(part, 0, -1) for part in parts)

    planes = _planes(grid, len(filter))
    return _grid(*_plane_by_plane(of_plane, *planes, filter), grid.shape[0])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def correlate(
    num_waves: int, a: Float[Array, "k1 k2 k3 feat"], b: Float[Array, "k1 k2 k3 feat"]
) -> Float[Array, "num_waves k2 k3"]:
    """Sum over features of the spectra's products: derivative of <a, convolve(b, filter)>.

    Args:
        num_waves: Along the first axis.
        a: A grid.
        b: Another.

    Returns:
        By each value of the filter.
    """

    def of_plane(real_a, imag_a, real_b, imag_b):
        a, b = _transformed(real_a, imag_a), _transformed(real_b, imag_b)
        return jnp.sum(a.real * b.real + a.imag * b.imag, axis=0)

    planes = (*_planes(a, num_waves), *_planes(b, num_waves))
    products = _plane_by_plane(of_plane, *planes)
    weights = _multiplicity(num_waves, len(a)) / np.prod(a.shape[:3])
    return products * jnp.asarray(weights, products.dtype)[:, None, None]


def _multiplicity(num_waves: int, size: int) -> Float[np.ndarray, " num_waves"]:
    """How often a wave counts: with its complex conjugate, unless that is itself."""
    wave = np.arange(num_waves)
    return np.where((wave == 0) | (2 * wave == size), 1.0, 2.0)


def _wave_table(num_waves: int, size: int) -> Float[np.ndarray, "two_num_waves size"]:
    """Real and imaginary parts of the waves along the first axis, in float64."""
    product = np.outer(np.arange(num_waves), np.arange(size)) % size
    angle = 2 * np.pi / size * product
    return np.concatenate([np.cos(angle), -np.sin(angle)])


def _planes(grid: Array, num_waves: int) -> tuple[Array, Array]:
    """Waves along the first axis: real and imaginary part, each [num_waves, k2, k3, feat]."""
    if len(grid) > _PRODUCTS:
        waves = jnp.fft.rfft(grid, axis=0)[:num_waves]
        return waves.real, waves.imag
    table = jnp.asarray(_wave_table(num_waves, len(grid)), grid.dtype)
    parts = jnp.einsum("kx,xyzf->kyzf", table, grid, precision=_FULL)
    return parts[:num_waves], parts[num_waves:]


def _grid(real: Array, imag: Array, size: int) -> Array:
    """The grid of `_planes`."""
    num_waves = len(real)
    if size > _PRODUCTS:
        # Waves that are not there are zeros.
        return jnp.fft.irfft(jax.lax.complex(real, imag), size, axis=0)
    weights = np.tile(_multiplicity(num_waves, size) / size, 2)
    table = weights[:, None] * _wave_table(num_waves, size)
    parts = jnp.concatenate([real, imag])
    table = jnp.asarray(table, parts.dtype)
    return jnp.einsum("kx,kyzf->xyzf", table, parts, precision=_FULL)


def _transformed(real: Array, imag: Array) -> Array:
    """Fast transform [feat, k2, k3] of a plane [k2, k3, feat]."""
    parts = (jnp.moveaxis(real, -1, 0), jnp.moveaxis(imag, -1, 0))
    # The barrier keeps XLA from reading across the plane once more for each part.
    return jnp.fft.fft2(jax.lax.complex(*jax.lax.optimization_barrier(parts)))


def _plane_by_plane(of_plane: Callable, *planes: Array) -> Any:
    """On CPUs one plane after the other, which is in the cache; elsewhere all at once."""
    return jax.lax.platform_dependent(
        *planes,
        cpu=lambda *planes: jax.lax.map(lambda plane: of_plane(*plane), planes),
        default=jax.vmap(of_plane),
    )


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
