"""Unit conversion constants, once, as ASE (CODATA 2014) defines them.

The package works in Å, eV, eV/Å and eV/Å^3; multiply by a constant to get there.
"""

from typing import Final

from ase import units as _ase_units

HARTREE: Final[float] = _ase_units.Hartree
"""Hartree in eV."""

BOHR: Final[float] = _ase_units.Bohr
"""Bohr radius in Å."""

KCAL_PER_MOL: Final[float] = _ase_units.kcal / _ase_units.mol
"""kcal/mol in eV."""

KJ_PER_MOL: Final[float] = _ase_units.kJ / _ase_units.mol
"""kJ/mol in eV."""

COULOMB_CONSTANT: Final[float] = HARTREE * BOHR
"""e^2 / (4 pi eps_0) in eV Å."""
