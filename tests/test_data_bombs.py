"""Small files that stand for large ones: refused in a sentence, before the memory is taken."""

import gzip
import io
import lzma
import sqlite3
import struct
import tracemalloc
import zipfile
import zlib

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from oc20_files import as_tensor, record, s2ef, write_lmdb, write_s2ef
from torch_files import Call, floats, legacy_file, pickled, tensor

from ewald_jax.data import READERS, DataConfig, load_dataset, oc20_s2ef, text_files
from ewald_jax.data.labels import LEFT_OUT
from ewald_jax.data.reading import iterate
from ewald_jax.typing import InputError

MEMORY = 2**26


def refusal(path, kind=""):
    """The sentence about a file, which must not take much memory."""
    tracemalloc.start()
    with pytest.raises(InputError) as error:
        load_dataset(DataConfig(path=str(path), kind=kind, cache_dir="none"), 4.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sentence = str(error.value)
    assert sentence.startswith(f"{path}") and "\n" not in sentence, sentence
    assert peak < MEMORY, f"{peak} bytes: {sentence}"
    return sentence.removeprefix(f"{path}")


def water():
    atoms = ase.build.molecule("H2O")
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((3, 3)))
    atoms.info.update(sid=1, fid=2)
    return atoms


# -- compressed text ---------------------------------------------------------------------------

TEXTS = {
    "one line": (lambda: b"1" * 2**26, "has a line of more than 1048576 characters"),
    "a comment": (lambda: b"1\n" + b"a " * 2**25, "has a line of more than 1048576"),
    "many atoms": (
        lambda: b"8000000\nenergy=1\n" + b"H 0 0 0\n" * 2**22,
        "has 8000000 atoms in more than 16777216 characters, expected a smaller structure",
    ),
    "long lines of atoms": (
        lambda: b"1000\nenergy=1\n" + (b"H 0 0 0" + b" 1" * 2**17 + b"\n") * 128,
        "has 1000 atoms in more than 16777216 characters",
    ),
    "blank lines at the end": (
        lambda: b"1\nenergy=1\nH 0 0 0\n" + b"\n" + b" " * 2**25,
        "has a line of more than 1048576",
    ),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("ending", ["xz", "gz"])
def test_compressed_text(tmp_path, name, ending):
    make, message = TEXTS[name]
    path = tmp_path / f"x.extxyz.{ending}"
    path.write_bytes((lzma.compress if ending == "xz" else gzip.compress)(make()))
    assert path.stat().st_size < 2**17
    sentence = refusal(path)
    assert sentence.startswith(": structure ") and message in sentence, sentence


def test_a_decoder_may_not_ask_for_gigabytes(tmp_path):
    path = tmp_path / "x.extxyz.xz"
    # Without Python's encoder, which would take the memory, too: the size is one byte.
    packed = bytearray(lzma.compress(b"1\n\nH 0 0 0\n"))
    header = struct.pack("<BB", 2, 0) + bytes([0x21, 1, 36, 0, 0, 0])  # 2**30 bytes
    packed[12:24] = header + struct.pack("<I", zlib.crc32(header))
    path.write_bytes(packed)
    assert "LZMAError: Memory usage limit exceeded" in refusal(path)


@pytest.mark.parametrize("preset", [0, 6, 9 | lzma.PRESET_EXTREME])
def test_all_that_xz_writes_is_read(tmp_path, preset):
    """Streams after one another too, with padding between them."""
    text = "".join(f"{i:05d}\n" for i in range(50_000))
    half = text[: len(text) // 2], text[len(text) // 2 :]
    packed = [lzma.compress(part.encode(), preset=preset) for part in half]
    path = tmp_path / "x.xz"
    for between, after in ((b"", b""), (bytes(8), bytes(4)), (bytes(2**17), b"")):
        path.write_bytes(packed[0] + between + packed[1] + after)
        with text_files.open_text(path) as stream:
            assert stream.read() == text
    for cut in (0, 1, 30, len(packed[0]) // 2, len(packed[0]) + 20):
        path.write_bytes(b"".join(packed)[:cut])
        with (
            text_files.open_text(path) as stream,
            pytest.raises((EOFError, lzma.LZMAError)),
        ):
            stream.read()


def test_companions(tmp_path, monkeypatch):
    path = write_s2ef(tmp_path, 0, [water()] * 2)
    beside = path.with_name("0.txt.xz")
    beside.write_bytes(lzma.compress(b"r" * 2**26))
    assert "its companion 0.txt.xz is damaged (has a line of more than" in refusal(
        path, "oc20_s2ef"
    )
    monkeypatch.setattr(oc20_s2ef, "_COUNTED", 10_000)
    beside.write_bytes(lzma.compress(b"random1,frame1,-1.0\n" * 2**21))
    assert "0.txt.xz has 10002 lines for 2 frames" in refusal(path, "oc20_s2ef")


# -- arrays ------------------------------------------------------------------------------------


def write_npz(path, compress=zipfile.ZIP_DEFLATED, **arrays):
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, content in arrays.items():
            if isinstance(content, np.ndarray):
                stream = io.BytesIO()
                np.save(stream, content)
                content = stream.getvalue()
            archive.writestr(f"{name}.npy", content)
    return path


def declared(shape, content=b"", kind="<f8"):
    """An array that says it has a shape."""
    stream = io.BytesIO()
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + content


Z = np.array([[8, 1, 1]] * 2)
R = np.stack([water().positions] * 2)


def test_arrays_larger_than_their_file(tmp_path):
    large = np.zeros((2, 2**21, 3))
    path = write_npz(tmp_path / "a.npz", R=large, z=np.ones(2**21, np.int8))
    assert path.stat().st_size < 2**17
    assert "its arrays would take 102760448 bytes, expected at most" in refusal(path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"E": declared((10**10,))},
            r"its array 'E' of the shape \(10000000000,\) would take",
        ),
        ({"R": declared((2, -1, 3))}, "would take"),
        ({"E": declared((2,), bytes(16), "|O")}, "is of the type object"),
        ({"E": declared((2,), bytes(32), [("a", "<f8"), ("b", "<f8")])}, "is of the type"),
        ({"E": b"no array"}, "'E' is no array"),
        ({"R": declared((10**9, 0, 3))}, "its positions have the shape"),
    ],
)
def test_arrays_that_are_not_what_they_say(tmp_path, arrays, message):
    path = write_npz(tmp_path / "x.npz", **({"z": Z, "R": R, "E": np.zeros(2)} | arrays))
    with pytest.raises(InputError, match=message):
        list(iterate(path, READERS["npz"]))


