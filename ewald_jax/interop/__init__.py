"""Weights and formats of other programs."""

from ewald_jax.interop.torch_reference import from_reference

__all__ = ["from_reference"]
