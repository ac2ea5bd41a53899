"""From one `ase.Atoms` to one unpadded `jraph.GraphsTuple` of numpy arrays."""

import ase
import jraph
import numpy as np
from ase.data import chemical_symbols
from ase.geometry import complete_cell

from ewald_jax.graph.crowding import TooCloseError, check_crowding
from ewald_jax.graph.neighborhood import Neighborhood
from ewald_jax.graph.neighbors import Neighbors, neighbor_list, symmetrised
from ewald_jax.graph.schema import (
    CELL,
    MAX_ATOMIC_NUMBER,
    PBC,
    POSITIONS,
    SHIFTS,
    SPECIES,
    Edges,
    Structure,
)
from ewald_jax.graph.waves import with_waves
from ewald_jax.typing import InputError

MIN_DISTANCE = 0.3
"""Å. No two atoms of a real structure are closer; a file with such a pair is broken."""

MIN_CELL_HEIGHT = 1e-3
"""Å. A periodic cell with less height along one axis counts as singular."""


def structure_from_atoms(
    atoms: ase.Atoms,
    neighborhood: Neighborhood | float,
    dtype: np.dtype | type = np.float32,
) -> Structure:
    """Builds the graph of one structure and whatever else a model needs of it.

    Args:
        atoms: The structure; any `pbc`, any cell shape, atoms anywhere.
        neighborhood: Which edges; a number is a cutoff, Å, that keeps all neighbors.
        dtype: Of positions and cell.

    Returns:
        The graph, numpy arrays, without padding, the far edges and the wave vectors.

    Raises:
        InputError: As `graph_from_atoms`, or if the cutoff is not positive and finite, or
            the structure needs more wave vectors than allowed.
    """
    neighborhood = Neighborhood.of(neighborhood)
    graph = graph_from_atoms(
        atoms,
        neighborhood.cutoff,
        neighborhood.max_neighbors,
        dtype,
        neighborhood.symmetric,
    )
    structure = with_waves(Structure(graph), neighborhood)
    if neighborhood.far_cutoff is None:
        return structure
    far = _neighbors(atoms, neighborhood.far_cutoff, neighborhood.far_max_neighbors)
    return structure._replace(far_edges=Edges(far.senders, far.receivers, far.shifts))


def graph_from_atoms(
    atoms: ase.Atoms,
    cutoff: float,
    max_neighbors: int | None = None,
    dtype: np.dtype | type = np.float32,
    symmetric: bool = False,
) -> jraph.GraphsTuple:
    """Builds the graph of one structure (see `graph.schema` for all arrays).

    Args:
        atoms: The structure; any `pbc`, any cell shape, atoms anywhere.
        cutoff: Distance cutoff of the edges, Å.
        max_neighbors: Nearest neighbors kept for each atom, None for all.
        dtype: Of positions and cell.
        symmetric: Keep every pair in both directions or not at all.

    Returns:
        One graph, numpy arrays, without padding.

    Raises:
        InputError: If the structure is empty, has non-finite positions or cell, an unknown
            element, a zero or singular cell with `pbc` set, atoms closer than 0.3 Å, or more
            neighbors than any matter has.
    """
    check_atoms(atoms)
    cell = completed_cell(atoms)
    neighbors = _neighbors(atoms, cutoff, max_neighbors)
    check_distances(atoms, neighbors)
    if symmetric and max_neighbors is not None:
        neighbors = symmetrised(neighbors)
    return graph_of(atoms, cell, neighbors, dtype)


def graph_of(
    atoms: ase.Atoms, cell: np.ndarray, neighbors: Neighbors, dtype: np.dtype | type
) -> jraph.GraphsTuple:
    """The graph of a structure whose edges are known.

    Args:
        atoms: The structure.
        cell: [3, 3], from `completed_cell`.
        neighbors: Its edges.
        dtype: Of positions and cell.

    Returns:
        As `graph_from_atoms`.
    """
    return jraph.GraphsTuple(
        nodes={
            POSITIONS: atoms.positions.astype(dtype),
            SPECIES: atoms.numbers.astype(np.int32),
        },
        edges={SHIFTS: neighbors.shifts},
        senders=neighbors.senders,
        receivers=neighbors.receivers,
        globals={CELL: cell.astype(dtype)[None], PBC: np.array(atoms.pbc, bool)[None]},
        n_node=np.array([len(atoms)], np.int32),
        n_edge=np.array([len(neighbors.senders)], np.int32),
    )


