"""Budgets: the static shapes of batches that a data set needs.

Each distinct shape costs one compilation, so batches are padded to the smallest of a few
budgets. The last budget fits any batch; the smaller ones fit typical batches.
"""

import math
from collections.abc import Sequence

import numpy as np

from ewald_jax.graph.schema import Budget, Sizes, Structure
from ewald_jax.graph.triplets import degrees
from ewald_jax.graph.waves import in_pairs, packed_rows, roomy_mesh
from ewald_jax.typing import InputError

_QUANTILES = (0.5, 0.95, 1.0)
"""Of simulated batch sizes; with the worst case they make the default four buckets."""

_SIMULATED_BATCHES = 512

_TOTALS = ("n_node", "n_edge", "n_far", "n_pairs")
"""What the structures of a batch share."""

_LARGEST = ("n_node", "in_slots", "out_slots", "n_kvecs", "n_quad")
"""What the largest of them decides."""

_WORTH_IT = 0.95
"""Shapes within 5 % of the next larger one are not worth a compilation."""


def sizes_of(structures: Sequence[Structure]) -> Sizes:
    """What each structure takes up in a batch, int64."""

    def per_structure(count) -> np.ndarray:
        return np.array([count(structure) for structure in structures], np.int64)

    return Sizes(
        n_node=per_structure(lambda s: s.graph.n_node[0]),
        n_edge=per_structure(lambda s: s.graph.n_edge[0]),
        n_far=per_structure(lambda s: 0 if s.far_edges is None else len(s.far_edges[0])),
        in_slots=per_structure(lambda s: degrees(s.graph.receivers)),
        out_slots=per_structure(lambda s: degrees(s.graph.senders)),
        n_kvecs=per_structure(lambda s: 0 if s.waves is None else len(s.waves.nodes)),
        n_pairs=per_structure(_num_pairs),
        n_quad=per_structure(lambda s: 0 if s.waves is None else s.waves.num_quad),
    )


def budgets_from_sizes(
    sizes: Sizes,
    batch_size: int,
    max_buckets: int = 4,
    seed: int = 0,
    triplets: bool = False,
) -> tuple[Budget, ...]:
    """Chooses the shapes of a data set's batches, ascending.

    Batches of `batch_size` random structures are drawn, and shapes taken at quantiles of
    their totals. The last shape holds the largest structures all at once, so that every batch
    fits one; it is compiled only if a batch ever needs it.

    Args:
        sizes: Of the structures of the data set.
        batch_size: Structures per batch.
        max_buckets: Most shapes, at least 1.
        seed: Of the simulated batches.
        triplets: Leave slots for triplets, the same in all shapes.

    Returns:
        One to `max_buckets` budgets.

    Raises:
        InputError: If there are no structures, or `batch_size` or `max_buckets` is below 1.
    """
    sizes = Sizes(*(np.asarray(values, np.int64) for values in sizes))
    count = len(sizes.n_node)
    if count == 0:
        raise InputError("budgets need at least one structure, the data set is empty")
    if batch_size < 1 or max_buckets < 1:
        raise InputError(
            f"batch_size and max_buckets must be at least 1, not {batch_size}, {max_buckets}"
        )
    size = min(batch_size, count)
    totals = np.stack([getattr(sizes, name) for name in _TOTALS])
    largest = np.stack([getattr(sizes, name) for name in _LARGEST])
    rng = np.random.default_rng(seed)
    draws = np.stack(
        [rng.choice(count, size, replace=False) for _ in range(_SIMULATED_BATCHES)]
    )
    worst = np.sort(totals, axis=1)[:, -size:].sum(1)
    kept = [_rounded(worst, largest.max(1), size, triplets)]
    if sizes.n_quad.any():
        kept[0] = kept[0]._replace(pair_rows=size)
    drawn = totals[:, draws].sum(-1), largest[:, draws].max(-1)
    for quantile in reversed(_QUANTILES):
        typical = (np.quantile(values, quantile, axis=1) for values in drawn)
        budget = _rounded(*typical, size, triplets)
        if sizes.n_quad.any():
            rows = [_pair_rows(sizes.take(draw), budget.max_nodes) for draw in draws]
            # Fewer slots may take more rows, but a smaller shape is smaller in everything.
            rows = min(math.ceil(np.quantile(rows, quantile)), kept[0].pair_rows)
            budget = budget._replace(pair_rows=rows)
        next_larger = kept[0]
        if any(
            getattr(budget, name) < _WORTH_IT * getattr(next_larger, name)
            for name in (*_TOTALS, "max_nodes", "pair_rows")
        ):
            kept.insert(0, budget)
    return tuple(kept[-max_buckets:])


