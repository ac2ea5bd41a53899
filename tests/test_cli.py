"""The command line from end to end, and the one sentence that each bad input gets."""

import errno
import gzip
import json
import lzma
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from test_train_toy import toy_atoms
from typer.testing import CliRunner

import ewald_jax
from ewald_jax.cli import app
from ewald_jax.cli.common import print_table
from ewald_jax.graph import Budget
from ewald_jax.train import checkpoint as train_checkpoint
from ewald_jax.train import load_checkpoint, prepare

CONFIG = """
data: {path: PATH, val_size: 4, test_size: 4, cache_dir: none}
model: {name: test_train_toy.Toy}
optim: {lr: 1e-3}
train: {epochs: 2, batch_size: 8, max_buckets: 1, tensorboard: false}
"""


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refuse(*arguments):
    """The sentence of a refusal: one line on stderr, exit code 2, nothing else."""
    result = run(*arguments)
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.output
    return lines[0]


def write(path, frames):
    ase.io.write(path, frames, format="extxyz")
    return path


def labelled(atoms, **results):
    """The structure with other labels."""
    out = atoms.copy()
    values = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    values = {k: v for k, v in (values | results).items() if v is not None}
    out.calc = SinglePointCalculator(out, **values) if values else None
    return out


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with structures, a config, and a checkpoint trained from them."""
    folder = tmp_path_factory.mktemp("cli")
    write(folder / "all.extxyz", [labelled(atoms) for atoms in toy_atoms(24)])
    config = folder / "toy.yaml"
    config.write_text(CONFIG.replace("PATH", str(folder / "all.extxyz")))
    result = succeed("train", config, "loss.forces=l2", "-o", folder / "run", "--json")
    (folder / "train.json").write_text(result.stdout)
    return folder


# Verbs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verb", [(), ("train",), ("evaluate",), ("predict",), ("data",), ("data", "inspect")]
)
def test_help(verb):
    assert "Usage: " in succeed(*verb, "--help").stdout


def test_train_says_what_it_did(workplace):
    said = json.loads((workplace / "train.json").read_text())
    assert said["step"] == 4
    assert said["finished"] is True
    assert said["compilations"] == 1
    assert set(said["metrics"]) == {"val", "test"}
    assert said["metrics"]["test"]["forces_mae"] > 0
    _, _, config, statistics = load_checkpoint(said["output"])
    assert config["optim"]["lr"] == 1e-3
    assert config["loss"]["forces"] == "l2"
    assert 8 in statistics.species


def test_train_shows_config_and_results_to_people(workplace, tmp_path):
    result = succeed("train", workplace / "toy.yaml", "-o", tmp_path / "run")
    assert "data: path=" in result.stdout
    assert "optim: lr=0.001" in result.stdout
    assert "test (step" in result.stdout
    assert "compilations of the training step: 1" in result.stdout
    assert f"checkpoints, metrics and config are in {tmp_path / 'run'}" in result.stderr


def test_train_quietly(workplace, tmp_path):
    arguments = ("-o", tmp_path / "run", "--no-progress", "train.max_steps=1")
    result = succeed("train", workplace / "toy.yaml", *arguments)
    assert "energy_mae" in result.stdout
    assert "epoch" not in result.stdout


def test_train_names_the_folder_after_the_configs(workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = tmp_path / "short.yaml"
    more.write_text("train: {max_steps: 1}")
    succeed("train", workplace / "toy.yaml", more, "--no-progress")
    assert (tmp_path / "runs" / "toy-short" / "config.json").is_file()


def test_overwrite_and_resume(workplace, tmp_path):
    base = ("train", workplace / "toy.yaml", "-o", tmp_path / "run", "--json")
    assert json.loads(succeed(*base).stdout)["step"] == 4
    assert "--resume" in refuse(*base)
    more = json.loads(succeed(*base, "--resume", "train.epochs=3").stdout)
    assert more["step"] == 6
    again = json.loads(succeed(*base, "--overwrite").stdout)
    assert again["step"] == 4
    assert "is of another model: model.hidden_channels is 8 there and 9 here" in refuse(
        *base, "--resume", "model.hidden_channels=9"
    )
    assert "contradict" in refuse(*base, "--resume", "--overwrite")


def test_evaluate_repeats_the_training_s_own_test(workplace):
    trained = json.loads((workplace / "train.json").read_text())["metrics"]
    said = json.loads(succeed("evaluate", workplace / "run", "--json").stdout)
    assert (said["split"], said["structures"]) == ("test", 4)
    for name, value in said["metrics"].items():
        assert value == pytest.approx(trained["test"][name], rel=1e-4)


def test_evaluate_on_a_config_a_file_and_a_split(workplace):
    run_, config = workplace / "run", workplace / "toy.yaml"
    own = json.loads(succeed("evaluate", run_, "--json").stdout)
    named = json.loads(succeed("evaluate", run_, config, "--json").stdout)
    assert named["metrics"] == own["metrics"]
    val = json.loads(succeed("evaluate", run_, "--split", "val", "--json").stdout)
    assert val["metrics"] != own["metrics"]
    file = (workplace / "all.extxyz", "data.cache_dir=none")
    whole = json.loads(succeed("evaluate", run_, *file, "--json").stdout)
    assert (whole["split"], whole["structures"]) == ("all", 24)
    assert "energy_mae" in succeed("evaluate", run_, config, "--which", "last").stdout


def test_predict_writes_what_the_library_predicts(workplace, tmp_path):
    frames = ase.io.read(workplace / "all.extxyz", ":5")
    frames[0].info["note"] = "kept"
    source, output = write(tmp_path / "in.extxyz", frames), tmp_path / "out.extxyz"
    result = succeed(
        "predict", workplace / "run", source, "-o", output, "-b", "2", "--json"
    )
    assert json.loads(result.stdout) == {"output": str(output), "structures": 5}
    written = ase.io.read(output, ":")
    assert written[0].info["note"] == "kept"

    model, params, _, statistics = load_checkpoint(workplace / "run")
    batch = ewald_jax.batch_from_atoms(frames, model)
    expected = ewald_jax.predict(model, params, batch, statistics)
    forces = np.concatenate([atoms.get_forces() for atoms in written])
    np.testing.assert_allclose(forces, expected.forces[: len(forces)], atol=1e-5)
    energies = [atoms.get_potential_energy() for atoms in written]
    np.testing.assert_allclose(energies, expected.energy[:5], atol=1e-5)


def test_predict_stress_of_periodic_structures_only(workplace, tmp_path):
    molecule = ase.Atoms("N2", [[0, 0, 0], [0, 0, 1.1]])
    crystal = ase.Atoms("N2", [[0, 0, 0], [0, 0, 1.1]], cell=[4, 4, 4], pbc=True)
    source, output = write(tmp_path / "in.xyz", [molecule, crystal]), tmp_path / "o.xyz"
    succeed("predict", workplace / "run", source, "-o", output, "--stress", "--no-forces")
    first, second = ase.io.read(output, ":", format="extxyz")
    assert "stress" not in first.calc.results
    assert second.calc.results["stress"].shape == (6,)
    assert "forces" not in second.calc.results


def test_predict_reads_what_ase_reads_as_text(workplace, tmp_path):
    crystal = ase.Atoms("N2", [[0, 0, 0], [0, 0, 1.1]], cell=[4, 4, 4], pbc=True)
    for name in ("a.cif", "POSCAR", "a.traj", "a.xyz"):
        ase.io.write(tmp_path / name, crystal)
        output = tmp_path / f"{name}.out.xyz"
        succeed("predict", workplace / "run", tmp_path / name, "-o", output)
        assert len(ase.io.read(output, ":", format="extxyz")) == 1


@pytest.mark.parametrize(
    ("name", "opener"), [("o.extxyz.xz", lzma.open), ("o.xyz.gz", gzip.open)]
)
def test_predict_compresses_by_name(workplace, tmp_path, name, opener):
    frames = ase.io.read(workplace / "all.extxyz", ":2")
    source = write(tmp_path / "in.xyz", frames)
    succeed("predict", workplace / "run", source, "-o", tmp_path / name)
    with opener(tmp_path / name, "rt") as file:
        assert len(ase.io.read(file, ":", format="extxyz")) == 2


@pytest.mark.parametrize("name", ["o.traj", "o.db", "o.cif", "o.xyz.bz2", "o"])
def test_predict_writes_extended_xyz_only(workplace, tmp_path, name):
    arguments = (workplace / "run", workplace / "all.extxyz", "-o", tmp_path / name)
    assert "would be extended xyz, expected a name with .xyz" in refuse(
        "predict", *arguments
    )
    assert list(tmp_path.iterdir()) == []


def test_predict_keeps_other_results(workplace, tmp_path):
    atoms = ase.Atoms("N2", [[0, 0, 0], [0, 0, 1.1]])
    atoms.set_initial_charges([0.25, -0.25])
    results = {"energy": 7.0, "free_energy": 7.0, "energies": [3.0, 4.0]}
    results |= {"charges": [0.5, -0.5], "dipole": [0.0, 0.0, 2.0]}
    atoms.calc = SinglePointCalculator(atoms, **results)
    source, output = write(tmp_path / "in.xyz", [atoms]), tmp_path / "out.xyz"
    succeed("predict", workplace / "run", source, "-o", output)
    written = ase.io.read(output)
    assert set(written.calc.results) == {"energy", "forces", "charges", "dipole"}
    assert written.get_potential_energy() != 7.0
    np.testing.assert_allclose(written.get_charges(), [0.5, -0.5])
    np.testing.assert_allclose(written.get_dipole_moment(), [0, 0, 2])
    np.testing.assert_allclose(written.get_initial_charges(), [0.25, -0.25])


def test_evaluate_takes_overrides_without_data(workplace):
    arguments = ("evaluate", workplace / "run", "--json")
    said = json.loads(succeed(*arguments, "data.limit_eval=2").stdout)
    assert (said["split"], said["structures"]) == ("test", 2)
    said = json.loads(succeed(*arguments, "data.test_size=6").stdout)
    assert said["structures"] == 6
    assert "expected data.key=value" in refuse(*arguments, "limit_eval=2")
    two = (workplace / "toy.yaml", workplace / "all.extxyz")
    assert "are both data, expected one" in refuse(*arguments, *two)


def test_evaluate_warns_of_structures_of_the_training(workplace, tmp_path):
    arguments = ("evaluate", workplace / "run", "--no-progress")
    assert succeed(*arguments).stderr == ""
    assert succeed(*arguments, "--split", "train").stderr == ""
    other = succeed(*arguments, "data.split_seed=1")
    assert re.fullmatch(
        r"warning: the training data had \d of these 4 structures\n", other.stderr
    )
    whole = succeed(*arguments, workplace / "all.extxyz", "data.cache_dir=none")
    assert "the training data had 16 of these 24 structures" in whole.stderr
    files = tmp_path / "files.yaml"
    files.write_text(f"data: {{train: {workplace / 'all.extxyz'}, cache_dir: none}}")
    shared = succeed(*arguments, files, "--split", "val").stderr
    assert "training used all.extxyz too, so structures may overlap" in shared
    new = write(tmp_path / "new.extxyz", [labelled(atoms) for atoms in toy_atoms(3)])
    assert succeed(*arguments, new, "data.cache_dir=none").stderr == ""


def test_float64_in_every_verb(workplace, tmp_path, x64):
    run_ = tmp_path / "run"
    arguments = ("-o", run_, "--json", "train.max_steps=1", "loss.forces=l2")
    trained = json.loads(succeed("train", workplace / "toy.yaml", *arguments).stdout)
    said = json.loads(succeed("evaluate", run_, "--json").stdout)["metrics"]
    for name, value in said.items():
        assert value == pytest.approx(trained["metrics"]["test"][name], rel=1e-12)
    source = workplace / "all.extxyz"
    succeed("predict", run_, source, "-o", tmp_path / "out.xyz")
    whole = ("evaluate", run_, source, "data.cache_dir=none", "--json")
    said = json.loads(succeed(*whole).stdout)["metrics"]
    errors = [
        a.get_potential_energy() - b.get_potential_energy()
        for a, b in zip(
            ase.io.read(tmp_path / "out.xyz", ":"), ase.io.read(source, ":"), strict=True
        )
    ]
    assert np.abs(errors).mean() == pytest.approx(said["energy_mae"], rel=1e-10)


def test_tables_keep_their_words_in_a_pipe(capsys):
    cell = "every word of a long sentence stays in a table that goes into a pipe " * 2
    print_table("title", ("name", "what"), [("parameters", cell), ("x", "z" * 400)])
    shown = capsys.readouterr().out
    assert cell.strip() in shown and "…" not in shown
    assert shown.count("z") == 400


def test_inspect_lone_atoms(tmp_path):
    frames = [ase.Atoms(name, info={"energy": 1.0}) for name in ("H", "He")]
    path = write(tmp_path / "atoms.xyz", frames)
    arguments = ("data", "inspect", path, "data.cache_dir=none")
    ranges = json.loads(succeed(*arguments, "--json").stdout)["ranges"]
    assert "shortest distance" not in ranges and ranges["energy"]["median"] == 1.0
    assert "nan" not in succeed(*arguments).stdout


def test_inspect_without_labels(workplace, tmp_path):
    plain = write(tmp_path / "plain.xyz", [atoms.copy() for atoms in toy_atoms(3)])
    result = succeed("data", "inspect", plain, "data.cache_dir=none")
    assert "no labels" in result.stdout
    assert "no labels: " in result.stderr and "nothing else that could be" in result.stderr
    arguments = ("data", "inspect", plain, "data.cache_dir=none", "data.energy_key=E0")
    assert "has no energy under the key 'E0'" in refuse(*arguments)


def test_inspect(workplace, tmp_path):
    said = json.loads(succeed("data", "inspect", workplace / "toy.yaml", "--json").stdout)
    assert said["structures"] == 24
    assert said["labels"] == ["energy", "forces"]
    assert said["splits"] == {"train": 16, "val": 4, "test": 4}
    assert {row[0] for row in said["elements"]} == {"H", "C", "N", "O"}
    assert said["ranges"]["atoms"]["largest"] == 5
    assert said["suspicious"] == []
    shown = succeed("data", "inspect", workplace / "toy.yaml").stdout
    assert "structures" in shown and "eV/Å" in shown


def test_inspect_finds_suspicious_frames(tmp_path):
    frames = [labelled(atoms) for atoms in toy_atoms(24)]
    frames[3] = labelled(frames[3], forces=np.full((len(frames[3]), 3), 60.0))
    frames[5] = labelled(frames[5], energy=1e4)
    frames[6] = labelled(frames[6])
    frames[6].positions[1] = frames[6].positions[0] + [0.0, 0.0, 0.4]
    path = write(tmp_path / "odd.extxyz", frames)
    arguments = ("data", "inspect", path, "data.cache_dir=none", "--json")
    found = json.loads(succeed(*arguments).stdout)["suspicious"]
    assert {entry["structure"] for entry in found} >= {3, 5, 6}


# Bad inputs ---------------------------------------------------------------------------------


def frames_with(**changes):
    """Twelve good frames of which the fourth is changed."""
    frames = [labelled(atoms) for atoms in toy_atoms(12)]
    atoms = frames[3]
    results = dict(atoms.calc.results)
    for name, value in changes.items():
        if name in ("energy", "forces"):
            results[name] = value
        elif name == "unlabelled":
            results = {}
        elif name == "element":
            atoms.numbers[0] = value
        elif name == "cell":
            atoms.set_cell(value)
            atoms.pbc = True
        elif name == "positions":
            atoms.positions[0] = value
        elif name == "close":
            atoms.positions[1] = atoms.positions[0] + 0.1
    results = {key: value for key, value in results.items() if value is not None}
    atoms.calc = SinglePointCalculator(atoms, **results) if results else None
    return frames


BROKEN_FRAMES = {
    "NaN position": (dict(positions=[np.nan, 0, 0]), "structure 3 .*position"),
    "infinite position": (dict(positions=[0, np.inf, 0]), "structure 3 .*position"),
    "NaN energy": (dict(energy=np.nan), "structure 3: energy 'energy' is NaN or infinite"),
    "infinite energy": (dict(energy=np.inf), "structure 3: energy .* is NaN or infinite"),
    "NaN force": (dict(forces=np.full((2, 3), np.nan)), "structure 3: forces .* is NaN"),
    "unlabelled among labelled": (dict(unlabelled=True), "structure 3 has no label energy"),
    "no forces among forces": (dict(forces=None), "structure 3 has no label forces"),
    "zero cell": (dict(cell=[0.0, 0.0, 0.0]), "structure 3 .*cell"),
    "singular cell": (dict(cell=[[5, 0, 0], [0, 5, 0], [5, 5, 0]]), "structure 3 .*cell"),
    "atoms on top of each other": (dict(close=True), "structure 3 .*0.3 Å"),
    "unknown element": (dict(element=0), "structure 3 .*element"),
}
OF_GEOMETRY = [n for n in BROKEN_FRAMES if not re.search("energy|force|label", n)]


def untouched(folder):
    """Every file of a folder with its content."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", BROKEN_FRAMES)
