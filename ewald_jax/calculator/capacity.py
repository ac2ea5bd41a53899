"""Padded sizes with room to grow, and a look at a structure before lists are made."""

import math

import ase
import numpy as np

from ewald_jax.graph import (
    Structure,
    fits,
    single_budget,
    sizes_of,
    structure_from_list,
)
from ewald_jax.graph.build import completed_cell
from ewald_jax.graph.neighborhood import Neighborhood
from ewald_jax.graph.schema import PBC, Budget
from ewald_jax.graph.verlet import VerletList
from ewald_jax.graph.waves import mesh_fits
from ewald_jax.typing import InputError

_BYTES_PER_CANDIDATE = 150
"""Of host memory while pairs are searched and sorted."""


_SMALL = 32
"""Atoms up to which a molecule has room for all pairs: its parts may come from afar."""


class Capacity:
    """One padded size per number of atoms and boundary conditions, which only ever grows."""

    def __init__(self, slack: float, triplets: bool):
        """No sizes yet.

        Args:
            slack: Share by which edges and wave vectors may grow before a size changes.
            triplets: Leave slots for triplets.
        """
        self._slack, self._triplets = slack, triplets
        self._budgets: dict[tuple[int, int], Budget] = {}

    def budget(self, structure: Structure, listed: VerletList, atoms: ase.Atoms) -> Budget:
        """The size for a structure: the one before if it still fits.

        Args:
            structure: Unpadded, from the list.
            listed: Its candidates of edges.
            atoms: The same structure.
        """
        exact = single_budget([structure], self._triplets)
        key = (exact.n_node, int(structure.graph.globals[PBC].sum()))
        before = self._budgets.get(key)
        if (
            before is not None
            and fits(before, sizes_of([structure]))
            and mesh_fits(before, structure)
        ):
            return before
        # Neighbors come in shells: those of a compressed structure may be many at once.
        compressed = structure_from_list(listed, atoms, compression=1 + self._slack)
        candidates = [
            before or exact,
            single_budget([compressed], self._triplets),
            single_budget([structure], self._triplets, self._slack),
        ]
        if not atoms.pbc.any() and len(atoms) <= _SMALL:
            triplets, far = self._triplets, listed.far is not None
            candidates.append(_all_pairs(exact, len(atoms), triplets, far))
        grown = Budget(*map(max, *candidates))
        grown = grown._replace(mesh=tuple(map(max, *(c.mesh for c in candidates))))
        self._budgets[key] = grown
        return grown


def _all_pairs(budget: Budget, num_atoms: int, triplets: bool, far: bool) -> Budget:
    """Room for edges between all atoms."""
    pairs, slots = num_atoms * (num_atoms - 1), num_atoms - 1
    return budget._replace(
        n_edge=pairs,
        n_far=pairs if far else 0,
        in_slots=slots if triplets else 0,
        out_slots=slots if triplets else 0,
    )


def check_size(
    atoms: ase.Atoms, neighborhood: Neighborhood, skin: float, memory_limit: int
) -> None:
    """Refuses a structure whose list of neighbors alone would not fit the memory.

    Args:
        atoms: Finite positions and cell.
        neighborhood: Of the model.
        skin: Å, added to the cutoff.
        memory_limit: Bytes.

    Raises:
        InputError: With the estimate.
    """
    cutoff = max(neighborhood.cutoff, neighborhood.far_cutoff or 0.0) + skin
    count = expected_edges(atoms, cutoff)
    if count * _BYTES_PER_CANDIDATE > memory_limit:
        raise InputError(
            f"has {len(atoms)} atoms with about {count:.2g} neighbors within {cutoff:g} Å, "
            f"which need {count * _BYTES_PER_CANDIDATE / 1e9:.3g} GB of memory, expected at "
            f"most {memory_limit / 1e9:.3g} GB"
        )


def expected_edges(atoms: ase.Atoms, cutoff: float) -> float:
    """Directed pairs within a cutoff at the structure's mean density."""
    cell = completed_cell(atoms)
    fractional = atoms.positions @ np.linalg.inv(cell)
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    # Along open axes, the extent of the atoms and what a cutoff reaches beyond.
    extents = np.ptp(fractional, axis=0) * heights + cutoff
    stretch = np.where(atoms.pbc, 1.0, extents / heights)
    volume = abs(np.linalg.det(cell)) * float(np.prod(stretch))
    neighbors = len(atoms) / volume * 4 / 3 * math.pi * cutoff**3
    return len(atoms) * (neighbors if atoms.pbc.any() else min(neighbors, len(atoms)))
