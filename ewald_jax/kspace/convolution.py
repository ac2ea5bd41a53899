"""Convolution of grids with a filter of waves: the middle of `kspace.mesh`.

Of the waves along the first axis only those within the cutoff are computed, some three fifths
at the default order and accuracy: by matrix products, before fast transforms of the other two
axes, plane by plane. (This and the order of the arrays is what was fastest on CPUs.)

A grid may have points beyond its period, its halo, into which windows reach. What is there is
added to the points that it stands for, and filled in again, by the matrix products, which have
some more operations for it, and within planes that are in a CPU's cache. In the whole grid that
was two more copies of it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ewald_jax.kspace.windows import kept_of
from ewald_jax.typing import Array, Float

_FULL = jax.lax.Precision.HIGHEST
"""TF32 would lose what the mesh is fine enough for."""

_PRODUCTS = 256
"""Points along the first axis up to which products take the place of a fast transform: measured
up to 140, their operations grow as its square."""


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def convolve(
    halo: int, grid: Float[Array, "n1 n2 n3 feat"], filter: Float[Array, "num_waves k2 k3"]
) -> Float[Array, "n1 n2 n3 feat"]:
    """A real filter in Fourier space; symmetric in the grid.

    Points of the halo stand for the first ones along their axis: their values are added to
    those before, and set to them afterwards.

    The derivative by the filter is `correlate`, and that of `correlate` is this again. JAX's
    own derivatives would keep and transform complex grids.

    Args:
        halo: Points that the grid has beyond its period along each axis, at most as many as
            the period has.
        grid: With its halo.
        filter: Of the waves of which the first index is 0 to num_waves - 1, and of those that
            are complex conjugates of them; the others are left out.

    Returns:
        A grid.
    """

    def of_plane(real, imag, filter):
        waves = jnp.fft.ifft2(filter[None] * _transformed(halo, real, imag))
        # As in `_transformed`.
        parts = jax.lax.optimization_barrier((waves.real, waves.imag))
        room = ((0, halo), (0, halo), (0, 0))
        return tuple(
            jnp.pad(jnp.moveaxis(part, 0, -1), room, mode="wrap") for part in parts
        )

    planes = _planes(halo, grid, len(filter))
    return _grid(halo, *_plane_by_plane(of_plane, *planes, filter), len(grid) - halo)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def correlate(
    halo: int,
    num_waves: int,
    a: Float[Array, "n1 n2 n3 feat"],
    b: Float[Array, "n1 n2 n3 feat"],
) -> Float[Array, "num_waves k2 k3"]:
    """Sum over features of the spectra's products: derivative of <a, convolve(b, filter)>.

    Args:
        halo: As there.
        num_waves: Along the first axis.
        a: A grid.
        b: Another.

    Returns:
        By each value of the filter.
    """

    def of_plane(real_a, imag_a, real_b, imag_b):
        a, b = _transformed(halo, real_a, imag_a), _transformed(halo, real_b, imag_b)
        return jnp.sum(a.real * b.real + a.imag * b.imag, axis=0)

    planes = (*_planes(halo, a, num_waves), *_planes(halo, b, num_waves))
    products = _plane_by_plane(of_plane, *planes)
    shape = [n - halo for n in a.shape[:3]]
    weights = _multiplicity(num_waves, shape[0]) / np.prod(shape)
    return products * jnp.asarray(weights, products.dtype)[:, None, None]


def _multiplicity(num_waves: int, size: int) -> Float[np.ndarray, " num_waves"]:
    """How often a wave counts: with its complex conjugate, unless that is itself."""
    wave = np.arange(num_waves)
    return np.where((wave == 0) | (2 * wave == size), 1.0, 2.0)


def _wave_table(
    halo: int, num_waves: int, size: int
) -> Float[np.ndarray, "two_num_waves points"]:
    """Real and imaginary parts of the waves along the first axis, in float64."""
    product = np.outer(np.arange(num_waves), np.arange(size + halo)) % size
    angle = 2 * np.pi / size * product
    return np.concatenate([np.cos(angle), -np.sin(angle)])


def _planes(halo: int, grid: Array, num_waves: int) -> tuple[Array, Array]:
    """Waves along the first axis: real and imaginary part, each [num_waves, n2, n3, feat]."""
    size = len(grid) - halo
    if size > _PRODUCTS:
        waves = jnp.fft.rfft(_folded(halo, grid, (0,)), axis=0)[:num_waves]
        return waves.real, waves.imag
    table = jnp.asarray(_wave_table(halo, num_waves, size), grid.dtype)
    parts = jnp.einsum("kx,xyzf->kyzf", table, grid, precision=_FULL)
    return parts[:num_waves], parts[num_waves:]


def _grid(halo: int, real: Array, imag: Array, size: int) -> Array:
    """The grid of `_planes`."""
    num_waves = len(real)
    if size > _PRODUCTS:
        # Waves that are not there are zeros.
        grid = jnp.fft.irfft(jax.lax.complex(real, imag), size, axis=0)
        return jnp.pad(grid, ((0, halo), *((0, 0),) * 3), mode="wrap")
    weights = np.tile(_multiplicity(num_waves, size) / size, 2)
    table = weights[:, None] * _wave_table(halo, num_waves, size)
    parts = jnp.concatenate([real, imag])
    table = jnp.asarray(table, parts.dtype)
    return jnp.einsum("kx,kyzf->xyzf", table, parts, precision=_FULL)


def _folded(halo: int, values: Array, axes: tuple[int, ...]) -> Array:
    """What is in the halo added to the points that it stands for."""
    for axis in axes:
        size = values.shape[axis] - halo
        over = jax.lax.slice_in_dim(values, size, size + halo, axis=axis)
        over += jax.lax.slice_in_dim(values, 0, halo, axis=axis)
        # In place.
        values = jax.lax.dynamic_update_slice_in_dim(values, over, 0, axis)
        values = jax.lax.slice_in_dim(values, 0, size, axis=axis)
    return values


def _transformed(halo: int, real: Array, imag: Array) -> Array:
    """Fast transform [feat, k2, k3] of a plane [n2, n3, feat]."""
    parts = (jnp.moveaxis(real, -1, 0), jnp.moveaxis(imag, -1, 0))
    # The barrier keeps XLA from reading across the plane once more for each part.
    parts = jax.lax.optimization_barrier(parts)
    return jnp.fft.fft2(jax.lax.complex(*(_folded(halo, x, (1, 2)) for x in parts)))


def _plane_by_plane(of_plane: Callable, *planes: Array) -> Any:
    """On CPUs one plane after the other, which is in the cache; elsewhere all at once."""
    return jax.lax.platform_dependent(
        *planes,
        cpu=lambda *planes: jax.lax.map(lambda plane: of_plane(*plane), planes),
        default=jax.vmap(of_plane),
    )


def _convolve_forward(halo, grid, filter):
    return convolve(halo, grid, filter), kept_of(grid, filter)


def _convolve_backward(halo, kept, slope):
    grid, filter = kept
    by_filter = correlate(halo, len(filter), grid, slope)
    return convolve(halo, slope, filter), by_filter


def _correlate_forward(halo, num_waves, a, b):
    return correlate(halo, num_waves, a, b), kept_of(a, b)


def _correlate_backward(halo, num_waves, kept, slope):
    a, b = kept
    return convolve(halo, b, slope), convolve(halo, a, slope)


convolve.defvjp(_convolve_forward, _convolve_backward)
correlate.defvjp(_correlate_forward, _correlate_backward)
