"""DFT-D3 taken off the labels, against the package dftd3 itself."""

import sys

import ase
import ase.build
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.units import Bohr, Hartree
from oe62_files import load, molecules, rows_of, write_oe62

from ewald_jax.data import DataConfig, LabelOptions, dataset_from_atoms, load_dataset
from ewald_jax.data.dispersion import dispersion_labels, parse_dispersion
from ewald_jax.typing import InputError

D3 = "PBE0-D3(BJ)"
# Of DFT-D3(BJ) for PBE0, as published.
PUBLISHED = {"s6": 1.0, "s8": 1.2177, "a1": 0.4145, "a2": 4.8593}


@pytest.fixture
def path(tmp_path):
    return write_oe62(tmp_path / "df_62k.json", rows_of(12))


def direct(atoms, **settings):
    """DFT-D3(BJ) of PBE0 by dftd3 itself: energy, gradient and virial in eV and Å."""
    from dftd3.interface import DispersionModel, RationalDampingParam

    model = DispersionModel(atoms.numbers, atoms.positions / Bohr, **settings)
    # s9: no three-body term.
    found = model.get_dispersion(RationalDampingParam(**PUBLISHED, s9=0.0), grad=True)
    energy, gradient, virial = (found[key] for key in ("energy", "gradient", "virial"))
    return energy * Hartree, gradient * Hartree / Bohr, virial * Hartree


def test_energies_without_dispersion(path):
    pytest.importorskip("dftd3")
    plain, less = load(path), load(path, subtract=D3)
    for sample, atoms, energy in zip(less, molecules(12), plain.energies, strict=True):
        atoms.positions = atoms.positions.round(8)
        theirs = direct(atoms)[0]
        np.testing.assert_allclose(sample.targets["energy"], energy - theirs, rtol=1e-14)
    assert np.ptp(plain.energies - less.energies) > 0.1
    np.testing.assert_array_equal(
        load(path, subtract="pbe0-d3(bj)").energies, less.energies
    )


def test_the_cache_knows_what_was_taken_off(path, tmp_path):
    pytest.importorskip("dftd3")
    folder = str(tmp_path / "cache")
    kinds = ("", D3, "PBE0-D3(zero)", "PBE-D3(BJ)", "PBE0-D3(BJ)-ATM")
    first = [load(path, subtract=kind, cache_dir=folder) for kind in kinds]
    again = [load(path, subtract=kind, cache_dir=folder) for kind in kinds]
    assert len({dataset.fingerprint for dataset in first}) == len(kinds)
    assert len({tuple(dataset.energies) for dataset in first}) == len(kinds)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.energies, b.energies)


def crystal():
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    atoms.rattle(0.1, seed=0)
    return atoms


def labelled(atoms, stress=True):
    rng = np.random.default_rng(0)
    results = {"energy": -5.0, "forces": rng.normal(size=(len(atoms), 3))}
    if stress:
        results["stress"] = rng.normal(size=6)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def test_forces_and_stress_without_dispersion():
    pytest.importorskip("dftd3")
    atoms = labelled(crystal())
    lattice = {"lattice": atoms.cell[:] / Bohr, "periodic": np.ones(3, bool)}
    energy, gradient, virial = direct(atoms, **lattice)
    plain, less = (
        dataset_from_atoms([atoms], 3.0, LabelOptions(subtract=kind))[0].targets
        for kind in ("", D3)
    )
    np.testing.assert_allclose(less["energy"], plain["energy"] - energy)
    np.testing.assert_allclose(less["forces"], plain["forces"] + gradient)
    stress = plain["stress"] - virial / atoms.cell.volume
    np.testing.assert_allclose(less["stress"], stress)
    options = LabelOptions(subtract=D3, labels=("forces",))
    only = dataset_from_atoms([atoms], 3.0, options)[0].targets
    np.testing.assert_array_equal(only["forces"], less["forces"])


