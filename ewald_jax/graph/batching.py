"""Structures joined into one padded batch of static shape."""

from collections.abc import Mapping, Sequence

import jraph
import numpy as np

from ewald_jax.graph.budgets import choose_budget, exact_budget, sizes_of
from ewald_jax.graph.neighborhood import Neighborhood
from ewald_jax.graph.pairs import build_pairs
from ewald_jax.graph.schema import (
    CELL,
    ENERGY,
    FORCES,
    FREE,
    GRAPH_TARGETS,
    NODE_TARGETS,
    SHIFTS,
    SPECIES,
    STRESS,
    Batch,
    Budget,
    Edges,
    Structure,
    Triplets,
)
from ewald_jax.graph.triplets import build_triplets, degrees
from ewald_jax.graph.waves import joined_mesh, joined_waves
from ewald_jax.typing import InputError


def batch_graphs(
    structures: Sequence[Structure],
    targets: Sequence[Mapping[str, np.ndarray]] | None = None,
    budget: Budget | None = None,
    neighborhood: Neighborhood | None = None,
) -> Batch:
    """Joins structures into one batch and pads it.

    Args:
        structures: Unpadded (numpy), all of them with far edges and wave vectors or none.
        targets: Labels per structure: scalars ``energy``, [n, 3] ``forces``, [3, 3]
            ``stress``, [n] ``free``; only labels that all structures have are kept.
        budget: Shape to pad to; None leaves the batch unpadded.
        neighborhood: Of the structures, for the tables of edges that it asks for; for
            triplets a budget must have slots.

    Returns:
        The batch, numpy arrays.

    Raises:
        InputError: If there are no structures, they do not fit the budget, only some have far
            edges, wave vectors or a mesh, the labels are not those of the structures, or
            edges lack their reverse where the neighborhood has all.
    """
    triplets = neighborhood is not None and neighborhood.triplets
    if not structures:
        raise InputError("a batch needs at least one structure")
    graphs = [structure.graph for structure in structures]
    _check_targets(targets or [], graphs)
    graph = jraph.batch_np(graphs) if len(graphs) > 1 else graphs[0]
    # jraph's offsets are int64: a batch of one and a batch of two would be two compilations.
    graph = graph._replace(
        senders=graph.senders.astype(np.int32), receivers=graph.receivers.astype(np.int32)
    )
    n_node, n_edge = np.asarray(graph.n_node), int(graph.n_edge.sum())
    far_edges = _joined([structure.far_edges for structure in structures], n_node)
    if budget is None:
        rows, slots = len(n_node), int(n_node.max())
        shape = exact_budget(structures)
        edge_slots = (degrees(graph.receivers), degrees(graph.senders)) if triplets else ()
    else:
        choose_budget([budget], sizes_of(structures))
        rows, slots = budget.n_graph - 1, budget.max_nodes
        edge_slots = (budget.in_slots, budget.out_slots)
        shape = budget
        if triplets and 0 in edge_slots:
            raise InputError(f"triplets need slots, but the budget has none: {budget}")
        graph = _padded(graph, budget)
        far_edges = _padded_far(far_edges, budget.n_far, int(n_node.sum()))
    n_far = sum(len(s.far_edges.senders) for s in structures if s.far_edges is not None)
    near = Edges(graph.senders, graph.receivers, graph.edges[SHIFTS])
    near_pairs = neighborhood is not None and neighborhood.near_pairs
    far_pairs = neighborhood is not None and neighborhood.far_pairs
    index = _dense_index(n_node, rows, slots, empty=len(graph.nodes[SPECIES]))
    return Batch(
        graph,
        index,
        _batch_targets(targets or [], graph),
        _triplets(graph, n_edge, *edge_slots) if triplets else None,
        far_edges,
        joined_waves(structures, rows, len(graph.nodes[SPECIES]), shape),
        joined_mesh(structures, shape),
        build_pairs(*near, n_edge) if near_pairs else None,
        build_pairs(*far_edges, n_far) if far_pairs and far_edges is not None else None,
    )


