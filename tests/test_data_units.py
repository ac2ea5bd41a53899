"""Energies in another unit than the config says, of any elements; no false alarms."""

import ase
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers

from ewald_jax.data import DataConfig, LabelOptions, dataset_from_atoms, load_dataset
from ewald_jax.data.file_units import unit_factor
from ewald_jax.data.plausible import _electrons, unit_warnings

# Of atoms with all electrons, Hartree, Hartree-Fock (relativistic from krypton on).
OF_ATOMS = {"H": -0.5, "Li": -7.43, "Be": -14.57, "B": -24.53, "C": -37.69, "N": -54.4}
OF_ATOMS |= {"O": -74.81, "F": -99.41, "Na": -161.86, "Si": -288.85, "P": -340.72}
OF_ATOMS |= {"S": -397.5, "Cl": -459.48, "Fe": -1262.44, "Ge": -2075.36, "Kr": -2788.9}
OF_ATOMS |= {"I": -7114.0, "Au": -19036.0}

MATERIALS = {
    "molecules": ("H2O", "CH4", "NH3", "CO2", "H2"),
    "no C, N or O": ("SiH4", "PH3", "SH2", "ClF", "NaCl"),
    "one composition": ("SiH4",),
    "light": ("LiH", "BeH", "BF", "F2", "LiF"),
    "heavy": ("AuI", "KrFe", "GeI", "Au2", "FeAu"),
}


@pytest.mark.parametrize("name", MATERIALS)
def test_total_energies_in_hartree(name):
    """As read from a file of DFT with all electrons, without a unit in the config."""
    frames = []
    for i in range(20):
        symbols = ase.Atoms(MATERIALS[name][i % len(MATERIALS[name])]).symbols
        places = 1.9 * np.stack(np.meshgrid(*[np.arange(2)] * 3), -1).reshape(-1, 3)
        atoms = ase.Atoms(symbols, places[: len(symbols)])
        if name in ("molecules", "no C, N or O", "one composition", "light"):
            atoms.positions *= 0.8
        energy = sum(OF_ATOMS[symbol] for symbol in symbols) + 0.01 * np.sin(i) - 0.1
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
        frames.append(atoms)
    (sentence,) = unit_warnings(dataset_from_atoms(frames, 5.0))
    assert "with all electrons in Hartree" in sentence
    right = dataset_from_atoms(frames, 5.0, LabelOptions(energy_unit="Hartree"))
    assert unit_warnings(right, "Hartree") == []


def test_energies_of_atoms_by_a_formula():
    """Against Hartree-Fock, without relativity up to germanium."""
    for symbol, energy in OF_ATOMS.items():
        low, high = _electrons(atomic_numbers[symbol])
        assert low < -energy * unit_factor("Hartree", "energy") < high


REAL = {
    "qm7x_2500.npz": {"energy_key": "E", "forces_key": "F"},
    "mad_1000.extxyz.xz": {},
    "oc20_s2ef/val_id/0.extxyz.xz": {},
    "oc20_s2ef/val_id/0.extxyz.xz#total": {"kind": "extxyz"},
    "oc20_lmdb/s2ef_pyg2.lmdb": {},
    "sapt10k/dimers.extxyz.xz": {
        "energy_key": "interaction_energy",
        "energy_unit": "kcal/mol",
    },
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_raise_no_doubts(real_data, name):
    path = real_data(name.partition("#")[0])
    config = DataConfig(path=str(path), cache_dir="none", **REAL[name])
    dataset = load_dataset(config, 3.0)
    assert unit_warnings(dataset, config.energy_unit) == []


@pytest.mark.parametrize("unit", ["kcal/mol", "kJ/mol"])
def test_energies_of_hydrogen_tell_kilocalories(unit):
    """Energies of formation and total ones, with forces too small to tell."""
    for per_bond in (3.0, 16.0):
        frames = of_hydrogen(-per_bond / unit_factor(unit, "energy"))
        (sentence,) = unit_warnings(dataset_from_atoms(frames, 3.0))
        assert "H atoms lower the energy by" in sentence and unit in sentence
        right = dataset_from_atoms(frames, 3.0, LabelOptions(energy_unit=unit))
        assert unit_warnings(right, unit) == []


@pytest.mark.parametrize(("numbers", "noise"), [((2,), 0.0), ((3, 4), 40.0)])
def test_hydrogen_is_no_false_alarm(numbers, noise):
    """Neither energies in eV nor a fit that does not give the energy of H."""
    assert unit_warnings(dataset_from_atoms(of_hydrogen(-16.2), 3.0)) == []
    same = of_hydrogen(-25.0, numbers, noise)
    assert unit_warnings(dataset_from_atoms(same, 3.0)) == []


def of_hydrogen(energy, numbers=(0, 1, 2, 3, 4), noise=0.0):
    """Si with H atoms around it, each of which costs so much."""
    rng = np.random.default_rng(0)
    directions = np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    frames = []
    for i in range(40):
        count = numbers[i % len(numbers)]
        symbols = ["Si"] + ["H"] * count
        if count == 0:
            symbols, places = ["Si", "Si"], np.array([[0, 0, 0], [0, 0, 2.3]])
        else:
            places = 1.48 / np.sqrt(3) * directions[: count + 1]
        atoms = ase.Atoms(symbols, places)
        total = count * energy + 7.0 * energy * symbols.count("Si")
        atoms.calc = SinglePointCalculator(
            atoms, energy=total + noise * rng.normal(), forces=np.zeros((len(atoms), 3))
        )
        frames.append(atoms)
    return frames