def test_broken_frames_are_refused_before_training(workplace, tmp_path, name):
    changes, sentence = BROKEN_FRAMES[name]
    path = write(tmp_path / "bad.extxyz", frames_with(**changes))
    before = untouched(tmp_path)
    arguments = (workplace / "toy.yaml", f"data.path={path}", "-o", tmp_path / "run")
    error = refuse("train", *arguments)
    assert str(path) in error
    assert re.search(sentence, error), error
    assert not (tmp_path / "run").exists()
    assert untouched(tmp_path) == before


@pytest.mark.parametrize("name", OF_GEOMETRY)
def test_broken_frames_are_refused_in_prediction(workplace, tmp_path, name):
    changes, sentence = BROKEN_FRAMES[name]
    path = write(tmp_path / "bad.extxyz", frames_with(**changes))
    before = untouched(tmp_path)
    arguments = ("-o", tmp_path / "out.extxyz", "-b", "2", "--no-progress")
    error = refuse("predict", workplace / "run", path, *arguments)
    assert str(path) in error
    assert re.search(sentence, error), error
    assert untouched(tmp_path) == before


def truncated(path, source):
    path.write_bytes(source.read_bytes()[:-100])


def garbage(path, source):
    path.write_bytes(os.urandom(1000))


def empty(path, source):
    path.touch()


