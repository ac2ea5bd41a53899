"""Flax modules: the Ewald block and the layers that models share."""

from ewald_jax.nn.ewald import EwaldBlock, EwaldFilter, EwaldVectorBlock
from ewald_jax.nn.ewald_config import EwaldConfig, check_boundary
from ewald_jax.nn.ewald_geometry import KSpace, kspace_geometry
from ewald_jax.nn.layers import ResidualLayer, ScaledDense, he_orthogonal, scaled_silu

__all__ = [
    "EwaldBlock",
    "EwaldConfig",
    "EwaldFilter",
    "EwaldVectorBlock",
    "KSpace",
    "ResidualLayer",
    "ScaledDense",
    "check_boundary",
    "he_orthogonal",
    "kspace_geometry",
    "scaled_silu",
]
