"""Numbers that look like those of another unit.

Bonds have nearly the length of two covalent radii, whatever the system, which gives the unit
of length away. Forces of unrelaxed structures are of the order of 1 eV/Å, and energies of equal
composition differ by less than a few eV per atom. Total energies with all electrons are those
of their atoms to within a few percent, which nothing else is. Where a number is out of its
range, and another unit brings it back, that unit is named. Warnings are guesses: nothing is
changed.
"""

from dataclasses import replace

import numpy as np
from ase.data import covalent_radii

from ewald_jax.data.dataset import GraphDataset
from ewald_jax.data.file_units import unit_factor
from ewald_jax.graph.schema import CELL, ENERGY, FORCES, POSITIONS, SHIFTS, SPECIES

_SAMPLE = 200
_BOND = (0.65, 1.6)
_FORCE = (0.02, 10.0)
_SPREAD = 20.0
"""Of energies per atom about the fit by composition, eV: more is no chemistry."""
_HYDROGEN = (0.5, 17.5)
_NO_HYDROGEN = 20.0
"""What an H atom lowers the energy by, eV: 13.6 by itself, 2 to 5 more in bonds, less if
energies count from something else. Elements with cores differ by the method."""
_CERTAIN = 5.0
"""Standard errors of a fitted energy that make it one."""
_LIGHT = {1: 13.6, 2: 79.0, 3: 203.5, 4: 399.1, 5: 671.0}
"""Energies that it takes to remove all electrons, eV, where the formula for them is poor."""
_BINDING = 7.0
"""Of an atom in matter, eV, at most."""
_CLOSE = (0.98, 1.04)
_MOSTLY = 0.9
_LENGTHS = ("Angstrom", "Bohr", "nm")
_ENERGIES = ("eV", "kcal/mol", "kJ/mol", "Hartree", "meV")


def unit_warnings(
    dataset: GraphDataset, energy_unit: str = "eV", length_unit: str = "Angstrom"
) -> list[str]:
    """Sentences about units that do not seem to be those of the file.

    Args:
        dataset: Read with these units.
        energy_unit: What the file's energies were taken for.
        length_unit: What its lengths were taken for.

    Returns:
        At most one sentence for lengths, and one for energies.
    """
    # Distances and labels are all that is looked at: no wave vectors.
    dataset = dataset.suited_to(replace(dataset.neighborhood, waves=None))
    chosen = np.unique(np.linspace(0, len(dataset) - 1, _SAMPLE).astype(int))
    bonds, sizes = [], []
    for index in chosen:
        sample = dataset[index]
        bonds.append(_shortest_bond(sample.graph))
        forces = sample.targets.get(FORCES)
        if forces is not None:
            sizes.append(np.sqrt(np.mean(np.square(forces))))
    found = []
    bonds = np.asarray(bonds)[np.isfinite(bonds)]
    if len(bonds):
        found += _lengths(float(np.median(bonds)), length_unit)
    if not found and ENERGY in dataset.labels:
        found += _energies(dataset, chosen, energy_unit)
    if not found and sizes:
        # Of the middle structure: one failed calculation is no unit.
        found += _forces(float(np.median(sizes)), energy_unit, length_unit)
    return found


def _lengths(bond: float, unit: str) -> list[str]:
    """By the shortest bond over the sum of its covalent radii."""
    if _BOND[0] <= bond <= _BOND[1]:
        return []
    likely = [
        other
        for other in _LENGTHS
        if _BOND[0]
        <= bond * unit_factor(other, "length") / unit_factor(unit, "length")
        <= _BOND[1]
    ]
    return [
        f"the shortest bonds are {bond:.2g} times the sum of covalent radii: data.length_unit "
        f"{unit!r} seems wrong{_perhaps(likely)}"
    ]


def _forces(rms: float, energy_unit: str, length_unit: str) -> list[str]:
    """By the root mean square of force components; zero is relaxed, not a unit."""
    if rms <= _FORCE[1]:
        return []
    likely = _others(rms, energy_unit, _FORCE)
    return [
        f"forces of {rms:.3g} eV/Å (root mean square) are too large for most structures: "
        f"data.energy_unit {energy_unit!r} or data.length_unit {length_unit!r} seems wrong"
        f"{_perhaps(likely)}"
    ]


