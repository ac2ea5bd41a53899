"""Verlet lists: candidates of edges, a skin wider than the cutoff, that hold while atoms move.

The list is looked up, not used as it is: the edges of a structure are those of its candidates
that are within the cutoff now, so that they are the edges that a fresh search finds, one by one
and in the same order, for every model (Verlet, Phys. Rev. 159, 98, 1967, with a bound that
allows for strained cells). The wave vectors of the `radial` scheme are kept with them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import ase
import numpy as np

from ewald_jax.graph.build import check_atoms, check_distances, completed_cell, graph_of
from ewald_jax.graph.neighborhood import Neighborhood
from ewald_jax.graph.neighbors import Neighbors, nearest, neighbor_list, symmetrised
from ewald_jax.graph.schema import Edges, Structure
from ewald_jax.graph.waves import with_waves
from ewald_jax.kspace.mesh_rule import MARGIN
from ewald_jax.kspace.waves import WaveSet
from ewald_jax.typing import Float, InputError

_OPEN_STRAIN = 0.005
"""Largest strain under which the nodes of quadratures along open directions are kept."""


@dataclass(frozen=True, eq=False)
class VerletList:
    """Candidates of the edges of a structure.

    Attributes:
        neighborhood: Which edges are wanted.
        skin: How far beyond their cutoffs candidates reach, Å.
        numbers: [nodes] atomic numbers.
        pbc: [3] bool.
        positions: [nodes, 3] when the list was made, Å.
        cell: [3, 3] completed, at the same time, Å.
        near: Pairs within the cutoff and the skin, no limit of neighbors.
        far: The same for the second set of edges, None without one.
        waves: Wave vectors, None for models without.
    """

    neighborhood: Neighborhood
    skin: float
    numbers: np.ndarray
    pbc: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    near: Neighbors
    far: Neighbors | None
    waves: WaveSet | None


class Motion(NamedTuple):
    """What happened to a structure since its list was made.

    Attributes:
        displacement: Å, the most that an atom moved beside the strain and the mean.
        stretches: [3] principal stretches of the cell, ascending.
        turn: Spectral norm of the deformation gradient minus one.
    """

    displacement: float
    stretches: Float[np.ndarray, " 3"]
    turn: float


def verlet_list(atoms: ase.Atoms, neighborhood: Neighborhood, skin: float) -> VerletList:
    """Searches the candidates of a structure.

    Args:
        atoms: The structure.
        neighborhood: Of a model.
        skin: Å, at least 0; with 0 the list holds for these positions only.

    Returns:
        The list.

    Raises:
        InputError: As `structure_from_atoms`, or if `skin` is negative or not finite.
    """
    if not (skin >= 0 and np.isfinite(skin)):
        raise InputError(f"skin must be a length of at least 0 Å, not {skin}")
    check_atoms(atoms)
    cell, positions = completed_cell(atoms), np.array(atoms.positions, np.float64)

    def candidates(cutoff: float) -> Neighbors:
        return neighbor_list(positions, cell, atoms.pbc, cutoff + skin)

    near, far_cutoff = candidates(neighborhood.cutoff), neighborhood.far_cutoff
    # Atoms may move apart by the skin, and open directions be strained.
    margin = skin + _OPEN_STRAIN * float(np.linalg.norm(np.ptp(positions, axis=0)))
    listed = Structure(graph_of(atoms, cell, near, np.float64))
    return VerletList(
        neighborhood,
        skin,
        np.array(atoms.numbers),
        np.array(atoms.pbc, bool),
        positions,
        cell,
        near,
        None if far_cutoff is None else candidates(far_cutoff),
        with_waves(listed, neighborhood, margin).waves,
    )


def still_holds(listed: VerletList, atoms: ase.Atoms) -> bool:
    """Whether the candidates hold all edges of a structure, and the wave vectors are enough.

    A pair at distance d now was at most ``(d + 2 u) / s`` apart, u the largest displacement
    beside the strain of the cell and s its smallest stretch.

    Args:
        listed: From `verlet_list`.
        atoms: Finite positions and cell.
    """
    same = (
        len(atoms) == len(listed.numbers)
        and np.array_equal(atoms.numbers, listed.numbers)
        and np.array_equal(atoms.pbc, listed.pbc)
    )
    if not same:
        return False
    motion = _motion(listed, atoms)
    cutoffs = [listed.neighborhood.cutoff, listed.neighborhood.far_cutoff]
    smallest, largest = motion.stretches[0], motion.stretches[-1]
    for cutoff in cutoffs:
        if cutoff is not None and not (
            (cutoff + 2 * motion.displacement) < smallest * (cutoff + listed.skin)
        ):
            return False
    if listed.waves is None or not listed.pbc.any():
        return True
    if listed.pbc.all():
        # No vector from beyond the margin has come within the cutoff.
        return largest < MARGIN
    return motion.turn < _OPEN_STRAIN


def structure_from_list(
    listed: VerletList,
    atoms: ase.Atoms,
    dtype: np.dtype | type = np.float32,
    compression: float = 1.0,
) -> Structure:
    """The structure with the edges that it has now.

    Args:
        listed: A list that `still_holds`.
        atoms: The structure.
        dtype: Of positions and cell.
        compression: With more than 1, the edges that there will be when the volume is smaller
            by this factor, as far as candidates reach: what to leave room for.

    Returns:
        As `structure_from_atoms`; wave vectors may be more than are needed.

    Raises:
        InputError: If atoms are closer than 0.3 Å.
    """
    wanted, cell = listed.neighborhood, completed_cell(atoms)
    reach = compression ** (1 / 3)
    limits = wanted.cutoff * reach, wanted.max_neighbors
    near = _within(listed.near, atoms.positions, cell, *limits)
    check_distances(atoms, near)
    if wanted.symmetric and wanted.max_neighbors is not None:
        near = symmetrised(near)
    structure = Structure(graph_of(atoms, cell, near, dtype), waves=listed.waves)
    if listed.far is None:
        return structure
    limits = wanted.far_cutoff * reach, wanted.far_max_neighbors
    far = _within(listed.far, atoms.positions, cell, *limits)
    return structure._replace(far_edges=Edges(far.senders, far.receivers, far.shifts))


def _within(
    candidates: Neighbors,
    positions: np.ndarray,
    cell: np.ndarray,
    cutoff: float,
    max_neighbors: int | None,
) -> Neighbors:
    """The candidates within the cutoff now, in their order."""
    senders, receivers, shifts, _ = candidates
    # Differences first: both directions of a pair, and images on both sides, are equally far.
    vectors = positions[senders] - positions[receivers] + shifts @ cell
    distances = np.linalg.norm(vectors, axis=1)
    kept = np.flatnonzero(distances < cutoff)
    if max_neighbors is not None:
        kept = kept[nearest(receivers[kept], distances[kept], max_neighbors)]
    return Neighbors(senders[kept], receivers[kept], shifts[kept], distances[kept])


def _motion(listed: VerletList, atoms: ase.Atoms) -> Motion:
    deformation = np.eye(3)
    if listed.pbc.any():
        deformation = np.linalg.solve(listed.cell, completed_cell(atoms))
    moved = atoms.positions - listed.positions @ deformation
    moved = moved - moved.mean(axis=0)
    displacement = float(np.sqrt(np.max(np.sum(moved**2, axis=1))))
    stretches = np.linalg.svd(deformation, compute_uv=False)[::-1]
    turn = float(np.linalg.norm(deformation - np.eye(3), 2))
    return Motion(displacement, stretches, turn)
