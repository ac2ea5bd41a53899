r"""Sums over the windows that atoms have on a periodic grid: spreading, gathering, overlaps.

With the weights W of `bspline.grid_windows` everything here is bilinear, and the derivatives of
each sum are the two others:

* `spread`: grid = sum_i W_i h_i;
* `gather`: h_i = W_i . grid;
* `overlap`: W_i = h_i . grid, the derivative of both by the weights.

So all derivatives, of any order, cost what the sums do, and nothing of size nodes x p^3 x
features is kept. The rules are for reverse mode only.

On accelerators atoms go in blocks: one scatter or gather of a whole window of p^3 points for
each atom. On a CPU they go one by one, which is twice to four times as fast there; and three
times as fast again if neighbors in space follow each other (`bspline.sorting`), since their
windows are in the cache.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from ewald_jax import ops
from ewald_jax.typing import Array, Float, Int

_IN_BOUNDS = jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS

_BLOCK = 2**21
"""Numbers in the windows of the atoms that are looked at together."""


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def spread(
    shape: tuple[int, int, int],
    first: Int[Array, "nodes 3"],
    weights: Float[Array, "nodes order order order"],
    h: Float[Array, "nodes feat"],
) -> Float[Array, "k1 k2 k3 feat"]:
    """Node features on the grid.

    Args:
        shape: Of the grid, each at least the order.
        first: From `bspline.grid_windows`.
        weights: From `bspline.grid_windows`.
        h: Node features.

    Returns:
        The periodic grid of each feature.
    """
    order, feat = weights.shape[-1], h.shape[-1]
    halo = order - 1
    numbers = jax.lax.ScatterDimensionNumbers((1, 2, 3, 4), (), (0, 1, 2))

    def add_block(grid, block):
        first, weights, h = block
        updates = weights[..., None] * h[:, None, None, None, :]
        return jax.lax.scatter_add(grid, first, updates, numbers, mode=_IN_BOUNDS), None

    def add_atom(grid, atom):
        first, weights, h = atom
        start, sizes = _corner(first), (order,) * 3 + (feat,)
        window = jax.lax.dynamic_slice(grid, start, sizes)
        window += weights[..., None] * h[None, None, None]
        return jax.lax.dynamic_update_slice(grid, window, start), None

    def add_blocks(grid, *atoms):
        return jax.lax.scan(add_block, grid, _blocks(order**3 * feat, *atoms))[0]

    def add_atoms(grid, *atoms):
        return jax.lax.scan(add_atom, grid, atoms)[0]

    grid = jnp.zeros((*(n + halo for n in shape), feat), h.dtype)
    grid = jax.lax.platform_dependent(
        grid, first, weights, h, cpu=add_atoms, default=add_blocks
    )
    # Windows that begin at the last points reach beyond them; what is there is folded back, in
    # place.
    for axis, size in enumerate(shape):
        over = jax.lax.slice_in_dim(grid, size, size + halo, axis=axis)
        over += jax.lax.slice_in_dim(grid, 0, halo, axis=axis)
        grid = jax.lax.dynamic_update_slice_in_dim(grid, over, 0, axis)
    return grid[tuple(slice(0, size) for size in shape)]


@jax.custom_vjp
def gather(
    first: Int[Array, "nodes 3"],
    weights: Float[Array, "nodes order order order"],
    grid: Float[Array, "k1 k2 k3 feat"],
) -> Float[Array, "nodes feat"]:
    """The values of a grid at the atoms.

    Args:
        first: From `bspline.grid_windows`.
        weights: From `bspline.grid_windows`.
        grid: Periodic.

    Returns:
        One row for each atom.
    """
    order = weights.shape[-1]

    def weighted(window, weights):
        # One plane after the other: on CPUs a batch of small products takes a fifth of the
        # time of one product of a row with all points of the window.
        planes = window.reshape(order, order**2, -1)
        rows = ops.full_matmul(weights.reshape(order, 1, order**2), planes)
        return jnp.sum(rows, axis=(0, 1))

    return _looked_up(order, first, weights, grid, weighted)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def overlap(
    order: int,
    first: Int[Array, "nodes 3"],
    h: Float[Array, "nodes feat"],
    grid: Float[Array, "k1 k2 k3 feat"],
) -> Float[Array, "nodes order order order"]:
    """Products of each atom's features with the grid points around it.

    Args:
        order: p.
        first: From `bspline.grid_windows`.
        h: Node features.
        grid: Periodic.

    Returns:
        Of the shape of the weights.
    """

    def products(window, h):
        # Of full precision: TF32 would lose what the mesh is fine enough for.
        return ops.full_matmul(h[None], window.T)[0]

    values = _looked_up(order, first, h, grid, products)
    return values.reshape(-1, order, order, order)


def _looked_up(
    order: int,
    first: Array,
    values: Array,
    grid: Array,
    combine: Callable[[Array, Array], Array],
) -> Array:
    """`combine` of each atom's window [p^3, feat] and value."""
    halo, (*shape, feat) = order - 1, grid.shape
    # The first points once more behind the last ones, there in place.
    grid = jnp.pad(grid, (*((0, halo),) * 3, (0, 0)))
    for axis, size in enumerate(shape):
        again = jax.lax.slice_in_dim(grid, 0, halo, axis=axis)
        grid = jax.lax.dynamic_update_slice_in_dim(grid, again, size, axis)
    numbers = jax.lax.GatherDimensionNumbers((1, 2, 3, 4), (), (0, 1, 2))
    sizes = (order, order, order, feat)

    def of_block(grid, first, values):
        read = jax.lax.gather(grid, first, numbers, sizes, mode=_IN_BOUNDS)
        return jax.vmap(combine)(read.reshape(-1, order**3, feat), values)

    def of_atom(grid, first, values):
        window = jax.lax.dynamic_slice(grid, _corner(first), sizes)
        return combine(window.reshape(-1, feat), values)

    def in_blocks(grid, *atoms):
        blocks = _blocks(order**3 * feat, *atoms)
        found = jax.lax.map(lambda block: of_block(grid, *block), blocks)
        return found.reshape(-1, *found.shape[2:])[: len(first)]

    def one_by_one(grid, *atoms):
        return jax.lax.map(lambda atom: of_atom(grid, *atom), atoms)

    return jax.lax.platform_dependent(
        grid, first, values, cpu=one_by_one, default=in_blocks
    )


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


def _spread_forward(shape, first, weights, h):
    return spread(shape, first, weights, h), kept_of(first, weights, h)


def _spread_backward(shape, kept, slope):
    first, weights, h = kept
    order = weights.shape[-1]
    return None, overlap(order, first, h, slope), gather(first, weights, slope)


def _gather_forward(first, weights, grid):
    return gather(first, weights, grid), kept_of(first, weights, grid)


def _gather_backward(kept, slope):
    first, weights, grid = kept
    order, shape = weights.shape[-1], grid.shape[:-1]
    return None, overlap(order, first, slope, grid), spread(shape, first, weights, slope)


def _overlap_forward(order, first, h, grid):
    return overlap(order, first, h, grid), kept_of(first, h, grid)


def _overlap_backward(order, kept, slope):
    first, h, grid = kept
    return None, gather(first, slope, grid), spread(grid.shape[:-1], first, slope, h)


spread.defvjp(_spread_forward, _spread_backward)
gather.defvjp(_gather_forward, _gather_backward)
overlap.defvjp(_overlap_forward, _overlap_backward)