def test_forces_and_stress_of_dispersion_are_its_derivatives():
    pytest.importorskip("dftd3")
    atoms, kind = crystal(), parse_dispersion("PBE-D3(zero)-ATM")

    def energy(strain=0.0, shift=0.0):
        moved = atoms.copy()
        moved.positions[3, 1] += shift
        moved.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
        return dispersion_labels(moved, kind, derivatives=False)["energy"]

    labels, h = dispersion_labels(atoms, kind), 1e-3
    slope = (energy(shift=h) - energy(shift=-h)) / (2 * h)
    np.testing.assert_allclose(labels["forces"][3, 1], -slope, rtol=1e-3)
    strain = np.diag([0.0, h, 0.0])
    slope = (energy(strain) - energy(-strain)) / (2 * h * atoms.cell.volume)
    # Pairs enter and leave at the cutoff of dftd3.
    np.testing.assert_allclose(labels["stress"][1, 1], slope, rtol=2e-2)


def test_dispersion_of_a_slab_anywhere_in_any_box():
    pytest.importorskip("dftd3")
    slab, kind = ase.build.fcc111("Cu", (2, 2, 2), vacuum=5.0), parse_dispersion(D3)
    slab.pbc = (True, True, False)
    expected = dispersion_labels(slab, kind)
    for shift, height in ((6.0, 12.0), (-7.0, 1.0), (100.0, 0.0)):
        moved = slab.copy()
        moved.positions[:, 2] += shift
        moved.cell[2] = (0, 0, height)
        found = dispersion_labels(moved, kind)
        np.testing.assert_allclose(found["energy"], expected["energy"])
        np.testing.assert_allclose(found["forces"], expected["forces"], atol=1e-8)
        assert ("stress" in found) == (height > 0)
    # Far from its images, which a crystal's sum then does not reach.
    far = ase.build.fcc111("Cu", (2, 2, 2), vacuum=40.0)
    far.pbc = True
    np.testing.assert_allclose(
        dispersion_labels(far, kind)["energy"], expected["energy"], rtol=1e-6
    )


def test_dispersion_that_cannot_be(path):
    message = r"dftd3 has no D3\(bj\) of 'nonsense' \(.*\), expected a functional that it"
    pytest.importorskip("dftd3")
    with pytest.raises(InputError, match=message):
        load(path, subtract="nonsense-D3(BJ)")

    def refused(atoms, message, first):
        options = LabelOptions(subtract=D3)
        with pytest.raises(InputError, match=f"list: structure {len(first)} {message}"):
            dataset_from_atoms([*first, atoms], 3.0, options, "list")

    pair = [[0, 0, 0], [0, 0, 2]]
    before = [labelled(ase.Atoms("H2", pair), stress=False)]
    heavy = labelled(ase.Atoms("OgH", pair), stress=False)
    refused(heavy, "has the element Og, .* no parameters, expected at most Pu", before)
    same = labelled(ase.Atoms("H2", [[0, 0, 0]] * 2), stress=False)
    refused(same, "has no DFT-D3 energy .*close.*, expected atoms apart", before)
    refused(labelled(ase.Atoms("H2", pair)), "has a stress, expected a periodic cell", [])


def test_names_of_dispersion():
    assert parse_dispersion("B3LYP-D3(zero)-atm") == ("b3lyp", "zero", True)
    assert parse_dispersion("r2SCAN-d3(bj)") == ("r2scan", "bj", False)
    for name in ("d3", "PBE0-D3", "PBE0", "-D3(BJ)", "PBE0-D4(BJ)", "PBE0-D3(BJ)x"):
        with pytest.raises(InputError, match="data.subtract is .*, expected a functional"):
            DataConfig(path="x", subtract=name)


def test_without_the_package(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dftd3.interface", None)
    message = "^data.subtract needs dftd3, which is not installed: pip install"
    with pytest.raises(InputError, match=message):
        load(path, subtract=D3)
    # Where no labels are read, nothing has to be taken off.
    config = DataConfig(path=str(path), subtract=D3, cache_dir="none")
    assert load_dataset(config, 3.0, labelled=False).labels == ()
