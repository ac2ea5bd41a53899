"""OE62 as published: read row by row, split and normalised as the paper does."""

import dataclasses
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
from conftest import REPOSITORY
from oe62_files import (
    ATOMIC,
    COLUMNS,
    PBE,
    PBE0,
    load,
    molecules,
    row_of,
    rows_of,
    write_oe62,
)

from ewald_jax.config import load_section
from ewald_jax.data import (
    DataConfig,
    StatisticsConfig,
    dataset_statistics,
    load_dataset,
    split_dataset,
)
from ewald_jax.data.base import READERS
from ewald_jax.data.oe62 import read_oe62
from ewald_jax.data.reading import iterate, kind_of
from ewald_jax.data.splits import oe62_split
from ewald_jax.train.description import write_description
from ewald_jax.train.directory import check_same_run
from ewald_jax.typing import InputError


@pytest.fixture
def path(tmp_path):
    return write_oe62(tmp_path / "df_62k.json", rows_of(12))


def test_structures_and_labels_are_those_of_the_file(path):
    dataset = load(path)
    assert len(dataset) == 12 and dataset.labels == ("energy",)
    for number, (atoms, sample) in enumerate(zip(molecules(12), dataset, strict=True)):
        row = row_of(atoms, number)
        assert sample.targets["energy"] == row[PBE0]
        nodes = sample.graph.nodes
        np.testing.assert_array_equal(nodes["species"], atoms.numbers)
        np.testing.assert_array_equal(nodes["positions"], atoms.positions.round(8))
        assert not sample.graph.globals["pbc"].any()
        assert dataset.info(number) == {
            "refcode_csd": f"CODE{number:02d}",
            "canonical_smiles": "C/C=C\\C",
            "number_of_atoms": len(atoms),
            PBE: row[PBE],
        }
    assert load(path, energy_key=PBE).energies[3] == row_of(molecules(4)[3], 3)[PBE]


@pytest.mark.parametrize("name", ["df_31k.json", "df_5k.json", "DF_62K.json", "some.json"])
def test_the_kind_is_known_by_the_published_names(path, name):
    other = path.rename(path.with_name(name))
    assert len(load(other, kind="oe62" if name == "some.json" else "")) == 12


@pytest.mark.parametrize(
    "order",
    [
        ("columns", "data"),
        ("data", "index", "columns"),
        ("index", "data", "columns"),
        ("data", "columns", "index"),
    ],
)
def test_the_order_of_parts_and_columns_is_free(path, order):
    expected = load(path)
    write_oe62(path, rows_of(12), order, sorted(COLUMNS))
    for a, b in zip(expected, load(path), strict=True):
        assert a.targets["energy"] == b.targets["energy"]
        np.testing.assert_array_equal(
            a.graph.nodes["positions"], b.graph.nodes["positions"]
        )
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2) + "\n")
    np.testing.assert_array_equal(load(path).energies, expected.energies)


