"""From structures to a batch that a given model can take."""

from collections.abc import Sequence

import ase
import flax.linen as nn
import jax
import numpy as np

from ewald_jax.graph import batch_graphs, single_budget, structure_from_atoms
from ewald_jax.graph.neighborhood import Neighborhood
from ewald_jax.graph.schema import Batch
from ewald_jax.nn.ewald_config import check_boundary
from ewald_jax.typing import InputError


def neighborhood(model: nn.Module, alone: bool = False) -> Neighborhood:
    """Which edges and wave vectors a model needs of a structure.

    Args:
        model: From `build_model`.
        alone: For structures that are batches of their own, see `EwaldConfig.wave_rule`.

    Returns:
        Its cutoff and limit of neighbors; ``symmetric_edges``, ``needs_triplets``,
        ``needs_pairs`` and the far edges of its ``atomic`` block where it has these fields;
        the wave vectors of its ``ewald`` block.
    """
    atomic = getattr(model, "atomic", None)
    return Neighborhood(
        model.cutoff,
        model.max_neighbors,
        symmetric=getattr(model, "symmetric_edges", False),
        triplets=getattr(model, "needs_triplets", False),
        far_cutoff=None if atomic is None else atomic.cutoff,
        far_max_neighbors=None if atomic is None else atomic.max_neighbors,
        waves=None if model.ewald is None else model.ewald.wave_rule(alone),
        pairs=getattr(model, "needs_pairs", False),
    )


def batch_from_atoms(
    list_of_atoms: Sequence[ase.Atoms], model: nn.Module, pad: bool = True
) -> Batch:
    """Builds a batch with the neighbor lists that `model` needs.

    Args:
        list_of_atoms: Structures.
        model: From `build_model`.
        pad: Pad to a rounded-up shape, so that similar batches share a compilation.

    Returns:
        Unlabelled batch, ready for `predict`, in JAX's default float type.

    Raises:
        InputError: If a structure is broken or not for this model, naming its index.
    """
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    needed = neighborhood(model, alone=len(list_of_atoms) == 1)
    structures = []
    for index, atoms in enumerate(list_of_atoms):
        try:
            check_structure(model, atoms.numbers, atoms.pbc)
            structures.append(structure_from_atoms(atoms, needed, dtype))
        except InputError as error:
            raise InputError(f"structure {index} {error}") from None
    budget = single_budget(structures, needed.triplets) if pad and structures else None
    return batch_graphs(structures, budget=budget, neighborhood=needed)


def check_structure(model: nn.Module, numbers: np.ndarray, pbc: np.ndarray) -> None:
    """Refuses structures that a model has no weights or no scheme for.

    Args:
        model: From `build_model`.
        numbers: [n] atomic numbers.
        pbc: [3] bool.

    Raises:
        InputError: If an element or the boundary conditions are not the model's.
    """
    largest = int(np.max(numbers, initial=0))
    # A model may number its elements otherwise than one row for each and one for padding.
    known = getattr(model, "max_atomic_number", model.num_elements - 1)
    if largest > known:
        raise InputError(
            f"has atomic number {largest}, but the model knows elements 1 to {known} "
            f"(num_elements = {model.num_elements})"
        )
    check_boundary(model.ewald, pbc)