def choose_budget(budgets: Sequence[Budget], sizes: Sizes) -> Budget:
    """The smallest budget that holds a batch.

    Args:
        budgets: Ascending. One without slots is for batches without triplets.
        sizes: Of the structures of the batch, at least one.

    Returns:
        The first that is large enough.

    Raises:
        InputError: If none is, with the totals and the largest budget.
    """
    for budget in budgets:
        if fits(budget, sizes):
            return budget
    n_graph = len(sizes.n_node)
    n_node, n_edge, n_far, n_pairs, *largest = _needs(sizes)
    max_nodes, in_slots, out_slots, n_kvecs, n_quad = largest
    far = f" {n_far} far edges," if n_far else ""
    slots = (
        f", {in_slots} edges into and {out_slots} out of one atom"
        if budgets[-1].in_slots
        else ""
    )
    waves = f", {n_kvecs} wave vectors" if n_kvecs else ""
    waves += f", {n_pairs} pairs, {n_quad} radial nodes" if n_quad else ""
    raise InputError(
        f"a batch of {n_graph} structures with {n_node} atoms, {n_edge} edges,{far} up to "
        f"{max_nodes} atoms in one structure{slots}{waves} is larger than the largest budget "
        f"{budgets[-1]}; expected a smaller batch size, or budgets made from these data"
    )


def fits(budget: Budget, sizes: Sizes) -> bool:
    """Whether a batch of structures of these sizes, at least one, is within a budget."""
    n_node, n_edge, n_far, n_pairs, *largest = _needs(sizes)
    max_nodes, in_slots, out_slots, n_kvecs, n_quad = largest
    return (
        n_node < budget.n_node
        and n_edge <= budget.n_edge
        and len(sizes.n_node) < budget.n_graph
        and max_nodes <= budget.max_nodes
        and n_far <= budget.n_far
        and n_kvecs <= budget.n_kvecs
        and n_pairs <= budget.n_pairs
        and n_quad <= budget.n_quad
        and (n_quad == 0 or _pair_rows(sizes, budget.max_nodes) <= budget.pair_rows)
        and (budget.in_slots == 0 or in_slots <= budget.in_slots)
        and (budget.out_slots == 0 or out_slots <= budget.out_slots)
    )


def single_budget(
    structures: Sequence[Structure], triplets: bool = False, slack: float = 0.0
) -> Budget:
    """A budget that just fits these structures, rounded up so that similar ones fit too.

    Args:
        structures: At least one.
        triplets: Leave slots for triplets.
        slack: Share by which edges, wave vectors and the volume on a mesh may grow.

    Returns:
        The budget.
    """
    sizes = sizes_of(structures)
    room = dict.fromkeys((*_TOTALS, *_LARGEST), 1 + slack)
    # The number of atoms, and so that of their pairs, stays.
    room |= {"n_node": 1.0, "n_pairs": 1.0}
    totals = [math.ceil(getattr(sizes, name).sum() * room[name]) for name in _TOTALS]
    largest = [math.ceil(getattr(sizes, name).max() * room[name]) for name in _LARGEST]
    budget = _rounded(totals, largest, len(structures), triplets)
    pair_rows = _pair_rows(sizes, budget.max_nodes)
    return budget._replace(pair_rows=pair_rows, mesh=roomy_mesh(structures, slack))


