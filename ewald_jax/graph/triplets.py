"""Triplets of atoms for DimeNet++ and GemNet, as the edges that meet at each node.

A list of all triplets is as long as edges times neighbors. Their sums only ever run over the
edges at one node, so a table [nodes, slots] of those edges, no longer than the list of edges
and its empty slots, says the same and makes the sums matrix products of static shape.
"""

import numpy as np

from ewald_jax.graph.pairs import reverse_edges
from ewald_jax.graph.schema import Triplets
from ewald_jax.typing import Int


def build_triplets(
    senders: Int[np.ndarray, " edges"],
    receivers: Int[np.ndarray, " edges"],
    shifts: Int[np.ndarray, "edges 3"],
    n_node: int,
    n_edge: int,
    in_slots: int,
    out_slots: int,
) -> Triplets:
    """Lists the edges at each node of a batch.

    Args:
        senders: Padded edges; the real ones come first.
        receivers: As `senders`.
        shifts: Lattice translations of the senders.
        n_node: Nodes, padding included.
        n_edge: Real edges; the others get no slot.
        in_slots: At least the most edges that end at one node.
        out_slots: At least the most edges that start at one node.

    Returns:
        The tables, numpy int32.
    """
    total = len(senders)
    senders, receivers, shifts = senders[:n_edge], receivers[:n_edge], shifts[:n_edge]
    in_edges, in_slot = _table(receivers, n_node, total, in_slots)
    out_edges, out_slot = _table(senders, n_node, total, out_slots)
    reverse = np.full(total, total, np.int32)
    reverse[:n_edge] = reverse_edges(senders, receivers, shifts, total)
    return Triplets(in_edges, out_edges, in_slot, out_slot, reverse)


def degrees(ends: Int[np.ndarray, " edges"]) -> int:
    """The most edges that share one end, at least 1."""
    return max(1, int(np.bincount(ends).max(initial=0)))


def _table(
    ends: Int[np.ndarray, " edges"], n_node: int, total: int, slots: int
) -> tuple[Int[np.ndarray, "nodes slots"], Int[np.ndarray, " edges"]]:
    """Edges by the node at one end, and the flat place of each edge."""
    order = np.argsort(ends, kind="stable")
    ordered = ends[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered, side="left")
    place = np.full(total, n_node * slots, np.int32)
    place[order] = ordered.astype(np.int64) * slots + rank
    table = np.full(n_node * slots, total, np.int32)
    table[place[order]] = order
    return table.reshape(n_node, slots), place
