"""Host side, numpy: from `ase.Atoms` to padded batches of `jraph.GraphsTuple`."""

from ewald_jax.graph.batching import batch_graphs
from ewald_jax.graph.budgets import (
    budgets_from_sizes,
    choose_budget,
    coarse_budget,
    fits,
    single_budget,
    sizes_of,
)
from ewald_jax.graph.build import check_atoms, graph_from_atoms, structure_from_atoms
from ewald_jax.graph.neighborhood import Neighborhood
from ewald_jax.graph.neighbors import neighbor_list
from ewald_jax.graph.schema import (
    Batch,
    Budget,
    Edges,
    Pairs,
    Sizes,
    Structure,
    Triplets,
    Waves,
)
from ewald_jax.graph.triplets import build_triplets
from ewald_jax.graph.verlet import still_holds, structure_from_list, verlet_list

__all__ = [
    "Batch",
    "Budget",
    "Edges",
    "Neighborhood",
    "Pairs",
    "Sizes",
    "Structure",
    "Triplets",
    "Waves",
    "batch_graphs",
    "budgets_from_sizes",
    "build_triplets",
    "check_atoms",
    "choose_budget",
    "coarse_budget",
    "fits",
    "graph_from_atoms",
    "neighbor_list",
    "single_budget",
    "sizes_of",
    "still_holds",
    "structure_from_atoms",
    "structure_from_list",
    "verlet_list",
]