def test_other_compression(tmp_path):
    path = write_npz(tmp_path / "x.npz", zipfile.ZIP_BZIP2, z=Z, R=R)
    assert "its array 'z' is compressed by other means than numpy's" in refusal(path)


def test_only_what_is_used_is_read(tmp_path):
    more = np.zeros((5, 2**21))
    path = write_npz(tmp_path / "x.npz", z=Z, R=R, E=np.ones(2), other=more)
    tracemalloc.start()
    frames = list(iterate(path, READERS["npz"]))
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert [set(atoms.info) for atoms in frames] == [{"E", LEFT_OUT}] * 2


# -- files of ASE ------------------------------------------------------------------------------

BOMB = '{"a": {"__ndarray__": [[2000000000], "float64", [0.0]]}}'


def test_rows_of_a_database(tmp_path):
    path = tmp_path / "x.db"
    with connect(path) as database:
        database.write(water(), sid=1)
    for column in ("data", "constraints", "key_value_pairs"):
        with sqlite3.connect(path) as file:
            file.execute(f"UPDATE systems SET {column} = ?", (BOMB,))
        assert ": structure 0 has an array of the shape [2000000000] that its" in refusal(
            path
        )
        with sqlite3.connect(path) as file:
            file.execute(f"UPDATE systems SET {column} = ?", ("{}",))
    with sqlite3.connect(path) as file:  # values that SQLite makes up
        file.execute("ALTER TABLE systems RENAME TO kept")
        names = [row[1] for row in file.execute("PRAGMA table_info(kept)")]
        made = ", ".join("zeroblob(900000000)" if n == "positions" else n for n in names)
        file.execute(f"CREATE VIEW systems AS SELECT {made} FROM kept")
    file.close()
    assert "there is no table 'systems'" in refusal(path)


def test_frames_of_a_trajectory(tmp_path):
    path = tmp_path / "x.traj"
    atoms = water()
    atoms.info["note"] = "x" * 200
    ase.io.write(path, [atoms, atoms])
    whole = path.read_bytes()
    assert len(list(iterate(path, READERS["traj"]))) == 2
    note = b'"note": "' + b"x" * 200 + b'"'
    assert whole.count(note) == 2
    bomb = b'"note": ' + BOMB.encode()
    path.write_bytes(whole.replace(note, bomb.ljust(len(note))))
    assert "structure 0 has an array of the shape [2000000000]" in refusal(path)
    for place, value in ((32, 2**40), (40, 2**60)):  # frames, and their table
        path.write_bytes(whole[:place] + struct.pack("<q", value) + whole[place + 8 :])
        assert "its table of frames lies outside of it" in refusal(path)


# -- records of torch --------------------------------------------------------------------------


def as_storage(count):
    storage = floats(count)
    data, found = pickled(storage, legacy=True)
    return Call("torch.storage._load_from_bytes", legacy_file(data, found.values()))


@pytest.mark.parametrize(
    ("key", "shape", "strides"),
    [
        ("pos", (1000, 3), (0, 1)),
        ("atomic_numbers", (1000,), (0,)),
        ("pos", (3, 3), (1, 1)),
        ("force", (3, 3), (3, 0)),
    ],
)
def test_tensors_that_repeat_their_numbers(tmp_path, key, shape, strides):
    repeated = tensor(as_storage(9), 0, shape, strides)
    found = s2ef(water()) | {key: repeated}
    if key == "pos" and shape[0] == 1000:
        found["natoms"] = 1000
        found["atomic_numbers"] = as_tensor(np.ones(1000, np.float32))
    path = write_lmdb(tmp_path / "x.lmdb", [record(found, 2)])
    assert f": structure 0 has {key!r} of the shape {shape} that repeats" in refusal(path)


def test_columns_of_a_tensor_in_another_order(tmp_path):
    """What torch calls a transposed tensor holds each number once."""
    found = s2ef(water()) | {"pos": tensor(as_storage(9), 0, (3, 3), (1, 3))}
    path = write_lmdb(tmp_path / "x.lmdb", [record(found, 1)])
    (atoms,) = iterate(path, READERS["oc20_lmdb"])
    assert len(np.unique(atoms.positions)) == 9


def test_a_length_may_be_any_number(tmp_path):
    path = write_lmdb(tmp_path / "x.lmdb", [record(s2ef(water()), 2)], 10**18)
    assert "the key 'length' says 1000000000000000000, but there are 1" in refusal(path)
