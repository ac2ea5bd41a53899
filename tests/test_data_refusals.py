"""What the data readers refuse, and whether the sentence says what to do about it."""

import re
import shutil
import warnings

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from commands import refuse
from oc20_files import (
    as_tensor,
    attributes,
    record,
    s2ef,
    write_aselmdb,
    write_lmdb,
    write_s2ef,
)

from ewald_jax.data import DataConfig, load_dataset
from ewald_jax.data.base import source_files
from ewald_jax.data.expand import expand_path, kinds_of_files
from ewald_jax.data.extxyz import read_extxyz
from ewald_jax.data.reading import Reader, iterate
from ewald_jax.typing import InputError


def slabs(count, first=0):
    """Frames with tags, as OC20's."""
    out = []
    for number in range(first, first + count):
        atoms = ase.build.molecule("H2O")
        atoms.rattle(0.02, seed=number)
        atoms.cell[:], atoms.pbc = 8 * np.eye(3), True
        atoms.set_tags([1, 2, 2])
        atoms.calc = SinglePointCalculator(
            atoms, energy=float(number), forces=np.full((3, 3), 0.1)
        )
        atoms.info.update(sid=number, fid=0)
        out.append(atoms)
    return out


def load(path, **settings):
    settings = {"path": str(path), "cache_dir": "none"} | settings
    return load_dataset(DataConfig(**settings), 3.0)


# -- companions of OC20's frames -------------------------------------------------------------


def test_a_companion_that_is_missing_beside_others(tmp_path):
    for number in range(3):
        write_s2ef(tmp_path, number, slabs(2))
    (tmp_path / "1.txt.xz").unlink()
    with pytest.raises(InputError, match=r"1\.extxyz\.xz has no 1\.txt or .*data\.kind"):
        load(tmp_path)
    assert len(load(tmp_path, kind="extxyz")) == 6
    with pytest.raises(InputError, match=r"1\.extxyz\.xz has no 1\.txt") as error:
        load(tmp_path, kind="oc20_s2ef")
    assert str(error.value).count(str(tmp_path)) == 1 and "structure 0" not in str(
        error.value
    )
    # Without labels nothing is mixed.
    kinds = kinds_of_files(expand_path(str(tmp_path)), labelled=False)
    assert kinds == ["oc20_s2ef", "extxyz", "oc20_s2ef"]


@pytest.mark.parametrize("lines", [["nonsense", "random1,frame0,-100.0"], ["nonsense"] * 2])
def test_a_companion_that_begins_badly_is_named_with_its_line(tmp_path, lines):
    write_s2ef(tmp_path, 0, slabs(2), lines=lines)
    with pytest.raises(InputError, match=r"structure 0 .*'nonsense' \(0\.txt\.xz:1\)"):
        load(tmp_path)


def test_a_text_that_is_no_companion_beside_others(tmp_path):
    for number in range(2):
        write_s2ef(tmp_path, number, slabs(2))
    plain = slabs(2)
    for atoms in plain:
        atoms.set_tags(None)
    write_s2ef(tmp_path, 1, plain, lines=["Frames of water."])
    with pytest.raises(InputError, match=r"1\.extxyz\.xz has a 1\.txt\.xz beside it that"):
        load(tmp_path)


# -- which files a path stands for -----------------------------------------------------------


def test_fairchem_keeps_sizes_beside_its_databases(tmp_path):
    write_lmdb(tmp_path / "data.0000.lmdb", [record(s2ef(a), 2) for a in slabs(2)])
    np.savez(tmp_path / "metadata.npz", natoms=np.array([3, 3]))
    assert len(load(tmp_path)) == 2
    (tmp_path / "data.0000.lmdb").unlink()
    assert expand_path(str(tmp_path)) == [tmp_path / "metadata.npz"]


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist, expected a file"):
        load(tmp_path / "nowhere")
    (tmp_path / "a.pdf").write_text("")
    with pytest.raises(InputError, match="unknown kind of file"):
        load(tmp_path / "a.pdf")


