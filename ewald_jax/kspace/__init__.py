"""Fourier-space sums as pure functions, without flax."""

from ewald_jax.kspace.bessel import bessel_ratio
from ewald_jax.kspace.boundary import (
    WaveVectors,
    boundary_cell,
    scaled_positions,
    wave_vectors,
)
from ewald_jax.kspace.bspline import grid_places, sorting
from ewald_jax.kspace.channels import CHANNELS, channel_basis
from ewald_jax.kspace.damping import sinc_damping
from ewald_jax.kspace.filters import (
    coulomb_filter,
    gaussian_rbf,
    low_rank_filter,
    polynomial_envelope,
    radial_basis,
)
from ewald_jax.kspace.frame import centre, svd_frame
from ewald_jax.kspace.grids import (
    cell_volume,
    fractional,
    half_box,
    lattice_kvecs,
    lattice_sphere,
    reciprocal_cell,
    voxel_grid,
)
from ewald_jax.kspace.mesh import mesh_basis, mesh_message
from ewald_jax.kspace.mesh_rule import (
    MAX_ORDER,
    MIN_ORDER,
    MeshRule,
    check_mesh,
    fast_shape,
    mesh_error,
    mesh_spacing,
    waves_within,
)
from ewald_jax.kspace.open import (
    open_message,
    pair_kernel,
    pair_message,
    radial_nodes,
)
from ewald_jax.kspace.plane import plane_basis, plane_phases
from ewald_jax.kspace.quadrature import num_radial
from ewald_jax.kspace.sums import (
    PlaneSums,
    ewald_message,
    lattice_phases,
    message_from_phases,
    phases,
    structure_factor,
    turn_phases,
)
from ewald_jax.kspace.turns import sine_of_turns
from ewald_jax.kspace.waves import WaveRule, WaveSet, wave_set

__all__ = [
    "MAX_ORDER",
    "MIN_ORDER",
    "MeshRule",
    "PlaneSums",
    "CHANNELS",
    "WaveRule",
    "WaveSet",
    "WaveVectors",
    "bessel_ratio",
    "boundary_cell",
    "cell_volume",
    "centre",
    "channel_basis",
    "check_mesh",
    "coulomb_filter",
    "ewald_message",
    "fast_shape",
    "fractional",
    "gaussian_rbf",
    "grid_places",
    "half_box",
    "lattice_kvecs",
    "lattice_phases",
    "lattice_sphere",
    "low_rank_filter",
    "mesh_basis",
    "mesh_error",
    "mesh_message",
    "mesh_spacing",
    "message_from_phases",
    "num_radial",
    "open_message",
    "pair_kernel",
    "pair_message",
    "phases",
    "plane_basis",
    "plane_phases",
    "polynomial_envelope",
    "radial_basis",
    "radial_nodes",
    "reciprocal_cell",
    "scaled_positions",
    "sinc_damping",
    "sine_of_turns",
    "sorting",
    "structure_factor",
    "svd_frame",
    "turn_phases",
    "voxel_grid",
    "wave_set",
    "wave_vectors",
    "waves_within",
]
