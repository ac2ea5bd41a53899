"""`data.on_error: skip`: what is broken is left out and counted, all else is read."""

import json
import lzma
import sqlite3

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from commands import run, succeed
from oc20_files import record, s2ef, write_lmdb, write_s2ef
from oe62_files import load, rows_of, write_oe62

from ewald_jax.data import DataConfig, load_dataset, split_dataset
from ewald_jax.typing import InputError

REST = "; the rest of the file is left out"


def frames(count, first=0):
    out = [ase.build.molecule("H2O") for _ in range(count)]
    for number, atoms in enumerate(out, first):
        atoms.rattle(0.02, seed=number)
        atoms.cell[:], atoms.pbc = 8 * np.eye(3), True
        atoms.calc = SinglePointCalculator(
            atoms, energy=float(number), forces=np.zeros((3, 3))
        )
        atoms.info.update(sid=number, fid=0)
    return out


def write(path, structures):
    if path.name.endswith(".xz"):
        with lzma.open(path, "wt") as stream:
            ase.io.write(stream, structures, format="extxyz")
    elif path.suffix == ".db":
        with connect(path) as database:
            for atoms in structures:
                database.write(atoms)
    elif path.suffix == ".lmdb":
        write_lmdb(path, [record(s2ef(atoms), 2) for atoms in structures])
    else:
        ase.io.write(path, structures)
    return path


def skipping(path, **settings):
    settings = {"on_error": "skip", "cache_dir": "none"} | settings
    return load_dataset(DataConfig(path=str(path), **settings), 3.0)


def test_a_truncated_last_frame(tmp_path):
    path = write(tmp_path / "a.extxyz", frames(4))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="structure 3 ends after 2 atoms"):
        skipping(path, on_error="raise")
    for cache_dir in ("none", str(tmp_path / "c"), str(tmp_path / "c")):
        dataset = skipping(path, cache_dir=cache_dir)
        assert dataset.energies.tolist() == [0.0, 1.0, 2.0]
        (sentence,) = dataset.skipped
        assert ": structure 3 ends after" in sentence and sentence.endswith(REST)


@pytest.mark.parametrize("name", ["a.extxyz.xz", "a.lmdb", "a.traj", "a.db"])
def test_a_torn_file_does_not_stop_the_others(tmp_path, name):
    """The first of three files is torn in the middle, or at its beginning."""
    for number, share in ((0, 0.5), (1, 0.001)):
        folder = tmp_path / str(number)
        folder.mkdir()
        torn = write(folder / name, frames(60))
        content = torn.read_bytes()
        torn.write_bytes(content[: int(share * len(content))])
        for other in ("aa", "ab"):
            write(folder / f"{other}{name[1:]}", frames(5, first=100))
        with pytest.raises(InputError, match=str(torn)):
            skipping(folder, on_error="raise")
        dataset = skipping(folder)
        energies = dataset.energies.tolist()
        assert energies[-10:] == [100.0 + i for i in (0, 1, 2, 3, 4)] * 2
        assert energies[:-10] == [float(i) for i in range(len(energies) - 10)]
        assert dataset.skipped and all(str(torn) in s for s in dataset.skipped)
        # Where each frame has its place in a table, each that is lost is told of.
        assert len(dataset.skipped) == 1 or len(dataset) + len(dataset.skipped) == 70
        assert len({dataset.where(i) for i in range(len(dataset))}) == len(dataset)


def test_a_torn_file_among_those_of_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("ewald_jax.data.base._WORTH_PROCESSES", 0)
    torn = write(tmp_path / "a.extxyz", frames(2))
    torn.write_text("broken\n")
    write(tmp_path / "b.extxyz", frames(3))
    config = DataConfig(
        path=str(tmp_path), on_error="skip", cache_dir=str(tmp_path / "cache")
    )
    dataset = load_dataset(config, 3.0, workers=2)
    assert len(dataset) == 3 and len(dataset.skipped) == 1


def test_only_torn_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.extxyz").write_text("broken\n")
    with pytest.raises(
        InputError, match="the data set has no structure that is whole, all 2"
    ):
        skipping(tmp_path)
    (tmp_path / "b.extxyz").write_text("")
    with pytest.raises(
        InputError, match="all 2 were skipped; the first: .*a.extxyz: struc"
    ):
        skipping(tmp_path)
    write(tmp_path / "c.extxyz", frames(2))
    config = DataConfig(
        train=str(tmp_path / "a.extxyz"), val=str(tmp_path / "c.extxyz"), on_error="skip"
    )
    with pytest.raises(InputError, match="not enough structures for the split 'train'"):
        split_dataset(config, load_dataset(config, 3.0))


def test_broken_rows_of_a_database(tmp_path):
    path = write(tmp_path / "a.db", frames(6))
    with sqlite3.connect(path) as file:
        file.execute("UPDATE systems SET positions = ? WHERE id = 2", (b"12345",))
        file.execute("UPDATE systems SET numbers = NULL WHERE id = 3")
        file.execute("UPDATE systems SET data = '{' WHERE id = 5")
    file.close()
    dataset = skipping(path)
    assert dataset.energies.tolist() == [0.0, 3.0, 5.0]
    assert [s.split(": structure ")[1][0] for s in dataset.skipped] == ["1", "2", "4"]
    with pytest.raises(InputError, match="a.db: structure 1 cannot be read"):
        skipping(path, on_error="raise")