def _joined(far_edges: Sequence[Edges | None], n_node: np.ndarray) -> Edges | None:
    """The far edges of all structures with the numbers that nodes have in the batch."""
    missing = [index for index, edges in enumerate(far_edges) if edges is None]
    if len(missing) == len(far_edges):
        return None
    if missing:
        raise InputError(
            f"structure {missing[0]} has no far edges, but others of the batch have"
        )
    starts = np.cumsum(n_node) - n_node
    return Edges(
        *(
            np.concatenate(
                [
                    getattr(e, end) + first
                    for e, first in zip(far_edges, starts, strict=True)
                ]
            ).astype(np.int32)
            for end in ("senders", "receivers")
        ),
        np.concatenate([edges.shifts for edges in far_edges]).astype(np.int32),
    )


def _padded_far(edges: Edges | None, n_far: int, padding_node: int) -> Edges | None:
    if edges is None:
        return None
    return Edges(
        _extended(edges.senders, n_far, padding_node),
        _extended(edges.receivers, n_far, padding_node),
        _extended(edges.shifts, n_far),
    )


def _padded(graph: jraph.GraphsTuple, budget: Budget) -> jraph.GraphsTuple:
    n_real = len(graph.n_node)
    n_node, n_edge = int(graph.n_node.sum()), int(graph.n_edge.sum())
    globals_ = {
        key: _extended(value, budget.n_graph) for key, value in graph.globals.items()
    }
    globals_[CELL][n_real:] = np.eye(3, dtype=globals_[CELL].dtype)
    pad_node, pad_edge = np.zeros((2, budget.n_graph - n_real), np.int32)
    pad_node[0], pad_edge[0] = budget.n_node - n_node, budget.n_edge - n_edge
    return jraph.GraphsTuple(
        nodes={key: _extended(value, budget.n_node) for key, value in graph.nodes.items()},
        edges={key: _extended(value, budget.n_edge) for key, value in graph.edges.items()},
        senders=_extended(graph.senders, budget.n_edge, n_node),
        receivers=_extended(graph.receivers, budget.n_edge, n_node),
        globals=globals_,
        n_node=np.concatenate([graph.n_node, pad_node]),
        n_edge=np.concatenate([graph.n_edge, pad_edge]),
    )


def _extended(x: np.ndarray, length: int, value: int = 0) -> np.ndarray:
    """A copy, filled up to `length` rows."""
    out = np.full((length,) + x.shape[1:], value, x.dtype)
    out[: len(x)] = x
    return out


def _triplets(
    graph: jraph.GraphsTuple, n_edge: int, in_slots: int, out_slots: int
) -> Triplets:
    return build_triplets(
        graph.senders,
        graph.receivers,
        graph.edges[SHIFTS],
        len(graph.nodes[SPECIES]),
        n_edge,
        in_slots,
        out_slots,
    )


def _dense_index(n_node: np.ndarray, rows: int, slots: int, empty: int) -> np.ndarray:
    index = np.full((rows, slots), empty, np.int32)
    filled = np.arange(slots)[None, :] < n_node[:, None]
    index[: len(n_node)][filled] = np.arange(int(n_node.sum()))
    return index


def _check_targets(
    targets: Sequence[Mapping[str, np.ndarray]], graphs: Sequence[jraph.GraphsTuple]
) -> None:
    if targets and len(targets) != len(graphs):
        raise InputError(f"got labels of {len(targets)} structures for {len(graphs)}")
    for index, (labels, graph) in enumerate(zip(targets, graphs, strict=False)):
        n = int(graph.n_node[0])
        shapes = {ENERGY: (), STRESS: (3, 3), FORCES: (n, 3), FREE: (n,)}
        for key, value in labels.items():
            if key in shapes and np.shape(value) != shapes[key]:
                raise InputError(
                    f"structure {index} has {key!r} of shape {np.shape(value)}, expected "
                    f"{shapes[key]}"
                )


def _batch_targets(
    targets: Sequence[Mapping[str, np.ndarray]], graph: jraph.GraphsTuple
) -> dict[str, np.ndarray]:
    if not targets:
        return {}
    shared = set.intersection(*(set(t) for t in targets))
    n_node, n_graph = len(graph.nodes[SPECIES]), len(graph.n_node)
    out = {}
    for keys, length, join in (
        (GRAPH_TARGETS, n_graph, np.stack),
        (NODE_TARGETS, n_node, np.concatenate),
    ):
        for key in keys:
            if key in shared:
                values = join([np.asarray(t[key]) for t in targets])
                out[key] = _extended(values, length)
    return out