def test_the_same_file_in_two_roles(tmp_path):
    path = tmp_path / "a.extxyz"
    ase.io.write(path, slabs(4))
    (tmp_path / "b.extxyz").symlink_to(path)
    for other in ("a", "b"):
        config = DataConfig(train=str(path), val=str(tmp_path / f"{other}.extxyz"))
        with pytest.raises(InputError, match=r"is in data\.train and in data\.val"):
            source_files(config)
    shutil.copy(path, tmp_path / "c.extxyz")
    assert source_files(DataConfig(train=str(path), val=str(tmp_path / "c.extxyz")))


def test_the_kind_of_a_broken_file_is_its_own_ending(tmp_path):
    path = tmp_path / "a.extxyz"
    path.write_bytes(b"\xff\xfe\n")
    reader = Reader(read_extxyz, (".xyz", ".extxyz", ".extxyz.xz"))
    with pytest.raises(InputError, match=r"of the kind \.extxyz$"):
        next(iterate(path, reader))


# -- what is said of a structure -------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "O 0.0 0.0",
            r"has 3 fields at atom 1, expected 4 \(Properties=species:S:1:pos:R:3",
        ),
        ("O 0.0 x 0.0", "has 'x' as pos at atom 1, expected a number"),
    ],
)
def test_a_malformed_atom_is_named(tmp_path, line, expected):
    path = tmp_path / "a.xyz"
    path.write_text(f"2\nProperties=species:S:1:pos:R:3 energy=1.0\nH 1 0 0\n{line}\n")
    with pytest.raises(InputError, match=rf"a\.xyz: structure 0 {expected}"):
        load(path)


def test_arrays_of_the_wrong_shape_are_told(tmp_path):
    steps = np.stack([ase.build.molecule("H2O").positions] * 20)
    arrays = {"z": np.array([8, 1, 1]), "R": steps, "E": np.zeros(20), "F": steps}
    keys = {"energy_key": "E", "forces_key": "F"}
    path = tmp_path / "a.npz"
    for name, label, wrong, expected in (
        ("E", "energy", np.zeros(19), "(19,), expected 20 rows"),
        (
            "F",
            "forces",
            np.zeros((20, 4, 3)),
            "(20, 4, 3), expected 20 rows of 1, 6, 9, 3 or",
        ),
    ):
        expected = re.escape(f"no {label}: its array {name!r} has the shape {expected}")
        np.savez(path, **arrays | {name: wrong})
        with pytest.raises(InputError, match=expected):
            load(path, **keys)
    np.savez(path, **arrays | {"E": np.zeros(19)})
    with pytest.raises(
        InputError, match=r"under the key 'energy'.*'E' has the shape \(19,\)"
    ):
        load(path)
    assert load(path, labels=("forces",), **keys).labels == ("forces",)


def test_an_energy_of_several_numbers(tmp_path):
    row = {"numbers": [1], "positions": [[0, 0, 0]], "energy": [1.0, 2.0]}
    path = write_aselmdb(tmp_path / "a.aselmdb", [row])
    with pytest.raises(InputError, match=r"no valid 'energy' \(.*\), expected one number$"):
        load(path)


def test_numbers_that_are_none_warn_of_nothing(tmp_path):
    broken = attributes(slabs(1)[0], y=0.0, force=np.zeros((3, 3), np.float32))
    broken["pos"] = as_tensor(
        np.frombuffer(bytes([0, 0, 160, 127]) * 9, np.float32).reshape(3, 3)
    )  # signalling NaNs
    path = write_lmdb(tmp_path / "a.lmdb", [record(broken, 2)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="structure 0 has"):
            load(path)


def test_atoms_in_each_other_ask_for_the_unit_of_length(tmp_path):
    frames = slabs(2)
    for atoms in frames:
        atoms.positions /= 10.0
    ase.io.write(tmp_path / "a.extxyz", frames)
    with pytest.raises(InputError, match=r"at least 0\.3 Å; is data\.length_unit right\?$"):
        load(tmp_path / "a.extxyz")


# -- the command line ------------------------------------------------------------------------


def test_a_picture_is_looked_at_before_the_data(tmp_path):
    for name, expected in (
        ("a.xyzzy", r"has the suffix \.xyzzy, expected that of a picture: .*\.png"),
        ("a", "has no suffix, expected"),
        (".", "is a directory, expected the file of a picture"),
    ):
        said = refuse(
            "data", "inspect", tmp_path / "absent.xyz", "--picture", tmp_path / name
        )
        assert re.search(expected, said)
