"""Ewald message passing in JAX/Flax: long-range message passing for molecules and materials."""

__version__ = "0.1.0"
