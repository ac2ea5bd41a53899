"""Flax modules: the Ewald block and the layers that models share."""

from ewald_jax.nn.ewald import (
    EwaldBlock,
    EwaldConfig,
    EwaldFilter,
    KSpace,
    check_boundary,
    kspace_geometry,
)
from ewald_jax.nn.layers import ResidualLayer, ScaledDense, he_orthogonal, scaled_silu

__all__ = [
    "EwaldBlock",
    "EwaldConfig",
    "EwaldFilter",
    "KSpace",
    "ResidualLayer",
    "ScaledDense",
    "check_boundary",
    "he_orthogonal",
    "kspace_geometry",
    "scaled_silu",
]
