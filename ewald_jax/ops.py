"""Small operations that are safe to differentiate: norms, masks, dense layout.

Everything here works on padded batches. Masks are applied before a function that could
produce a NaN, never after it.
"""

import jax
import jax.numpy as jnp
import jraph

from ewald_jax.typing import Array, Bool, Float, Int


def safe_norm(x: Float[Array, "*batch dim"], axis: int = -1) -> Float[Array, "*batch"]:
    """Euclidean norm with derivative zero at the zero vector.

    Args:
        x: Vectors along `axis`.
        axis: Axis to reduce.

    Returns:
        The norm, without that axis.
    """
    square = jnp.sum(x * x, axis=axis)
    is_zero = square == 0
    return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, square)))


def node_graph_index(graph: jraph.GraphsTuple) -> Int[Array, " nodes"]:
    """Index of the graph that each node belongs to."""
    return _graph_index(graph.n_node, graph.nodes["species"].shape[0])


def edge_graph_index(graph: jraph.GraphsTuple) -> Int[Array, " edges"]:
    """Index of the graph that each edge belongs to."""
    return _graph_index(graph.n_edge, graph.senders.shape[0])


def _graph_index(counts: Int[Array, " graphs"], total: int) -> Int[Array, " total"]:
    (n_graph,) = counts.shape
    if n_graph == 1:
        # Of one constant `jnp.repeat` makes a running sum that XLA takes long to fold.
        return jnp.zeros(total, int)
    return jnp.repeat(jnp.arange(n_graph), counts, total_repeat_length=total)


def node_mask(graph: jraph.GraphsTuple) -> Bool[Array, " nodes"]:
    """True for atoms, False for padding (species 0)."""
    return graph.nodes["species"] > 0


def graph_mask(graph: jraph.GraphsTuple) -> Bool[Array, " graphs"]:
    """True for structures, False for padding graphs."""
    return sum_nodes(node_mask(graph).astype(jnp.int32), graph) > 0


def sum_nodes(values: Array, graph: jraph.GraphsTuple) -> Array:
    """Sums node values [nodes, ...] over each graph -> [graphs, ...]."""
    return jax.ops.segment_sum(
        values,
        node_graph_index(graph),
        num_segments=graph.n_node.shape[0],
        indices_are_sorted=True,
    )


def edge_vectors(graph: jraph.GraphsTuple) -> Float[Array, "edges 3"]:
    """Vectors from each receiver to the image of its sender, Å.

    ``x[senders] + shifts @ cell - x[receivers]``, differentiable in positions and cell.
    """
    edges = graph.senders, graph.receivers, graph.edges["shifts"]
    return _vectors(graph, *edges, edge_graph_index(graph))


def pair_lengths(graph: jraph.GraphsTuple, pairs, far=None) -> Float[Array, " pairs"]:
    """Distances between the atoms of each pair, Å; of each edge without pairs.

    Args:
        graph: Structures.
        pairs: `graph.schema.Pairs` of the edges, or None.
        far: The second set of edges (`graph.schema.Edges`), if they are meant.

    Returns:
        [pairs], or [edges].
    """
    if far is None:
        edges = graph.senders, graph.receivers, graph.edges["shifts"]
        owner = edge_graph_index(graph)
    else:
        edges = tuple(far)
        owner = node_graph_index(graph)[far.receivers]
    if pairs is not None:
        edges = (jnp.asarray(x)[pairs.first] for x in edges)
        owner = owner[pairs.first]
    return safe_norm(_vectors(graph, *edges, owner))


def _vectors(graph, senders, receivers, shifts, owner) -> Float[Array, "edges 3"]:
    positions = jnp.asarray(graph.nodes["positions"])
    cell = jnp.asarray(graph.globals["cell"])[owner]  # [edges, 3, 3]
    shifts = jnp.asarray(shifts, positions.dtype)
    # Elementwise rather than a matrix product: full precision on every accelerator.
    translation = jnp.sum(shifts[:, :, None] * cell, axis=1)
    return positions[senders] + translation - positions[receivers]


def full_matmul(a: Array, b: Array) -> Array:
    """``a @ b`` in the type of the arrays: float32 is not TF32 or bfloat16 on any device."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def gather(values: Array, index: Int[Array, "*batch"], fill: int = 0) -> Array:
    """Rows of `values`; `fill` where the index is past the end, also if there are no rows.

    Args:
        values: [rows, ...].
        index: Which rows; ``rows`` for none.
        fill: What stands in for none.

    Returns:
        [*batch, ...].
    """
    values = jnp.asarray(values)
    if values.shape[0] == 0:
        return jnp.full(jnp.shape(index) + values.shape[1:], fill, values.dtype)
    return values.at[index].get(mode="fill", fill_value=fill)


def to_dense(values: Array, dense_index: Int[Array, "rows slots"]) -> Array:
    """Gathers node values [nodes, ...] into the dense layout; empty slots are zero.

    Args:
        values: [nodes, ...].
        dense_index: Node of each slot, ``nodes`` for an empty one.

    Returns:
        [rows, slots, ...].
    """
    return gather(values, dense_index)


def node_slots(graph: jraph.GraphsTuple, rows: int, slots: int) -> Int[Array, " nodes"]:
    """Flat slot ``row * slots + slot`` of each node; ``rows * slots`` for one without."""
    row = node_graph_index(graph)
    first = jnp.cumsum(graph.n_node) - graph.n_node
    slot = jnp.arange(row.shape[0]) - first[row]
    return jnp.where((row < rows) & (slot < slots), row * slots + slot, rows * slots)


def from_dense(dense: Array, node_slot: Int[Array, " nodes"]) -> Array:
    """Gathers dense values back to the nodes; nodes without a slot get zero.

    Args:
        dense: [rows, slots, ...].
        node_slot: From `node_slots`.

    Returns:
        [nodes, ...].
    """
    return gather(jnp.asarray(dense).reshape((-1,) + dense.shape[2:]), node_slot)


def slot_mask(
    dense_index: Int[Array, "rows slots"], n_node: int
) -> Bool[Array, "rows slots"]:
    """True for slots that hold a node."""
    return dense_index < n_node
