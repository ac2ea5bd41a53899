"""Graphs built by several processes, contents known by a hash, units that look wrong."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from commands import refuse, run, succeed

from ewald_jax.data import DataConfig, base, dataset_from_atoms, load_dataset
from ewald_jax.data.content import content_hash
from ewald_jax.data.file_units import unit_factor
from ewald_jax.data.labels import LabelOptions
from ewald_jax.data.plausible import unit_warnings
from ewald_jax.typing import InputError


def molecules(count, seed=0):
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        atoms = ase.build.molecule(("H2O", "CH4", "NH3")[i % 3])
        atoms.rattle(0.05, seed=100 * seed + i)
        forces = rng.normal(size=(len(atoms), 3))
        energy = float(-5.0 * len(atoms) + 0.3 * rng.normal())
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        out.append(atoms)
    return out


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four small files, worth a process each."""
    monkeypatch.setattr(base, "_WORTH_PROCESSES", 0)
    (tmp_path / "files").mkdir()
    for i in range(4):
        ase.io.write(tmp_path / f"files/{i}.extxyz", molecules(5, i), format="extxyz")
    return tmp_path


def configured(folder, **settings):
    settings = {"cache_dir": str(folder / "cache")} | settings
    return DataConfig(path=str(folder / "files"), **settings)


def test_processes_build_what_one_builds(folder):
    together = load_dataset(configured(folder), 3.0, workers=2)
    alone = load_dataset(configured(folder, cache_dir="none"), 3.0)
    assert together.fingerprint == alone.fingerprint and len(together) == 20
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a.graph.senders, b.graph.senders)
        np.testing.assert_array_equal(a.targets["forces"], b.targets["forces"])
    entries = sorted(p.name for p in (folder / "cache").iterdir())
    assert len(entries) == 4
    # There now: nothing is built, by whatever number of processes.
    times = [p.stat().st_mtime_ns for p in (folder / "cache").iterdir()]
    load_dataset(configured(folder), 3.0, workers=2)
    assert times == [p.stat().st_mtime_ns for p in (folder / "cache").iterdir()]


def test_a_broken_file_among_others_is_named(folder):
    path = folder / "files/2.extxyz"
    path.write_text(path.read_text().replace("O ", "Qq", 1))
    with pytest.raises(InputError, match=r"2\.extxyz: structure 0 has an unknown element"):
        load_dataset(configured(folder), 3.0, workers=2)
    assert not list((folder / "cache").glob("*.tmp-*"))
    dataset = load_dataset(configured(folder, on_error="skip"), 3.0, workers=2)
    assert len(dataset) == 19 and len(dataset.skipped) == 1


def test_processes_share_one_file(folder):
    """Its structures come in order, and so do its mistakes, whoever finds them first."""
    path = folder / "one.extxyz"
    frames = [atoms for i in range(8) for atoms in molecules(20, i)]
    ase.io.write(path, frames, format="extxyz")
    near = frames[100].copy()
    near.calc = frames[100].calc
    near.positions[1] = near.positions[0]
    bare = frames[120].copy()  # no labels
    frames[100], frames[120] = near, bare
    ase.io.write(path, frames, format="extxyz")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))  # what comes first is said first
    config = DataConfig(path=str(path), cache_dir=str(folder / "cache"))
    message = r"one.extxyz: structure 100 has atoms .* at 0.000 Å"
    with pytest.raises(InputError, match=message):
        load_dataset(config, 3.0, workers=2)
    path.write_text("".join(lines))
    config = dataclasses.replace(config, on_error="skip")
    together = load_dataset(config, 3.0, workers=2)
    alone = load_dataset(dataclasses.replace(config, cache_dir="none"), 3.0)
    assert together.fingerprint == alone.fingerprint and len(together) == 158
    assert together.skipped == alone.skipped and together.infos() == alone.infos()
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a.graph.senders, b.graph.senders)
        np.testing.assert_array_equal(a.targets["forces"], b.targets["forces"])
    first, second = together.skipped
    assert "structure 100 has atoms" in first and "structure 120 has no label" in second
    assert not list((folder / "cache").glob("*.tmp-*"))


