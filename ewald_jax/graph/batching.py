"""Padded batches of static shape, and the budgets (shapes) that a data set needs.

Each distinct shape costs one compilation, so batches are padded to the smallest of a few
budgets. The last budget fits any batch; the smaller ones fit typical batches.
"""

from collections.abc import Mapping, Sequence

import jraph
import numpy as np

from ewald_jax.graph.schema import (
    CELL,
    ENERGY,
    FORCES,
    FREE,
    GRAPH_TARGETS,
    NODE_TARGETS,
    STRESS,
    Batch,
    Budget,
)
from ewald_jax.typing import InputError

_QUANTILES = (0.5, 0.95, 1.0)
"""Of simulated batch sizes; with the worst case they make the default four buckets."""

_SIMULATED_BATCHES = 512


def batch_graphs(
    graphs: Sequence[jraph.GraphsTuple],
    targets: Sequence[Mapping[str, np.ndarray]] | None = None,
    budget: Budget | None = None,
) -> Batch:
    """Joins structures into one batch and pads it.

    Args:
        graphs: One unpadded graph per structure (numpy).
        targets: Labels per structure: scalars ``energy``, [n, 3] ``forces``, [3, 3]
            ``stress``, [n] ``free``; only labels that all structures have are kept.
        budget: Shape to pad to; None leaves the batch unpadded.

    Returns:
        The batch, numpy arrays.

    Raises:
        InputError: If there are no structures, they do not fit the budget, or the labels are
            not those of the structures.
    """
    if not graphs:
        raise InputError("a batch needs at least one structure")
    _check_targets(targets or [], graphs)
    graph = jraph.batch_np(list(graphs)) if len(graphs) > 1 else graphs[0]
    # jraph's offsets are int64: a batch of one and a batch of two would be two compilations.
    graph = graph._replace(
        senders=graph.senders.astype(np.int32), receivers=graph.receivers.astype(np.int32)
    )
    n_node = np.asarray(graph.n_node)
    if budget is None:
        rows, slots = len(n_node), int(n_node.max())
    else:
        _check_fits(graph, budget)
        rows, slots = budget.n_graph - 1, budget.max_nodes
        graph = _pad(graph, budget)
    index = _dense_index(n_node, rows, slots, empty=len(graph.nodes["species"]))
    return Batch(graph, index, _batch_targets(targets or [], graph))


def budgets_from_sizes(
    n_node: np.ndarray,
    n_edge: np.ndarray,
    batch_size: int,
    max_buckets: int = 4,
    seed: int = 0,
) -> tuple[Budget, ...]:
    """Chooses the shapes of a data set's batches, ascending.

    Batches of `batch_size` random structures are drawn, and shapes taken at quantiles of
    their totals. The last shape holds the largest structures all at once, so that every batch
    fits one; it is compiled only if a batch ever needs it.

    Args:
        n_node: [structures] atoms of each.
        n_edge: [structures] edges of each.
        batch_size: Structures per batch.
        max_buckets: Most shapes, at least 1.
        seed: Of the simulated batches.

    Returns:
        One to `max_buckets` budgets.

    Raises:
        InputError: If there are no structures, or `batch_size` or `max_buckets` is below 1.
    """
    n_node, n_edge = np.asarray(n_node, np.int64), np.asarray(n_edge, np.int64)
    if len(n_node) == 0:
        raise InputError("budgets need at least one structure, the data set is empty")
    if batch_size < 1 or max_buckets < 1:
        raise InputError(
            f"batch_size and max_buckets must be at least 1, not {batch_size}, {max_buckets}"
        )
    size = min(batch_size, len(n_node))
    slots = _round_up(int(n_node.max()), 4)

    def worst(sizes: np.ndarray) -> int:
        return int(np.sort(sizes)[-size:].sum())

    def shape(nodes: float, edges: float) -> Budget:
        return Budget(
            _round_up(int(nodes) + 1, 16),
            _round_up(max(int(edges), 1), 64),
            size + 1,
            slots,
        )

    largest = shape(worst(n_node), worst(n_edge))
    rng = np.random.default_rng(seed)
    draws = np.stack(
        [rng.choice(len(n_node), size, replace=False) for _ in range(_SIMULATED_BATCHES)]
    )
    nodes, edges = n_node[draws].sum(1), n_edge[draws].sum(1)
    budgets = [shape(np.quantile(nodes, q), np.quantile(edges, q)) for q in _QUANTILES]
    # Shapes within 5 % of the next larger one are not worth a compilation.
    kept = [largest]
    for budget in reversed(budgets):
        if budget.n_node < 0.95 * kept[0].n_node or budget.n_edge < 0.95 * kept[0].n_edge:
            kept.insert(0, budget)
    return tuple(kept[-max_buckets:])