def folder(path, source):
    path.mkdir()


def absent(path, source):
    pass


@pytest.mark.parametrize("name", ["bad.extxyz", "bad.extxyz.xz", "bad.traj", "bad.db"])
@pytest.mark.parametrize("how", [truncated, garbage, empty, folder, absent])
def test_unreadable_files(workplace, tmp_path, name, how):
    source, path = tmp_path / f"good-{name}", tmp_path / name
    frames = [labelled(atoms) for atoms in toy_atoms(12)]
    if name.endswith(".xz"):
        source.write_bytes(lzma.compress((workplace / "all.extxyz").read_bytes()))
    else:
        ase.io.write(source, frames)
    how(path, source)
    source.unlink()
    before = untouched(tmp_path)
    for arguments in (
        ("train", workplace / "toy.yaml", f"data.path={path}", "-o", tmp_path / "run"),
        ("predict", workplace / "run", path, "-o", tmp_path / "out.extxyz"),
        ("evaluate", workplace / "run", path, "data.cache_dir=none"),
        ("data", "inspect", path, "data.cache_dir=none"),
    ):
        assert str(path) in refuse(*arguments)
        assert untouched(tmp_path) == before


def test_a_missing_energy_key_is_answered_with_the_keys_there_are(workplace, tmp_path):
    arguments = (workplace / "toy.yaml", "data.energy_key=total", "-o", tmp_path / "run")
    error = refuse("train", *arguments)
    assert "structure 0 has no energy under the key 'total', it has 'energy'" in error
    assert "data.energy_key" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.val_size=24", "not enough structures for the split 'val'"),
        ("data.test_size=100", "not enough structures for the split 'test'"),
        ("data.split=far", "data.split is 'far', expected 'random' or 'key'"),
        ("data.limit=-1", "must be 0 or more"),
        ("data.labels=[charge]", "data.labels has 'charge', expected some of energy"),
        ("data.energy_unit=parsec", "unknown unit of energy 'parsec'"),
        ("data=[]", "expected a mapping of keys"),
        ("data.paht=x", "did you mean 'data.path'?"),
        ("data.name=dimers", "data.name and data.path are both set"),
        ("loss.stress=mae", "the loss needs stress"),
        ("loss.energy_weight=0", "no term with a weight above 0"),
        ("optim.lr=0", "optim.lr must be a finite number above 0"),
        ("train.monitor=mood", "train.monitor is 'mood', expected one of loss"),
        ("model.cutoff=0", "cutoff"),
        ("model.num_elements=2", "has atomic number"),
    ],
)
def test_settings_that_cannot_work(workplace, tmp_path, override, sentence):
    arguments = (workplace / "toy.yaml", override, "-o", tmp_path / "run")
    assert sentence in refuse("train", *arguments)
    assert not (tmp_path / "run").exists()


