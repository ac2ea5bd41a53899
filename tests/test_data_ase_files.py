"""Readers: every format gives the same labels, every broken file one sentence."""

import gzip
import lzma
import re
import sqlite3
import warnings

import ase
import ase.io
import numpy as np
import pytest
from ase import units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from ase.db import connect
from ase.stress import full_3x3_to_voigt_6_stress
from hypothesis import given
from hypothesis import strategies as st

from ewald_jax.data import metadata, read_structures, structure_targets
from ewald_jax.typing import InputError

STRESS = np.array([[1.0, 0.4, 0.3], [0.4, 2.0, 0.2], [0.3, 0.2, 3.0]]) * 1e-3


def labelled(count=3, stress=True, forces=True):
    """Small structures with labels, a fixed atom each, and metadata."""
    rng = np.random.default_rng(0)
    structures = []
    for number in range(count):
        size = 2 + number % 3
        atoms = ase.Atoms("NaClOH"[:2] + "OH" * size, pbc=True, cell=np.eye(3) * 9 + 0.5)
        atoms.positions = rng.permutation(
            np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3)
        )[: len(atoms)] * 2.0 + rng.uniform(-0.1, 0.1, (len(atoms), 3))
        atoms.set_constraint(FixAtoms([0]))
        atoms.info.update(system=f"s{number}", number=number, distance=1.5 * number)
        results = {"energy": -10.0 - number}
        if forces:
            results["forces"] = rng.normal(size=(len(atoms), 3))
        if stress:
            results["stress"] = full_3x3_to_voigt_6_stress(STRESS * (number + 1))
        atoms.calc = SinglePointCalculator(atoms, **results)
        structures.append(atoms)
    return structures


def write(path, structures):
    """Writes a file of any format, compressed by its name."""
    if path.suffix == ".db":
        with connect(path) as database:
            for atoms in structures:
                database.write(atoms, **atoms.info)
    elif path.suffix == ".traj":
        ase.io.write(path, structures)
    else:
        plain = path.with_name("plain.extxyz")
        # Not every version of ASE writes constraints without being asked for them.
        columns = ["symbols", "positions", "move_mask"]
        columns += ["forces"] * ("forces" in structures[0].calc.results)
        ase.io.write(plain, structures, format="extxyz", columns=columns)
        opener = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
        with opener(path, "wb") as file:
            file.write(plain.read_bytes())
    return path


def text_file(tmp_path, text, name="data.xyz"):
    path = tmp_path / name
    path.write_text(text)
    return path


def frame(comment, rows=("H 0 0 0", "O 0 0 1")):
    return "\n".join([str(len(rows)), comment, *rows]) + "\n"


FORMATS = ("a.xyz", "a.extxyz", "a.xyz.xz", "a.extxyz.xz", "a.extxyz.gz", "a.traj", "a.db")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_labels_metadata_and_fixed_atoms(tmp_path, name):
    structures = labelled()
    got = read_structures(write(tmp_path / name, structures))
    assert len(got) == 3
    for number, (a, b) in enumerate(zip(structures, got, strict=True)):
        np.testing.assert_allclose(b.positions, a.positions, atol=1e-7)
        np.testing.assert_array_equal(b.numbers, a.numbers)
        np.testing.assert_allclose(b.cell[:], a.cell[:])
        assert b.pbc.all()
        targets = structure_targets(b)
        assert set(targets) == {"energy", "forces", "stress", "free"}
        assert targets["energy"] == -10.0 - number and targets["energy"].shape == ()
        raw = a.get_forces(apply_constraint=False)
        np.testing.assert_allclose(targets["forces"], raw, atol=1e-7)
        np.testing.assert_allclose(targets["stress"], STRESS * (number + 1), atol=1e-9)
        assert targets["free"].tolist() == [False] + [True] * (len(a) - 1)
        info = metadata(b)
        assert (info["system"], info["number"]) == (f"s{number}", number)
        assert info["distance"] == 1.5 * number
        # The place where ASE's own functions look.
        assert b.get_potential_energy() == a.get_potential_energy()


