"""The data set: several files as one, its config, and real files where there are any."""

import lzma
from itertools import islice

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from ewald_jax.checked import Sources, construct, plain
from ewald_jax.data import (
    READERS,
    DataConfig,
    LabelOptions,
    Reader,
    StatisticsConfig,
    dataset_from_atoms,
    dataset_statistics,
    load_dataset,
    split_dataset,
)
from ewald_jax.data.expand import expand_path
from ewald_jax.data.extxyz import split_frames
from ewald_jax.typing import InputError


def atoms_of(number, forces=False, fixed=False):
    atoms = ase.Atoms("HF", [[0, 0, 0], [0, 0, 0.9 + 0.01 * number]])
    atoms.info.update(number=number)
    if fixed:
        atoms.set_constraint(FixAtoms([1]))
    results = {"forces": np.ones((2, 3)) * number} if forces else {}
    atoms.calc = SinglePointCalculator(atoms, energy=float(number), **results)
    return atoms


def write(path, numbers, **settings):
    ase.io.write(path, [atoms_of(i, **settings) for i in numbers])
    return path


def load(cutoff=3.0, **settings):
    return load_dataset(DataConfig(cache_dir="none", **settings), cutoff)


def test_several_files_are_one_set(tmp_path):
    write(tmp_path / "10.traj", range(4, 6))
    write(tmp_path / "2.traj", range(4))
    (tmp_path / "notes.txt").write_text("not structures")
    for path in (tmp_path, tmp_path / "*.traj"):
        dataset = load(path=str(path))
        assert len(dataset) == 6
        assert [dataset.info(i)["number"] for i in range(6)] == list(range(6))
        assert dataset.energies.tolist() == [0.0, 1, 2, 3, 4, 5]
        assert dataset.energies.dtype == np.float64
        assert dataset.n_node.tolist() == [2] * 6 and dataset.n_edge.tolist() == [2] * 6
        assert dataset.species(5).tolist() == [1, 9]
        assert dataset.where(4) == f"{tmp_path / '10.traj'}: structure 0"
        assert (
            dataset[-1].targets["energy"] == 5.0 == dataset[np.int64(5)].targets["energy"]
        )
        assert dataset.labels == ("energy",)
        assert len(list(dataset)) == 6
        for index in (6, -7):
            with pytest.raises(IndexError):
                dataset[index]


def test_sample_of_a_structure():
    (sample,) = dataset_from_atoms([atoms_of(3, forces=True)], 2.0)
    assert set(sample.targets) == {"energy", "forces"}
    assert sample.targets["forces"].tolist() == [[3.0] * 3] * 2
    graph = sample.graph
    assert graph.nodes["species"].tolist() == [1, 9]
    assert graph.nodes["positions"].dtype == np.float64
    assert {x.dtype for x in (graph.senders, graph.edges["shifts"])} == {np.dtype(np.int32)}
    assert sorted(zip(graph.senders, graph.receivers, strict=True)) == [(0, 1), (1, 0)]


def test_free_is_there_if_any_atom_is_fixed(tmp_path):
    write(tmp_path / "a.traj", range(2))
    write(tmp_path / "b.traj", range(2), fixed=True)
    dataset = load(path=str(tmp_path))
    assert dataset.labels == ("energy", "free")
    free = [sample.targets["free"].tolist() for sample in dataset]
    assert free == [[True, True]] * 2 + [[True, False]] * 2
    assert load(path=str(tmp_path / "a.traj")).labels == ("energy",)


def test_files_with_different_labels(tmp_path):
    a, b = write(tmp_path / "a.traj", range(2)), tmp_path / "b.traj"
    write(b, range(2), forces=True)
    with pytest.raises(
        InputError, match=r"b.traj has .* energy, forces but .*a.traj has .*"
    ):
        load(train=str(a), val=str(b))
    assert load(train=str(a), val=str(b), labels=("energy",)).labels == ("energy",)
    with pytest.raises(InputError, match="b.traj: structure 0 has no stress"):
        load(path=str(b), labels=("energy", "stress"))


def test_roles_and_fingerprints(tmp_path):
    a, b = write(tmp_path / "a.traj", range(3)), write(tmp_path / "b.traj", range(2))
    dataset = load(train=str(a), test=str(b))
    assert dataset.roles.tolist() == ["train"] * 3 + ["test"] * 2
    other = load(train=str(a))
    assert other.roles.tolist() == ["train"] * 3
    assert dataset.fingerprint != other.fingerprint
    assert other.fingerprint == load(path=str(a)).fingerprint
    assert other.fingerprint != load(path=str(a), cutoff=2.0).fingerprint