def test_a_structure_larger_than_the_budget(workplace, tmp_path, monkeypatch):
    # Budgets are made to fit; only a budget from elsewhere can be too small.
    small = Budget(8, 20, 9, 4)
    monkeypatch.setattr(prepare, "budgets_from_sizes", lambda *args: (small,))
    error = refuse("train", workplace / "toy.yaml", "-o", tmp_path / "run")
    assert re.search("structure .* is larger than the budget of a batch: 5 atoms", error)


def test_a_checkpoint_of_another_model(workplace, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(workplace / "run", copy)
    config = json.loads((copy / "config.json").read_text())
    config["model"]["hidden_channels"] = 9
    (copy / "config.json").write_text(json.dumps(config))
    for verb in (
        ("evaluate", copy, workplace / "all.extxyz"),
        ("predict", copy, workplace / "all.extxyz", "-o", tmp_path / "out.extxyz"),
    ):
        assert "is of another model: parameter " in refuse(*verb)
    assert not (tmp_path / "out.extxyz").exists()


def test_what_is_no_checkpoint(workplace, tmp_path):
    data = workplace / "all.extxyz"
    assert "no checkpoint directory" in refuse("evaluate", tmp_path / "none", data)
    assert "versions.json is missing" in refuse("evaluate", tmp_path, data)
    which = ("--which", "worst")
    assert "expected 'best' or 'last'" in refuse(
        "evaluate", workplace / "run", data, *which
    )


def test_evaluate_on_what_the_model_does_not_know(workplace, tmp_path):
    path = write(tmp_path / "iron.extxyz", frames_with(element=26))
    error = refuse("evaluate", workplace / "run", path, "data.cache_dir=none")
    assert "structure 3 has atomic number 26, but the model knows elements 1 to 9" in error
    path = write(tmp_path / "boron.extxyz", frames_with(element=5))
    output = tmp_path / "out.extxyz"
    error = refuse("predict", workplace / "run", path, "-o", output)
    assert "structure 3 has the element B, which the training data did not have" in error
    error = refuse("evaluate", workplace / "run", "--split", "exam")
    assert "the data have no split 'exam'; they have train, val, test, all" in error
    assert not output.exists()


def test_predict_keeps_what_is_there(workplace, tmp_path):
    output = tmp_path / "out.extxyz"
    output.write_text("precious")
    arguments = ("predict", workplace / "run", workplace / "all.extxyz", "-o", output)
    assert "use --overwrite" in refuse(*arguments)
    assert output.read_text() == "precious"
    succeed(*arguments, "--overwrite")
    assert len(ase.io.read(output, ":")) == 24
    nowhere = tmp_path / "no" / "out.extxyz"
    assert "there is no folder" in refuse(*arguments[:-1], nowhere)
    strange = tmp_path / "a.pickle"
    strange.write_bytes(b"\x80\x04.")
    arguments = ("predict", workplace / "run", strange, "-o", tmp_path / "new.xyz")
    assert "unknown kind of file" in refuse(*arguments)


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_while_predicting(workplace, tmp_path, monkeypatch):
    monkeypatch.setattr(ase.io, "write", no_space)
    arguments = (workplace / "run", workplace / "all.extxyz", "-o", tmp_path / "out.extxyz")
    error = refuse("predict", *arguments)
    assert f"{tmp_path / 'out.extxyz'}: No space left on device" in error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_while_training(workplace, tmp_path, monkeypatch):
    monkeypatch.setattr(train_checkpoint, "write_arrays", no_space)
    error = refuse("train", workplace / "toy.yaml", "-o", tmp_path / "run", "--no-progress")
    assert "the disk is full: could not write the checkpoint" in error


def test_a_config_that_is_not_there(workplace):
    error = refuse("train", workplace / "tooy.yaml")
    assert f"near it: {workplace / 'toy.yaml'}" in error
    assert "at least one config file" in refuse("train", "optim.lr=1e-4")
    assert "has no section 'data'" in refuse(
        "evaluate", workplace / "run", no_data(workplace)
    )


def no_data(workplace):
    path = workplace / "nodata.yaml"
    path.write_text("train: {epochs: 1}")
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ("trian",),
        ("train",),
        ("train", "a.yaml", "--frobnicate"),
        ("predict", "run", "in.xyz"),
        ("predict", "run", "in.xyz", "-o", "out.xyz", "-b", "0"),
        ("predict", "run", "in.xyz", "-o", "out.xyz", "-b", "many"),
        ("data", "inspect"),
        ("data", "make-samples", "-o", "x", "--workers", "0"),
    ],
)
def test_usage_mistakes(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.strip().splitlines()[-1].startswith("Error: ")


def test_make_samples_knows_its_names(tmp_path):
    arguments = ("data", "make-samples", "-o", tmp_path / "x", "--names", "trimers")
    assert "there is no sample set 'trimers'; there are dimers, slabs" in refuse(*arguments)
    assert not (tmp_path / "x").exists()


# Real processes -----------------------------------------------------------------------------


def start(*arguments, **options):
    tests = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": tests, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "ewald_jax.cli", *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=environment, **pipes, **options)


def test_a_mistake_in_a_real_process(tmp_path):
    process = start("train", tmp_path / "none.yaml", cwd=tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ""
    assert err == f"error: there is no config file {tmp_path / 'none.yaml'}\n"
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_saves_and_resume_goes_on(workplace, tmp_path):
    run_ = tmp_path / "run"
    long = ("train.epochs=100000", "train.eval_every=10")
    arguments = ("train", workplace / "toy.yaml", *long, "-o", run_, "--json")
    process = start(*arguments, "--no-progress")
    try:
        deadline = time.monotonic() + 240
        while not (run_ / "metrics.jsonl").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    said = json.loads(out)
    assert said["finished"] is False
    assert "Traceback" not in err
    steps = said["step"] + 2
    resumed = succeed(*arguments, "--resume", f"train.max_steps={steps}")
    assert json.loads(resumed.stdout)["step"] == steps
