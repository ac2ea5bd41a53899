"""Neighbor lists for any cell shape and any periodic boundary conditions, by vesin."""

from typing import NamedTuple

import numpy as np
import vesin

from ewald_jax.typing import Float, InputError, Int

MAX_CUTOFFS = 20_000
"""Extent of a structure over the cutoff; beyond some 80,000 vesin ends the process."""


class Neighbors(NamedTuple):
    """Directed pairs within a cutoff, sorted by receiver, then by sender and shift.

    Attributes:
        senders: [edges] int32.
        receivers: [edges] int32.
        shifts: [edges, 3] int32 lattice translation of the sender.
        distances: [edges] float64, Å.
    """

    senders: Int[np.ndarray, " edges"]
    receivers: Int[np.ndarray, " edges"]
    shifts: Int[np.ndarray, "edges 3"]
    distances: Float[np.ndarray, " edges"]


def neighbor_list(
    positions: Float[np.ndarray, "nodes 3"],
    cell: Float[np.ndarray, "3 3"],
    pbc: np.ndarray,
    cutoff: float,
    max_neighbors: int | None = None,
) -> Neighbors:
    """Finds all pairs closer than `cutoff`, periodic images included.

    Atoms may lie anywhere: moving one by whole lattice vectors changes the shifts of its
    edges and nothing else. Both directions of a pair are listed.

    Args:
        positions: Å.
        cell: Rows are lattice vectors, Å; must be invertible.
        pbc: [3] bool, periodic along each lattice vector.
        cutoff: Å, larger than zero.
        max_neighbors: Keep only this many nearest senders of every receiver. This cuts pairs
            in one direction only, and energies jump when neighbors swap places; None keeps
            all and is recommended outside reproductions of the paper.

    Returns:
        The pairs.

    Raises:
        InputError: If `cutoff` or `max_neighbors` is not positive, `cutoff` not finite, or the
            structure thousands of cutoffs across.
    """
    if not (cutoff > 0 and np.isfinite(cutoff)):
        raise InputError(
            f"the distance cutoff must be finite and larger than 0 Å, not {cutoff}"
        )
    if max_neighbors is not None and max_neighbors < 1:
        raise InputError(f"max_neighbors must be at least 1 or None, not {max_neighbors}")
    positions = np.asarray(positions, np.float64)
    cell = np.asarray(cell, np.float64)
    pbc = np.asarray(pbc, bool)
    # Of crystals only the cell counts, wherever in its images the atoms are.
    lengths = np.linalg.norm(cell, axis=1) if pbc.any() else np.zeros(3)
    spread = np.zeros(3) if pbc.all() or not len(positions) else np.ptp(positions, axis=0)
    reach = max(*spread, *lengths)
    if reach > MAX_CUTOFFS * cutoff:
        raise InputError(
            f"is {reach:.3g} Å across, expected at most {MAX_CUTOFFS * cutoff:.3g} Å"
        )
    search = vesin.NeighborList(cutoff=float(cutoff), full_list=True, n_threads=1)
    i, j, shift, distance = search.compute(
        points=positions,
        box=cell if pbc.any() else np.zeros((3, 3)),
        periodic=pbc.tolist(),
        quantities="ijSd",
    )
    order = np.lexsort((shift[:, 2], shift[:, 1], shift[:, 0], j, i))
    i, j, shift, distance = i[order], j[order], shift[order], distance[order]
    if max_neighbors is not None:
        keep = nearest(i, distance, max_neighbors)
        i, j, shift, distance = i[keep], j[keep], shift[keep], distance[keep]
    return Neighbors(
        j.astype(np.int32), i.astype(np.int32), shift.astype(np.int32), distance
    )


def nearest(
    receivers: Int[np.ndarray, " edges"],
    distances: Float[np.ndarray, " edges"],
    max_neighbors: int,
) -> Int[np.ndarray, " kept"]:
    """Indices, ascending, of the `max_neighbors` shortest edges of every receiver.

    Equal distances are kept in the order given.
    """
    order = np.lexsort((distances, receivers))
    sorted_receivers = receivers[order]
    first = np.searchsorted(sorted_receivers, sorted_receivers, side="left")
    rank = np.arange(len(order)) - first
    return np.sort(order[rank < max_neighbors])


def symmetrised(neighbors: Neighbors) -> Neighbors:
    """Every pair in both directions, or not at all.

    After `max_neighbors` has cut, some pairs are left in one direction only. As in the Open
    Catalyst Project's GemNet and PaiNN, one direction decides: that from the atom of lower
    index (from the earlier lattice translation, for an atom and its own image). Nothing
    changes where nothing was cut.

    Args:
        neighbors: Directed pairs.

    Returns:
        Pairs in the same order, by receiver, sender and shift.
    """
    i, j, shift, distance = (
        neighbors.receivers,
        neighbors.senders,
        neighbors.shifts,
        neighbors.distances,
    )
    first = np.take_along_axis(shift, np.argmax(shift != 0, axis=1)[:, None], axis=1)[:, 0]
    keep = (j < i) | ((j == i) & (first < 0))
    i, j = np.concatenate([i[keep], j[keep]]), np.concatenate([j[keep], i[keep]])
    shift = np.concatenate([shift[keep], -shift[keep]])
    distance = np.concatenate([distance[keep], distance[keep]])
    order = np.lexsort((shift[:, 2], shift[:, 1], shift[:, 0], j, i))
    return Neighbors(j[order], i[order], shift[order], distance[order])
