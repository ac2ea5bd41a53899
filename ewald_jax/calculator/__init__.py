"""Models as ASE calculators: energies, forces and stress of `ase.Atoms`."""

from ewald_jax.calculator.ase_calculator import EwaldCalculator
from ewald_jax.calculator.errors import SetupError, StructureError

__all__ = ["EwaldCalculator", "SetupError", "StructureError"]