@pytest.mark.parametrize(
    "comment",
    [
        'energy=-1.5 stress="1 .4 .3 .4 2 .2 .3 .2 3"',
        'energy=-1.5 stress="1 2 3 .2 .3 .4"',
        'energy=-1.5 virial="1 2 3 4 5 6" stress="1 2 3 .2 .3 .4"',
    ],
    ids=["nine", "voigt", "virial"],
)
def test_stress_in_every_shape(tmp_path, comment):
    comment += ' Lattice="9 0 0 0 9 0 0 0 9"'
    (atoms,) = read_structures(text_file(tmp_path, frame(comment)))
    np.testing.assert_allclose(structure_targets(atoms)["stress"], STRESS * 1e3)


def test_own_keys_in_info_and_in_columns(tmp_path):
    path = text_file(
        tmp_path,
        frame(
            'Properties=species:S:1:pos:R:3:dft_f:R:3 E0=-2.5 S0="1 2 3 .2 .3 .4" elst=3.25',
            ("H 0 0 0 1 2 3", "O 0 0 1 4 5 6"),
        ),
    )
    (atoms,) = read_structures(path, energy_key="E0", forces_key="dft_f", stress_key="S0")
    targets = structure_targets(atoms)
    assert targets["energy"] == -2.5
    np.testing.assert_array_equal(targets["forces"], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_allclose(targets["stress"], STRESS * 1e3)
    # Labels are in one place; what is no label stays metadata.
    assert metadata(atoms) == {"elst": 3.25}
    assert "dft_f" not in atoms.arrays


def test_units_are_converted(tmp_path):
    path = text_file(
        tmp_path,
        frame(
            'Lattice="9 0 0 0 9 0 0 0 9" Properties=species:S:1:pos:R:3:forces:R:3 '
            'energy=2 stress="1 2 3 .2 .3 .4"',
            ("H 0 0 0 1 2 3", "O 0 0 2 4 5 6"),
        ),
    )
    (atoms,) = read_structures(path, energy_unit="kcal/mol", length_unit="Bohr")
    targets, energy = structure_targets(atoms), units.kcal / units.mol
    np.testing.assert_allclose(atoms.positions[1], [0, 0, 2 * units.Bohr])
    np.testing.assert_allclose(atoms.cell[:], np.eye(3) * 9 * units.Bohr)
    np.testing.assert_allclose(targets["energy"], 2 * energy)
    np.testing.assert_allclose(
        targets["forces"][0], np.array([1, 2, 3]) * energy / units.Bohr
    )
    np.testing.assert_allclose(targets["stress"], STRESS * 1e3 * energy / units.Bohr**3)
    with pytest.raises(InputError, match="unknown unit of length 'furlong', exp"):
        read_structures(path, length_unit="furlong")


def test_labels_chosen_explicitly(tmp_path):
    path = write(tmp_path / "a.extxyz", labelled())
    atoms = read_structures(path, labels=("energy",))[0]
    assert set(structure_targets(atoms)) == {"energy", "free"}
    atoms = read_structures(path, labels=())[0]
    assert atoms.calc is None and set(structure_targets(atoms)) == {"free"}
    with pytest.raises(InputError, match="unknown label 'charge', expected energy, forces"):
        read_structures(path, labels=("charge",))
    path = write(tmp_path / "b.extxyz", labelled(stress=False))
    message = r"b.extxyz: structure 0 has no stress under the key 'stress', and nothing"
    with pytest.raises(InputError, match=message):
        read_structures(path, labels=("energy", "stress"))


def test_index(tmp_path):
    path = write(tmp_path / "a.extxyz", labelled(5))

    def numbers(index):
        return [atoms.info["number"] for atoms in read_structures(path, index=index)]

    assert numbers(":") == [0, 1, 2, 3, 4]
    assert numbers(":2") == [0, 1]
    assert numbers(3) == [3] and numbers("3") == [3]
    assert numbers(-1) == [4] and numbers("-2:") == [3, 4]
    assert numbers(slice(1, None, 2)) == [1, 3]
    with pytest.raises(InputError, match="a.extxyz has no structure 7"):
        read_structures(path, index=7)


def test_fixed_in_all_directions_only(tmp_path):
    atoms = ase.Atoms("H4", np.eye(4, 3) * 3)
    atoms.set_constraint(
        [FixCartesian([0]), FixCartesian([1], mask=(True, False, True)), FixAtoms([3])]
    )
    assert structure_targets(atoms)["free"].tolist() == [False, True, True, False]


def test_metadata_keeps_plain_scalars_only():
    atoms = ase.Atoms("H")
    atoms.info.update(
        a=np.int64(3), b=np.float64(0.5), c=True, d="x", e=np.array(2.0), f=float("nan"),
        g=[1, 2], h=None, i=np.array([1.0, 2.0]), j=np.bool_(False),
    )  # fmt: skip
    plain = metadata(atoms)
    assert plain == {"a": 3, "b": 0.5, "c": True, "d": "x", "e": 2.0, "j": False}
    assert {type(value) for value in plain.values()} <= {int, float, bool, str}


BROKEN = {
    "no atoms": (frame("energy=1", ()), "structure 0 has no atoms"),
    "positions": (frame("energy=1", ("H 0 0 nan",)), "structure 0 has a NaN.* at atom 0"),
    "energy": (frame("energy=nan"), "structure 0: energy 'energy' is NaN or infinite"),
    "energy text": (
        frame("energy=low"),
        "structure 0: energy 'energy' is 'low', expected one",
    ),
    "energy list": (frame('energy="1 2"'), r"energy 'energy' has the shape \(2,\)"),
    "energy flag": (frame("energy"), "energy 'energy' is True, expected one number"),
    "forces": (
        frame(
            "energy=1 Properties=species:S:1:pos:R:3:forces:R:3",
            ("H 0 0 0 0 0 0", "O 0 0 1 0 inf 0"),
        ),
        "structure 0: forces 'forces' is NaN or infinite at atom 1",
    ),
    "forces shape": (
        frame("energy=1 Properties=species:S:1:pos:R:3:forces:R:2", ("H 0 0 0 0 0",)),
        r"forces 'forces' has the shape \(1, 2\), expected three numbers for each of its 1",
    ),
    "stress": (
        frame('energy=1 stress="1 2 3 nan 5 6"'),
        "stress 'stress' is NaN or infinite",
    ),
    "stress shape": (
        frame('energy=1 stress="1 2 3 4"'),
        r"stress 'stress' has the shape \(4,\), expected a 3x3 matrix",
    ),
    "second frame": (
        frame("energy=1") + frame("energy=inf"),
        "structure 1: energy 'energy' is NaN or infinite",
    ),
    "energy key": (
        frame('E_dft=1 free_energy=2 name=x done=T dipole="1 2 3"'),
        "has no energy under the key 'energy', it has 'E_dft', 'free_energy'; expected "
        "data.energy_key",
    ),
    "nothing": (
        frame(""),
        "has no energy under the key 'energy', and nothing else that could be one",
    ),
    "fewer labels": (
        frame("energy=1") + frame("name=x"),
        "structure 1 has no label energy .*the structures before it have one",
    ),
    "more labels": (
        frame("energy=1")
        + frame(
            "energy=1 Properties=species:S:1:pos:R:3:forces:R:3",
            ("H 0 0 0 0 0 0", "O 0 0 1 0 0 0"),
        ),
        "structure 1 has a label forces .*the structures before it have none",
    ),
    "cell nan": (
        frame('energy=1 Lattice="9 0 0 0 9 0 0 0 nan"'),
        "structure 0 has a NaN or infinite number in its cell",
    ),
    "zero cell": (
        frame('energy=1 pbc="T T T"'),
        "structure 0 is periodic along lattice vector 1, which is zero",
    ),
    "singular cell": (
        frame('energy=1 Lattice="9 0 0 9 0 0 0 0 9" pbc="T T T"'),
        "structure 0 is periodic but its cell is singular",
    ),
    "element": (
        frame("energy=1", ("Xq 0 0 0",)),
        "structure 0 has an unknown element 'Xq', expected a symbol or an atomic number "
        "from 1 to 118",
    ),
    "element X": (frame("energy=1", ("X 0 0 0",)), "structure 0 has an unknown element at"),
    "cut": (
        frame("energy=1")[:-8],
        "structure 0 ends after 1 atoms, expected 2; .*truncated",
    ),
    "cut at comment": ("2\n", "structure 0 ends after 0 atoms, expected 2"),
    "row": (
        frame("energy=1", ("H 0 0", "O 0 0 1")),
        "structure 0 has 3 fields at atom 0, expected 4",
    ),
    "number": (
        frame("energy=1", ("H 0 0 zero",)),
        "structure 0 has 'zero' as pos at atom 0, expected a number",
    ),
    "header": ("two\n", "structure 0 begins with 'two', expected a number of atoms"),
    "negative": ("-2\n", "structure 0 begins with '-2', expected a number"),
    "blank line": (
        frame("energy=1") + "\n" + frame("energy=1"),
        "structure 1 begins with a blank line",
    ),
    "empty": ("", "data.xyz has no structures, expected at least one"),
    "properties": (
        frame("energy=1 Properties=species:S:1:pos:R"),
        "structure 0 has Properties=",
    ),
    "no positions": (
        frame("energy=1 Properties=species:S:1:xyz:R:3"),
        "structure 0 has Properties=.*expected name:type:columns repeated, with pos",
    ),
    "no elements": (
        frame("energy=1 Properties=pos:R:3", ("0 0 0",)),
        "structure 0 has an unknown element at atom 0",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_xyz(tmp_path, name):
    text, message = BROKEN[name]
    path = text_file(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        read_structures(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path)) and "\n" not in sentence and len(sentence) < 500


def test_trailing_blank_lines_and_no_final_newline_are_fine(tmp_path):
    assert len(read_structures(text_file(tmp_path, frame("energy=1") + "\n \n"))) == 1
    assert len(read_structures(text_file(tmp_path, frame("energy=1").rstrip()))) == 1


def test_a_file_cut_inside_its_last_number(tmp_path):
    rows = ("H 0.00 0.00 0.00", "O 0.00 0.00 0.96", "H 0.00 0.93 -1.24")
    text = frame("energy=1") + frame("energy=2", rows)
    assert len(read_structures(text_file(tmp_path, text[:-1]))) == 2
    for missing in (2, 3, 4):
        path = text_file(tmp_path, text[:-missing])
        with pytest.raises(InputError, match="structure 1 ends without a newline.*trunc"):
            read_structures(path)
    # Written by hand: some number has no more decimals than the last.
    by_hand = frame("energy=1", ("H 0 0 0", "O 0 0 0.96", "H 0 0.93 -1")).rstrip()
    assert len(read_structures(text_file(tmp_path, by_hand))) == 1


def test_a_hundred_atoms(tmp_path):
    rows = [f"H {i} 0 0" for i in range(123)]
    assert len(read_structures(text_file(tmp_path, frame("energy=1", rows)))[0]) == 123


def test_valid_oddities(tmp_path):
    text = (
        frame("energy=1", ("He 5 5 5",))
        + frame("energy=1", ("H 0 0 0", "H 0 0 50"))
        # left-handed
        + frame('energy=1 Lattice="0 9 0 9 0 0 0 0 9" pbc="T T T"')
        # very skewed
        + frame('energy=1 Lattice="5 0 0 14 5 0 0 13 5" pbc="T T T"')
        # a slab: no third lattice vector
        + frame('energy=1 Lattice="5 0 0 0 5 0 0 0 0" pbc="T T F"')
    )
    assert len(read_structures(text_file(tmp_path, text))) == 5


@pytest.mark.parametrize("name", ["a.xyz.xz", "a.xyz.gz", "a.traj", "a.db"])
def test_truncated_files(tmp_path, name):
    path = write(tmp_path / name, labelled(20))
    content = path.read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 60):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=re.escape(str(path))):
            read_structures(path)


def test_missing_wrong_and_misnamed_files(tmp_path):
    with pytest.raises(InputError, match="nowhere.xyz does not exist"):
        read_structures(tmp_path / "nowhere.xyz")
    with pytest.raises(InputError, match="nowhere.db does not exist"):
        read_structures(tmp_path / "nowhere.db")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder.xyz").mkdir()
    with pytest.raises(InputError, match="folder.xyz is a directory"):
        read_structures(tmp_path / "folder.xyz")
    with pytest.raises(
        InputError, match=r"data.pkl: unknown kind of file, expected .*\.db"
    ):
        read_structures(text_file(tmp_path, "", "data.pkl"))
    for name in ("a.xyz.xz", "a.xyz.gz", "a.traj", "a.db"):
        path = text_file(tmp_path, "not what the name says " * 9, name)
        with pytest.raises(InputError, match=f"{name}: structure 0 cannot be read"):
            read_structures(path)
    path = tmp_path / "bytes.xyz"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="bytes.xyz: structure 0 cannot be read"):
        read_structures(path)