def _energies(dataset: GraphDataset, chosen: np.ndarray, unit: str) -> list[str]:
    """By what atoms cost with all electrons, or the spread that composition leaves."""
    species = [dataset.species(index) for index in chosen]
    energies = dataset.energies[chosen]
    if likely := _with_all_electrons(species, energies, unit):
        return [
            f"energies are those of the atoms with all electrons in {likely}: "
            f"data.energy_unit {unit!r} seems wrong, perhaps it is {likely}"
        ]
    seen = np.unique(np.concatenate(species))
    counts = np.array([[np.sum(s == z) for z in seen] for s in species], float)
    if len(chosen) < 4 * len(seen):  # the fit would explain anything
        return []
    fitted = np.linalg.lstsq(counts, energies)[0]
    left = energies - counts @ fitted
    hydrogen = -_largest_of_hydrogen(seen, counts, fitted, left)
    if hydrogen > _NO_HYDROGEN:
        likely = _others(hydrogen, unit, _HYDROGEN)
        return [
            f"H atoms lower the energy by {hydrogen:.3g} eV each, which none does by more "
            f"than {_NO_HYDROGEN:g} eV: data.energy_unit {unit!r} seems wrong"
            f"{_perhaps([' or '.join(likely)] if likely else [])}"
        ]
    spread = float(np.median(np.abs(left) / counts.sum(axis=1)))
    if spread <= _SPREAD:
        return []
    likely = _others(spread, unit, (0.0, _SPREAD / 10))
    return [
        f"energies of equal composition differ by {spread:.3g} eV per atom: data.energy_unit "
        f"{unit!r} seems wrong{_perhaps(likely)}"
    ]


def _largest_of_hydrogen(
    seen: np.ndarray, counts: np.ndarray, fitted: np.ndarray, left: np.ndarray
) -> float:
    """Upper bound of the fitted energy of H, eV; infinite where the data do not give it."""
    if 1 not in seen:
        return np.inf
    column = int(np.flatnonzero(seen == 1)[0])
    others = np.delete(counts, column, axis=1)
    own = counts[:, column] - others @ np.linalg.lstsq(others, counts[:, column])[0]
    size = float(np.linalg.norm(own))
    if size < 1.0:  # the number of H atoms follows from those of the others
        return np.inf
    error = np.linalg.norm(left) / np.sqrt(len(left) - len(seen)) / size
    return float(fitted[column] + _CERTAIN * error)


def _with_all_electrons(species: list[np.ndarray], energies: np.ndarray, unit: str) -> str:
    """The other unit in which nearly all energies are those of their atoms, or ""."""
    heavy = np.array([s.max() > 2 for s in species])  # of H and He, too much is binding
    if not heavy.any():
        return ""
    bounds = [np.sum([_electrons(int(z)) for z in s], axis=0) for s in species]
    low, high = np.transpose(bounds)
    for other in _ENERGIES:
        values = -energies * unit_factor(other, "energy") / unit_factor(unit, "energy")
        if np.mean(((values > low) & (values < high))[heavy]) >= _MOSTLY:
            return "" if other == unit else other
    return ""


def _electrons(z: int) -> tuple[float, float]:
    """Bounds on minus the energy of an atom in matter with all its electrons, eV.

    Without relativity the formula of Thomas, Fermi, Scott and Schwinger (Schwinger, Phys. Rev.
    A 24, 2353 (1981)) is right to a percent from carbon on. Relativity adds 1 % at krypton, 3 %
    at xenon, 7 % at gold.
    """
    third = z ** (1 / 3)
    hartree = 0.768745 * z**2 * third - 0.5 * z**2 + 0.2699 * z * third**2
    energy = _LIGHT.get(z, hartree * unit_factor("Hartree", "energy"))
    relativity = 1.0 + 0.07 * (z / 79) ** 1.9
    return _CLOSE[0] * energy, _CLOSE[1] * energy * relativity + _BINDING


def _others(value: float, unit: str, bounds: tuple[float, float]) -> list[str]:
    """Units of energy in which the numbers of the file would be within bounds, best first."""
    raw = value / unit_factor(unit, "energy")
    values = {other: raw * unit_factor(other, "energy") for other in _ENERGIES}
    likely = [other for other, x in values.items() if bounds[0] <= x <= bounds[1]]
    return sorted(likely, key=lambda other: abs(np.log(values[other])))


def _perhaps(likely: list[str]) -> str:
    return f", perhaps it is {likely[0]}" if likely else ""


def _shortest_bond(graph) -> float:
    """The smallest ratio of an edge to the sum of the covalent radii of its atoms."""
    nodes, z = graph.nodes[POSITIONS], graph.nodes[SPECIES]
    vectors = nodes[graph.senders] + graph.edges[SHIFTS] @ graph.globals[CELL][0]
    lengths = np.linalg.norm(vectors - nodes[graph.receivers], axis=1)
    radii = covalent_radii[z[graph.senders]] + covalent_radii[z[graph.receivers]]
    return float(np.min(lengths / radii, initial=np.inf))
