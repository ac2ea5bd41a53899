"""Angles between the edges that meet at a node."""

import jax.numpy as jnp

from ewald_jax import ops
from ewald_jax.graph.schema import Triplets
from ewald_jax.typing import Array, Bool, Float


def triplet_cosines(
    vectors: Float[Array, "edges 3"], distances: Float[Array, " edges"], triplets: Triplets
) -> tuple[
    Float[Array, "nodes in_slots out_slots"], Bool[Array, "nodes in_slots out_slots"]
]:
    """Cosines between the edges k -> j that end and the edges j -> i that start at each node.

    The vectors of edges point from receiver to sender: for atoms in a row the cosine is 1.

    Args:
        vectors: Of the edges, Å.
        distances: Their lengths, Å.
        triplets: Which edges meet.

    Returns:
        Cosines, and which of them belong to a triplet: slots that hold an edge, and where i
        is not k itself.
    """
    units = vectors / jnp.where(distances > 0, distances, 1.0)[:, None]
    start = ops.to_dense(units, triplets.in_edges)
    end = ops.to_dense(units, triplets.out_edges)
    # Elementwise rather than a matrix product: full precision on every accelerator.
    cosine = jnp.sum(start[:, :, None] * end[:, None, :], axis=-1)
    empty = vectors.shape[0]
    back = ops.gather(triplets.reverse, triplets.out_edges, fill=empty)
    incoming = triplets.in_edges[:, :, None]
    exists = (incoming < empty) & (triplets.out_edges[:, None] < empty)
    return cosine, exists & (incoming != back[:, None])


def receiver_cosines(
    vectors: Float[Array, "edges 3"], distances: Float[Array, " edges"], triplets: Triplets
) -> tuple[Float[Array, "nodes in_slots in_slots"], Bool[Array, "nodes in_slots in_slots"]]:
    """Cosines between the edges b -> a and c -> a that end at each node.

    Args:
        vectors: Of the edges, Å.
        distances: Their lengths, Å.
        triplets: Which edges meet.

    Returns:
        Cosines, and which of them belong to a triplet: slots that hold two different edges.
    """
    units = vectors / jnp.where(distances > 0, distances, 1.0)[:, None]
    ends = ops.to_dense(units, triplets.in_edges)
    cosine = jnp.sum(ends[:, :, None] * ends[:, None, :], axis=-1)
    filled = triplets.in_edges < vectors.shape[0]
    different = ~jnp.eye(filled.shape[1], dtype=bool)
    return cosine, filled[:, :, None] & filled[:, None] & different[None]
