"""Splits: disjoint, reproducible, of the sizes asked for, and groups stay together."""

import functools

import ase
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given
from hypothesis import strategies as st

from ewald_jax.data import (
    DataConfig,
    dataset_from_atoms,
    group_split,
    load_dataset,
    random_split,
    split_dataset,
)
from ewald_jax.data.ase_files import ASE_READERS
from ewald_jax.data.reading import iterate
from ewald_jax.data.samples import SAMPLES, SPLITS, sample_path
from ewald_jax.typing import InputError


def atoms_of(number, **info):
    atoms = ase.Atoms("H")
    atoms.info.update(number=number, **info)
    atoms.calc = SinglePointCalculator(atoms, energy=float(number))
    return atoms


def check_partition(splits, count, whole=True):
    indices = np.concatenate(list(splits.values()))
    assert len(set(indices.tolist())) == len(indices)
    assert set(indices.tolist()) <= set(range(count))
    assert not whole or len(indices) == count
    for part in splits.values():
        assert len(part) and np.all(np.diff(part) > 0) and part.dtype.kind == "i"


def test_shares_and_counts():
    sizes = {k: len(v) for k, v in random_split(100, DataConfig()).items()}
    assert sizes == {"train": 80, "val": 10, "test": 10}
    config = DataConfig(train_size=50, val_size=20, test_size=0.05)
    sizes = {k: len(v) for k, v in random_split(100, config).items()}
    assert sizes == {"train": 50, "val": 20, "test": 5}
    splits = random_split(10, DataConfig(val_size=0.0, test_size=0.0))
    assert list(splits) == ["train"] and len(splits["train"]) == 10
    # A share asks for at least one.
    sizes = {k: len(v) for k, v in random_split(3, DataConfig()).items()}
    assert sizes == {"train": 1, "val": 1, "test": 1}


def test_seeds_and_train_size_leave_what_they_should():
    a = random_split(60, DataConfig(split_seed=1))
    b = random_split(60, DataConfig(split_seed=1, train_size=10))
    c = random_split(60, DataConfig(split_seed=2))
    np.testing.assert_array_equal(a["test"], b["test"])
    np.testing.assert_array_equal(a["val"], b["val"])
    assert set(b["train"]) < set(a["train"])
    assert set(a["test"]) != set(c["test"])


@given(
    count=st.integers(3, 80),
    val=st.floats(0.01, 0.4),
    test=st.floats(0.01, 0.4),
    seed=st.integers(0, 99),
)
def test_random_split_is_a_partition(count, val, test, seed):
    config = DataConfig(val_size=val, test_size=test, split_seed=seed)
    splits = random_split(count, config)
    check_partition(splits, count)
    assert abs(len(splits["val"]) - val * count) <= 1
    assert abs(len(splits["test"]) - test * count) <= 1


@given(
    values=st.lists(st.sampled_from("abcdefghijkl"), min_size=12, max_size=60),
    seed=st.integers(0, 99),
)
def test_groups_never_straddle(values, seed):
    config = DataConfig(split="key", split_key="k", split_seed=seed)
    try:
        splits = group_split(values, config)
    except InputError as error:
        assert "not enough structures" in str(error)
        return
    check_partition(splits, len(values))
    owners = {}
    for role, part in splits.items():
        for index in part:
            assert owners.setdefault(values[index], role) == role
    assert len(splits["val"]) >= max(1, round(0.1 * len(values)))


def test_groups_do_not_depend_on_the_order_of_structures():
    values = [f"g{i % 15}" for i in range(60)]
    config = DataConfig(split="key", split_key="k")
    first = group_split(values, config)
    order = np.random.default_rng(0).permutation(60)
    second = group_split([values[i] for i in order], config)
    for role, part in first.items():
        assert {values[i] for i in part} == {values[order[i]] for i in second[role]}


def test_by_key_of_a_data_set():
    structures = [atoms_of(i, system=i % 7) for i in range(35)]
    dataset = dataset_from_atoms(structures, 3.0)
    config = DataConfig(path="x", split="key", split_key="system")
    splits = split_dataset(config, dataset)
    check_partition(splits, 35)
    assert {role: len(part) for role, part in splits.items()} == {
        "train": 25, "val": 5, "test": 5,
    }  # fmt: skip
    config = DataConfig(path="x", split="key", split_key="sytem")
    with pytest.raises(InputError, match="structure 0 has no metadata 'sytem'.*'system'"):
        split_dataset(config, dataset)
    few = dataset_from_atoms([atoms_of(i, system=i % 2) for i in range(8)], 3.0)
    with pytest.raises(InputError, match="there are 8 in groups of equal 'system'"):
        split_dataset(DataConfig(path="x", split="key", split_key="system"), few)


