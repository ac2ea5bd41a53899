"""The two edges of each pair of atoms.

A filter on distances is the same for both directions of an edge, and computing it is most of
what a continuous-filter network does: with each pair's edges known, it is done once.
"""

import numpy as np

from ewald_jax.graph.schema import Pairs
from ewald_jax.typing import InputError, Int


def build_pairs(
    senders: Int[np.ndarray, " edges"],
    receivers: Int[np.ndarray, " edges"],
    shifts: Int[np.ndarray, "edges 3"],
    n_edge: int,
) -> Pairs:
    """Joins the edges of a batch that are one pair of atoms.

    Args:
        senders: Padded edges; the real ones come first.
        receivers: As `senders`.
        shifts: Lattice translations of the senders.
        n_edge: Real edges.

    Returns:
        The pairs, numpy int32.

    Raises:
        InputError: If the reverse of a real edge is missing.
    """
    edges = np.arange(n_edge)
    reverse = reverse_edges(senders[:n_edge], receivers[:n_edge], shifts[:n_edge], n_edge)
    if (reverse == n_edge).any():
        edge = int(np.argmax(reverse == n_edge))
        raise InputError(
            f"the edge from node {senders[edge]} to node {receivers[edge]} has no reverse, "
            "expected every pair of atoms in both directions"
        )
    once, rest = edges[edges < reverse], np.arange(n_edge, len(senders))
    first = np.concatenate([once, rest[::2]]).astype(np.int32)
    second = np.concatenate([reverse[once], rest[1::2], rest[len(rest) - len(rest) % 2 :]])
    pair = np.empty(len(senders), np.int32)
    pair[first] = pair[second] = np.arange(len(first))
    return Pairs(first, second.astype(np.int32), pair)


def reverse_edges(
    senders: Int[np.ndarray, " edges"],
    receivers: Int[np.ndarray, " edges"],
    shifts: Int[np.ndarray, "edges 3"],
    none: int,
) -> Int[np.ndarray, " edges"]:
    """For each edge, the one with sender and receiver swapped and the shift negated.

    Args:
        senders: Node that sends.
        receivers: Node that receives.
        shifts: Lattice translation of the sender.
        none: What stands for none.

    Returns:
        Numbers of edges.
    """
    if len(senders) == 0:
        return np.zeros(0, np.int64)
    n, most = int(max(senders.max(), receivers.max())) + 1, int(np.abs(shifts).max())
    width = 2 * most + 1

    def number(i: np.ndarray, j: np.ndarray, shift: np.ndarray) -> np.ndarray:
        x, y, z = (shift + most).astype(np.int64).T
        return ((i.astype(np.int64) * n + j) * width**3) + (x * width + y) * width + z

    forward, backward = (
        number(receivers, senders, shifts),
        number(senders, receivers, -shifts),
    )
    order = np.argsort(forward)
    at = np.minimum(np.searchsorted(forward[order], backward), len(order) - 1)
    return np.where(forward[order[at]] == backward, order[at], none)
