"""Neighbors and wave vectors on the device, for exported models.

What `graph` and `kspace.waves` choose on the host with numpy and vesin is found here by jax, so
that an exported model needs neither: all pairs are tried, over as many lattice translations as
the cutoff reaches. Lengths are those of arrays that the caller gives, which must be at least
`required_sizes`; what they have too much is padding, as in `graph.schema`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ewald_jax import kspace as ks
from ewald_jax.graph.neighborhood import Neighborhood
from ewald_jax.graph.schema import Edges
from ewald_jax.kspace.quadrature import gauss_legendre, num_radial, num_stretched
from ewald_jax.typing import Array, Bool, Float, Int

_NODE_COUNTS = (*range(16, 64, 8), *range(64, 256, 32), *range(256, 1025, 128))
"""Numbers of quadrature nodes that there are tables of: few, so that little is compiled."""

_RATIOS = (3.0, 10.0, 30.0, 200.0)
"""Of k_cutoff and the smallest k of a slab: small ones need fewer nodes."""


class Frame(NamedTuple):
    """A structure in the axes of `kspace.boundary_cell`, wrapped into the cell.

    Attributes:
        positions: [n, 3] Å.
        cell: [3, 3] periodic lattice vectors first, then unit vectors perpendicular to them.
        inverse: [3, 3] of the cell.
        periodic: [3] bool, which rows are lattice vectors.
    """

    positions: Float[Array, "n 3"]
    cell: Float[Array, "3 3"]
    inverse: Float[Array, "3 3"]
    periodic: Bool[Array, " 3"]


def framed(
    positions: Float[Array, "n 3"], cell: Float[Array, "3 3"], pbc: Bool[Array, " 3"]
) -> Frame:
    """The structure as the other functions here want it."""
    boundary = ks.boundary_cell(cell, pbc)
    periodic = jnp.arange(3) < jnp.sum(pbc)
    inverse = ks.reciprocal_cell(boundary).T / (2 * jnp.pi)
    turns = jnp.where(periodic, jnp.floor(_product(positions, inverse)), 0.0)
    return Frame(positions - _product(turns, boundary), boundary, inverse, periodic)


def required_sizes(frame: Frame, neighborhood: Neighborhood) -> Int[Array, " 3"]:
    """Lengths that hold the edges, wave vectors and quadrature nodes of a structure.

    Args:
        frame: The structure.
        neighborhood: Of the model.

    Returns:
        Edges (of the larger set where there are two), wave vectors, nodes; rounded up, so that
        similar structures share a compilation. -1 nodes if it extends too far for any table.
    """
    rules = [neighborhood.cutoff, neighborhood.far_cutoff]
    edges = [jnp.sum(_count(frame, cutoff)) for cutoff in rules if cutoff is not None]
    most = jnp.max(jnp.stack(edges)).astype(jnp.float32)
    step = jnp.exp2(jnp.maximum(jnp.floor(jnp.log2(most + 1)) - 3, 3))
    n_edge = jnp.ceil((most + 1) / step) * step
    n_wave, n_node = jnp.int32(1), jnp.int32(_NODE_COUNTS[0])
    if neighborhood.waves is not None:
        bounds = _wave_bounds(frame, neighborhood.waves.k_cutoff)
        n_wave = jnp.prod(2 * bounds + 1) // 2 + 1
        n_node = _num_nodes(frame, neighborhood.waves)
    sizes = (n_edge, n_wave, n_node)
    return jnp.stack([size.astype(jnp.int32) for size in sizes])


def find_edges(
    frame: Frame,
    size: int,
    cutoff: float,
    max_neighbors: int | None = None,
    symmetric: bool = False,
) -> Edges:
    """The edges within a cutoff, sorted by receiver; padding belongs to node n.

    Args:
        frame: The structure.
        size: Slots for edges within the cutoff.
        cutoff: Å.
        max_neighbors: Nearest senders kept for each receiver, None for all.
        symmetric: Then keep both directions of a pair or none, see `graph.neighbors`.

    Returns:
        [size] edges, [2 size] if they are made symmetric.
    """
    n = frame.positions.shape[0]
    nobody = jnp.asarray(n, jnp.int32)
    nodes = jnp.arange(n, dtype=jnp.int32)
    reach = _reach(frame, cutoff)
    of_receiver = _count(frame, cutoff)

    def add(turn, state):
        first, edges = state
        shift = _index(turn, reach)
        found = _near(frame, shift, cutoff)
        place = first[:, None] + jnp.cumsum(found, axis=1, dtype=jnp.int32) - 1
        place = jnp.where(found, place, size)
        senders = edges.senders.at[place].set(nodes[None], mode="drop")
        receivers = edges.receivers.at[place].set(nodes[:, None], mode="drop")
        shifts = edges.shifts.at[place].set(shift[None, None], mode="drop")
        first = first + jnp.sum(found, axis=1, dtype=jnp.int32)
        return first, Edges(senders, receivers, shifts)

    empty = jnp.zeros(size, jnp.int32) + nobody
    nothing = Edges(empty, empty, jnp.zeros((size, 3), jnp.int32))
    start = jnp.cumsum(of_receiver, dtype=jnp.int32) - of_receiver, nothing
    _, edges = jax.lax.fori_loop(0, jnp.prod(2 * reach + 1), add, start)
    if max_neighbors is None:
        return edges
    edges = _nearest(frame, edges, max_neighbors)
    edges = _symmetrised(edges, nobody) if symmetric else edges
    order = jnp.argsort(edges.receivers, stable=True)
    return Edges(*(column[order] for column in edges))


def lattice_indices(frame: Frame, k_cutoff: float, size: int) -> Int[Array, "size 3"]:
    """Half of the indices on the reciprocal lattice that reach `k_cutoff`, (0, 0, 0) first.

    Args:
        frame: The structure.
        k_cutoff: 1/Å.
        size: At least their number; those in excess are indices of vectors beyond the cutoff.
    """
    bounds = _wave_bounds(frame, k_cutoff)
    total = jnp.prod(2 * bounds + 1)
    turn = total // 2 + jnp.arange(size)[:, None]
    return jnp.where(turn < total, _index(turn, bounds[None]), bounds[None] + 1)


def quadrature_nodes(
    size: int, dtype
) -> tuple[Float[Array, " size"], Float[Array, " size"]]:
    """Gauss-Legendre nodes and weights on [-1, 1], for `size` of `required_sizes`."""
    tables = [
        np.concatenate(parts)
        for parts in zip(*map(gauss_legendre, _NODE_COUNTS), strict=True)
    ]
    counts = jnp.asarray(_NODE_COUNTS)
    first = jnp.sum(jnp.where(counts < jnp.asarray(size), counts, 0))
    return tuple(jnp.asarray(x, dtype)[first + jnp.arange(size)] for x in tables)


def _product(x: Float[Array, "n 3"], matrix: Float[Array, "3 3"]) -> Float[Array, "n 3"]:
    """Elementwise rather than a matrix product: full precision on every accelerator."""
    return jnp.sum(x[:, :, None] * matrix[None], axis=1)


def _reach(frame: Frame, cutoff: float) -> Int[Array, " 3"]:
    """Largest lattice translation between wrapped atoms within a cutoff."""
    planes = jnp.sqrt(jnp.sum(frame.inverse**2, axis=0))
    reach = jnp.floor(cutoff * planes).astype(jnp.int32) + 1
    return jnp.where(frame.periodic, reach, 0)


def _index(turn: Array, bounds: Int[Array, "*batch 3"]) -> Int[Array, "*batch 3"]:
    """Entry `turn` of the box of integers from -bounds to bounds, the last axis fastest."""
    _, ny, nz = jnp.moveaxis(2 * bounds + 1, -1, 0)
    turn = turn if bounds.ndim == 1 else turn[:, 0]
    parts = [turn // (ny * nz), turn // nz % ny, turn % nz]
    return jnp.stack(parts, axis=-1).astype(jnp.int32) - bounds


def _near(frame: Frame, shift: Int[Array, " 3"], cutoff: float) -> Bool[Array, "n n"]:
    """Whether the image of each sender (column) is within reach of each receiver (row)."""
    x = frame.positions
    translation = _product(shift[None].astype(x.dtype), frame.cell)
    between = (x + translation)[None] - x[:, None]
    n = jnp.arange(x.shape[0])
    itself = (n[None] == n[:, None]) & ~jnp.any(shift)
    return (jnp.sum(between**2, axis=-1) < cutoff**2) & ~itself


def _count(frame: Frame, cutoff: float) -> Int[Array, " n"]:
    """Edges of each receiver."""
    reach = _reach(frame, cutoff)

    def add(turn, total):
        found = _near(frame, _index(turn, reach), cutoff)
        return total + jnp.sum(found, axis=1, dtype=jnp.int32)

    start = jnp.zeros(frame.positions.shape[0], jnp.int32)
    return jax.lax.fori_loop(0, jnp.prod(2 * reach + 1), add, start)


def _nearest(frame: Frame, edges: Edges, max_neighbors: int) -> Edges:
    """Edges beyond the nearest of each receiver become padding."""
    x = jnp.concatenate([frame.positions, frame.positions[:1]])
    translation = _product(edges.shifts.astype(x.dtype), frame.cell)
    between = x[edges.senders] + translation - x[edges.receivers]
    order = jnp.lexsort((jnp.sum(between**2, axis=-1), edges.receivers))
    edges = Edges(*(column[order] for column in edges))
    count = jnp.zeros(x.shape[0], jnp.int32).at[edges.receivers].add(1)
    first = (jnp.cumsum(count) - count)[edges.receivers]
    kept = jnp.arange(first.shape[0]) - first < max_neighbors
    return _masked(edges, kept, jnp.asarray(frame.positions.shape[0], jnp.int32))


def _symmetrised(edges: Edges, nobody: Array) -> Edges:
    """As `graph.neighbors.symmetrised`: one direction decides, and the other is added."""
    i, j, (a, b, c) = edges.receivers, edges.senders, edges.shifts.T
    negative = (a < 0) | ((a == 0) & ((b < 0) | ((b == 0) & (c < 0))))
    one = _masked(edges, (j < i) | ((j == i) & negative), nobody)
    return Edges(
        jnp.concatenate([one.senders, one.receivers]),
        jnp.concatenate([one.receivers, one.senders]),
        jnp.concatenate([one.shifts, -one.shifts]),
    )


def _masked(edges: Edges, kept: Bool[Array, " edges"], nobody: Array) -> Edges:
    return Edges(
        jnp.where(kept, edges.senders, nobody),
        jnp.where(kept, edges.receivers, nobody),
        jnp.where(kept[:, None], edges.shifts, 0),
    )


def _wave_bounds(frame: Frame, k_cutoff: float) -> Int[Array, " 3"]:
    """Largest indices of wave vectors within the cutoff (as `kspace.waves` bounds them)."""
    lengths = jnp.sqrt(jnp.sum(frame.cell**2, axis=1))
    bounds = jnp.floor(k_cutoff * lengths / (2 * jnp.pi)).astype(jnp.int32)
    return jnp.where(frame.periodic, bounds, 0)


def _num_nodes(frame: Frame, rule: ks.WaveRule) -> Int[Array, ""]:
    """Nodes that the open directions of a structure need, a number of the tables."""
    along = _product(frame.positions, frame.cell.T)
    extent = jnp.where(frame.periodic, 0.0, jnp.ptp(along, axis=0))
    diagonal = jnp.sqrt(jnp.sum(extent**2))
    # No lattice vector of k-space is shorter than 2 pi over the norm of the cell.
    lengths = jnp.where(frame.periodic, jnp.sum(frame.cell**2, axis=1), 0.0)
    ratio = rule.k_cutoff * jnp.sqrt(jnp.sum(lengths)) / (2 * jnp.pi)
    row = jnp.sum(ratio > jnp.asarray(_RATIOS, ratio.dtype))
    row = jnp.where(jnp.all(~frame.periodic), 0, row + 1)
    # The last row is of cells that are too large.
    limits = jnp.asarray(_reach_limits(rule), diagonal.dtype)[row]
    counts = jnp.asarray(_NODE_COUNTS, jnp.int32)
    enough = jnp.sum((diagonal > limits).astype(jnp.int32))
    needed = jnp.where(enough < len(_NODE_COUNTS), counts[enough], -1)
    return jnp.where(jnp.all(frame.periodic), counts[0], needed)


def _reach_limits(rule: ks.WaveRule) -> np.ndarray:
    """Extents up to which each number of nodes is enough (host), Å.

    Returns:
        [kinds, counts]: molecules, slabs with cells up to each of `_RATIOS`, larger ones.
    """
    reach = np.geomspace(0.1, 5000, 1000)
    radial = np.array([num_radial(rule.k_cutoff, rule.width, x) for x in reach])
    needed = [radial]
    for ratio in _RATIOS:
        lengths = rule.k_cutoff / np.geomspace(1.001, ratio, 50)
        options = (rule.k_cutoff, rule.width)
        stretched = [num_stretched(*options, x, lengths, True).max() for x in reach]
        needed.append(np.maximum(radial, stretched))
    limits = np.full((len(needed) + 1, len(_NODE_COUNTS)), -1.0)
    for row, counts in enumerate(needed):
        # Of the extents that need more, the one before the first.
        last = np.searchsorted(counts, _NODE_COUNTS, side="right") - 1
        limits[row] = np.where(last >= 0, reach[last], -1.0)
    return limits