def coarse_budget(
    structures: Sequence[Structure], batch_size: int, triplets: bool = False
) -> Budget:
    """A budget on a coarse grid, so that a whole file of structures needs few compilations.

    Args:
        structures: One to `batch_size`.
        batch_size: Leave room for this many, but for no more atoms.
        triplets: Leave slots for triplets.

    Returns:
        The budget.
    """

    def coarse(size: int) -> int:
        return math.ceil(2 ** (math.ceil(2 * math.log2(size)) / 2)) if size else 0

    sizes = sizes_of(structures)
    max_nodes = coarse(sizes.n_node.max())
    return Budget(
        n_node=coarse(sizes.n_node.sum() + 1),
        n_edge=coarse(sizes.n_edge.sum() + 1),
        n_graph=batch_size + 1,
        max_nodes=max_nodes,
        n_far=coarse(sizes.n_far.sum()),
        in_slots=coarse(sizes.in_slots.max()) if triplets else 0,
        out_slots=coarse(sizes.out_slots.max()) if triplets else 0,
        n_kvecs=coarse(sizes.n_kvecs.max()),
        n_pairs=coarse(sizes.n_pairs.sum()),
        pair_rows=coarse(_pair_rows(sizes, max_nodes)),
        n_quad=coarse(sizes.n_quad.max()),
    )


def exact_budget(structures: Sequence[Structure]) -> Budget:
    """What these structures take up, without room for padding or triplets.

    Args:
        structures: At least one.

    Returns:
        The sizes of an unpadded batch.
    """
    sizes = sizes_of(structures)
    n_node, n_edge, n_far, n_pairs = (int(getattr(sizes, name).sum()) for name in _TOTALS)
    max_nodes = int(sizes.n_node.max())
    return Budget(
        n_node,
        n_edge,
        len(structures),
        max_nodes,
        n_far,
        n_kvecs=int(sizes.n_kvecs.max()),
        n_pairs=n_pairs,
        pair_rows=_pair_rows(sizes, max_nodes),
        n_quad=int(sizes.n_quad.max()),
    )


def _rounded(
    totals: Sequence[float], largest: Sequence[float], n_graph: int, triplets: bool
) -> Budget:
    """Room for these totals, for padding, and for the largest of the structures."""
    n_node, n_edge, n_far, n_pairs = totals
    max_nodes, in_slots, out_slots, n_kvecs, n_quad = map(math.ceil, largest)
    return Budget(
        n_node=_round_up(n_node + 1, 16),
        n_edge=_round_up(max(n_edge, 1), 64),
        n_graph=n_graph + 1,
        max_nodes=_round_up(max_nodes, 4),
        n_far=_round_up(n_far, 64),
        in_slots=_round_up(in_slots, 4) if triplets else 0,
        out_slots=_round_up(out_slots, 4) if triplets else 0,
        n_kvecs=_round_up(n_kvecs, 8),
        n_pairs=_round_up(n_pairs, 64),
        n_quad=_round_up(n_quad, 4),
    )


def _needs(sizes: Sizes) -> list[int]:
    """What a batch takes up: what its structures share, and the most that one needs."""
    totals = [int(getattr(sizes, name).sum()) for name in _TOTALS]
    return totals + [int(getattr(sizes, name).max()) for name in _LARGEST]


def _pair_rows(sizes: Sizes, slots: int) -> int:
    return packed_rows(sizes.n_node[sizes.n_quad > 0], slots)


def _num_pairs(structure: Structure) -> int:
    if structure.waves is None or not in_pairs(structure.waves):
        return 0
    n = int(structure.graph.n_node[0])
    return n * (n - 1) // 2


def _round_up(value: float, multiple: int) -> int:
    return -(-int(value) // multiple) * multiple
