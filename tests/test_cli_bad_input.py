"""The one sentence that each bad input gets on the command line."""

import errno
import gc
import json
import lzma
import os
import re
import shutil
import sys
import time

import ase
import ase.io
import numpy as np
import pytest
import typer
from ase.calculators.singlepoint import SinglePointCalculator
from commands import labelled, refuse, run, succeed, write
from test_train_toy import toy_atoms

from ewald_jax.cli.common import command
from ewald_jax.graph import Budget
from ewald_jax.train import checkpoint as train_checkpoint
from ewald_jax.train import prepare


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
        ("data.split=far", "data.split is 'far', expected 'random', 'key' or"),
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
    monkeypatch.setattr(prepare, "budgets_from_sizes", lambda *args, **kwargs: (small,))
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


def test_ctrl_c_in_a_callback_of_the_garbage_collector_is_not_lost(capsys):
    @command
    def verb():
        def interrupted(phase, info):
            gc.callbacks.remove(interrupted)
            raise KeyboardInterrupt

        gc.callbacks.append(interrupted)
        gc.collect()
        time.sleep(60)
        raise AssertionError("it waited to the end")

    before = sys.unraisablehook
    with pytest.raises(typer.Exit) as ended:
        verb()
    assert ended.value.exit_code == 130 and sys.unraisablehook is before
    assert capsys.readouterr().err == "error: interrupted\n"
