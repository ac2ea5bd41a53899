"""Long-range contributions against sums by hand and Madelung's constant; their bins."""

import sys

import ase
import ase.build
import numpy as np
import pytest
from ase.units import Bohr, Hartree

from ewald_jax.analysis.long_range import (
    d3_energy,
    d4_energy,
    eeq_charges,
    long_range_contributions,
    sapt_component,
)
from ewald_jax.analysis.long_range_bins import (
    binned_improvement,
    equal_count_bins,
    plot_improvement,
)
from ewald_jax.analysis.point_charges import coulomb_energy, ewald_sum
from ewald_jax.typing import InputError
from ewald_jax.units import COULOMB_CONSTANT, KCAL_PER_MOL

MADELUNG = 1.7475645946331822


def dimer():
    above = ase.build.molecule("C6H6")
    above.positions += [0.3, 0.1, 3.6]
    return ase.build.molecule("C6H6") + above


def rocksalt():
    return ase.build.bulk("NaCl", "rocksalt", a=5.64)


def pairwise(interface, parameters, atoms):
    """Energies of pairs [n, n], eV, by the package itself."""
    model = interface.DispersionModel(atoms.numbers, atoms.positions / Bohr)
    found = model.get_pairwise_dispersion(parameters)
    return found["additive pairwise energy"] * Hartree


def test_d3_beyond_a_distance_is_the_sum_of_those_pairs():
    interface = pytest.importorskip("dftd3.interface")
    # PBE0's, as published; s9: no three-body term.
    known = interface.RationalDampingParam(s8=1.2177, a1=0.4145, a2=4.8593, s9=0.0)
    atoms = dimer()
    pairs, distances = pairwise(interface, known, atoms), atoms.get_all_distances()
    for beyond in (0.0, 2.0, 4.5, 6.0):
        expected = pairs[distances > beyond].sum()
        assert d3_energy(atoms, beyond=beyond) == pytest.approx(expected, rel=1e-10)
    assert d3_energy(atoms) < d3_energy(atoms, beyond=4.5) < 0
    assert d3_energy(atoms, beyond=20.0) == 0


def test_d4_beyond_a_distance():
    interface = pytest.importorskip("dftd4.interface")
    atoms = dimer()
    # Two atoms have no triples: its pair beyond everything else is the pair itself.
    pair = ase.Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]])
    known = interface.DampingParam(method="pbe0")
    expected = pairwise(interface, known, pair).sum()
    assert d4_energy(pair) == d4_energy(pair, beyond=3.7) == pytest.approx(expected)
    assert d4_energy(pair, beyond=3.9) == 0
    far = [d4_energy(atoms, beyond=x) for x in (0.0, 2.0, 5.0, 20.0)]
    assert far[0] < far[1] < far[2] < far[3] == 0
    # Dispersion of a cation is weaker, and the charge in info counts.
    atoms.info["charge"] = 1
    assert d4_energy(atoms) == d4_energy(atoms, charge=1.0) > far[0]


def test_limits_of_dispersion_in_a_crystal():
    pytest.importorskip("dftd3")
    pytest.importorskip("dftd4")
    atoms = ase.build.bulk("Ar", "fcc", a=6.0)
    for energy in (d3_energy, d4_energy):
        assert energy(atoms, beyond=1.0) == pytest.approx(energy(atoms), rel=1e-12)
        assert energy(atoms) < energy(atoms, beyond=8.0) < 0
        assert energy(atoms, beyond=1e6) == 0
        assert 2 * energy(atoms, beyond=8.0) == pytest.approx(
            energy(atoms * (2, 1, 1), beyond=8.0),
            rel=1e-5,  # dftd4's charges of the two differ by so much
        )


def test_energies_of_open_charges_are_those_of_their_pairs():
    rng = np.random.default_rng(0)
    atoms = ase.Atoms("H7", 3 * rng.normal(size=(7, 3)))
    charges = rng.normal(size=7)
    for beyond in (0.0, 3.0, 1e3):
        expected = sum(
            COULOMB_CONSTANT * charges[i] * charges[j] / d
            for i in range(7)
            for j in range(i)
            if (d := atoms.get_distance(i, j)) > beyond
        )
        assert coulomb_energy(atoms, charges, beyond) == pytest.approx(expected)