def test_unlabelled_structures():
    dataset = dataset_from_atoms([ase.Atoms("H")], 3.0, options=LabelOptions(labels=()))
    assert dataset.labels == () and dataset[0].targets == {}
    with pytest.raises(InputError, match="structures was read without energies"):
        dataset.energies  # noqa: B018
    with pytest.raises(InputError, match="structures: structure 0 has no energy"):
        dataset_from_atoms([ase.Atoms("H")], 3.0)
    with pytest.raises(InputError, match="structures has no structures"):
        dataset_from_atoms([], 3.0)


def test_errors_of_the_graph_name_the_place(tmp_path):
    path = write(tmp_path / "a.traj", range(2))
    with pytest.raises(InputError, match="^the distance cutoff must be .*, not 0.0"):
        load(path=str(path), cutoff=0.0)
    close = tmp_path / "close.xyz"
    close.write_text("2\nenergy=1\nH 0 0 0\nH 0 0 0.2\n")
    with pytest.raises(
        InputError, match="close.xyz: structure 0 has atoms H0 and H1 at 0.2"
    ):
        load(path=str(close))
    with pytest.raises(InputError, match="nowhere.xyz does not exist"):
        load(path=str(tmp_path / "nowhere.xyz"))


def test_nothing_to_read(tmp_path):
    with pytest.raises(InputError, match="expected data.name, data.path or data.train"):
        load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match="empty: no file found, expected files that end in"
    ):
        load(path=str(tmp_path / "empty"))
    with pytest.raises(InputError, match="no file found, expected a pattern"):
        load(path=str(tmp_path / "*.xyz"))
    with pytest.raises(InputError, match="data.kind is 'hdf5', expected one of extxyz"):
        load(path=str(tmp_path), kind="hdf5")


def test_a_kind_overrules_the_name(tmp_path):
    path = tmp_path / "odd.dat"
    path.write_text("1\nenergy=1\nH 0 0 0\n")
    with pytest.raises(InputError, match="odd.dat: unknown kind of file"):
        load(path=str(path))
    assert len(load(path=str(path), kind="extxyz")) == 1


def test_a_new_kind_of_file_is_one_reader(tmp_path, monkeypatch):
    def read_table(path):
        for line in path.read_text().splitlines():
            distance, energy = map(float, line.split())
            yield ase.Atoms("H2", [[0, 0, 0], [0, 0, distance]], info={"energy": energy})

    monkeypatch.setitem(READERS, "table", Reader(read_table, (".table",)))
    (tmp_path / "a.table").write_text("0.7 -30\n0.8 -31\n")
    dataset = load(path=str(tmp_path))
    assert dataset.energies.tolist() == [-30.0, -31.0]
    (tmp_path / "a.table").write_text("0.7 -30\nx y\n")
    with pytest.raises(
        InputError, match="a.table: structure 1 cannot be read .*ValueError"
    ):
        load(path=str(tmp_path))


def test_statistics_of_some_structures():
    dataset = dataset_from_atoms([atoms_of(i, forces=True) for i in range(4)], 3.0)
    statistics = dataset_statistics(dataset, [1, 2])
    np.testing.assert_allclose(statistics.reference([1, 9]), 1.5)
    np.testing.assert_allclose(statistics.scale, 0.5)
    config = StatisticsConfig(scale_from="forces")
    np.testing.assert_allclose(
        dataset_statistics(dataset, [1, 2], config).scale, np.sqrt(2.5)
    )


