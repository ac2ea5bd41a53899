"""Reference energies against numpy's and scipy's own fits, and what they do to labels."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

from ewald_jax.data import Statistics, StatisticsConfig, fit_statistics
from ewald_jax.typing import InputError

TRUE = {1: -13.6, 6: -1030.0, 8: -2040.0}


def compositions(count=40, seed=0, shift=0.0, noise=0.1):
    """Random molecules of H, C and O whose energies are nearly additive."""
    rng = np.random.default_rng(seed)
    data = []
    for _ in range(count):
        species = rng.choice(list(TRUE), size=rng.integers(1, 12))
        energy = sum(TRUE[z] for z in species.tolist()) + shift + noise * rng.normal()
        data.append((species, energy, rng.normal(size=(len(species), 3))))
    return data


def matrix(data):
    counts = np.array([[np.sum(species == z) for z in TRUE] for species, _, _ in data])
    return counts.astype(float), np.array([energy for _, energy, _ in data])


def reference_of(statistics):
    return np.array([statistics.reference_energies[z] for z in TRUE])


def test_default_is_least_squares_without_intercept():
    data = compositions()
    counts, energies = matrix(data)
    expected = np.linalg.lstsq(counts, energies)[0]
    statistics = fit_statistics(data)
    np.testing.assert_allclose(reference_of(statistics), expected, rtol=1e-10)
    assert statistics.mean == 0.0
    np.testing.assert_allclose(statistics.scale, np.std(energies - counts @ expected))
    assert statistics.species == (1, 6, 8)
    assert len(statistics.reference_energies) == 119
    assert sum(e != 0 for e in statistics.reference_energies) == 3


def test_intercept():
    data = compositions(shift=5.0)
    counts, energies = matrix(data)
    expected = np.linalg.lstsq(np.c_[counts, np.ones(len(counts))], energies)[0]
    statistics = fit_statistics(data, StatisticsConfig(intercept=True))
    np.testing.assert_allclose([*reference_of(statistics), statistics.mean], expected)
    assert abs(statistics.mean - 5) < 0.3


def test_nonnegative_is_nnls_of_minus_the_energy():
    rng = np.random.default_rng(1)
    # Hydrogen would come out positive.
    data = [(s, e + 20 * np.sum(s == 1), f) for s, e, f in compositions(noise=1.0)]
    counts, energies = matrix(data)
    expected = -scipy.optimize.nnls(counts, -energies)[0]
    statistics = fit_statistics(data, StatisticsConfig(reference="nonnegative"))
    np.testing.assert_allclose(reference_of(statistics), expected)
    assert reference_of(statistics).max() == 0.0
    # The paper's fit: centred columns, then the constant from the means.
    for shift in (-100.0, 100.0):
        shifted = energies + shift + rng.normal(size=len(energies))
        centred = counts - counts.mean(0)
        expected = -scipy.optimize.nnls(centred, -(shifted - shifted.mean()))[0]
        mean = shifted.mean() - counts.mean(0) @ expected
        both = [(s, e, f) for (s, _, f), e in zip(data, shifted, strict=True)]
        config = StatisticsConfig(reference="nonnegative", intercept=True)
        statistics = fit_statistics(both, config)
        np.testing.assert_allclose(reference_of(statistics), expected, atol=1e-6)
        np.testing.assert_allclose(statistics.mean, mean, rtol=1e-6)


def test_equal_compositions_share_by_the_smallest_norm():
    data = [(np.array([1, 1, 8]), energy, None) for energy in (-76.0, -76.2)]
    statistics = fit_statistics(data)
    np.testing.assert_allclose(statistics.reference([1, 1, 8]), -76.1)
    np.testing.assert_allclose(
        statistics.reference_energies[1], 2 * statistics.reference_energies[8]
    )
    np.testing.assert_allclose(statistics.scale, 0.1)


def test_fixed_values_are_not_fitted():
    data = compositions()
    config = StatisticsConfig(
        reference_energies={"H": -10.0, "N": -1500.0}, mean=2.0, scale=3.0
    )
    statistics = fit_statistics(data, config)
    counts, energies = matrix(data)
    rest = energies - 2.0 + 10.0 * counts[:, 0]
    np.testing.assert_allclose(
        reference_of(statistics), [-10.0, *np.linalg.lstsq(counts[:, 1:], rest)[0]]
    )
    assert (statistics.mean, statistics.scale) == (2.0, 3.0)
    assert statistics.reference_energies[7] == -1500.0
    assert statistics.species == (1, 6, 8)


def test_none_leaves_mean_and_scale():
    data = compositions()
    _, energies = matrix(data)
    config = StatisticsConfig(reference="none", intercept=True)
    statistics = fit_statistics(data, config)
    np.testing.assert_allclose(statistics.mean, energies.mean())
    np.testing.assert_allclose(statistics.scale, energies.std())
    assert not any(statistics.reference_energies)
    # The published normalisation of OC20.
    config = StatisticsConfig(reference="none", mean=-0.7554, scale=2.8873)
    assert fit_statistics(data, config) == Statistics(
        mean=-0.7554, scale=2.8873, species=(1, 6, 8)
    )


def test_scale_from_forces():
    data = compositions()
    rms = np.sqrt(np.mean(np.concatenate([forces for _, _, forces in data]) ** 2))
    config = StatisticsConfig(scale_from="forces")
    np.testing.assert_allclose(fit_statistics(data, config).scale, rms)
    with pytest.raises(InputError, match="'forces', but the data have no forces"):
        fit_statistics([(np.array([1]), 1.0, None)], config)
    still = [(np.array([1]), 1.0, np.zeros((1, 3)))]
    assert fit_statistics(still, config).scale == 1.0


@pytest.mark.parametrize("energy", [0.0, -1e6])
@pytest.mark.parametrize("count", [1, 3])
def test_no_spread_gives_scale_one(count, energy):
    statistics = fit_statistics([(np.array([6, 1, 1]), energy, None)] * count)
    assert statistics.scale == 1.0
    np.testing.assert_allclose(statistics.reference([6, 1, 1]), energy)


def test_large_energies_keep_their_digits():
    """Energies of 1e5 eV that differ by 1e-4: float32 would have lost all of it."""
    rng = np.random.default_rng(0)
    small = rng.normal(size=50) * 1e-4
    data = [(np.array([79, 79, 1]), -1e5 + x, None) for x in small]
    statistics = fit_statistics(data)
    left = np.array([e - statistics.reference(s) for s, e, _ in data])
    np.testing.assert_allclose(left, small - small.mean(), atol=1e-9)
    np.testing.assert_allclose(statistics.scale, small.std(), rtol=1e-5)


def test_many_at_once_equals_one_by_one():
    statistics = fit_statistics(compositions())
    lists = [np.array([6, 1]), np.array([8]), np.array([1, 1, 8])]
    padded = np.concatenate([*lists, np.zeros(4, int)])
    np.testing.assert_allclose(
        statistics.references(padded, np.array([2, 1, 3])),
        [statistics.reference(species) for species in lists],
    )


def test_json_round_trip_is_exact():
    statistics = fit_statistics(compositions(), StatisticsConfig(intercept=True))
    text = json.dumps(statistics.to_dict())
    assert Statistics.from_dict(json.loads(text)) == statistics
    assert json.loads(text)["species"] == ["H", "C", "O"]
    assert Statistics.from_dict(Statistics().to_dict()) == Statistics()
    assert type(statistics.reference_energies) is tuple
    assert {type(energy) for energy in statistics.reference_energies} == {float}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "the scale 0.0, expected it above 0"),
        ({"mean": float("nan")}, "NaN or infinite"),
        ({"scale": "abc"}, "'scale' is 'abc', expected a number"),
        ({"mean": None}, "'mean' is None, expected a number"),
        ({"mean": 10**400}, "'mean' is 1000.*, expected a finite number"),
        ({"reference_energies": {"H": "low"}}, "'reference_energies.H' is 'low'"),
        ({"reference_energies": {"Qq": 1.0}}, "'reference_energies' has the unknown .*Qq"),
        (
            {"reference_energies": [1.0]},
            r"'reference_energies' is \[1.0\], expected energies",
        ),
        ({"species": None}, "'species' is None, expected a list"),
        ({"species": "HC"}, "'species' is 'HC', expected a list"),
        ({"species": [[1]]}, r"'species' has the unknown element \[1\]"),
    ],
)
def test_broken_files(change, message):
    values = Statistics().to_dict()
    with pytest.raises(InputError, match=message):
        Statistics.from_dict(values | change)
    with pytest.raises(InputError, match="incomplete"):
        Statistics.from_dict([])
    for key in values:
        with pytest.raises(InputError, match=f"incomplete.*{key}"):
            Statistics.from_dict({k: v for k, v in values.items() if k != key})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reference": "ridge"}, "statistics.reference is 'ridge', expected one of lstsq"),
        (
            {"scale_from": "stress"},
            "scale_from is 'stress', expected one of energy, forces",
        ),
        ({"scale": -1.0}, "statistics.scale is -1.0, expected a number above 0"),
        ({"scale": float("inf")}, "statistics.scale is inf"),
        ({"reference_energies": {"Qq": 1.0}}, "has 'Qq', expected element symbols"),
        ({"reference_energies": {"X": 1.0}}, "has 'X', expected element symbols"),
    ],
)
def test_broken_configs(settings, message):
    with pytest.raises(InputError, match=message):
        StatisticsConfig(**settings)


def test_empty_and_frozen():
    with pytest.raises(InputError, match="at least one structure"):
        fit_statistics([])
    with pytest.raises(InputError, match="3 reference energies, expected 119"):
        Statistics(reference_energies=(0.0, 1.0, 2.0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Statistics().mean = 1.0


def test_unseen_elements():
    statistics = fit_statistics(compositions())
    assert statistics.unseen([1, 6, 26, 7, 7]) == (7, 26)
    assert statistics.unseen([1, 8]) == ()


@given(
    st.lists(
        st.lists(st.sampled_from([1, 6, 79]), min_size=1, max_size=5),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 2**16),
    st.sampled_from(["lstsq", "nonnegative", "none"]),
    st.booleans(),
)
def test_any_data_give_finite_statistics(species, seed, reference, intercept):
    energies = np.random.default_rng(seed).normal(size=len(species)) * 100
    data = [(np.array(z), e, None) for z, e in zip(species, energies, strict=True)]
    statistics = fit_statistics(data, StatisticsConfig(reference, intercept))
    assert np.isfinite([*statistics.reference_energies, statistics.mean]).all()
    assert statistics.scale > 0
    if reference == "nonnegative":
        assert max(statistics.reference_energies) <= 0
