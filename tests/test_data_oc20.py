"""OC20 as it is downloaded: raw frames and LMDB records are the same structures, and a record
that asks for anything but a graph is refused, unexecuted.

The layouts are assembled in `oc20_files`; files of the real OC20 are compared where they are.
"""

import collections
import lzma
import os
import tracemalloc

import ase.build
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from oc20_files import (
    Object,
    as_tensor,
    attributes,
    dumps,
    record,
    s2ef,
    write_lmdb,
    write_s2ef,
)
from torch_files import Call, Named, floats, legacy_file, pickled, tensor

from ewald_jax.data import READERS, DataConfig, load_dataset, split_dataset
from ewald_jax.data.labels import LabelOptions, standardise
from ewald_jax.data.oc20_lmdb import _read
from ewald_jax.data.reading import iterate
from ewald_jax.typing import InputError

LAYOUTS = (1, 2)


def frame(number, system=None):
    """A slab with an adsorbate; coordinates that float32 and eight decimals hold exactly."""
    rng = np.random.default_rng(number)
    atoms = ase.build.fcc111("Cu", (2, 2, 2), vacuum=5.0)
    ase.build.add_adsorbate(atoms, "O", 1.5, "ontop")
    atoms.pbc = True
    atoms.rattle(0.1, seed=number)
    atoms.positions = np.round(atoms.positions * 256) / 256
    atoms.cell[:] = np.round(atoms.cell.array * 256) / 256
    atoms.set_tags([0] * 4 + [1] * 4 + [2])
    atoms.set_constraint(FixAtoms(range(4)))
    forces = np.round(rng.normal(size=(9, 3)) * 256) / 256
    atoms.calc = SinglePointCalculator(atoms, energy=-0.25 * number, forces=forces)
    atoms.info.update(sid=100 + (number // 3 if system is None else system), fid=number % 3)
    return atoms


FRAMES = [frame(i) for i in range(5)]


def load(path, kind="", **settings):
    config = DataConfig(path=str(path), kind=kind, cache_dir="none", **settings)
    return load_dataset(config, 4.0)


def read(path, kind):
    return list(iterate(path, READERS[kind]))


def refusal(path, kind):
    """The sentence about a file, without its name."""
    with pytest.raises(InputError) as error:
        load(path, kind)
    sentence = str(error.value)
    assert sentence.startswith(f"{path}") and "\n" not in sentence, sentence
    return sentence.removeprefix(f"{path}")


def assert_same(first, second):
    """All of two structures, but for what only one kind of file has."""
    for a, b in zip(first.graph, second.graph, strict=True):
        for key in a if isinstance(a, dict) else ():
            np.testing.assert_array_equal(a[key], b[key])
        if not isinstance(a, dict):
            np.testing.assert_array_equal(a, b)
    assert set(first.targets) == set(second.targets)
    for key, value in first.targets.items():
        np.testing.assert_array_equal(value, second.targets[key])
    np.testing.assert_array_equal(first.tags, second.tags)


def test_raw_frames_and_both_layouts_are_the_same_graphs(tmp_path):
    write_s2ef(tmp_path / "train", 0, FRAMES[:3])
    write_s2ef(tmp_path / "train", 1, FRAMES[3:])
    raw = load(tmp_path / "train", "oc20_s2ef")
    assert raw.labels == ("energy", "forces", "free")
    assert [raw.info(i)["sid"] for i in range(5)] == [100, 100, 100, 101, 101]
    assert raw.info(4)["system"] == "random101" and raw.info(4)["frame"] == "frame1"
    assert raw.info(4)["total_energy"] == -101.0
    for layout in LAYOUTS:
        path = tmp_path / f"{layout}.lmdb"
        records = load(write_lmdb(path, [record(s2ef(a), layout) for a in FRAMES]))
        assert len(records) == len(raw) == 5
        for i, (a, b) in enumerate(zip(raw, records, strict=True)):
            assert_same(a, b)
            assert a.targets["energy"] == -0.25 * i
            assert a.targets["free"].tolist() == [False] * 4 + [True] * 5
            assert a.tags.tolist() == [0] * 4 + [1] * 4 + [2]
            assert {k: raw.info(i)[k] for k in ("sid", "fid")} == records.info(i)


def test_splits_by_system(tmp_path):
    path = tmp_path / "all.lmdb"
    frames = [frame(i, system=i // 2) for i in range(20)]
    write_lmdb(path, [record(s2ef(a), 2) for a in frames])
    config = DataConfig(
        path=str(path), cache_dir="none", split="key", split_key="sid", val_size=0.2
    )
    dataset = load_dataset(config, 3.0)
    systems = [
        {dataset.info(i)["sid"] for i in part}
        for part in split_dataset(config, dataset).values()
    ]
    assert len(set.union(*systems)) == sum(map(len, systems)) == 10


@pytest.mark.parametrize("layout", LAYOUTS)
def test_relaxed_energies_of_initial_structures(tmp_path, layout):
    found = attributes(
        FRAMES[1], y_init=1.5, y_relaxed=-2.5, pos_relaxed=FRAMES[2].positions
    )
    # Without a length, as OCP's loader of IS2RE took them.
    path = write_lmdb(tmp_path / "is2re.lmdb", [record(found, layout)] * 2, None)
    dataset = load(path)
    assert dataset.labels == ("energy", "free") and dataset.energies.tolist() == [-2.5] * 2
    np.testing.assert_array_equal(dataset[0].graph.nodes["positions"], FRAMES[1].positions)
    assert dataset.info(0)["initial_energy"] == 1.5


def test_keys_are_numbers_not_text(tmp_path):
    frames = [frame(i, system=i) for i in range(12)]
    path = write_lmdb(tmp_path / "x.lmdb", [record(s2ef(a), 1) for a in frames])
    assert [a.info["sid"] for a in read(path, "oc20_lmdb")] == list(range(100, 112))


def test_real_records_are_the_real_frames(real_data, tmp_path):
    records, frames = real_data("oc20_lmdb"), real_data("oc20_s2ef")
    first, second = (load(records / f"s2ef_pyg{n}.lmdb") for n in LAYOUTS)
    wanted = {(info["sid"], info["fid"]): i for i, info in enumerate(first.infos())}
    assert len(first) == len(second) == len(wanted) == 40
    for a, b in zip(first, second, strict=True):
        assert_same(a, b)
    folders = [frames / name for name in ("train", "val_id")]
    found = {
        key: atoms
        for folder in folders
        for path in folder.glob("*.extxyz.xz")
        for atoms in iterate(path, READERS["oc20_s2ef"])
        if (key := (atoms.info["sid"], atoms.info["fid"])) in wanted
    }
    assert set(found) == set(wanted)
    structures = [found[key] for key in sorted(wanted, key=wanted.get)]
    for atoms in structures:  # as the records have them
        atoms.positions = atoms.positions.astype(np.float32)
        atoms.cell[:] = atoms.cell.array.astype(np.float32)
        results = atoms.calc.results
        results["forces"] = results["forces"].astype(np.float32)
    raw = load(write_lmdb(tmp_path / "x.lmdb", [record(s2ef(a), 2) for a in structures]))
    for a, b in zip(first, raw, strict=True):
        assert_same(a, b)


# -- hostile and broken records ---------------------------------------------------------------


class Harm:
    """Pickled as a call that leaves a trace in the environment."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


HARM = "EWALD_JAX_HARM"


def hostile():
    """Pickles that would set an environment variable."""
    put = Harm(Named("posix.putenv"), (HARM, "1"))
    hidden = Call("functools.partial", Named("posix.system"))
    reached = Call("builtins.getattr", Named("os.environ"), "setdefault")
    return {
        "posix.putenv": dumps(put),
        "posix.system": dumps(Harm(Named("posix.system"), (f"touch {HARM}",))),
        "functools.partial": dumps([hidden]),
        "builtins.getattr": dumps([reached]),
        "builtins.eval": dumps([Call("builtins.eval", "1")]),
        "torch_geometric.utils.x": dumps(Object("torch_geometric.utils.x", {})),
    }


@pytest.mark.parametrize("name", hostile())
def test_nothing_that_a_record_names_is_called(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    good = record(s2ef(FRAMES[0]), 2)
    path = write_lmdb(tmp_path / "x.lmdb", [good, hostile()[name]])
    sentence = refusal(path, "oc20_lmdb")
    assert sentence.startswith(f": structure 1 asks to call {name}, expected")
    assert HARM not in os.environ and not (tmp_path / HARM).exists()


def test_a_length_may_not_call_either(tmp_path):
    path = write_lmdb(tmp_path / "x.lmdb", [record(s2ef(FRAMES[0]), 2)], None)
    write_lmdb(path, [], None, length=hostile()["posix.putenv"])
    assert "asks to call posix.putenv" in refusal(path, "oc20_lmdb")
    assert HARM not in os.environ


def test_a_small_record_cannot_take_much_memory(tmp_path):
    count = 10 * 2**30 // 4
    inner, _ = pickled(floats(count=6), legacy=True)
    storage = floats(count=6)
    storage.count = count
    declared, found = pickled(storage, legacy=True)
    for raw in (legacy_file(declared, found.values()), legacy_file(inner, [storage])):
        positions = tensor(
            Call("torch.storage._load_from_bytes", raw), 0, (count // 3, 3), (3, 1)
        )
        found_record = s2ef(FRAMES[0]) | {"pos": positions}
        assert len(record(found_record, 2)) < 10_000
        path = tmp_path / "x.lmdb"
        path.unlink(missing_ok=True)
        write_lmdb(path, [record(found_record, 2)])
        tracemalloc.start()
        assert ": structure 0 is truncated or damaged" in refusal(path, "oc20_lmdb")
        assert tracemalloc.get_traced_memory()[1] < 2**24
        tracemalloc.stop()


def test_torn_files(tmp_path):
    path = write_lmdb(tmp_path / "x.lmdb", [record(s2ef(a), 1) for a in FRAMES])
    whole = path.read_bytes()
    for size in (0, 100, 5000, 10_000, len(whole) // 2):
        path.write_bytes(whole[:size])
        assert "expected" in refusal(path, "oc20_lmdb")
    path.write_bytes(b"not a database " * 1000)
    assert refusal(path, "oc20_lmdb") == " is no LMDB file, expected a complete LMDB file"


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (None, "the key 'length' is missing beside 1 records"),
        (3, "says 3, but there are 1"),
    ],
)
def test_a_wrong_number_of_records(tmp_path, length, message):
    path = write_lmdb(tmp_path / "x.lmdb", [record(s2ef(FRAMES[0]), 1)], length)
    assert message in refusal(path, "oc20_lmdb")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos": None}, "has no 'pos'"),
        ({"pos": np.zeros((3, 3), np.float32)}, "the shape (3, 3), expected numbers"),
        ({"pos": "text"}, "has 'pos' of str"),
        ({"atomic_numbers": np.full(9, 0.5, np.float32)}, "'atomic_numbers' out of range"),
        ({"atomic_numbers": np.full(9, 200.0, np.float32)}, "whole numbers 1 to 118"),
        ({"atomic_numbers": np.zeros(0, np.float32)}, "has no atoms"),
        ({"natoms": 5}, "natoms other than its 9"),
        ({"fixed": np.full(9, 2.0, np.float32)}, "'fixed' out of range"),
        ({"force": np.full((9, 3), np.nan, np.float32)}, "NaN or infinite at atom 0"),
        ({"y": "low"}, "has 'y' of str"),
        ({"y": None}, "has no label energy"),
    ],
)
def test_broken_records(tmp_path, change, message):
    changed = {
        key: as_tensor(value) if isinstance(value, np.ndarray) else value
        for key, value in change.items()
    }
    good = record(s2ef(FRAMES[0]), 2)
    path = write_lmdb(tmp_path / "x.lmdb", [good, record(s2ef(FRAMES[1]) | changed, 2)])
    sentence = refusal(path, "oc20_lmdb")
    assert sentence.startswith(": structure 1") and message in sentence, sentence


@pytest.mark.parametrize(
    "tries", [1000, pytest.param(10_000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_flipped_bytes_are_refused_or_harmless(tries):
    """A flip within a number gives another number; nothing else may come out."""
    rng = np.random.default_rng(0)
    small = ase.Atoms("CO", [[0, 0, 0], [0, 0, 1.125]], cell=[4, 4, 4], pbc=True)
    small.calc = SinglePointCalculator(small, energy=1.0, forces=np.ones((2, 3)))
    small.set_constraint(FixAtoms([1]))
    good = [record(s2ef(small), layout) for layout in LAYOUTS]
    known = set()
    labelled = _read(good[0], known)
    wanted = values_of(labelled)
    assert wanted.tolist() == values_of(_read(good[1], known)).tolist()
    results = collections.Counter()
    for number in range(tries):
        raw = bytearray(good[number % 2])
        flips = rng.integers(1, 4)
        for _ in range(flips):
            raw[rng.integers(len(raw))] = rng.integers(256)
        try:
            atoms = _read(raw, set(known))
            list(standardise([labelled, atoms], "x", LabelOptions()))
            found = values_of(atoms)
        except InputError as error:
            assert "\n" not in str(error)
            results["refused"] += 1
        else:
            # Of as many numbers as bytes were flipped, and no attribute lost.
            assert found.shape == wanted.shape
            changed = np.sum((found != wanted) & ~(np.isnan(found) & np.isnan(wanted)))
            assert changed <= flips
            results["equal" if changed == 0 else "other numbers"] += 1
    assert len(results) == 3, results


def values_of(atoms):
    """All that a structure holds, as one list of numbers."""
    free = np.ones(len(atoms))
    for constraint in atoms.constraints:
        free[constraint.index] = 0
    results = atoms.calc.results
    assert set(atoms.info) == {"sid", "fid"} and set(results) == {"energy", "forces"}
    parts = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.get_tags(), free)
    parts += (results["energy"], results["forces"], *atoms.info.values())
    return np.concatenate([np.ravel(part).astype(float) for part in parts])


# -- raw frames --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["random1,frame0,-1.0"],
            ": structure 1 has no line in 0.txt.xz, which ends after 1",
        ),
        (
            ["random1,frame0,-1.0"] * 3,
            ": structure 2 is missing: 0.txt.xz has 3 lines for 2",
        ),
        (
            ["random1,frame0,-1.0", "random1,frame1"],
            "1 has the line 'random1,frame1' (0.txt.",
        ),
        (["random1,frame0,nan", "a,b,1"], "structure 0 has the line 'random1,frame0,nan'"),
    ],
)
def test_lines_that_do_not_belong_to_the_frames(tmp_path, lines, message):
    path = write_s2ef(tmp_path, 0, FRAMES[:2], lines=lines)
    assert message in refusal(path, "oc20_s2ef")


def test_broken_companions(tmp_path):
    path = write_s2ef(tmp_path, 0, FRAMES[:2])
    beside = path.with_name("0.txt.xz")
    beside.write_bytes(beside.read_bytes()[:-9])
    assert "its companion 0.txt.xz is damaged" in refusal(path, "oc20_s2ef")
    beside.unlink()
    assert "has no 0.txt or 0.txt.xz beside it" in refusal(path, "oc20_s2ef")


def test_uncompressed_files(tmp_path):
    packed = write_s2ef(tmp_path, 0, FRAMES[:2])
    for name in ("0.extxyz", "0.txt"):
        source = tmp_path / f"{name}.xz"
        (tmp_path / name).write_bytes(lzma.decompress(source.read_bytes()))
    same = [load(path, "oc20_s2ef") for path in (packed, tmp_path / "0.extxyz")]
    assert_same(same[0][1], same[1][1])


def test_the_cache_notices_a_changed_companion(tmp_path):
    path = write_s2ef(tmp_path, 0, FRAMES[:2])
    settings = {"path": str(path), "kind": "oc20_s2ef", "cache_dir": str(tmp_path / "c")}
    first = load_dataset(DataConfig(**settings), 3.0)
    write_s2ef(tmp_path, 0, FRAMES[:2], lines=["random1,frame0,-99.0"] * 2)
    second = load_dataset(DataConfig(**settings), 3.0)
    assert first.energies.tolist() == [0.0, -0.25]
    assert second.energies.tolist() == [-1.0, -1.25]


# -- broken structures left out ----------------------------------------------------------------


def test_broken_structures_are_skipped_and_counted(tmp_path):
    broken = {"force": np.full((9, 3), np.nan, np.float32)}
    records = [record(s2ef(a), 2) for a in FRAMES]
    records[0] = hostile()["builtins.eval"]
    records[3] = record(s2ef(FRAMES[3]) | {k: as_tensor(v) for k, v in broken.items()}, 2)
    path = write_lmdb(tmp_path / "x.lmdb", records)
    settings = {"path": str(path), "on_error": "skip", "cache_dir": str(tmp_path / "c")}
    for _ in range(2):  # built, then from the cache
        dataset = load_dataset(DataConfig(**settings), 3.0)
        assert dataset.energies.tolist() == [-0.25, -0.5, -1.0]
        assert [s.split(": structure ")[1][:6] for s in dataset.skipped] == [
            "0 asks",
            "3: for",
        ]
        assert dataset.where(0).endswith("structure 1")
        assert dataset.where(2).endswith("structure 4")
    with pytest.raises(InputError, match="structure 0 asks to call"):
        load_dataset(DataConfig(**settings | {"on_error": "raise"}), 3.0)


@pytest.mark.parametrize("key", ["fixed", "tags", "sid", "natoms"])
def test_an_attribute_that_a_record_lacks(tmp_path, key):
    found = [s2ef(atoms) for atoms in FRAMES]
    found[2][f"{key}_"] = found[2].pop(key)
    path = write_lmdb(tmp_path / "x.lmdb", [record(each, 2) for each in found])
    assert f": structure 2 has no {key!r}, but the records before" in refusal(
        path, "oc20_lmdb"
    )
    dataset = load(path, on_error="skip")
    assert dataset.energies.tolist() == [0.0, -0.25, -0.75, -1.0]


def test_a_broken_structure_does_not_decide_the_labels(tmp_path):
    first = attributes(FRAMES[0], y=float("nan"))
    path = write_lmdb(tmp_path / "x.lmdb", [record(first, 2), record(s2ef(FRAMES[1]), 2)])
    dataset = load(path, on_error="skip")
    assert dataset.labels == ("energy", "forces", "free") and len(dataset.skipped) == 1


def test_a_file_may_not_be_skipped_whole(tmp_path):
    path = write_lmdb(tmp_path / "x.lmdb", [hostile()["builtins.eval"]] * 2)
    for cache_dir in ("none", str(tmp_path / "c")):
        config = DataConfig(path=str(path), on_error="skip", cache_dir=cache_dir)
        with pytest.raises(
            InputError, match="all 2 were skipped; the first: .* asks to call"
        ):
            load_dataset(config, 3.0)
    assert not list((tmp_path / "c").glob("*"))


def test_a_broken_frame_between_good_ones(tmp_path):
    path = write_s2ef(tmp_path, 0, FRAMES[:3])
    text = lzma.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    text[14] = text[14].replace("Cu", "Qq")
    path.write_bytes(lzma.compress("".join(text).encode()))
    dataset = load(path, "oc20_s2ef", on_error="skip")
    assert dataset.energies.tolist() == [0.0, -0.5]
    assert "structure 1 has an unknown element 'Qq'" in dataset.skipped[0]