@pytest.mark.parametrize(
    ("count", "settings", "role"),
    [
        (2, {}, "train"),
        (1, {"test_size": 0.0}, "train"),
        (10, {"test_size": 11}, "test"),
        (10, {"val_size": 10, "test_size": 0.0}, "train"),
        (10, {"val_size": 9, "test_size": 2}, "val"),
        (10, {"train_size": 9}, "train"),
    ],
)
def test_an_empty_split_is_an_error(count, settings, role):
    dataset = dataset_from_atoms([atoms_of(i) for i in range(count)], 3.0)
    with pytest.raises(
        InputError, match=f"split '{role}': there are {count} for data.train_"
    ):
        split_dataset(DataConfig(path="x", **settings), dataset)


def test_limits_are_nested_and_leave_the_other_splits():
    dataset = dataset_from_atoms([atoms_of(i) for i in range(50)], 3.0)

    def split(**settings):
        return split_dataset(DataConfig(path="x", **settings), dataset)

    full, small, smaller = split(), split(limit=10), split(limit=4, limit_eval=2)
    assert {k: len(v) for k, v in small.items()} == {"train": 10, "val": 5, "test": 5}
    assert {k: len(v) for k, v in smaller.items()} == {"train": 4, "val": 2, "test": 2}
    assert set(smaller["train"]) < set(small["train"]) < set(full["train"])
    np.testing.assert_array_equal(small["val"], full["val"])


def write(path, numbers):
    ase.io.write(path, [atoms_of(i) for i in numbers], format="extxyz")
    return str(path)


def test_by_file(tmp_path):
    paths = {
        "train": write(tmp_path / "a.xyz", range(20)),
        "val": write(tmp_path / "b.xyz", range(20, 26)),
        "test": write(tmp_path / "c.xyz", range(26, 30)),
    }

    def split(**settings):
        config = DataConfig(cache_dir="none", **settings)
        dataset = load_dataset(config, 3.0)
        splits = split_dataset(config, dataset)
        check_partition(splits, len(dataset))
        return {k: [dataset.info(i)["number"] for i in v] for k, v in splits.items()}

    assert split(**paths) == {
        "train": list(range(20)), "val": list(range(20, 26)), "test": list(range(26, 30)),
    }  # fmt: skip
    # Without a validation file, part of the training file serves.
    got = split(train=paths["train"], test=paths["test"])
    assert [len(part) for part in got.values()] == [18, 2, 4]
    assert sorted(got["train"] + got["val"]) == list(range(20))
    got = split(train=paths["train"], val_size=0.0)
    assert list(got) == ["train"]
    with pytest.raises(InputError, match="data.split is 'random' beside data.train"):
        split(split="random", **paths)
    with pytest.raises(InputError, match="split 'train': there are 20"):
        split(train=paths["train"], val_size=20)
    for ignored in ({"train_size": 0.5}, {"test_size": 5}, {**paths, "val_size": 3}):
        with pytest.raises(InputError, match="_size is set, but beside data.train the fil"):
            split(**{"train": paths["train"], **ignored})


@pytest.mark.parametrize(
    ("name", "split"), [(name, split) for name in SAMPLES for split in ("", *SPLITS[name])]
)
def test_sample_sets(name, split):
    config = DataConfig(name=name, split=split, cache_dir="none")
    dataset = sample_sets(name)
    splits = split_dataset(config, dataset)
    check_partition(splits, len(dataset))
    assert {"train", "val", "test"} <= set(splits)
    assert len(splits["train"]) > len(splits["val"])


def test_sample_sets_refuse_what_they_do_not_have():
    dataset = sample_sets("dimers")
    with pytest.raises(InputError, match="'dimers' has random, far"):
        split_dataset(DataConfig(name="dimers", split="system"), dataset)
    with pytest.raises(InputError, match="data.val_size is set.*fixed sizes"):
        split_dataset(DataConfig(name="dimers", val_size=0.2), dataset)
    splits = split_dataset(DataConfig(name="dimers", limit=30, limit_eval=7), dataset)
    assert [len(splits[role]) for role in ("train", "val", "test")] == [30, 7, 7]


class Infos:
    """The metadata of a sample set without its graphs, which splits do not need."""

    def __init__(self, infos):
        self._infos = infos

    def __len__(self):
        return len(self._infos)

    def infos(self):
        return self._infos


@functools.cache
def sample_sets(name):
    frames = iterate(sample_path(name), ASE_READERS["extxyz"])
    return Infos([atoms.info for atoms in frames])


def test_unknown_split():
    dataset = dataset_from_atoms([atoms_of(i) for i in range(5)], 3.0)
    with pytest.raises(
        InputError, match="data.split is 'far', expected 'random', 'key' or"
    ):
        split_dataset(DataConfig(path="x", split="far"), dataset)
