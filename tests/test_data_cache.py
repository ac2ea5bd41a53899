"""The cache: same graphs as without, keyed by everything that matters, never half-written."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from ewald_jax.data import (
    DataConfig,
    cache,
    cache_directory,
    cache_key,
    graphs,
    load_dataset,
    store_writer,
)
from ewald_jax.data.base import READERS
from ewald_jax.data.packed import Column, OpenMaps, read_header, write_packed
from ewald_jax.graph import Neighborhood, sizes_of, structure_from_atoms
from ewald_jax.typing import InputError


def structures(count=6, seed=0, fixed=True):
    rng = np.random.default_rng(seed)
    out = []
    for number in range(count):
        size = 1 + number % 4
        atoms = ase.Atoms(numbers=rng.integers(1, 80, size), pbc=number % 2 == 0)
        atoms.cell = np.diag([5.0, 6.0, 7.0]) + 0.2
        atoms.positions = np.arange(3 * size).reshape(size, 3) * 0.9
        atoms.info.update(number=number, pair=f"p{number}", distance=0.25 * number)
        if fixed and number == 1:
            atoms.set_constraint(FixAtoms([0]))
        results = {"energy": -1e5 + number / 3, "forces": rng.normal(size=(size, 3))}
        atoms.calc = SinglePointCalculator(atoms, **results)
        out.append(atoms)
    # No neighbors at all, no cell.
    lone = ase.Atoms("He", info={"number": count, "pair": "p", "distance": 0.0})
    lone.calc = SinglePointCalculator(lone, energy=0.0, forces=np.zeros((1, 3)))
    return [*out, lone]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "set.traj"
    ase.io.write(path, structures())
    return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def load(source, folder, neighborhood=4.0, **settings):
    config = DataConfig(path=str(source), cache_dir=str(folder), **settings)
    return load_dataset(config, neighborhood)


def flat(value):
    if isinstance(value, dict):
        return [x for key in sorted(value) for x in flat(value[key])]
    if isinstance(value, tuple):
        return [x for entry in value for x in flat(entry)]
    return [] if value is None else [np.asarray(value)]


def assert_same(a, b):
    assert len(a) == len(b) and a.labels == b.labels and a.infos() == b.infos()
    for x, y in zip(a, b, strict=True):
        assert x.targets.keys() == y.targets.keys()
        for p, q in zip(flat(tuple(x)), flat(tuple(y)), strict=True):
            assert p.dtype == q.dtype
            np.testing.assert_array_equal(p, q)


def entries(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_cached_equals_built_equals_read_again(source, folder):
    built, made = load(source, "none"), load(source, folder)
    assert_same(built, made)
    assert len(entries(folder)) == 1
    again = load(source, folder)
    assert_same(built, again)
    assert built.fingerprint == made.fingerprint == again.fingerprint
    for number, (atoms, sample) in enumerate(zip(structures(), again, strict=True)):
        structure = structure_from_atoms(atoms, 4.0, np.float64)
        for p, q in zip(flat(structure), flat(sample.structure), strict=True):
            np.testing.assert_array_equal(p, q)
        assert sample.targets["energy"] == atoms.get_potential_energy()
        info = {"number": number, "pair": atoms.info["pair"]}
        assert again.info(number) == {**info, "distance": atoms.info["distance"]}


def test_nothing_is_read_again(source, folder, monkeypatch):
    load(source, folder)

    def never(*args):
        raise AssertionError("built although cached")

    monkeypatch.setattr(graphs, "structure_from_atoms", never)
    load(source, folder)
    with pytest.raises(AssertionError):
        load(source, folder, 3.0)


def test_the_key_holds_everything_that_matters(source, folder, tmp_path):
    load(source, folder)
    for change in (
        {"neighborhood": 3.0},
        {"neighborhood": Neighborhood(4.0, max_neighbors=2)},
        {"neighborhood": Neighborhood(4.0, max_neighbors=2, symmetric=True)},
        {"neighborhood": Neighborhood(4.0, far_cutoff=6.0)},
        {"neighborhood": Neighborhood(4.0, far_cutoff=6.0, far_max_neighbors=2)},
        {"labels": ("energy",)},
        {"energy_unit": "kcal/mol"},
        {"length_unit": "Bohr"},
        {"forces_key": "f"},
    ):
        before = len(entries(folder))
        load(source, folder, **change)
        assert len(entries(folder)) == before + 1, change
    ase.io.write(source, structures(5))
    before = len(entries(folder))
    assert len(load(source, folder)) == 6
    assert len(entries(folder)) == before + 1
    # The name of the file does not matter, nor when it was written.
    copy = tmp_path / "copy.traj"
    shutil.copy(source, copy)
    dataset = load(copy, folder)
    assert len(entries(folder)) == before + 1
    assert dataset.where(2) == f"{copy}: structure 2"


def test_format_version_and_companions_are_in_the_key(
    source, folder, monkeypatch, tmp_path
):
    load(source, folder)
    monkeypatch.setattr(cache_key, "FORMAT_VERSION", cache_key.FORMAT_VERSION + 1)
    load(source, folder)
    assert len(entries(folder)) == 2
    beside = tmp_path / "set.txt"
    reader = READERS["traj"]._replace(companions=lambda path: (path.with_suffix(".txt"),))
    monkeypatch.setitem(READERS, "traj", reader)
    for text in ("a", "b"):
        beside.write_text(text)
        load(source, folder)
    assert len(entries(folder)) == 4
    beside.unlink()
    with pytest.raises(InputError, match="set.traj cannot be read .*No such file"):
        load(source, folder)


def test_triplets_are_not_in_the_key(source, folder):
    """They are tables of the same edges, made with each batch."""
    load(source, folder)
    for same in (4, Neighborhood(4.0, triplets=True), Neighborhood(4.0, symmetric=True)):
        dataset = load(source, folder, same)
        assert dataset.neighborhood.cutoff == 4.0
    assert len(entries(folder)) == 1
    assert load(source, folder, Neighborhood(4.0, triplets=True)).neighborhood.triplets


def test_far_edges_come_back(source, folder):
    wide = Neighborhood(4.0, 3, True, far_cutoff=8.0, far_max_neighbors=9)
    made, again = load(source, folder, wide), load(source, folder, wide)
    assert_same(load(source, "none", wide), made)
    assert_same(made, again)
    assert len(again.sizes.n_far) == 7 and again.sizes.n_far.any()
    built = [structure_from_atoms(atoms, wide, np.float64) for atoms in structures()]
    for structure, sample in zip(built, again, strict=True):
        for p, q in zip(flat(structure), flat(sample.structure), strict=True):
            assert p.dtype == q.dtype
            np.testing.assert_array_equal(p, q)
    for counted, kept in zip(sizes_of(built), again.sizes, strict=True):
        np.testing.assert_array_equal(counted, kept)
        assert kept.dtype == np.int64
    assert load(source, folder)[0].far_edges is None


@pytest.mark.parametrize("neighborhood", [4.0, Neighborhood(4.0, far_cutoff=6.0)])
def test_torn_entries_are_rebuilt(source, folder, neighborhood):
    whole = load(source, "none", neighborhood)
    load(source, folder, neighborhood)
    (entry,) = folder.iterdir()
    for tear in (
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:12]),
        lambda path: path.write_bytes(path.read_bytes()[:-3]),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(b"x" * 200),
    ):
        tear(entry)
        assert_same(load(source, folder, neighborhood), whole)
        assert entries(folder) == [entry.name]


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("positions", np.zeros((3, 3))),
        ("energy", np.zeros(7, np.float32)),
        ("senders", np.zeros(0, np.int32)),
        ("info0", np.zeros(3, np.int64)),
        ("info1", np.zeros(7)),
        ("formula", None),
    ],
)
def test_arrays_that_do_not_belong_together_are_rebuilt(source, folder, name, array):
    load(source, folder)
    (entry,) = folder.iterdir()
    header = read_header(entry)
    arrays = OpenMaps(1).arrays(header) | {name: array}
    columns = {
        key: Column(value.dtype, value.shape, np.array(value))
        for key, value in arrays.items()
        if value is not None
    }
    write_packed(entry, columns, header.facts)
    torn = entry.read_bytes()
    assert_same(load(source, folder), load(source, "none"))
    assert entry.read_bytes() != torn


@pytest.mark.parametrize("kind", ['"|O" ', '"<U4"', '"|V8"'])
def test_objects_are_never_unpickled(source, folder, kind):
    load(source, folder)
    (entry,) = folder.iterdir()
    torn = entry.read_bytes().replace(b'"energy": ["<f8"', f'"energy": [{kind}'.encode(), 1)
    entry.write_bytes(torn)
    with pytest.raises(ValueError, match="array energy is"):
        read_header(entry)
    assert_same(load(source, folder), load(source, "none"))


class Interrupted(BaseException):
    """Stands for a keyboard interrupt, which pytest keeps to itself."""


@pytest.mark.parametrize("error", [Interrupted, RuntimeError])
def test_an_interrupted_build_leaves_nothing(source, folder, monkeypatch, error):
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 4:
            raise error
        return structure_from_atoms(*args)

    monkeypatch.setattr(graphs, "structure_from_atoms", interrupted)
    with pytest.raises(error):
        load(source, folder)
    assert entries(folder) == []
    monkeypatch.undo()
    assert_same(load(source, folder), load(source, "none"))


def test_a_broken_structure_leaves_nothing_and_is_named(tmp_path, folder):
    near = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.1]])
    near.calc = SinglePointCalculator(near, energy=1.0, forces=np.zeros((2, 3)))
    path = tmp_path / "near.traj"
    ase.io.write(path, [*structures(2), near])
    message = (
        r"near.traj: structure 3 has atoms H0 and H1 at 0.100 Å, expected at least 0.3"
    )
    with pytest.raises(InputError, match=message):
        load(path, folder)
    assert entries(folder) == []
    with pytest.raises(InputError, match=message):
        load(path, "none")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(source, folder, monkeypatch, code):
    real = store_writer._Column.append
    calls = []

    def full(self, rows):
        calls.append(rows)
        if len(calls) > 20:
            raise OSError(code, os.strerror(code))
        real(self, rows)

    monkeypatch.setattr(store_writer._Column, "append", full)
    with pytest.raises(InputError, match=r"cache folder .*cache is full, .*data.cache_dir"):
        load(source, folder)
    assert entries(folder) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize(("rows", "when"), [(10_000, "append"), (10, "close")])
def test_a_column_reports_a_full_disk_as_such(rows, when):
    """Many bytes when they are written, few when the file is closed."""
    column = store_writer._Column("/dev/full", (3,), np.dtype(float))
    with pytest.raises(OSError) as caught:
        column.append(np.zeros((rows, 3)))
        assert when == "close"
        column.close()
    assert caught.value.errno == errno.ENOSPC
    column.file.close()
    assert column.file.closed


def test_a_folder_that_cannot_be_written(source, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="cache folder .*file.* cannot be written"):
        load(source, blocked / "cache")


def test_two_threads_build_the_same_entry(source, folder, monkeypatch):
    meet = threading.Barrier(2, timeout=20)
    real = cache._publish

    def together(building, entry):
        meet.wait()
        real(building, entry)

    monkeypatch.setattr(cache, "_publish", together)
    results, errors = [], []

    def work():
        try:
            results.append(load(source, folder))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(entries(folder)) == 1
    assert_same(results[0], results[1])


def test_two_threads_repair_the_same_entry(source, folder, monkeypatch):
    load(source, folder)
    (entry,) = folder.iterdir()
    entry.write_bytes(b"torn")
    test_two_threads_build_the_same_entry(source, folder, monkeypatch)


@pytest.mark.slow
def test_two_processes_build_the_same_entry(source, folder):
    code = (
        "import sys\n"
        "from ewald_jax.data import DataConfig, load_dataset\n"
        "config = DataConfig(path=sys.argv[1], cache_dir=sys.argv[2])\n"
        "print(load_dataset(config, 4.0).fingerprint)\n"
    )
    command = [sys.executable, "-c", code, str(source), str(folder)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = {run.communicate()[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0] and len(outputs) == 1
    assert len(entries(folder)) == 1


def test_what_a_killed_process_left_goes_away(source, folder):
    load(source, folder)
    (entry,) = folder.iterdir()
    entry.unlink()
    names = ("days-old", "abandoned", "new", "at-work")
    left = [entry.with_name(f"{entry.name}.tmp-{name}") for name in names]
    for path, age in zip(left, (10**6, 60, 0, 60), strict=True):
        path.mkdir()
        os.utime(path, (time.time() - age,) * 2)
    with cache._locked(left[3]) as free:
        assert free
        load(source, folder)
    assert entries(folder) == sorted([entry.name, left[2].name, left[3].name])


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("EWALD_JAX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "ewald_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "ewald_jax"
    assert cache_directory("~/x") == tmp_path / "x"
    monkeypatch.setenv("EWALD_JAX_CACHE", str(tmp_path / "e"))
    assert cache_directory() == tmp_path / "e"
    assert cache_directory("/y").as_posix() == "/y"
    monkeypatch.setenv("EWALD_JAX_CACHE", "none")
    assert cache_directory() is None and cache_directory("/y") is not None
    assert cache_directory("none") is None


def test_progress_goes_to_stderr(source, folder, capfd):
    config = DataConfig(path=str(source), cache_dir=str(folder))
    load_dataset(config, 4.0, progress=True)
    assert capfd.readouterr().out == ""


def test_files_are_mapped_not_read_and_samples_hold_none_open(source, folder):
    dataset = load(source, folder)
    (store,) = dataset._stores
    mapped = store.arrays["positions"]
    assert not mapped.flags.owndata and not mapped.flags.writeable
    sample = dataset[2]
    for array in flat(tuple(sample)):
        assert not np.shares_memory(array, mapped) and array.base is not mapped


def test_atoms_many_cells_apart_are_refused(tmp_path, folder):
    atoms = ase.Atoms("H2", [[0, 0, 0], [0, 0, 5 * 40_000 + 1.0]], cell=[5, 5, 5], pbc=True)
    atoms.calc = SinglePointCalculator(atoms, energy=1.0)
    path = tmp_path / "far.traj"
    ase.io.write(path, [atoms])
    with pytest.raises(InputError, match="structure 0 has atoms more than 32767 lattice"):
        load(path, folder)
