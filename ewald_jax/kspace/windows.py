r"""Sums over the windows that atoms have on a grid: spreading and gathering.

With the weights W of `bspline.spline_tables`, products of one B-spline for each axis, and their
derivatives W^a by the atom's offset, a = (ax, ay, az) the orders:

* `spread`: grid = sum_i W_i h_i;
* `gather`: h_i = W_i . grid.

The grid has p - 1 points more along each axis than the cell, so that no window leaves it: those
are the first points again. What belongs together is added up, and filled in, by
`convolution.convolve`.

The derivative of each by its features or its grid is the other, and that by the offsets is
`gather` with derivatives of W. So `gather` finds the slopes at the atoms with its values, from
the same points, and keeps them (`SLOPES`): three numbers for each of an atom's features, where
its window has p^3 points of them. For derivatives of any order both are written for all parts a
up to a degree. The rules are for reverse mode only.

On accelerators atoms go in blocks: one scatter or gather of a whole window of p^3 points for
each atom. On a CPU they go one by one, which is several times as fast there; and again if
neighbors in space follow each other (`bspline.sorting`), since their windows are in the cache.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from ewald_jax.kspace.bspline import spline_tables
from ewald_jax.typing import Array, Float, Int

SLOPES = "slopes at the atoms"
"""Name of what `gather` keeps, for the policies of `jax.checkpoint`."""

_IN_BOUNDS = jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS

_BLOCK = 2**21
"""Numbers in the windows of the atoms that are looked at together."""


def spread(
    shape: tuple[int, int, int],
    order: int,
    first: Int[Array, "nodes 3"],
    offset: Float[Array, "nodes 3"],
    h: Float[Array, "nodes feat"],
) -> Float[Array, "n1 n2 n3 feat"]:
    """Node features on the grid.

    Args:
        shape: Of the grid, p - 1 more than the cell has along each axis.
        order: p of the B-splines.
        first: From `bspline.grid_places`.
        offset: From `bspline.grid_places`.
        h: Node features.

    Returns:
        The grid of each feature.
    """
    return spread_parts(shape, order, 0, first, offset, h[:, None])


def gather(
    order: int,
    first: Int[Array, "nodes 3"],
    offset: Float[Array, "nodes 3"],
    grid: Float[Array, "n1 n2 n3 feat"],
) -> Float[Array, "nodes feat"]:
    """The values of a grid at the atoms.

    Args:
        order: p of the B-splines.
        first: From `bspline.grid_places`.
        offset: From `bspline.grid_places`.
        grid: As from `spread`.

    Returns:
        One row for each atom.
    """
    return gather_parts(grid.shape[:-1], order, 0, first, offset, grid)[:, 0]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def spread_parts(
    shape: tuple[int, int, int],
    order: int,
    degree: int,
    first: Int[Array, "nodes 3"],
    offset: Float[Array, "nodes 3"],
    h: Float[Array, "nodes parts feat"],
) -> Float[Array, "n1 n2 n3 feat"]:
    """sum_i sum_a W^a_i h_ia, a in the order of `parts_of` the degree."""
    feat = h.shape[-1]
    numbers = jax.lax.ScatterDimensionNumbers((1, 2, 3, 4), (), (0, 1, 2))

    def window_of(tables, h):
        x, y, z = tables
        if degree == 0:
            x, y, z, h = x[0], y[0], z[0], h[0]
            weights = x[:, None, None] * y[None, :, None] * z[None, None]
            return weights[..., None] * h[None, None, None]
        # One axis after the other, from all degrees along each.
        values = h.reshape(degree + 1, degree + 1, degree + 1, feat)
        values = jnp.sum(z[None, None, :, :, None] * values[:, :, :, None], axis=2)
        values = jnp.sum(y[None, :, :, None, None] * values[:, :, None], axis=1)
        return jnp.sum(x[:, :, None, None, None] * values[:, None], axis=0)

    def add_block(grid, block):
        first, *values = block
        updates = jax.vmap(window_of)(*values)
        return jax.lax.scatter_add(grid, first, updates, numbers, mode=_IN_BOUNDS), None

    def add_atom(grid, atom):
        first, *values = atom
        start = _corner(first)
        window = jax.lax.dynamic_slice(grid, start, (order,) * 3 + (feat,))
        window += window_of(*values)
        return jax.lax.dynamic_update_slice(grid, window, start), None

    def add_blocks(grid, *atoms):
        return jax.lax.scan(add_block, grid, _blocks(order**3 * feat, *atoms))[0]

    def add_atoms(grid, *atoms):
        return jax.lax.scan(add_atom, grid, atoms)[0]

    tables = _tables(offset, order, degree)
    if degree > 0:
        whole = jnp.zeros((len(h), (degree + 1) ** 3, feat), h.dtype)
        places = np.ravel_multi_index(np.transpose(parts_of(degree)), (degree + 1,) * 3)
        h = whole.at[:, places].set(h)
    grid = jnp.zeros((*shape, feat), h.dtype)
    return jax.lax.platform_dependent(
        grid, first, tables, h, cpu=add_atoms, default=add_blocks
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def gather_parts(
    shape: tuple[int, int, int],
    order: int,
    degree: int,
    first: Int[Array, "nodes 3"],
    offset: Float[Array, "nodes 3"],
    grid: Float[Array, "n1 n2 n3 feat"],
) -> Float[Array, "nodes parts feat"]:
    """W^a_i . grid, a in the order of `parts_of` the degree."""
    feat = grid.shape[-1]
    numbers = jax.lax.GatherDimensionNumbers((1, 2, 3, 4), (), (0, 1, 2))
    sizes = (order, order, order, feat)

    def values_of(window, tables):
        # One axis after the other, all degrees at once: on CPUs faster than products with the
        # windows' weights.
        x, y, z = tables
        values = jnp.sum(x[:, :, None, None, None] * window[None], axis=1)
        values = jnp.sum(y[None, :, :, None, None] * values[:, None], axis=2)
        values = jnp.sum(z[None, None, :, :, None] * values[:, :, None], axis=3)
        return jnp.stack([values[part] for part in parts_of(degree)])

    def of_block(grid, first, *values):
        windows = jax.lax.gather(grid, first, numbers, sizes, mode=_IN_BOUNDS)
        return jax.vmap(values_of)(windows, *values)

    def of_atom(grid, first, *values):
        return values_of(jax.lax.dynamic_slice(grid, _corner(first), sizes), *values)

    def in_blocks(grid, *atoms):
        blocks = _blocks(order**3 * feat, *atoms)
        found = jax.lax.map(lambda block: of_block(grid, *block), blocks)
        return found.reshape(-1, *found.shape[2:])[: len(first)]

    def one_by_one(grid, *atoms):
        return jax.lax.map(lambda atom: of_atom(grid, *atom), atoms)

    # With one degree alone XLA takes longer on CPUs than with two of them.
    tables = _tables(offset, order, max(degree, 1))
    return jax.lax.platform_dependent(
        grid, first, tables, cpu=one_by_one, default=in_blocks
    )


# -- parts -----------------------------------------------------------------------------------


def parts_of(degree: int) -> list[tuple[int, int, int]]:
    """Orders (ax, ay, az) of derivatives up to a degree; that of none is the first."""
    orders = itertools.product(range(degree + 1), repeat=3)
    return [part for part in orders if sum(part) <= degree]


def _lower(parts: Array, degree: int) -> Array:
    """Of the parts of a degree + 1 those of the degree."""
    places = {part: place for place, part in enumerate(parts_of(degree + 1))}
    return jnp.stack([parts[:, places[part]] for part in parts_of(degree)], axis=1)


def _tables(
    offset: Array, order: int, degree: int
) -> Float[Array, "nodes 3 degrees order"]:
    # The barrier keeps XLA from computing the splines once for each point of a window.
    return jax.lax.optimization_barrier(spline_tables(offset, order, degree))


def _corner(first: Array) -> tuple[Array, ...]:
    return (*first, jnp.zeros_like(first[0]))


def _blocks(numbers_each: int, *arrays: Array) -> tuple[Array, ...]:
    """Rows in blocks [blocks, rows, ...], filled up with zeros."""
    count = len(arrays[0])
    rows = max(1, min(count, _BLOCK // numbers_each))
    num = -(-count // rows)

    def cut(x):
        padded = jnp.pad(x, ((0, num * rows - count),) + ((0, 0),) * (x.ndim - 1))
        return padded.reshape(num, rows, *x.shape[1:])

    return tuple(cut(x) for x in arrays)


# -- derivatives -----------------------------------------------------------------------------


def kept_of(*arguments: Array) -> tuple[Array, ...]:
    """What a rule keeps for its derivative, under other names.

    JAX (0.10) looks arguments that are kept as they are up by their place, and finds others
    there if the function has constants and is differentiated twice in a loop.
    """
    return jax.lax.optimization_barrier(arguments)


def _by_offset(slope: Array, found: Array, degree: int) -> Float[Array, "nodes 3"]:
    """Derivative by the offsets of <slope, parts of the degree>.

    Args:
        slope: [nodes, parts, feat].
        found: Parts of the degree + 1 but the first one, [nodes, parts - 1, feat].
        degree: Of the slope's parts.
    """
    places = {part: place for place, part in enumerate(parts_of(degree + 1)[1:])}

    def along(axis):
        raised = [
            tuple(n + (axis == other) for other, n in enumerate(part))
            for part in parts_of(degree)
        ]
        return sum(
            jnp.sum(slope[:, place] * found[:, places[part]], axis=-1)
            for place, part in enumerate(raised)
        )

    return jnp.stack([along(axis) for axis in range(3)], axis=-1)


def _spread_forward(shape, order, degree, first, offset, h):
    grid = spread_parts(shape, order, degree, first, offset, h)
    return grid, kept_of(first, offset, h)


def _spread_backward(shape, order, degree, kept, slope):
    first, offset, h = kept
    found = gather_parts(shape, order, degree + 1, first, offset, slope)
    return None, _by_offset(h, found[:, 1:], degree), _lower(found, degree)


def _gather_forward(shape, order, degree, first, offset, grid):
    found = gather_parts(shape, order, degree + 1, first, offset, grid)
    slopes = checkpoint_name(found[:, 1:], SLOPES)
    return _lower(found, degree), kept_of(first, offset, slopes)


def _gather_backward(shape, order, degree, kept, slope):
    first, offset, slopes = kept
    by_grid = spread_parts(shape, order, degree, first, offset, slope)
    return None, _by_offset(slope, slopes, degree), by_grid


spread_parts.defvjp(_spread_forward, _spread_backward)
gather_parts.defvjp(_gather_forward, _gather_backward)