def test_memory_is_that_of_some_rows(tmp_path):
    (atoms,) = molecules(1)
    # Orbital energies are most of the real file, too.
    rows = [row_of(atoms, number, orbitals=200) for number in range(40)] * 15
    path = write_oe62(tmp_path / "df_62k.json", rows)
    del rows
    assert path.stat().st_size > 8_000_000
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_oe62(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 600
    assert peak < 2_500_000


@pytest.mark.parametrize("chunk", [1, 7, 64, 5000])
def test_no_value_depends_on_where_a_chunk_ends(path, chunk, monkeypatch):
    row = rows_of(1)[0] | {PBE0: -123.4567e1, PBE: 10, "inchi": 'a"\\\n}],:é€'}
    row["energies_occ_pbe"] = [1e-07, -0.0, None, float("nan")]
    write_oe62(path, [row] * 2)
    monkeypatch.setattr("ewald_jax.data.oe62._CHUNK", chunk)
    first, second = read_oe62(path)
    assert first.info == second.info
    assert (first.info[PBE0], first.info[PBE]) == (-1234.567, 10)


def broken_row(**changes):
    return lambda rows: rows[:2] + [rows[2] | changes] + rows[3:]


def xyz(text):
    return broken_row(xyz_pbe_relaxed=text, number_of_atoms=2)


ROWS = {
    "energy null": (broken_row(**{PBE0: None}), f"has no label energy .*{PBE0}"),
    "energy nan": (broken_row(**{PBE0: float("nan")}), ": energy .* is NaN or infinite"),
    "energy text": (broken_row(**{PBE0: "-1"}), "energy .* is '-1', expected one number"),
    "energy list": (broken_row(**{PBE0: [1.0]}), None),
    "number": (
        broken_row(number_of_atoms=7),
        "has number_of_atoms 7, but xyz_pbe_relaxed has 12; expected the same",
    ),
    "number null": (broken_row(number_of_atoms=None), "has number_of_atoms None, but"),
    "number flag": (
        xyz("1\n\nH 0 0 0"),
        "has number_of_atoms 2, but xyz_pbe_relaxed has 1",
    ),
    "no text": (xyz(None), "has xyz_pbe_relaxed None, expected lines of text"),
    "numbers": (xyz([1, 2]), r"has xyz_pbe_relaxed \[1, 2\], expected lines of text"),
    "empty": (xyz(""), "has xyz_pbe_relaxed that begins with '' before 0 atoms, expected"),
    "count": (xyz("3\n\nH 0 0 0\nH 0 0 1"), "begins with '3' before 2 atoms, expected th"),
    "no count": (xyz("H 0 0 0\nH 0 0 1"), "begins with 'H 0 0 0' before 0 atoms, expected"),
    "no comment": (xyz("2\nH 0 0 0\nH 0 0 1"), "begins with '2' before 1 atoms, expected"),
    "blank line": (
        xyz("2\n\nH 0 0 0\n\nH 0 0 1"),
        "begins with '2' before 3 atoms, expect",
    ),
    "words": (
        xyz("2\n\nH 0 0\nH 0 0 1"),
        "has xyz_pbe_relaxed with 'H 0 0' for atom 0, exp",
    ),
    "more words": (
        xyz("2\n\nH 0 0 0\nH 0 0 1 2"),
        "with 'H 0 0 1 2' for atom 1, expected an",
    ),
    "letters": (
        xyz("2\n\nH 0 0 0\nH 0 x 1"),
        "with 'H 0 x 1' for atom 1, expected an elem",
    ),
    "element": (
        xyz("2\n\nH 0 0 0\nQq 0 0 1"),
        "has an unknown element 'Qq' at atom 1, exp",
    ),
    "dummy": (xyz("2\n\nH 0 0 0\nX 0 0 1"), "has an unknown element 'X' at atom 1, expect"),
    "infinite": (xyz("2\n\nH 0 0 0\nH 0 inf 1"), "has a NaN or infinite .* at atom 1"),
}


@pytest.mark.parametrize("name", ROWS)
def test_broken_rows(path, name):
    change, message = ROWS[name]
    write_oe62(path, change(rows_of(5)))
    if message is None:
        # A list of one number is an energy to the readers of all kinds.
        assert load(path).energies[2] == 1.0
        return
    with pytest.raises(InputError, match=f"df_62k.json: structure 2.*{message}") as caught:
        load(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def without(*names):
    return [name for name in COLUMNS if name not in names]


def cut(end):
    return lambda path: path.write_text(path.read_text()[:end])


def replaced(old, new):
    return lambda path: path.write_text(path.read_text().replace(old, new, 1))


def rewritten(**settings):
    return lambda path: write_oe62(path, rows_of(3), **settings)


FILES = {
    "empty": (
        cut(0),
        "structure 0 cannot be read, the file begins with no object: expected",
    ),
    "records": (replaced("{", "[{"), "structure 0 cannot be read, the file begins with no"),
    "other keys": (
        replaced('"columns"', '"schema"'),
        "structure 0 .* the key 'schema': exp",
    ),
    "cut in columns": (
        cut(100),
        "structure 0 ends in .*, which is no complete JSON .*trunca",
    ),
    "cut after columns": (
        cut(len(json.dumps(COLUMNS)) + 1),
        "structure 0 is where the file",
    ),
    "cut in a row": (
        cut(-900),
        "structure 2 ends in .*, which is no complete JSON .*truncat",
    ),
    "cut in the end": (cut(-1), "structure 3 is where the file ends, it is truncated"),
    "cut before it": (
        cut(-2),
        "structure 2 ends in .*nothing follows it.*; the file is trunca",
    ),
    "more": (
        replaced("]]}", "]]}{}"),
        "structure 3 is where the file should end, but more",
    ),
    "no comma": (
        replaced("],[", "] ["),
        "structure 0 ends in .*, which is no complete JSON",
    ),
    "literal": (
        replaced("null", "nil"),
        "structure 1 ends in .*, which is no complete JSON",
    ),
    "no index": (
        rewritten(index=[0, 1]),
        "structure 3 is where the rows end, after 3, expected 2 as the index has",
    ),
    "no data": (
        rewritten(order=("columns", "index")),
        "structure 0 is not there, the file",
    ),
    "no columns": (
        rewritten(order=("index", "data")),
        "structure 0 .* the file has no column",
    ),
    "no geometry": (
        rewritten(columns=without("xyz_pbe_relaxed")),
        "structure 0 cannot be read, the file has no column 'xyz_pbe_relaxed', it has 'refc",
    ),
    "no number": (
        rewritten(columns=without("number_of_atoms")),
        "structure 0 cannot be read, the file has no column 'number_of_atoms'",
    ),
    "no energy": (
        rewritten(columns=without(PBE0)),
        f"structure 0 has no energy under the key '{PBE0}', it has .*'{PBE}'; expected data",
    ),
    "column twice": (
        rewritten(columns=(*COLUMNS, PBE)),
        f"structure 0 cannot be read, the file has the column '{PBE}' twice",
    ),
    "column number": (
        replaced('["refcode_csd"', "[5"),
        "structure 0 cannot be read, the file has the column 5 twice or without",
    ),
    "columns empty": (
        rewritten(columns=(), data=[]),
        "structure 0 cannot be read, the file has no column 'xyz_pbe_relaxed', it has none",
    ),
    "data no list": (rewritten(data={}), r"structure 0 .* it has '{}}', expected '\['"),
    "row no list": (
        rewritten(data=[5]),
        "structure 0 is a row of 5, expected one for each",
    ),
    "row too short": (
        rewritten(data=[[5]]),
        "structure 0 is a row of 1 values, expected on",
    ),
    "no rows": (rewritten(data=[], index=[]), "df_62k.json has no structures, expected at"),
    "twice": (
        lambda path: path.write_text('{"index":[],"index":[]}'),
        "structure 0 cannot be read, the file has a second 'index'",
    ),
    "bytes": (
        lambda path: path.write_bytes(b'{"columns":["\xff"]}'),
        "structure 0 cannot be read .UnicodeDecodeError",
    ),
    "depth": (
        lambda path: path.write_text('{"columns":[' + "[" * 200_000),
        "structure 0 cannot be read .RecursionError",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_broken_files(path, name):
    change, message = FILES[name]
    rows = rows_of(3)
    rows[1]["energies_occ_pbe"] = [None]
    write_oe62(path, rows)
    change(path)
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path)) and "\n" not in sentence and len(sentence) < 500


def test_a_file_that_is_all_one_value_is_not_read_whole(path, monkeypatch):
    monkeypatch.setattr("ewald_jax.data.oe62._LARGEST", 10_000)
    monkeypatch.setattr("ewald_jax.data.oe62._CHUNK", 1000)
    path.write_text('{"columns":["' + "a" * 1_000_000)
    with pytest.raises(InputError, match="structure 0 has .* longer than 10000 characters"):
        list(iterate(path, READERS["oe62"]))


def test_the_split_is_the_order_of_pandas():
    # DataFrame({"x": range(n)}).sample(frac=1, random_state=42).index, of pandas 3.1.1.
    splits = oe62_split(61489, DataConfig(path="x", split="oe62"))
    assert {role: len(part) for role, part in splits.items()} == {
        "train": 50000,
        "val": 6000,
        "test": 5489,
    }
    assert {36596, 1219, 20349, 22779, 34081, 39883, 253} <= set(splits["train"].tolist())
    assert {860, 15795, 56422} <= set(splits["test"].tolist())
    order = [0, 17, 15, 1, 8, 5, 11, 3, 18, 16, 13, 2, 9, 19, 4, 12, 7, 10, 14, 6]

    def parts(**sizes):
        found = oe62_split(20, DataConfig(path="x", split="oe62", **sizes))
        return [found[role].tolist() for role in found]

    assert parts() == [sorted(order[:16]), sorted(order[16:18]), sorted(order[18:])]
    assert parts(split_seed=5) == parts()
    assert parts(val_size=0.25, test_size=3) == [
        sorted(order[:12]),
        sorted(order[12:17]),
        sorted(order[17:]),
    ]
    # Validation and test do not depend on the number to train with.
    assert parts(train_size=4) == [sorted(order[12:16]), *parts()[1:]]


def test_the_split_of_a_data_set(path):
    dataset = load(path)
    splits = split_dataset(DataConfig(path=str(path), split="oe62"), dataset)
    assert sorted(np.concatenate(list(splits.values())).tolist()) == list(range(12))
    with pytest.raises(
        InputError, match="data.split is 'oe6', expected 'random', 'key' or"
    ):
        split_dataset(DataConfig(path=str(path), split="oe6"), dataset)
    with pytest.raises(InputError, match="not enough structures for the split 'train'"):
        oe62_split(2, DataConfig(path="x", split="oe62"))


@pytest.mark.parametrize("fit_on", ["train", "all"])
def test_statistics_of_the_training_split_or_of_all(tmp_path, fit_on):
    dataset = load(write_oe62(tmp_path / "df_5k.json", rows_of(60)))
    train = np.arange(0, 60, 2)
    settings = {"reference": "nonnegative", "intercept": True, "fit_on": fit_on}
    statistics = dataset_statistics(dataset, train, StatisticsConfig(**settings))
    used = train if fit_on == "train" else np.arange(60)
    structures = [molecules(60)[i] for i in used]
    energies = np.array([row_of(a, i)[PBE0] for i, a in zip(used, structures, strict=True)])
    species = np.unique(np.concatenate([atoms.numbers for atoms in structures]))
    counts = np.array([[np.sum(a.numbers == z) for z in species] for a in structures])
    # The paper's fit: non-negative on -E, the columns centred for the intercept.
    centred = counts - counts.mean(0)
    expected = -scipy.optimize.nnls(centred, energies.mean() - energies)[0]
    found = np.array([statistics.reference_energies[z] for z in species])
    np.testing.assert_allclose(counts @ (found - expected), 0, atol=1e-5)
    mean = energies.mean() - counts.mean(0) @ expected
    np.testing.assert_allclose(statistics.mean, mean, atol=1e-5)
    left = energies - counts @ expected - mean
    np.testing.assert_allclose(statistics.scale, left.std(), rtol=1e-6)
    assert statistics.species == tuple(species)
    # Sulfur and other elements are in every second molecule only.
    assert (statistics.reference_energies[16] == 0) == (fit_on == "train")
    assert found.max() <= 0 and len(ATOMIC) >= len(species)
    published = dataset_statistics(
        dataset, train, StatisticsConfig(**settings, scale=1.7420150967)
    )
    assert published.scale == 1.7420150967
    np.testing.assert_allclose(published.mean, statistics.mean)


def test_the_shipped_configs_are_the_settings_of_the_paper(path):
    folder = REPOSITORY / "experiments" / "configs" / "data"
    plain, less = (
        load_section(str(folder / f"{name}.yaml"), "data") for name in ("oe62", "oe62_d3")
    )
    assert kind_of(Path(plain.path), READERS) == "oe62"
    here = dataclasses.replace(plain, path=str(path), cache_dir="none")
    dataset = load_dataset(here, 3.0)
    splits = split_dataset(here, dataset)
    assert {role: len(part) for role, part in splits.items()} == {
        "train": 10,
        "val": 1,
        "test": 1,
    }
    statistics = dataset_statistics(dataset, splits["train"], here.statistics)
    assert statistics.species == tuple(
        np.unique(np.concatenate([a.numbers for a in molecules(12)]))
    )
    assert dataclasses.replace(less, subtract="", statistics=plain.statistics) == plain
    assert dataclasses.replace(plain.statistics, scale=None) == less.statistics
    assert less.subtract == "PBE0-D3(BJ)"


def test_statistics_of_all_by_numpy(path):
    dataset = load(path)
    train = [0, 3, 4]
    found = dataset_statistics(dataset, train, StatisticsConfig(fit_on="all"))
    counts = np.array([np.bincount(a.numbers, minlength=119) for a in molecules(12)])
    expected = np.linalg.lstsq(counts.astype(float), dataset.energies)[0]
    np.testing.assert_allclose(found.reference_energies, expected, atol=1e-6)
    with pytest.raises(
        InputError, match="statistics.fit_on is 'test', expected one of tra"
    ):
        StatisticsConfig(fit_on="test")


def test_runs_from_before_fit_on_resume(tmp_path, path):
    config = {key: {} for key in ("model", "loss", "train")} | {"optim": {"schedule": ""}}
    statistics = dataset_statistics(load(path), [0])
    write_description(tmp_path, config | {"data": {"statistics": {"mean": 1}}}, statistics)

    def resume(fit_on):
        now = {"data": {"statistics": {"mean": 1, "fit_on": fit_on}}}
        check_same_run(tmp_path, config | now)

    resume("train")
    with pytest.raises(InputError, match="fit_on is 'train' there and 'all' here"):
        resume("all")


def test_broken_rows_are_skipped_on_request(path):
    rows = rows_of(5)
    rows[1]["number_of_atoms"] = 99
    rows[3][PBE0] = None
    dataset = load(write_oe62(path, rows), on_error="skip")
    kept = [dataset.info(i)["refcode_csd"] for i in range(len(dataset))]
    assert kept == ["CODE00", "CODE02", "CODE04"]