def choose_budget(
    budgets: Sequence[Budget], n_node: int, n_edge: int, n_graph: int, max_nodes: int
) -> Budget:
    """The smallest budget that holds a batch of these totals.

    Raises:
        InputError: If none does, with the totals and the largest budget.
    """
    for budget in budgets:
        if (
            n_node < budget.n_node
            and n_edge <= budget.n_edge
            and n_graph < budget.n_graph
            and max_nodes <= budget.max_nodes
        ):
            return budget
    raise InputError(
        f"a batch of {n_graph} structures with {n_node} atoms, {n_edge} edges and up to "
        f"{max_nodes} atoms in one structure is larger than the largest budget "
        f"{budgets[-1]}; expected a smaller batch size, or budgets made from these data"
    )


def single_budget(graphs: Sequence[jraph.GraphsTuple]) -> Budget:
    """A budget that just fits these structures, rounded up so that similar ones fit too."""
    n_node = sum(int(g.n_node.sum()) for g in graphs)
    n_edge = sum(int(g.n_edge.sum()) for g in graphs)
    slots = max(int(g.n_node.max()) for g in graphs)
    return Budget(
        _round_up(n_node + 1, 16),
        _round_up(max(n_edge, 1), 64),
        len(graphs) + 1,
        _round_up(slots, 4),
    )


def _check_fits(graph: jraph.GraphsTuple, budget: Budget) -> None:
    sizes = np.asarray(graph.n_node)
    choose_budget(
        [budget], int(sizes.sum()), int(graph.n_edge.sum()), len(sizes), int(sizes.max())
    )


def _pad(graph: jraph.GraphsTuple, budget: Budget) -> jraph.GraphsTuple:
    n_real = len(graph.n_node)
    padding = budget.n_graph - n_real

    def tail(x: np.ndarray, length: int) -> np.ndarray:
        out = np.zeros((length,) + x.shape[1:], x.dtype)
        out[: len(x)] = x
        return out

    n_node, n_edge = int(graph.n_node.sum()), int(graph.n_edge.sum())
    globals_ = {key: tail(value, budget.n_graph) for key, value in graph.globals.items()}
    globals_[CELL][n_real:] = np.eye(3, dtype=globals_[CELL].dtype)
    senders, receivers = (
        np.concatenate([x, np.full(budget.n_edge - n_edge, n_node, x.dtype)])
        for x in (graph.senders, graph.receivers)
    )
    counts = np.zeros(padding, np.int32)
    pad_node, pad_edge = counts.copy(), counts.copy()
    pad_node[0], pad_edge[0] = budget.n_node - n_node, budget.n_edge - n_edge
    return jraph.GraphsTuple(
        nodes={key: tail(value, budget.n_node) for key, value in graph.nodes.items()},
        edges={key: tail(value, budget.n_edge) for key, value in graph.edges.items()},
        senders=senders,
        receivers=receivers,
        globals=globals_,
        n_node=np.concatenate([graph.n_node, pad_node]),
        n_edge=np.concatenate([graph.n_edge, pad_edge]),
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
    n_node, n_graph = len(graph.nodes["species"]), len(graph.n_node)
    out = {}
    for keys, length, join in (
        (GRAPH_TARGETS, n_graph, np.stack),
        (NODE_TARGETS, n_node, np.concatenate),
    ):
        for key in keys:
            if key in shared:
                values = join([np.asarray(t[key]) for t in targets])
                out[key] = np.zeros((length,) + values.shape[1:], values.dtype)
                out[key][: len(values)] = values
    return out


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