def test_broken_frames_of_a_trajectory(tmp_path):
    path = write(tmp_path / "a.traj", frames(6))
    content = bytearray(path.read_bytes())
    places = [i for i in range(len(content)) if content[i : i + 14] == b'{"positions.":']
    assert len(places) >= 5  # the first frame begins with what all share
    for place in places[1:3]:
        content[place] = ord("(")
    path.write_bytes(content)
    dataset = skipping(path)
    assert len(dataset) == 4 and len(dataset.skipped) == 2
    assert all("cannot be read (JSONDecodeError" in s for s in dataset.skipped)


@pytest.mark.parametrize("lacking", [1, 7])
def test_the_first_structure_is_unlike_the_others(tmp_path, lacking):
    """Of 12, so many at the beginning have only an energy."""
    structures = frames(12)
    for atoms in structures[:lacking]:
        del atoms.calc.results["forces"]
    path = write(tmp_path / "a.extxyz", structures)
    cache = str(tmp_path / "cache")
    if lacking == 1:
        expected = (
            r"a\.extxyz: 11 of 12 structures have other labels .*expected data\.labels"
        )
        with pytest.raises(InputError, match=expected):
            skipping(path, cache_dir=cache)
        assert not list(tmp_path.glob("cache/*.graphs*"))
    else:
        assert len(skipping(path, cache_dir=cache)) == 7
    assert len(skipping(path, labels=("energy",))) == 12
    assert len(skipping(path, labels=("energy", "forces"))) == 12 - lacking


def test_a_missing_companion(tmp_path):
    for number in range(3):
        write_s2ef(tmp_path, number, frames(2, first=10 * number))
    (tmp_path / "1.txt.xz").unlink()
    with pytest.raises(InputError, match="1.extxyz.xz has no 1.txt or 1.txt.xz beside it"):
        skipping(tmp_path, kind="oc20_s2ef", on_error="raise")
    dataset = skipping(tmp_path, kind="oc20_s2ef")
    assert dataset.energies.tolist() == [0.0, 1.0, 20.0, 21.0]
    (sentence,) = dataset.skipped
    assert "1.extxyz.xz has no 1.txt" in sentence and sentence.endswith(REST)


# -- the split of OE62 -------------------------------------------------------------------------


def test_skipped_rows_leave_the_split_of_the_others(tmp_path):
    rows = rows_of(40)
    whole = load(write_oe62(tmp_path / "df_62k.json", rows))
    config = DataConfig(path="x", split="oe62", val_size=8, test_size=8)

    def codes(dataset):
        return {
            role: [dataset.info(i)["refcode_csd"] for i in chosen]
            for role, chosen in split_dataset(config, dataset).items()
        }

    official = codes(whole)
    broken = {official[role][2] for role in ("train", "val", "test")}
    for row in rows:
        if row["refcode_csd"] in broken:
            row["number_of_atoms"] = 99
    dataset = load(write_oe62(tmp_path / "df_31k.json", rows), on_error="skip")
    assert len(dataset) == 37
    assert codes(dataset) == {
        role: [code for code in chosen if code not in broken]
        for role, chosen in official.items()
    }
    order = np.random.RandomState(42).permutation(40)[::-1]  # noqa: NPY002
    assert official["test"] == [rows[i]["refcode_csd"] for i in np.sort(order[:8])]


def test_a_torn_file_has_no_official_split(tmp_path):
    path = write_oe62(tmp_path / "df_62k.json", rows_of(20))
    path.write_text(path.read_text()[:-3000])
    dataset = load(path, on_error="skip")
    assert 0 < len(dataset) < 20 and len(dataset.skipped) == 1
    config = DataConfig(path="x", split="oe62")
    with pytest.raises(InputError, match="left out, so that its rows cannot be counted"):
        split_dataset(config, dataset)
    assert split_dataset(DataConfig(path="x"), dataset)


# -- the command line --------------------------------------------------------------------------


def test_inspect_without_labels_and_with_torn_files(tmp_path):
    plain = frames(5)
    for atoms in plain:
        atoms.calc = None
    path = write(tmp_path / "a.extxyz", plain)
    arguments = ("data", "inspect", path, "data.cache_dir=none", "data.on_error=skip")
    result = succeed(*arguments, "--json")
    said = json.loads(result.stdout)
    assert said["structures"] == 5 and said["labels"] == [] and said["skipped"] == []
    assert "no labels: " in result.stderr and "has no energy under" in result.stderr
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    result = succeed(*arguments, "--json")
    assert json.loads(result.stdout)["structures"] == 4
    assert "1 broken structure was left out, the rest of a file counted" in result.stderr
    path.write_text("broken\n")
    result = run(*arguments)
    assert result.exit_code == 2 and "no structure that is whole" in result.stderr


def test_frames_beside_reference_energies_are_those_of_oc20(tmp_path):
    path = write_s2ef(tmp_path, 0, frames(2), reference=-50.0)
    assert load_dataset(
        DataConfig(path=str(tmp_path), cache_dir="none"), 3.0
    ).energies.tolist() == [0.0, 1.0]
    note = "is read as OC20's S2EF, for the reference energies beside it"
    arguments = ("data", "inspect", tmp_path, "data.cache_dir=none")
    assert note in succeed(*arguments).stderr
    total = succeed(*arguments, "data.kind=extxyz", "--json")
    assert note not in total.stderr
    assert json.loads(total.stdout)["ranges"]["energy"]["smallest"] == -50.0
    # Damaged, it is still a companion; another text is none.
    beside = path.with_name("0.txt.xz")
    beside.write_bytes(b"nothing")
    with pytest.raises(InputError, match="its companion 0.txt.xz is damaged"):
        skipping(tmp_path, on_error="raise")
    beside.write_bytes(lzma.compress(b"These are frames of water, see the paper.\n"))
    assert skipping(tmp_path).energies.tolist() == [-50.0, -49.0]
