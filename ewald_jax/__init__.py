"""Ewald message passing in JAX/Flax: long-range message passing for molecules and materials."""

from ewald_jax import interop, kspace
from ewald_jax.ensemble import EnsemblePrediction, member, predict_ensemble
from ewald_jax.models import MODELS, batch_from_atoms, build_model
from ewald_jax.nn.ewald import EwaldBlock, EwaldFilter
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.nn.ewald_geometry import kspace_geometry
from ewald_jax.potential import Prediction, init_params, model_outputs, predict
from ewald_jax.typing import InputError

__version__ = "0.1.0"

__all__ = [
    "MODELS",
    "EnsemblePrediction",
    "EwaldBlock",
    "EwaldCalculator",
    "EwaldConfig",
    "EwaldFilter",
    "InputError",
    "Prediction",
    "batch_from_atoms",
    "build_model",
    "init_params",
    "interop",
    "kspace",
    "kspace_geometry",
    "load_checkpoint",
    "load_pretrained",
    "member",
    "model_outputs",
    "predict",
    "predict_ensemble",
]


def __getattr__(name: str):
    """Names that take seconds to import, on first use: checkpoints, training, ASE."""
    if name == "load_checkpoint":
        from ewald_jax.train.checkpoint import load_checkpoint

        return load_checkpoint
    if name == "load_pretrained":
        from ewald_jax.pretrained import load_pretrained

        return load_pretrained
    if name == "EwaldCalculator":
        from ewald_jax.calculator import EwaldCalculator

        return EwaldCalculator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
