"""The command line from end to end."""

import gzip
import json
import lzma
import os
import re
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
from commands import labelled, refuse, succeed, write
from test_train_toy import toy_atoms

import ewald_jax
from ewald_jax.cli.common import print_table
from ewald_jax.train import load_checkpoint

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
