"""LMDB files page by page: what the library reads, and no crash on what would crash it."""

import lmdb
import numpy as np
import pytest

from ewald_jax.data.lmdb_files import open_lmdb
from ewald_jax.data.reading import BrokenFileError


def write(path, entries, batches=1):
    """A file of these entries, written in several transactions."""
    items = list(entries.items())
    with lmdb.open(str(path), subdir=False, map_size=2**26, lock=False) as environment:
        for part in range(batches):
            with environment.begin(write=True) as transaction:
                for key, value in items[part::batches]:
                    transaction.put(key, value)
    return path


def read(path):
    with open_lmdb(path) as file:
        keys = file.numbers()
        return {b"%d" % key: file.get(b"%d" % key) for key in keys}


def entries(count, seed=0):
    """Small values, and some with pages of their own."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([0, 1, 30, 1500, 3000, 5000, 70_000], count, p=[0.1, *[0.15] * 6])
    return {b"%d" % i: rng.bytes(int(size)) for i, size in enumerate(sizes)}


@pytest.mark.parametrize(("count", "batches"), [(0, 1), (1, 1), (40, 3), (700, 5)])
def test_everything_that_was_written(tmp_path, count, batches):
    wanted = entries(count)
    path = write(tmp_path / "x", wanted | {b"length": b"12"}, batches)
    assert read(path) == wanted
    with open_lmdb(path) as file:
        assert file.get(b"length") == b"12" and file.get(b"none") is None


def test_many_small_entries_in_a_deep_tree(tmp_path):
    wanted = {b"%d" % i: b"%d" % (7 * i) for i in range(30_000)}
    assert read(write(tmp_path / "x", wanted, 4)) == wanted


def test_deleted_and_replaced_entries(tmp_path):
    wanted = entries(100)
    path = write(tmp_path / "x", wanted)
    with (
        lmdb.open(str(path), subdir=False, map_size=2**26, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key in list(wanted)[::3]:
            transaction.delete(key)
            del wanted[key]
        transaction.put(b"1", b"new")
    assert read(path) == wanted | {b"1": b"new"}


def test_damaged_pages(tmp_path):
    """Bytes of the structure, not only of the values: the library would end the process."""
    small = {b"%d" % i: bytes(i) for i in range(400)} | entries(5)
    whole = bytearray(write(tmp_path / "x", small, 2).read_bytes())
    rng, path, refused = np.random.default_rng(1), tmp_path / "y", 0
    pages = len(whole) // 4096
    for _ in range(1500):
        broken = bytearray(whole)
        for _ in range(rng.integers(1, 4)):  # mostly headers and pointers
            place = 4096 * int(rng.integers(pages)) + int(rng.integers(160))
            broken[place] = rng.integers(256)
        path.write_bytes(broken)
        try:
            found = read(path)
        except BrokenFileError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert sum(map(len, found.values())) <= len(whole)
    assert refused > 100


def test_torn_files(tmp_path):
    whole = write(tmp_path / "x", entries(60)).read_bytes()
    path = tmp_path / "y"
    for size in (0, 1, 511, 4096, 8192, 20_000, len(whole) - 4096):
        path.write_bytes(whole[:size])
        with pytest.raises(BrokenFileError, match="expected a complete LMDB file"):
            read(path)


def test_values_that_share_their_pages(tmp_path):
    """A small file could hold one large value a million times."""
    path = write(tmp_path / "x", {b"%d" % i: bytes(9000) for i in range(50)})
    raw = bytearray(path.read_bytes())
    nodes = [i for i in range(len(raw) - 8) if raw[i : i + 8] == b"\x28\x23\0\0\1\0\1\0"]
    assert len(nodes) >= 10
    for node in nodes:  # the first one's pages, and 60,000 bytes from there on
        raw[node : node + 2] = (60_000).to_bytes(2, "little")
        raw[node + 9 : node + 17] = raw[nodes[0] + 9 : nodes[0] + 17]
    path.write_bytes(raw)
    with pytest.raises(BrokenFileError, match="a value is larger than the file"):
        read(path)


def test_other_formats(tmp_path):
    raw = bytearray(write(tmp_path / "x", entries(3)).read_bytes())
    for page in (0, 4096):
        raw[page + 20] = 2
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(BrokenFileError, match="of the format 2, expected 1"):
        read(tmp_path / "x")
