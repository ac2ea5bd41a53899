"""The networks: one paper, one file. Each returns node energies and nothing else.

A model is a flax module with the fields ``cutoff``, ``max_neighbors``, ``num_elements`` and
``ewald``, the class attribute ``needs_triplets``, and ``__call__(batch, kspace)``. Listing it
in `MODELS` gives it forces, stress, training, the command line and the contract tests;
`build_model` also takes the dotted path of a class elsewhere.
"""

from ewald_jax.models.dimenetpp import DimeNetPlusPlus
from ewald_jax.models.gemnet_t import GemNetT
from ewald_jax.models.inputs import batch_from_atoms, check_structure, neighborhood
from ewald_jax.models.painn import PaiNN
from ewald_jax.models.registry import MODELS, build_model, model_to_config
from ewald_jax.models.schnet import SchNet

__all__ = [
    "MODELS",
    "DimeNetPlusPlus",
    "GemNetT",
    "PaiNN",
    "SchNet",
    "batch_from_atoms",
    "build_model",
    "check_structure",
    "model_to_config",
    "neighborhood",
]
