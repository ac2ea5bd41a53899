"""From structures to a batch that a given model can take."""

from collections.abc import Sequence

import ase
import flax.linen as nn
import jax
import numpy as np

from ewald_jax.graph import batch_graphs, graph_from_atoms, single_budget
from ewald_jax.graph.schema import Batch
from ewald_jax.nn.ewald import check_boundary
from ewald_jax.typing import InputError


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
    graphs = []
    for index, atoms in enumerate(list_of_atoms):
        try:
            check_structure(model, atoms.numbers, atoms.pbc)
            graphs.append(graph_from_atoms(atoms, model.cutoff, model.max_neighbors, dtype))
        except InputError as error:
            raise InputError(f"structure {index} {error}") from None
    return batch_graphs(graphs, budget=single_budget(graphs) if pad and graphs else None)


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
    if largest >= model.num_elements:
        raise InputError(
            f"has atomic number {largest}, but the model knows elements 1 to "
            f"{model.num_elements - 1} (num_elements = {model.num_elements})"
        )
    check_boundary(model.ewald, pbc)
