"""Many files and many structures: few open files, little memory, nothing read twice."""

import dataclasses
import errno
import json
import resource
import shutil
import subprocess
import sys
import weakref

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from commands import succeed

from ewald_jax.data import (
    DataConfig,
    GraphDataset,
    LabelOptions,
    StatisticsConfig,
    cache_key,
    dataset_from_atoms,
    dataset_statistics,
    fitting,
    graphs,
    load_dataset,
    packed,
)
from ewald_jax.data.info import InfoTable, to_columns
from ewald_jax.data.packed import Column, OpenMaps, read_header, write_packed
from ewald_jax.data.wave_sizes import wave_sizes
from ewald_jax.graph import Neighborhood
from ewald_jax.kspace.waves import WaveRule
from ewald_jax.typing import InputError


def molecules(count, first=0):
    for number in range(first, first + count):
        atoms = ase.Atoms("OH", [[0, 0, 0], [0, 0, 1 + 0.01 * (number % 50)]])
        atoms.info["number"] = number
        atoms.calc = SinglePointCalculator(atoms, energy=float(number))
        yield atoms


MANY = """
import os, resource, sys
import numpy as np
from ewald_jax.data import DataConfig, load_dataset
soft = len(os.listdir("/dev/fd")) + 40
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))
config = DataConfig(path=sys.argv[1], cache_dir=sys.argv[2])
for turn in range(2):
    dataset = load_dataset(config, 3.0)
    order = np.random.default_rng(0).permutation(len(dataset))
    samples = [dataset[i] for i in order]
    assert [s.targets["energy"] for s in samples] == [dataset.energies[i] for i in order]
    assert [info["number"] for info in dataset.infos()] == list(range(len(dataset)))
kept = [os.open(sys.argv[0], os.O_RDONLY) for _ in range(soft - len(os.listdir("/dev/fd")))]
try:
    load_dataset(config, 3.0)
except Exception as error:
    print(len(samples), type(error).__name__, error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts in /dev/fd")
def test_more_files_than_may_be_open(tmp_path):
    (tmp_path / "many").mkdir()
    for number in range(100):
        frames = list(molecules(2, 2 * number))
        ase.io.write(tmp_path / f"many/{number}.extxyz", frames, format="extxyz")
    (tmp_path / "many.py").write_text(MANY)
    command = [sys.executable, "many.py", "many", "cache"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    # A cache that is there is not taken for a torn one where nothing can be opened.
    assert done.stdout.startswith("200 InputError") and "Too many open files" in done.stdout
    assert len(list((tmp_path / "cache").iterdir())) == 100


def small_file(path, value=0.0):
    array = np.full(5, value)
    write_packed(path, {"x": Column(array.dtype, array.shape, array)}, {})
    return read_header(path)


def test_files_used_last_stay_open(tmp_path):
    headers = [small_file(tmp_path / f"{i}", i) for i in range(4)]
    maps = OpenMaps(2)
    first = maps.arrays(headers[0])
    assert maps.arrays(headers[0]) is first
    maps.arrays(headers[1])
    assert maps.arrays(headers[0]) is first
    maps.arrays(headers[2])  # 1 has to go
    assert list(maps._open) == [tmp_path / "0", tmp_path / "2"]
    for i in (3, 1, 0, 2):
        np.testing.assert_array_equal(maps.arrays(headers[i])["x"], np.full(5, i))
    np.testing.assert_array_equal(first["x"], np.zeros(5))


def test_files_that_go_or_change_while_in_use(tmp_path):
    header, other = small_file(tmp_path / "a"), small_file(tmp_path / "b")
    maps = OpenMaps(1)
    maps.arrays(header)
    (tmp_path / "b").unlink()
    with pytest.raises(InputError, match="b have gone or changed .* start again"):
        maps.arrays(other)
    array = np.zeros(5, np.int64)
    write_packed(tmp_path / "b", {"x": Column(array.dtype, array.shape, array)}, {})
    with pytest.raises(InputError, match="b have gone or changed"):
        maps.arrays(other)


@pytest.mark.parametrize(
    ("limit", "most"),
    [(256, 64), (1024, 256), (10**6, 512), (resource.RLIM_INFINITY, 512), (8, 4)],
)
def test_how_many_files_are_open(monkeypatch, limit, most):
    monkeypatch.setattr(packed.resource, "getrlimit", lambda which: (limit, limit))
    assert packed.most_open() == most


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE])
def test_no_descriptor_left_is_no_torn_entry(tmp_path, monkeypatch, code):
    path, cache = tmp_path / "a.traj", tmp_path / "cache"
    ase.io.write(path, list(molecules(3)))
    config = DataConfig(path=str(path), cache_dir=str(cache))
    load_dataset(config, 3.0)
    (entry,) = cache.iterdir()
    before = entry.stat().st_mtime_ns
    real = open

    def refused(name, *arguments, **settings):
        if str(name) == str(entry):
            raise OSError(code, "no more files")
        return real(name, *arguments, **settings)

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(InputError, match="cannot be opened: no more files; .*ulimit -n"):
        load_dataset(config, 3.0)
    monkeypatch.undo()
    assert entry.stat().st_mtime_ns == before


def test_metadata_come_back_from_columns():
    infos = [
        {"i": 2**40 - n, "f": n / 3, "b": n % 2 == 0, "t": "é" * n, "mixed": n or "zero"}
        | ({"some": n} if n % 3 else {})
        | {"long": "x" * 10**5 * (n == 3), "huge": 2**70, "nul": "a\0", "-0": -0.0}
        for n in range(10)
    ]
    arrays, keys = to_columns(infos)
    assert dict(keys) | {"i": "int", "f": "float", "b": "bool", "t": "text"} == dict(keys)
    assert {key for key, kind in keys if kind == "json"} == {"mixed", "long", "huge", "nul"}
    assert sum(array.nbytes for array in arrays.values()) < 2 * 10**5
    table = InfoTable(lambda: arrays, keys, len(infos))
    assert list(table) == infos and table[-1] == infos[-1]
    for found, info in zip(table, infos, strict=True):
        assert {k: type(v) for k, v in found.items()} == {
            k: type(v) for k, v in info.items()
        }
    assert table.column("i")[0].tolist() == [info["i"] for info in infos]
    places, texts = table.column("t")
    assert [texts[i].decode() for i in places] == [info["t"] for info in infos]
    assert table.column("some") is None and table.column("mixed") is None
    assert table.column("absent") is None


def test_skipped_structures_are_named_by_where_the_file_is_now(tmp_path):
    path, moved = tmp_path / "old.extxyz", tmp_path / "sub/new.extxyz"
    ase.io.write(path, list(molecules(3)), format="extxyz")
    text = path.read_text().split("\n")
    text[6] = "Qq 0 0 0"  # of the second structure
    path.write_text("\n".join(text))
    for _ in range(2):
        settings = {"cache_dir": str(tmp_path / "cache"), "on_error": "skip"}
        dataset = load_dataset(DataConfig(path=str(path), **settings), 3.0)
        (sentence,) = dataset.skipped
        assert sentence.startswith(f"{path}: structure 1 ") and "Qq" in sentence
    moved.parent.mkdir()
    shutil.move(path, moved)
    dataset = load_dataset(DataConfig(path=str(moved), **settings), 3.0)
    assert dataset.skipped == [sentence.replace(str(path), str(moved))]
    assert dataset.where(1) == f"{moved}: structure 2"
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_metadata_are_gone_through_once():
    """A key that comes late, goes early or changes its type takes no further pass."""
    infos = [{f"k{n}": n, "now": n if n < 5 else str(n)} for n in range(8)]
    infos += [{"text": ""}, {}]
    given = iter(infos)
    arrays, keys = to_columns(given)
    assert list(InfoTable(lambda: arrays, keys, 10)) == infos and next(given, None) is None
    assert dict(keys)["now"] == "json" and dict(keys)["text"] == "text"


def test_structures_without_metadata():
    arrays, keys = to_columns([{}, {}, {}])
    assert list(InfoTable(lambda: arrays, keys, 3)) == [{}, {}, {}] and not arrays


def test_values_of_several_files(tmp_path):
    for name, words in (("a", "x é x"), ("b", "y x a")):
        frames = list(molecules(3))
        for atoms, word in zip(frames, words.split(), strict=True):
            atoms.info |= {"word": word, "odd": 1 if word == "y" else "text"}
        ase.io.write(tmp_path / f"{name}.traj", frames)
    dataset = load_dataset(DataConfig(path=str(tmp_path), cache_dir="none"), 3.0)
    assert dataset.values("number").tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.values("word").tolist() == [1, 3, 1, 2, 1, 0]  # a, x, y, é
    assert dataset.values("odd") is None and dataset.values("absent") is None


def test_elements_and_kinds():
    frames = [
        ase.Atoms(symbols, 2.0 * np.arange(3)[:, None] * [1, 0, 0], pbc=pbc, cell=[9, 9, 9])
        for symbols, pbc in (
            ("OH2", False), ("HOH", False), ("O2H", False), ("OH2", True), ("CO2", False),
            ("CO2", (True, True, False)), ("OH2", True),
        )
    ]  # fmt: skip
    dataset = dataset_from_atoms(frames, 3.0, LabelOptions(labels=()))
    assert dataset.elements(range(7)) == (1, 6, 8) and dataset.elements([2, 3]) == (1, 8)
    assert dataset.elements([]) == ()
    assert dataset.kinds(range(7)).tolist() == [0, 3, 4, 5]
    assert dataset.kinds([6, 2, 1, 1]).tolist() == [1, 6]


@pytest.mark.parametrize(
    "settings", [{}, {"intercept": True}, {"reference": "nonnegative"}]
)
def test_statistics_of_many_files_are_least_squares(tmp_path, monkeypatch, settings):
    monkeypatch.setattr(fitting, "_ROWS", 7)  # QR of many parts
    rng, frames = np.random.default_rng(0), []
    for _ in range(60):
        numbers = rng.choice([1, 6, 8, 9], rng.integers(2, 6))
        atoms = ase.Atoms(numbers, 2.0 * np.arange(len(numbers))[:, None] * [1, 0, 0])
        energy = float(-1e3 * numbers.sum() + rng.normal())
        forces = rng.normal(size=(len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        frames.append(atoms)
    for part in range(3):
        ase.io.write(tmp_path / f"{part}.traj", frames[20 * part : 20 * part + 20])
    dataset = load_dataset(DataConfig(path=str(tmp_path), cache_dir="none"), 3.0)
    chosen = rng.permutation(60)[:45]
    config = StatisticsConfig(scale_from="forces", **settings)
    found = dataset_statistics(dataset, chosen, config)
    counts = np.array(
        [[np.sum(a.numbers == z) for z in (1, 6, 8, 9)] for a in frames], float
    )
    counts = np.c_[counts, np.ones(60)] if config.intercept else counts
    energies = np.array([a.get_potential_energy() for a in frames])
    expected = np.linalg.lstsq(counts[chosen], energies[chosen])[0]
    reference = [found.reference_energies[z] for z in (1, 6, 8, 9)]
    mean = [found.mean] if config.intercept else []
    np.testing.assert_allclose([*reference, *mean], expected, rtol=1e-9)
    forces = np.concatenate([frames[i].get_forces() for i in chosen])
    np.testing.assert_allclose(found.scale, np.sqrt(np.mean(forces**2)), rtol=1e-12)


def test_statistics_are_fitted_once(tmp_path, monkeypatch):
    ase.io.write(tmp_path / "a.traj", list(molecules(9)))
    config = DataConfig(path=str(tmp_path / "a.traj"), cache_dir=str(tmp_path / "c"))
    dataset, cache = load_dataset(config, 3.0), tmp_path / "c"
    first = dataset_statistics(dataset, range(6))
    alone = load_dataset(dataclasses.replace(config, cache_dir="none"), 3.0)
    assert first == dataset_statistics(alone, range(6))
    (entry,) = (cache / "statistics").iterdir()
    monkeypatch.setattr(fitting, "_fit", None)
    assert dataset_statistics(dataset, range(6)) == first
    for others in (
        {"indices": range(5)},
        {"indices": range(6), "config": StatisticsConfig(intercept=True)},
    ):
        with pytest.raises(TypeError):
            dataset_statistics(dataset, **others)
    monkeypatch.undo()
    for torn in ("", "{}", "[1]", entry.read_text().replace("scale", "scales")):
        entry.write_text(torn)
        assert dataset_statistics(dataset, range(6)) == first
    monkeypatch.setattr(fitting, "versions", lambda names: dict.fromkeys(names, "x"))
    assert dataset_statistics(dataset, range(6)) == first
    assert len(list((cache / "statistics").iterdir())) == 2


def test_wave_vectors_are_counted_once(tmp_path, monkeypatch):
    ase.io.write(tmp_path / "a.traj", list(molecules(5)))
    config = DataConfig(path=str(tmp_path / "a.traj"), cache_dir=str(tmp_path / "c"))
    alone = dataclasses.replace(config, cache_dir="none")
    for k_cutoff in (0.5, 1.0):
        wide = Neighborhood(3.0, waves=WaveRule(k_cutoff, 0.2))
        expected = load_dataset(alone, wide).sizes
        assert expected.n_kvecs.any() or expected.n_quad.any()
        for _ in range(2):
            found = load_dataset(config, wide).sizes
            for one, two in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, two)
                assert one.dtype == np.int64
            monkeypatch.setattr(GraphDataset, "_with_waves", None)
        monkeypatch.undo()
    entries = list((tmp_path / "c" / "sizes").iterdir())
    assert len(entries) == 2
    for entry in entries:
        entry.write_bytes(b"torn")
    assert load_dataset(config, wide).sizes.n_quad.tolist() == expected.n_quad.tolist()


def test_wave_vectors_are_not_kept_in_memory():
    alive, most, told = weakref.WeakSet(), [], []

    class Waves:
        def __init__(self, count):
            self.nodes, self.num_quad = np.zeros(count), count % 2
            alive.add(self)
            most.append(len(alive))

    found = wave_sizes(
        map(Waves, range(9)), np.arange(9), None, "", lambda done, total: told.append(done)
    )
    pairs = [n * (n - 1) // 2 if n % 2 else 0 for n in range(9)]
    assert found.tolist() == [list(range(9)), pairs, [n % 2 for n in range(9)]]
    assert max(most) <= 2 and told == list(range(1, 10)) and found.dtype == np.int64


def test_versions_of_libraries_are_in_the_key(tmp_path, monkeypatch):
    path, cache = tmp_path / "a.traj", tmp_path / "cache"
    ase.io.write(path, list(molecules(3)))
    config = DataConfig(path=str(path), cache_dir=str(cache))
    before = load_dataset(config, 3.0)
    installed, changed = cache_key._version, {}
    monkeypatch.setattr(
        cache_key, "_version", lambda name: changed.get(name, installed(name))
    )
    for count, name in ((1, "dftd3"), (2, "ase"), (3, "vesin")):
        changed[name] = "0.0"
        # A training may go on with other versions.
        assert load_dataset(config, 3.0).fingerprint == before.fingerprint
        assert len(list(cache.iterdir())) == count


@pytest.mark.parametrize("folder", ["cache", "none"])
def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch, folder):
    path, cache = tmp_path / "a.traj", tmp_path / folder
    ase.io.write(path, list(molecules(3)))
    real = graphs.structure_from_atoms

    def written_to(*arguments):
        ase.io.write(path, list(molecules(4)))
        return real(*arguments)

    monkeypatch.setattr(graphs, "structure_from_atoms", written_to)
    config = DataConfig(
        path=str(path), cache_dir="none" if folder == "none" else str(cache)
    )
    with pytest.raises(InputError, match="a.traj changed while it was read, .*nothing was"):
        load_dataset(config, 3.0)
    assert not cache.exists() or not list(cache.iterdir())
    monkeypatch.undo()
    assert len(load_dataset(config, 3.0)) == 4


def test_the_benchmark_of_data(tmp_path):
    sizes = "hidden_channels: 8, num_filters: 8, num_interactions: 1, num_gaussians: 8"
    config = tmp_path / "tiny.yaml"
    config.write_text(f"model: {{name: schnet, cutoff: 3.0, {sizes}}}\n")
    few = ("--structures", "8", "--repeated", "2000", "--workers", "1", "-b", "2")
    said = json.loads(succeed("benchmark", "loader", config, *few, "--json").stdout)
    assert said["atoms"] == 77 and said["open_structures"] == 2000
    assert said["read_ratio"] == pytest.approx(said["read_rate"] / said["step_rate"])
    for key in ("convert_rate", "batch_rate", "open_seconds", "edges"):
        assert said[key] > 0
