"""From what a model returns to ASE's results, in physical units."""

from typing import Any

import ase
import numpy as np
from ase.stress import full_3x3_to_voigt_6_stress

from ewald_jax.data.statistics import Statistics
from ewald_jax.ensemble import mean_and_spread
from ewald_jax.typing import Float, InputError

SPREADS = ("energy_std", "forces_std")
"""Results that only an ensemble has."""


def results_of(
    atoms: ase.Atoms,
    sites: Float[np.ndarray, "members atoms"],
    forces: Float[np.ndarray, "members atoms 3"],
    stress: Float[np.ndarray, "members 3 3"] | None,
    statistics: Statistics | None,
) -> dict[str, Any]:
    """ASE's results of one structure.

    Args:
        atoms: The structure.
        sites: Energies of its atoms by each member of an ensemble, or by the only network, in
            model units as the rest.
        forces: Of its atoms.
        stress: In Cartesian axes, None if it was not computed.
        statistics: Scale and reference energies; None leaves model units.

    Returns:
        ``energy`` and ``free_energy`` (eV, float), ``energies`` [n] (eV), ``forces`` [n, 3]
        (eV/Å), and ``stress`` [6] (Voigt, eV/Å^3) where it is defined: see `has_stress` and
        `periodic_stress`. Of several members, these are means, and there are their standard
        deviations ``energy_std`` (eV, float) and ``forces_std`` [n, 3] (eV/Å).

    Raises:
        InputError: If a number is not finite.
    """
    statistics = statistics or Statistics()
    references = np.asarray(statistics.reference_energies)[atoms.numbers]
    # In float64 on the host: totals of hundreds of keV do not fit float32.
    sites = sites.astype(np.float64) * statistics.scale
    forces, forces_std = mean_and_spread(forces.astype(np.float64) * statistics.scale)
    energies = sites.mean(axis=0) + references
    energies += statistics.mean / len(atoms)
    results = {
        "energy": float(energies.sum()),
        "free_energy": float(energies.sum()),
        "energies": energies,
        "forces": forces,
    }
    if len(sites) > 1:
        # The references, which all members share, would only round it.
        results["energy_std"] = float(sites.sum(axis=1).std())
        results["forces_std"] = forces_std
    if stress is not None and has_stress(atoms):
        stress = stress.astype(np.float64).mean(axis=0) * statistics.scale
        results["stress"] = full_3x3_to_voigt_6_stress(periodic_stress(atoms, stress))
    for name, value in results.items():
        if not np.isfinite(value).all():
            raise InputError(
                f"has a predicted {name} that is not finite; the weights are broken, or it is "
                "far from the structures of the training"
            )
    return results


def has_stress(atoms: ase.Atoms) -> bool:
    """Whether stress is defined: some direction is periodic, and the cell has a volume."""
    return bool(atoms.pbc.any()) and atoms.cell.rank == 3


def periodic_stress(
    atoms: ase.Atoms, stress: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "3 3"]:
    """The part of the stress within the periodic directions.

    Open directions have no boundary that could be under stress: what `predict` gives there
    is the virial of forces, which vanish at equilibrium. Without it, cell filters and
    barostats leave vacuum alone. In a sum with a calculator that does give it, mask them.
    """
    if atoms.pbc.all():
        return stress
    basis, _ = np.linalg.qr(atoms.cell.array[atoms.pbc].T)
    within = basis @ basis.T
    return within @ stress @ within