def test_madelung_constant_and_what_is_beyond_the_neighbors():
    atoms, charges = rocksalt(), np.array([1.0, -1.0])
    d = 5.64 / 2
    unit = COULOMB_CONSTANT / d
    assert coulomb_energy(atoms, charges) == pytest.approx(-MADELUNG * unit, rel=1e-10)
    # Per formula unit: 6 neighbors of the other sign, then 12 of the same at sqrt(2) d for each
    # of two ions, each pair shared by two.
    beyond = coulomb_energy(atoms, charges, 1.1 * d)
    assert beyond == pytest.approx((6 - MADELUNG) * unit, rel=1e-9)
    beyond = coulomb_energy(atoms, charges, 1.5 * d)
    assert beyond == pytest.approx((6 - 12 / 2**0.5 - MADELUNG) * unit, rel=1e-9)
    caesium = ase.build.bulk("CsCl", "cesiumchloride", a=4.0)
    expected = -1.76267477307099 * COULOMB_CONSTANT / (4.0 * 3**0.5 / 2)
    assert ewald_sum(caesium, charges) == pytest.approx(expected, rel=1e-10)
    # Neither the choice of the cell nor a shift of atoms by lattice vectors matters.
    skewed = atoms.copy()
    skewed.set_cell([[1, 0, 0], [1, 1, 0], [0, -1, -1]] @ atoms.cell.array)
    skewed.positions[1] += 3 * skewed.cell[0] - skewed.cell[2]
    assert ewald_sum(skewed, charges) == pytest.approx(-MADELUNG * unit, rel=1e-10)
    large = coulomb_energy(atoms * (1, 2, 3), np.tile(charges, 6), 1.5 * d)
    assert large == pytest.approx(6 * beyond, rel=1e-9)


def test_charges_of_d4():
    pytest.importorskip("dftd4")
    water = ase.build.molecule("H2O")
    charges = eeq_charges(water)
    assert charges[0] < 0 < charges[1] == pytest.approx(charges[2])
    assert charges.sum() == pytest.approx(0, abs=1e-12)
    assert eeq_charges(water, charge=1).sum() == pytest.approx(1)
    found = long_range_contributions([water], "charges")
    np.testing.assert_allclose(found, coulomb_energy(water, charges))


def test_charges_that_cannot_be():
    def refused(atoms, charges, message):
        with pytest.raises(InputError, match=message):
            coulomb_energy(atoms, charges)

    refused(rocksalt(), [1.0, -0.5], "has a charge of 0.5 e in a periodic cell")
    refused(rocksalt(), [1.0], r"has charges of shape \(1,\), expected 2 finite")
    refused(rocksalt(), [1.0, np.nan], "expected 2 finite numbers")
    slab = rocksalt()
    slab.pbc = (True, True, False)
    refused(slab, [1.0, -1.0], "is periodic along some directions only")
    refused(ase.Atoms("H2", np.zeros((2, 3))), [1.0, -1.0], "two atoms in one place")


def test_components_of_sapt():
    atoms = ase.Atoms("He", info={"elst": -2.0, "disp": float("nan"), "ind": "x"})
    assert sapt_component(atoms, "elst") == -2.0 * KCAL_PER_MOL
    names = ["a.extxyz: structure 7"]

    def refused(kind, message, beyond=0.0):
        with pytest.raises(InputError, match=message):
            long_range_contributions([atoms], kind, beyond, names)

    refused("exch", "^a.extxyz: structure 7 has no 'exch' beside it, expected .* kcal/mol$")
    refused("disp", "^a.extxyz: structure 7 has disp = nan")
    refused("ind", "^a.extxyz: structure 7 has ind = 'x'")
    refused("elst", "beyond is 3.0 Å, expected 0 for elst", beyond=3.0)
    refused("d3", "beyond is -1.0 Å, expected a distance", beyond=-1.0)
    refused("d5", "the contribution is 'd5', expected one of elst, .*charges$")


def test_packages_that_are_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "dftd3.interface", None)
    monkeypatch.setitem(sys.modules, "dftd4.interface", None)
    for kind, package in (("d3", "dftd3"), ("d4", "dftd4"), ("charges", "dftd4")):
        message = f"^the .* needs {package}, which is not installed: pip install"
        with pytest.raises(InputError, match=message):
            long_range_contributions([dimer()], kind)


def test_structures_that_dispersion_refuses():
    pytest.importorskip("dftd3")
    pytest.importorskip("dftd4")
    pair = [[0, 0, 0], [0, 0, 2]]
    structures = [ase.Atoms("H2", pair), ase.Atoms("OgH", pair)]
    for kind in ("d3", "d4", "charges"):
        with pytest.raises(InputError, match="^structure 1 has the element Og"):
            long_range_contributions(structures, kind)
    same = ase.Atoms("H2", np.zeros((2, 3)))
    with pytest.raises(InputError, match="^structure 0 has no DFT-D4 energy .*apart$"):
        long_range_contributions([same], "d4")
    with pytest.raises(InputError, match="dftd4 has no parameters of 'nonsense'"):
        d4_energy(structures[0], "nonsense")


