"""Wave vectors of several structures, padded into the arrays of one batch."""

from collections.abc import Sequence

import numpy as np

from ewald_jax.graph.neighborhood import Neighborhood
from ewald_jax.graph.schema import CELL, PBC, POSITIONS, Budget, Structure, Waves
from ewald_jax.kspace.mesh_rule import fast_shape
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


def roomy_mesh(structures: Sequence[Structure], slack: float) -> tuple[int, int, int]:
    """The shape of a mesh that does for all, also for volumes larger by a share `slack`."""
    shapes = [s.waves.mesh for s in structures if s.waves is not None]
    least = np.max([(0, 0, 0), *shapes], axis=0) * (1 + slack) ** (1 / 3)
    return fast_shape(least) if least.any() else (0, 0, 0)


def mesh_fits(budget: Budget, structure: Structure) -> bool:
    """Whether the mesh of a budget is fine enough for a structure."""
    needed = (0, 0, 0) if structure.waves is None else structure.waves.mesh
    return all(have >= need for have, need in zip(budget.mesh, needed, strict=True))


def joined_mesh(
    structures: Sequence[Structure], budget: Budget
) -> tuple[np.ndarray, ...] | None:
    """The waves of a mesh that is fine enough for all structures of a batch.

    Args:
        structures: All of them on a mesh, or none.
        budget: Least size of the mesh.

    Returns:
        Indices along each axis, None if no structure is on a mesh.

    Raises:
        InputError: If only some are.
    """
    sets = [structure.waves for structure in structures]
    on_mesh = [found is not None and any(found.mesh) for found in sets]
    if not any(on_mesh):
        return None
    if not all(on_mesh):
        raise InputError(
            f"structure {on_mesh.index(True)} has its wave vectors on a mesh, but structure "
            f"{on_mesh.index(False)} of the same batch has not; expected structures that are "
            "periodic along all three lattice vectors, batches of one, or ewald.sum 'direct'"
        )
    shape = np.max([budget.mesh, *(found.mesh for found in sets)], axis=0)
    return tuple(np.round(n * np.fft.fftfreq(n)).astype(np.int32) for n in shape)


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
