"""Fourier-space sums as pure functions, without flax."""

from ewald_jax.kspace.damping import sinc_damping
from ewald_jax.kspace.filters import (
    coulomb_filter,
    gaussian_rbf,
    low_rank_filter,
    polynomial_envelope,
    radial_basis,
)
from ewald_jax.kspace.frame import svd_frame
from ewald_jax.kspace.grids import (
    cell_volume,
    fractional,
    half_box,
    lattice_kvecs,
    lattice_sphere,
    reciprocal_cell,
    voxel_grid,
)
from ewald_jax.kspace.sums import (
    ewald_message,
    lattice_phases,
    message_from_phases,
    phases,
    structure_factor,
)

__all__ = [
    "cell_volume",
    "coulomb_filter",
    "ewald_message",
    "fractional",
    "gaussian_rbf",
    "half_box",
    "lattice_kvecs",
    "lattice_phases",
    "lattice_sphere",
    "low_rank_filter",
    "message_from_phases",
    "phases",
    "polynomial_envelope",
    "radial_basis",
    "reciprocal_cell",
    "sinc_damping",
    "structure_factor",
    "svd_frame",
    "voxel_grid",
]