def test_reading_never_writes_a_database(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE something (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(InputError, match="other.db: structure 0 cannot be read.*'systems'"):
        read_structures(path)
    assert path.read_bytes() == before
    path = write(tmp_path / "good.db", labelled())
    before = path.read_bytes()
    read_structures(path)
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"other.db", "good.db"}


def test_pickles_are_not_read(tmp_path):
    """An old trajectory is a pickle; reading it would run code."""
    bomb = b"PickleTrajectory" + b"cos\nsystem\n(S'exit 1'\ntR."
    path = tmp_path / "old.traj"
    path.write_bytes(bomb)
    with pytest.raises(InputError, match="old.traj: structure 0 cannot be read"):
        read_structures(path)


def read_or_sentence(path):
    """Reads broken bytes: the only error is an InputError of one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read_structures(path)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)


@pytest.fixture(scope="module")
def good_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    names = ("a.xyz", "b.xyz.xz", "c.xyz.gz", "d.traj", "e.db")
    return {name: write(folder / name, labelled(2)).read_bytes() for name in names}


@pytest.mark.parametrize("name", ["a.xyz", "b.xyz.xz", "c.xyz.gz", "d.traj"])
@given(share=st.floats(0, 1))
def test_any_truncation_gives_a_sentence(good_files, tmp_path_factory, name, share):
    path = tmp_path_factory.getbasetemp() / f"cut-{name}"
    content = good_files[name]
    path.write_bytes(content[: int(share * len(content))])
    read_or_sentence(path)


@pytest.mark.parametrize("name", ["a.xyz", "b.xyz.xz", "c.xyz.gz", "d.traj", "e.db"])
@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
        min_size=1,
        max_size=4,
    )
)
def test_any_corruption_gives_a_sentence(good_files, tmp_path_factory, name, changes):
    path = tmp_path_factory.getbasetemp() / f"corrupt-{name}"
    content = bytearray(good_files[name])
    for share, value in changes:
        content[int(share * len(content))] = value
    path.write_bytes(content)
    read_or_sentence(path)


@given(text=st.text(st.sampled_from('0123 \nHO=."TnaeE-:SR{[\\'), max_size=60))
def test_any_text_gives_a_sentence(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "text.xyz"
    path.write_text(text)
    read_or_sentence(path)
