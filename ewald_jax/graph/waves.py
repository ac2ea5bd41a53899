"""Wave vectors of several structures, padded into the arrays of one batch."""

from collections.abc import Sequence

import numpy as np

from ewald_jax.graph.schema import (
    CELL,
    PBC,
    POSITIONS,
    Budget,
    Neighborhood,
    Structure,
    Waves,
)
from ewald_jax.kspace.open import radial_nodes
from ewald_jax.kspace.waves import WaveSet, wave_set
from ewald_jax.typing import InputError


def with_waves(
    structure: Structure, neighborhood: Neighborhood, margin: float = 0.0
) -> Structure:
    """Adds the wave vectors that a neighborhood asks for.

    Args:
        structure: Unpadded.
        neighborhood: Of a model.
        margin: As in `wave_set`, Å.

    Returns:
        The structure; with `waves` None if the model needs none.

    Raises:
        InputError: See `kspace.waves.wave_set`.
    """
    if neighborhood.waves is None:
        return structure._replace(waves=None)
    graph = structure.graph
    found = wave_set(
        graph.nodes[POSITIONS],
        graph.globals[CELL][0],
        graph.globals[PBC][0],
        neighborhood.waves,
        margin,
    )
    return structure._replace(waves=found)


def joined_waves(
    structures: Sequence[Structure], rows: int, num_nodes: int, budget: Budget
) -> Waves | None:
    """The wave vectors of a batch.

    Args:
        structures: All of them with wave vectors, or none.
        rows: Of the dense layout.
        num_nodes: Of the padded graph.
        budget: Sizes to pad to; there may be more nodes of the pair form than are needed.

    Returns:
        Arrays in the type of the positions, None if no structure has wave vectors.

    Raises:
        InputError: If only some have.
    """
    sets = [structure.waves for structure in structures]
    missing = [index for index, found in enumerate(sets) if found is None]
    if len(missing) == len(sets):
        return None
    if missing:
        raise InputError(
            f"structure {missing[0]} has no wave vectors, but others of the batch have"
        )
    dtype = structures[0].graph.nodes[POSITIONS].dtype
    x, w = radial_nodes(budget.n_quad)
    slots, n_kvecs = budget.max_nodes, budget.n_kvecs
    n_node = np.array([int(structure.graph.n_node[0]) for structure in structures])
    first_node = np.cumsum(n_node) - n_node
    senders = np.full(budget.n_pairs, n_node.sum(), np.int32)
    receivers = senders.copy()
    pair_index = np.full((budget.pair_rows, slots), num_nodes, np.int32)
    in_pair_form = np.flatnonzero([in_pairs(found) for found in sets])
    places = packed(n_node[in_pair_form], slots)
    start = 0
    waves = Waves(
        np.zeros((rows, n_kvecs, 3), np.int32),
        np.zeros((rows, n_kvecs, 3), dtype),
        np.zeros((rows, n_kvecs), dtype),
        np.zeros((rows, n_kvecs), dtype),
        pair_index,
        senders,
        receivers,
        x.astype(dtype),
        w.astype(dtype),
    )
    for row, found in enumerate(sets):
        count = len(found.nodes)
        for whole, part in zip(waves[:4], found[:4], strict=True):
            whole[row, :count] = part
    for structure, (row, slot) in zip(in_pair_form, places, strict=True):
        n, first = n_node[structure], first_node[structure]
        pair_index[row, slot : slot + n] = first + np.arange(n)
        i, j = np.triu_indices(n, 1)
        pairs = slice(start, start + len(i))
        senders[pairs], receivers[pairs] = i + first, j + first
        start += len(i)
    return waves


def packed(n_node: Sequence[int] | np.ndarray, slots: int) -> list[tuple[int, int]]:
    """Places for molecules in rows, the largest first, each in the first row with room.

    Args:
        n_node: Atoms of each.
        slots: Of a row; larger molecules count as so large.

    Returns:
        Row and first slot of each molecule.
    """
    used: list[int] = []
    places = [(0, 0)] * len(n_node)
    for molecule in np.argsort(-np.asarray(n_node), kind="stable"):
        n = min(int(n_node[molecule]), slots)
        row = next((r for r, u in enumerate(used) if u + n <= slots), len(used))
        if row == len(used):
            used.append(0)
        places[molecule] = (row, used[row])
        used[row] += n
    return places


def packed_rows(n_node: Sequence[int] | np.ndarray, slots: int) -> int:
    """Number of rows that `packed` fills."""
    return max((row + 1 for row, _ in packed(n_node, slots)), default=0)


def in_pairs(waves: WaveSet) -> bool:
    """Whether the message of a structure is a sum over pairs of its atoms."""
    return waves.num_quad > 0