SLOW = """
import sys, time
from pathlib import Path
from ewald_jax.data import DataConfig, base, load_dataset
base._WORTH_PROCESSES = 0
if __name__ == "__main__":
    config = DataConfig(path=sys.argv[1], cache_dir=sys.argv[2])
    print("begin", flush=True)
    load_dataset(config, 3.0, workers=2)
"""


def slow(folder, data):
    """A process that builds the graphs of a file or folder with two others."""
    (folder / "slow.py").write_text(SLOW)
    with (folder / "stderr").open("w") as said:
        return subprocess.Popen(
            [sys.executable, folder / "slow.py", data, folder / "cache"],
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_an_interruption_within_one_file(folder):
    ase.io.write(folder / "one.extxyz", molecules(3000), format="extxyz")
    process = slow(folder, folder / "one.extxyz")
    deadline = time.monotonic() + 60
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not children.read_text().strip() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    started = [int(number) for number in children.read_text().split()]
    os.killpg(
        process.pid, signal.SIGINT
    )  # as a terminal does, while the others still import
    assert process.wait(60) != 0 and started
    said = (folder / "stderr").read_text()
    assert said.count("Traceback") == 1 and said.rstrip().endswith("KeyboardInterrupt")
    assert not list((folder / "cache").glob("*.graphs*"))
    while any(alive(number) for number in started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(number) for number in started)


def alive(number):
    try:
        return "Z" not in Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1]
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing_half_written(folder, number):
    for i in range(4):  # long enough to be in the middle of it
        ase.io.write(folder / f"files/{i}.extxyz", molecules(1500, i), format="extxyz")
    process = slow(folder, folder / "files")
    deadline = time.monotonic() + 60
    while not list((folder / "cache").glob("*.tmp-*")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    process.wait(60)
    assert process.returncode != 0
    # Workers notice within a second that they are alone.
    while list((folder / "cache").glob("*.tmp-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not list((folder / "cache").glob("*.tmp-*"))
    entries = [p for p in (folder / "cache").iterdir() if p.name != "hashes"]
    kept = {p.name: p.stat().st_mtime_ns for p in entries}
    assert len(kept) < 4
    # It goes on with what is missing.
    assert len(load_dataset(configured(folder), 3.0, workers=2)) == 6000
    for name, changed in kept.items():
        assert (folder / "cache" / name).stat().st_mtime_ns == changed


CONFIG = """
data: {path: PATH, cache_dir: CACHE, val_size: 4, test_size: 4}
model: {name: schnet, cutoff: 3.0}
"""


def test_convert_says_what_it_made(folder):
    config = folder / "x.yaml"
    text = CONFIG.replace("PATH", str(folder / "files"))
    config.write_text(text.replace("CACHE", str(folder / "cache")))
    said = json.loads(succeed("data", "convert", config, "--json").stdout)
    assert said["structures"] == 20 and said["files"] == 4
    assert said["splits"] == {"train": 12, "val": 4, "test": 4}
    frames = [a for i in range(4) for a in molecules(5, i)]
    assert said["atoms"] == sum(map(len, frames))
    # Reference energies as plain least squares of the training split gives them.
    fitted = said["statistics"]["reference_energies"]
    assert set(fitted) == {"H", "C", "N", "O"}
    shown = succeed("data", "convert", config, "--workers", "1").output
    assert "structures" in shown and "20" in shown
    # The training reads what was built.
    before = sorted(p.name for p in (folder / "cache").iterdir())
    succeed("train", config, "train.max_steps=1", "-o", folder / "run")
    assert sorted(p.name for p in (folder / "cache").iterdir()) == before
    assert "the cache is switched off" in refuse(
        "data", "convert", config, "data.cache_dir=none"
    )
    assert "at least one config" in refuse("data", "convert", "data.limit=1")


def test_inspect_draws_and_counts_what_it_left_out(folder):
    path = folder / "files/2.extxyz"
    path.write_text(path.read_text().replace("O ", "Qq", 1))
    arguments = [path, "data.on_error=skip", "data.cache_dir=none"]
    picture = folder / "x$_$^.png"
    result = run("data", "inspect", *arguments, "--picture", picture)
    assert result.exit_code == 0, result.output
    assert "1 broken structure was left out" in result.stderr
    assert "unknown element 'Qq" in result.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    said = json.loads(run("data", "inspect", *arguments, "--json").stdout)
    assert said["structures"] == 4 and len(said["skipped"]) == 1


# -- contents ----------------------------------------------------------------------------------


def test_a_file_is_read_again_when_it_changed(tmp_path, monkeypatch):
    path, cache = tmp_path / "x", tmp_path / "cache"
    path.write_bytes(b"a" * 2**21)
    first = content_hash(path, cache)
    assert not cache.exists(), "just written: it may change within the same tick"
    old = time.time_ns() - 10**11
    os.utime(path, ns=(old, old))
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 10**11)
    assert content_hash(path, cache) == first
    (entry,) = (cache / "hashes").iterdir()
    kept = json.loads(entry.read_text())
    entry.write_text(json.dumps(kept | {"sha256": "believed"}))
    assert content_hash(path, cache) == "believed"
    # Of the same size, the time of change put back: the inode's own clock tells.
    path.write_bytes(b"b" * 2**21)
    os.utime(path, ns=(old, old))
    assert content_hash(path, cache) not in (first, "believed")
    entry.write_text("{")
    assert content_hash(path, cache) == content_hash(path, None)


# -- units ----------------------------------------------------------------------------------


def scaled(frames, energy="eV", length="Angstrom"):
    """The structures as a file in other units would have them."""
    e, d = unit_factor(energy, "energy"), unit_factor(length, "length")
    out = []
    for atoms in frames:
        copy = atoms.copy()
        copy.positions /= d
        forces = atoms.calc.results["forces"] * d / e
        copy.calc = SinglePointCalculator(
            copy, energy=atoms.calc.results["energy"] / e, forces=forces
        )
        out.append(copy)
    return out


@pytest.mark.parametrize(
    ("energy", "length", "message"),
    [
        ("eV", "Angstrom", None),
        ("eV", "Bohr", "length_unit 'Angstrom' seems wrong, perhaps it is Bohr"),
        ("kcal/mol", "Angstrom", "seems wrong, perhaps it is kcal/mol"),
        ("meV", "Angstrom", "seems wrong"),
    ],
)
def test_units_that_look_wrong(energy, length, message):
    frames = scaled(molecules(30), energy, length)
    found = unit_warnings(dataset_from_atoms(frames, 8.0 if length == "Bohr" else 3.0))
    assert ([] if message is None else [message]) == [
        message for sentence in found if message in sentence
    ] and len(found) == (message is not None)
    right = LabelOptions(energy_unit=energy, length_unit=length)
    dataset = dataset_from_atoms(frames, 3.0, right)
    assert unit_warnings(dataset, energy, length) == []


def test_units_of_energies_alone():
    frames = scaled(molecules(60), "meV")
    rng = np.random.default_rng(0)
    for atoms in frames:  # of a wide spread, as after a reaction
        energy = 1e6 * rng.normal()
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    (sentence,) = unit_warnings(dataset_from_atoms(frames, 3.0))
    assert "eV per atom: data.energy_unit 'eV' seems wrong" in sentence


def test_total_energies_in_hartree():
    """As read from a file of DFT with all electrons, without a unit in the config."""
    of_atoms = {1: -0.5, 6: -37.85, 7: -54.6, 8: -75.1}
    names = ("H2O", "CH4", "NH3", "CO2", "H2")
    frames = [ase.build.molecule(names[i % 5]) for i in range(60)]
    for i, atoms in enumerate(frames):
        energy = sum(of_atoms[z] for z in atoms.numbers) + 0.01 * np.sin(i)
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    (sentence,) = unit_warnings(dataset_from_atoms(frames, 3.0))
    assert "with all electrons in Hartree" in sentence
    right = dataset_from_atoms(frames, 3.0, LabelOptions(energy_unit="Hartree"))
    assert unit_warnings(right, "Hartree") == []


@pytest.mark.parametrize("name", ["dimers", "slabs"])
def test_sample_sets_raise_no_doubts(name):
    assert unit_warnings(load_dataset(DataConfig(name=name), 5.0)) == []