def test_a_reader_need_not_be_a_generator(tmp_path, monkeypatch):
    def read_all(path):
        return [atoms_of(float(word)) for word in path.read_text().split()]

    monkeypatch.setitem(READERS, "list", Reader(read_all, (".list",)))
    (tmp_path / "a.list").write_text("1 2 3")
    assert load(path=str(tmp_path)).energies.tolist() == [1.0, 2.0, 3.0]
    (tmp_path / "a.list").write_text("1 two 3")
    with pytest.raises(InputError, match="a.list: structure 0 cannot be read .*two"):
        load(path=str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "dimers", "path": "x"}, "data.name and data.path are both set"),
        ({"path": "x", "train": "y"}, "data.path and data.train are both set"),
        ({"name": "water"}, "data.name is 'water', expected one of dimers, slabs"),
        ({"path": "x", "val": "y"}, "data.val and data.test need data.train"),
        ({"labels": ("energy", "charge")}, "data.labels has 'charge', expected some of"),
        ({"val_size": 1.5}, "data.val_size is 1.5, expected a share below 1 or a whole"),
        ({"test_size": -0.1}, "data.test_size is -0.1"),
        ({"limit": -1}, "data.limit and data.limit_eval must be 0 or more"),
        ({"split": "key"}, "data.split_key go together"),
        ({"split_key": "system"}, "data.split_key go together"),
        ({"energy_unit": "erg"}, "unknown unit of energy 'erg'"),
        ({"energy_unit": "Angstrom"}, "unknown unit of energy 'Angstrom', expected one of"),
        ({"energy_unit": "eV/Angstrom"}, "unknown unit of energy 'eV/Angstrom'"),
        ({"length_unit": "eV"}, "unknown unit of length 'eV', expected one of Ang, Bohr"),
    ],
)
def test_config_refuses_contradictions(settings, message):
    with pytest.raises(InputError, match=message):
        DataConfig(**settings)


def test_config_is_plain_and_comes_back():
    config = DataConfig(
        path="x",
        labels=("energy", "forces"),
        statistics=StatisticsConfig(reference_energies={"H": -13.6}, mean=1.0),
    )
    values = plain(config)
    assert construct(DataConfig, values, "data", Sources({})) == config
    assert values["labels"] == ["energy", "forces"]
    assert values["statistics"]["reference_energies"] == {"H": -13.6}


def test_a_home_in_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path / "a.traj", range(1))
    assert expand_path("~/a.traj") == [path]


def real(real_data, name, folder, frames):
    """The path of the first frames of a real file, and the same frames by ASE alone."""
    path = real_data(name)
    with lzma.open(path, "rt") as lines:
        text = "".join(
            line for frame in islice(split_frames(lines), frames) for line in frame
        )
    cut = folder / path.name.removesuffix(".xz")
    cut.write_text(text)
    return str(cut), ase.io.read(cut, ":")


def test_real_slabs_of_oc20(real_data, tmp_path):
    path, raw = real(real_data, "oc20_s2ef/val_id/0.extxyz.xz", tmp_path, 40)
    dataset = load(5.0, path=path)
    assert len(dataset) == len(raw) == 40
    assert dataset.labels == ("energy", "forces", "free")
    for atoms, sample in zip(raw, dataset, strict=True):
        assert sample.targets["energy"] == atoms.calc.results["energy"]
        np.testing.assert_array_equal(
            sample.targets["forces"], atoms.calc.results["forces"]
        )
        np.testing.assert_array_equal(sample.graph.nodes["positions"], atoms.positions)
        # Fixed atoms are those deep in the slab.
        np.testing.assert_array_equal(sample.targets["free"], atoms.get_tags() > 0)


def test_real_dimers_in_kcal_per_mol(real_data, tmp_path):
    path, _ = real(real_data, "sapt10k/dimers.extxyz.xz", tmp_path, 200)
    with pytest.raises(InputError, match="has no energy under .*'interaction_energy'"):
        load(path=path)
    settings = {"energy_key": "interaction_energy", "energy_unit": "kcal/mol"}
    dataset = load(path=path, **settings)
    assert len(dataset) == 200 and dataset.labels == ("energy",)
    np.testing.assert_allclose(dataset.energies[0], -12.14608 * 0.0433641, rtol=1e-5)
    info = dataset.info(0)
    assert (info["elst"], info["num_a"]) == (-18.84952, 12)


def test_real_crystals_with_stress(real_data, tmp_path):
    path, _ = real(real_data, "mad_1000.extxyz.xz", tmp_path, 1000)
    config = DataConfig(path=path, cache_dir="none", split="key", split_key="subset")
    dataset = load_dataset(config, 3.0)
    assert dataset.labels == ("energy", "forces", "stress")
    splits = split_dataset(config, dataset)
    subsets = [{dataset.info(i)["subset"] for i in part} for part in splits.values()]
    assert not subsets[0] & subsets[1] and not subsets[0] & subsets[2]
    statistics = dataset_statistics(dataset, range(len(dataset)))
    assert len(statistics.species) == 85
