"""Wave vectors of several structures, padded into the arrays of one batch."""

from collections.abc import Sequence

import numpy as np

from ewald_jax.graph.schema import CELL, PBC, POSITIONS, Neighborhood, Structure, Waves
from ewald_jax.kspace.open import radial_nodes
from ewald_jax.kspace.waves import WaveSet, wave_set
from ewald_jax.typing import InputError


def with_waves(structure: Structure, neighborhood: Neighborhood) -> Structure:
    """Adds the wave vectors that a neighborhood asks for.

    Args:
        structure: Unpadded.
        neighborhood: Of a model.

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
    )
    return structure._replace(waves=found)


def joined_waves(
    structures: Sequence[Structure], rows: int, n_kvecs: int, n_pairs: int, n_quad: int
) -> Waves | None:
    """The wave vectors of a batch.

    Args:
        structures: All of them with wave vectors, or none.
        rows: Of the dense layout.
        n_kvecs: Wave vectors to pad to.
        n_pairs: Pairs of atoms to pad to.
        n_quad: Nodes of the pair form; there may be more than a structure needs.

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
    x, w = radial_nodes(n_quad)
    n_node = np.array([int(structure.graph.n_node[0]) for structure in structures])
    senders = np.full(n_pairs, n_node.sum(), np.int32)
    receivers = senders.copy()
    start = 0
    waves = Waves(
        np.zeros((rows, n_kvecs, 3), np.int32),
        np.zeros((rows, n_kvecs, 3), dtype),
        np.zeros((rows, n_kvecs), dtype),
        np.zeros((rows, n_kvecs), dtype),
        np.zeros(rows, bool),
        senders,
        receivers,
        x.astype(dtype),
        w.astype(dtype),
    )
    for row, found in enumerate(sets):
        count = len(found.nodes)
        for whole, part in zip(waves[:4], found[:4], strict=True):
            whole[row, :count] = part
        if in_pairs(found):
            waves.in_pairs[row] = True
            i, j = np.triu_indices(n_node[row], 1)
            first, pairs = n_node[:row].sum(), slice(start, start + len(i))
            senders[pairs], receivers[pairs] = i + first, j + first
            start += len(i)
    return waves


def in_pairs(waves: WaveSet) -> bool:
    """Whether the message of a structure is a sum over pairs of its atoms."""
    return waves.num_quad > 0
