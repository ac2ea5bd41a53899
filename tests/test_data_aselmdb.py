"""ASE databases in LMDB files, as fairchem's data sets come.

`reference/ase_db_backends.aselmdb` was written by ase-db-backends 0.11 with ASE 3.29.
"""

import re
import tracemalloc
import zlib

import numpy as np
import pytest
from oc20_files import write_aselmdb, write_lmdb
from structures import REFERENCE

from ewald_jax.data import DataConfig, load_dataset
from ewald_jax.typing import InputError


def load(path):
    return load_dataset(DataConfig(path=str(path), cache_dir="none"), 4.0)


def refusal(path):
    """The sentence about a file, without its name."""
    with pytest.raises(InputError) as error:
        load(path)
    sentence = str(error.value)
    assert sentence.startswith(f"{path}") and "\n" not in sentence, sentence
    return sentence.removeprefix(f"{path}")


def test_a_database_that_ase_db_backends_wrote():
    dataset = load(REFERENCE / "ase_db_backends.aselmdb")
    # Row 2 was deleted.
    assert [dataset.info(i)["sid"] for i in range(len(dataset))] == [100, 102, 103]
    assert dataset.labels == ("energy", "forces", "stress", "free")
    rng = np.random.default_rng(0)
    energy, forces, stress = rng.normal(), rng.normal(size=(3, 3)), rng.normal(size=6)
    sample = dataset[0]
    assert sample.targets["energy"] == energy
    np.testing.assert_array_equal(sample.targets["forces"], forces)
    np.testing.assert_array_equal(np.diag(sample.targets["stress"]), stress[:3])
    assert sample.targets["free"].tolist() == [False, True, True]
    assert sample.tags.tolist() == [0, 1, 2]
    assert dataset.info(0) == {"sid": 100, "source": "x", "ref_energy": -1.5}


ROW = {
    "numbers": [8, 1],
    "positions": [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]],
    "cell": [[5.0, 0, 0], [0, 5.0, 0], [0, 0, 5.0]],
    "pbc": [True, True, False],
    "energy": -1.5,
    "forces": [[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]],
    "constraints": [{"name": "FixAtoms", "kwargs": {"indices": [-1]}}],
    "key_value_pairs": {"sid": 7},
    "data": {"long": [1, 2, 3]},
}


@pytest.mark.parametrize("compress", [True, False])
def test_rows_of_plain_lists(tmp_path, compress):
    path = write_aselmdb(
        tmp_path / "x.aselmdb", [ROW, ROW | {"energy": 2}], compress=compress
    )
    dataset = load(path)
    assert dataset.energies.tolist() == [-1.5, 2.0] and dataset.info(0) == {"sid": 7}
    assert dataset[0].targets["free"].tolist() == [True, False]
    assert dataset[0].graph.globals["pbc"].tolist() == [[True, True, False]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numbers": [8, 0]}, "'numbers' out of range"),
        ({"numbers": None}, "no valid 'numbers'"),
        ({"positions": [[0.0, 0.0, 0.0]]}, "no valid 'positions'"),
        (
            {"positions": {"__ndarray__": [[10**9, 3], "float64", [0.0]]}},
            "1 values for the",
        ),
        ({"forces": [["a", 0, 0], [0, 0, 0]]}, "no valid 'forces'"),
        ({"energy": None}, "has no label energy"),
        (
            {"constraints": [{"name": "FixAtoms", "kwargs": {"indices": [5]}}]},
            "fixes atoms",
        ),
    ],
)
def test_broken_rows(tmp_path, change, message):
    path = write_aselmdb(tmp_path / "x.aselmdb", [ROW, ROW | change])
    sentence = refusal(path)
    assert sentence.startswith(": structure 1") and message in sentence, sentence


def test_broken_databases(tmp_path):
    missing = write_aselmdb(tmp_path / "a.aselmdb", [ROW], nextid=5, deleted=[2])
    assert "there are 1 rows, expected 3" in refusal(missing)
    none = write_lmdb(tmp_path / "b.aselmdb", [], None, x=b"1")
    assert "'nextid' is missing" in refusal(none)
    damaged = write_aselmdb(tmp_path / "c.aselmdb", [ROW])
    write_lmdb(damaged, [], None, **{"1": b"x\x9cnot zlib"})
    assert "is damaged" in refusal(damaged)


HUGE = {
    "a long text": ('{"user": "%s"}' % ("a" * 2**24), "more than 16777216 bytes"),
    "many lists": (
        "[" + "[]," * 2**21 + "0]",
        "JSON of .* as values, expected at most 128",
    ),
    "many objects": ("[" + "{}," * 2**21 + "0]", "JSON of .* as values, expected"),
    "many texts": ('["' + 'a","' * 2**21 + '"]', "JSON of .* as values, expected"),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_compressed_row_cannot_take_much_memory(tmp_path, name):
    text, message = HUGE[name]
    path = write_aselmdb(tmp_path / "x.aselmdb", [ROW])
    packed = zlib.compress(text.encode())
    assert len(packed) < 2**16
    write_lmdb(path, [], None, **{"1": packed})
    tracemalloc.start()
    assert re.search(message, refusal(path))
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_metadata_are_few(tmp_path):
    many = ROW | {"data": {str(i): i for i in range(2000)}}
    path = write_aselmdb(tmp_path / "a.aselmdb", [ROW, many])
    assert ": structure 1 has 2001 entries of metadata, expected" in refusal(path)
    long = ROW | {"data": {str(i): "a" * 4000 for i in range(20)}}
    path = write_aselmdb(tmp_path / "b.aselmdb", [long])
    assert ": structure 0 has 80041 characters of metadata" in refusal(path)
    path = write_aselmdb(tmp_path / "c.aselmdb", [ROW | {"data": {"log": "a" * 10_000}}])
    assert load(path).info(0) == {"sid": 7}