def test_bins_have_equal_counts_whatever_the_values():
    values = np.array([3.0, 0.0, 0.0, 0.0, 9.0, 1.0, 0.0])
    np.testing.assert_array_equal(equal_count_bins(values, 3), [2, 0, 0, 0, 2, 1, 1])
    with pytest.raises(InputError, match="8 bins of 7 structures"):
        equal_count_bins(values, 8)


def made_up(n=1000, seeds=3):
    """Errors of which the model keeps 90 % at no contribution and 50 % at the largest."""
    rng = np.random.default_rng(0)
    size = rng.random(n)
    baseline = 0.1 * rng.exponential(size=(seeds, n))
    model = 0.1 * (0.9 - 0.4 * size) * rng.exponential(size=(seeds + 1, n))
    signs = rng.choice([-1, 1], size=n)
    return signs * size, baseline, -model


def test_improvement_in_bins():
    contribution, baseline, model = made_up()
    found = binned_improvement(contribution, baseline, model, bins=4, samples=500)
    order = np.argsort(np.abs(contribution)).reshape(4, 250)
    for place, chosen in enumerate(order):
        maes = [np.abs(e[:, chosen]).mean() for e in (baseline, model)]
        assert found.baseline_mae[place] == pytest.approx(maes[0])
        assert found.improvement[place] == pytest.approx(1 - maes[1] / maes[0])
        size = np.abs(contribution[chosen]).mean()
        assert found.size[place] == pytest.approx(size)
        low, high = found.interval[place]
        assert low < found.improvement[place] < high
        assert low < 0.1 + 0.4 * size < high
    assert found.count.tolist() == [250] * 4
    overall = 1 - np.abs(model).mean() / baseline.mean()
    assert found.overall == pytest.approx(overall)
    assert found.overall_interval[0] < overall < found.overall_interval[1]
    assert found.difference == found.improvement[-1] - found.improvement[0]
    # 0.3 was put in, and none of it is chance.
    assert 0 < found.difference_interval[0] < 0.3 < found.difference_interval[1]
    again = binned_improvement(contribution, baseline, model, bins=4, samples=500)
    np.testing.assert_array_equal(found.interval, again.interval)
    other = binned_improvement(contribution, baseline, model, 4, 500, seed=1)
    assert not np.array_equal(found.interval, other.interval)


def test_interval_of_one_seed_is_that_of_the_mean():
    """Against the textbook's error of a ratio of means (delta method)."""
    contribution, baseline, model = made_up(n=4000, seeds=1)
    a, b = np.abs(baseline[0]), np.abs(model[0])
    found = binned_improvement(contribution, a, b, bins=1)
    ratio = b.mean() / a.mean()
    error = np.std(b - ratio * a) / a.mean() / len(a) ** 0.5
    width = found.overall_interval[1] - found.overall_interval[0]
    assert width == pytest.approx(2 * 1.96 * error, rel=0.06)
    np.testing.assert_allclose(found.interval[0], found.overall_interval)
    # The spread of seeds comes on top of it.
    seeds = np.stack([0.8 * a, 1.0 * a, 1.2 * a])
    wide = binned_improvement(contribution, seeds, b, bins=1)
    assert np.ptp(wide.overall_interval) > 3 * width
    # Resampled together, structures that fail both models do not widen it.
    scaled = binned_improvement(contribution, a, 0.7 * a, bins=2)
    np.testing.assert_allclose(scaled.interval, 0.3)


def test_bins_refuse_what_does_not_fit():
    values = np.ones(4)
    with pytest.raises(InputError, match=r"errors of the model have shape \(1, 3\)"):
        binned_improvement(values, values, values[:3], 2)
    with pytest.raises(InputError, match="is not finite"):
        binned_improvement(values, values, [1, 2, np.inf, 4], 2)


def test_picture_of_improvements():
    contribution, baseline, model = made_up()
    found = binned_improvement(contribution, baseline, model, samples=200)
    figure = plot_improvement(
        {"disp": {"radial": found, "voxel": found}, "d3": {"x": found, "voxel": found}}
    )
    first, second = figure.axes
    assert len(first.containers) == len(second.containers) == 2
    (radial, voxel), (x, again) = (
        [bars.lines[0].get_color() for bars in axis.containers] for axis in (first, second)
    )
    assert voxel == again and len({radial, voxel, x}) == 3
    drawn = first.containers[0].lines[0].get_ydata()
    np.testing.assert_allclose(drawn, 100 * found.improvement)
    assert first.get_title() == "disp" and len(first.get_xticks()) == 5
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["radial", "voxel", "x"]