def _neighbors(atoms: ase.Atoms, cutoff: float, max_neighbors: int | None) -> Neighbors:
    cell = completed_cell(atoms)
    if cutoff > 0 and np.isfinite(cutoff):
        check_crowding(atoms.positions, cell, np.asarray(atoms.pbc), cutoff, MIN_DISTANCE)
    return neighbor_list(atoms.positions, cell, atoms.pbc, cutoff, max_neighbors)


def completed_cell(atoms: ase.Atoms) -> np.ndarray:
    """The cell [3, 3] with zero lattice vectors replaced by orthogonal unit vectors."""
    cell = np.asarray(atoms.cell.array, np.float64)
    if not cell.any():
        return np.eye(3)
    if not atoms.pbc.any() and abs(np.linalg.det(cell)) < MIN_CELL_HEIGHT**3:
        return np.eye(3)  # a meaningless cell that nothing reads
    return np.asarray(complete_cell(cell), np.float64)


def check_atoms(atoms: ase.Atoms) -> None:
    """Refuses structures that no model can take.

    Raises:
        InputError: See `graph_from_atoms`.
    """
    if len(atoms) == 0:
        raise InputError("has no atoms, expected at least one")
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
    if len(bad):
        raise InputError(
            f"has a NaN or infinite position at atom {bad[0]}, expected numbers"
        )
    bad = np.flatnonzero((atoms.numbers < 1) | (atoms.numbers > MAX_ATOMIC_NUMBER))
    if len(bad):
        raise InputError(
            f"has an unknown element at atom {bad[0]} (atomic number "
            f"{atoms.numbers[bad[0]]}), expected 1 to {MAX_ATOMIC_NUMBER}"
        )
    cell = np.asarray(atoms.cell.array)
    if not np.isfinite(cell).all():
        raise InputError("has a NaN or infinite number in its cell, expected numbers")
    for axis in range(3):
        if atoms.pbc[axis] and not cell[axis].any():
            raise InputError(
                f"is periodic along lattice vector {axis + 1}, which is zero; expected a "
                "cell, or pbc off along it"
            )
    if atoms.pbc.any() and _smallest_height(cell) < MIN_CELL_HEIGHT:
        raise InputError(
            "is periodic but its cell is singular (linearly dependent lattice vectors "
            f"{cell.tolist()}), expected three independent ones"
        )


def check_distances(atoms: ase.Atoms, neighbors: Neighbors) -> None:
    """Refuses structures with atoms on top of each other.

    Raises:
        TooCloseError: If two atoms, or an atom and a periodic image, are closer than 0.3 Å.
    """
    if len(neighbors.distances) == 0:
        return
    closest = int(np.argmin(neighbors.distances))
    if neighbors.distances[closest] < MIN_DISTANCE:
        i, j = int(neighbors.receivers[closest]), int(neighbors.senders[closest])
        names = [f"{chemical_symbols[atoms.numbers[k]]}{k}" for k in (i, j)]
        raise TooCloseError(
            f"has atoms {names[0]} and {names[1]} at {neighbors.distances[closest]:.3f} Å, "
            f"expected at least {MIN_DISTANCE} Å"
        )


def _smallest_height(cell: np.ndarray) -> float:
    """Smallest distance between opposite faces of the completed cell, Å; 0 if it is flat."""
    with np.errstate(invalid="ignore"):
        cell = complete_cell(cell)
    if not np.isfinite(cell).all():  # two parallel vectors have no normal
        return 0.0
    volume = abs(np.linalg.det(cell))
    areas = [
        np.linalg.norm(np.cross(cell[(a + 1) % 3], cell[(a + 2) % 3])) for a in range(3)
    ]
    return float(min(volume / area if area > 0 else 0.0 for area in areas))
