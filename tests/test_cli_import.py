"""`ewald-jax import-torch` and `train --init`: PyTorch weights from the command line."""

import json
import shutil

import ase.io
import jax
import numpy as np
import pytest
import yaml
from commands import labelled, refuse, succeed, write
from structures import quick_compilation  # noqa: F401
from test_interop_checkpoint import (
    PAINN,
    SCHNET,
    STD,
    TRAINING,
    config_of,
    file_content,
    shadow_of,
)
from test_reference_models import load, structures_of, weights_of
from test_train_toy import compilation_cache, toy_atoms
from torch_files import pickled, save, torch_file

import ewald_jax
from ewald_jax.train import LossConfig, OptimConfig, TrainConfig, fit
from ewald_jax.typing import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")

MOLECULES = "model_schnet_baseline_aperiodic"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with compilation_cache(tmp_path_factory.mktemp("compilations")):
        yield


@pytest.fixture
def file(tmp_path):
    return save(tmp_path / "x.pt", file_content(SCHNET))


@pytest.fixture
def config(tmp_path):
    """The published configs' form: all below `fixed`, a list of data sets."""
    model = {**config_of(SCHNET), "name": "schnet"}
    values = {"fixed": {"name": "a run", "model": model, "dataset": [TRAINING, {}]}}
    (tmp_path / "x.yml").write_text(yaml.safe_dump(values))
    return tmp_path / "x.yml"


# -- importing -------------------------------------------------------------------------------


def test_an_import_is_evaluated_and_predicts(file, tmp_path):
    out = tmp_path / "out"
    result = succeed("import-torch", file, "-o", out)
    assert result.stdout.startswith("SchNet with ")
    assert "elements 1 to 99; energies are -0.75 eV plus 2.5 eV times the" in result.stdout
    assert str(out) in result.stderr
    data = load(SCHNET)
    frames = list(structures_of(data, True))
    write(tmp_path / "in.extxyz", frames)
    succeed("predict", out, tmp_path / "in.extxyz", "-o", tmp_path / "predicted.extxyz")
    predicted = ase.io.read(tmp_path / "predicted.extxyz", ":")
    energies = [atoms.get_potential_energy() for atoms in predicted]
    np.testing.assert_allclose(energies, -0.75 + STD * data["energy"], rtol=1e-5)
    # Predictions are labels that the model has no error on.
    shown = succeed("evaluate", out, tmp_path / "predicted.extxyz", "--json").stdout
    assert json.loads(shown)["metrics"]["energy_mae"] < 1e-3


def test_json_config_scales_and_averages(tmp_path):
    weights, ema = weights_of(load(PAINN)), {"shadow_params": shadow_of(PAINN)}
    scales = {k: float(weights.pop(k)) for k in list(weights) if k.endswith("scale_factor")}
    file = save(tmp_path / "x.pt", {"state_dict": weights, "ema": ema})
    (tmp_path / "scales.json").write_text(json.dumps(scales))
    (tmp_path / "x.yml").write_text(yaml.safe_dump({"model": config_of(PAINN)}))
    arguments = ["import-torch", file, "--config", tmp_path / "x.yml"]
    arguments += [
        "--scale-file",
        tmp_path / "scales.json",
        "-o",
        tmp_path / "out",
        "--json",
    ]
    result = json.loads(succeed(*arguments).stdout)
    assert result.pop("parameters") > 1000
    notes = result.pop("notes")
    assert "running averages" in notes[0] and "no normalisation" in notes[1]
    assert result == {
        "output": str(tmp_path / "out"),
        "model": "PaiNN",
        "elements": 83,
        "mean": 0.0,
        "scale": 1.0,
        "averaged": False,
    }
    before = ewald_jax.load_checkpoint(tmp_path / "out")[1]
    assert json.loads(succeed(*arguments, "--ema", "--overwrite").stdout)["averaged"]
    after = ewald_jax.load_checkpoint(tmp_path / "out")[1]
    np.testing.assert_array_equal(after["output_1"]["bias"], 2 * before["output_1"]["bias"])


def test_the_config_beside_comes_before_the_one_inside(file, config, tmp_path):
    succeed("import-torch", file, "--config", config, "-o", tmp_path / "out")
    wrong = yaml.safe_load(config.read_text())
    wrong["fixed"]["model"]["num_filters"] = 48
    config.write_text(yaml.safe_dump(wrong))
    sentence = refuse("import-torch", file, "--config", config, "-o", tmp_path / "no")
    assert "'interactions.0.mlp.0.weight' has shape (32, 50)" in sentence
    assert "(48, 50)" in sentence and "num_filters" in sentence and str(file) in sentence


# -- what is refused -------------------------------------------------------------------------


def refuse_file(tmp_path, content, *options):
    """The sentence about a file of this content, or these bytes; nothing is written."""
    path = tmp_path / "x.pt"
    path.write_bytes(content) if isinstance(content, bytes) else save(path, content)
    sentence = refuse("import-torch", path, "-o", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
    assert str(path) in sentence
    return sentence


class Attack:
    def __reduce__(self):
        import os

        return os.system, ("touch executed",)


def test_code_in_a_file_is_named_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind in ("zip", "legacy"):
        content = torch_file(kind, pickled({"state_dict": Attack()})[0])
        sentence = refuse_file(tmp_path, content)
        assert "system" in sentence and "nothing in it was executed" in sentence
    assert not (tmp_path / "executed").exists()


def test_a_truncated_file(file, tmp_path):
    assert "truncated" in refuse_file(tmp_path, file.read_bytes()[:-2000])


def test_a_file_that_is_not_there(tmp_path):
    sentence = refuse("import-torch", tmp_path / "no.pt", "-o", tmp_path / "out")
    assert "no.pt: does not exist" in sentence


def test_a_config_that_is_not_there_or_broken(file, tmp_path):
    def sentence():
        return refuse("import-torch", file, "--config", path, "-o", tmp_path / "out")

    path = tmp_path / "no.yml"
    assert sentence() == f"error: there is no config file {path}"
    for text, words in (
        ("model: [", ", line 2: not valid YAML"),
        ("a list", "expected a config with a section 'model'"),
        ("model: !!python/object/apply:os.system ['touch executed']", "not valid YAML"),
        ("dataset: []", "the config names no model"),
        ("model: {name: dimenet}", "architecture 'dimenet'"),
    ):
        path.write_text(text + "\n")
        assert words in sentence()
    path.write_bytes(b"\xff\xfe\xfa")
    assert "it is not UTF-8 text" in sentence()
    assert not (tmp_path / "out").exists()


def test_a_config_for_another_model(tmp_path):
    content = file_content(SCHNET)
    content["config"] = file_content(PAINN)["config"]
    assert "those of schnet, but the config is one of painn" in refuse_file(
        tmp_path, content
    )
    content["config"] = file_content("model_schnet_ewald_pbc")["config"]
    assert "down.linear.weight" in refuse_file(tmp_path, content)
    content["config"]["model"] = "forcenet"
    assert "no reference weights for architecture 'forcenet'" in refuse_file(
        tmp_path, content
    )
    content["config"] = None
    assert "has no config in it" in refuse_file(tmp_path, content)


def test_scale_factors_that_are_missing(tmp_path):
    content = file_content(PAINN, "")
    state = content["state_dict"]
    keys = [key for key in state if key.endswith("scale_factor")]
    for key in keys:
        state[key] = np.zeros((), np.float32)
    assert "was never fitted" in refuse_file(tmp_path, content)
    for key in keys:
        del state[key]
    assert "no scale factor 'upd_out_scalar_scale_0" in refuse_file(tmp_path, content)
    (tmp_path / "scales.json").write_text('{"upd_out_scalar_scale_7": 1.0}')
    options = ("--scale-file", tmp_path / "scales.json")
    assert "'upd_out_scalar_scale_7' is none of the model's" in refuse_file(
        tmp_path, content, *options
    )


def test_an_output_directory_in_use(file, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    sentence = refuse("import-torch", file, "-o", out)
    assert "exists and is not empty; use --overwrite" in sentence
    (out / "config.json").write_text("{}")
    sentence = refuse("import-torch", file, "-o", out, "--overwrite")
    assert "holds files, but no training" in sentence
    assert {path.name for path in out.iterdir()} == {"thesis.tex", "config.json"}
    assert "is a file" in refuse("import-torch", file, "-o", file)


def test_a_failure_to_write_leaves_nothing(file, tmp_path, monkeypatch):
    def full(place, trees):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ewald_jax.train.checkpoint.write_arrays", full)
    sentence = refuse("import-torch", file, "-o", tmp_path / "out")
    assert "the disk is full" in sentence
    assert not (tmp_path / "out").exists()


# -- fine-tuning -----------------------------------------------------------------------------

TUNING = """
data: {path: PATH, val_size: 4, test_size: 4, cache_dir: none}
model: MODEL
loss: {forces: l2}
optim: {lr: 3e-4}
train: {epochs: 3, batch_size: 8, max_buckets: 1, tensorboard: false}
"""


@pytest.fixture(scope="module")
def tuning(tmp_path_factory):
    """An imported SchNet, data, and a config that fine-tunes the one on the other."""
    folder = tmp_path_factory.mktemp("tuning")
    file = save(folder / "x.pt", file_content(MOLECULES))
    succeed("import-torch", file, "-o", folder / "imported")
    write(folder / "all.extxyz", [labelled(atoms) for atoms in toy_atoms(24)])
    model = json.loads((folder / "imported" / "config.json").read_text())["model"]
    text = TUNING.replace("PATH", str(folder / "all.extxyz"))
    (folder / "tune.yaml").write_text(text.replace("MODEL", json.dumps(model)))
    return folder


def tune(folder, out, *more):
    return ("train", folder / "tune.yaml", "-o", out, "--no-progress", *more)


def history(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same(one, other):
    """Up to the rounding of averages, and a few steps of length 1e-30."""
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)
    jax.tree.map(close, one, other)


def test_training_goes_on_from_imported_weights(tuning, tmp_path):
    out, start = tmp_path / "out", tuning / "imported"
    succeed(*tune(tuning, out, "--init", start))
    losses = [record["val_loss"] for record in history(out)]
    assert losses[-1] < losses[0]
    model, params, config, statistics = ewald_jax.load_checkpoint(out, "last")
    assert config["init"] == str(start)
    _, before, _, imported = ewald_jax.load_checkpoint(start)
    # The scale is the checkpoint's, reference energies are those of the new data.
    assert statistics.scale == imported.scale == STD
    assert statistics.reference([1]) != 0 and statistics.mean == 0
    assert statistics.species == (1, 6, 7, 8)
    moved = np.max(np.abs(params["output_1"]["kernel"] - before["output_1"]["kernel"]))
    assert 0 < moved < 0.02
    succeed("evaluate", out, "--json")

    # Resuming keeps what the training started from, whatever --init says.
    result = succeed(*tune(tuning, out, "train.epochs=4", "--resume", "--init", "nowhere"))
    assert len(history(out)) == 4, result.output
    assert ewald_jax.load_checkpoint(out)[2]["init"] == str(start)


def test_training_starts_from_exactly_these_weights(tuning, tmp_path):
    """With steps of length zero, and averages on, everything stays where it was."""
    before = ewald_jax.load_checkpoint(tuning / "imported")[1]
    still = ("optim.lr=1e-30", "train.epochs=1", "optim.ema_decay=0.9")
    succeed(*tune(tuning, tmp_path / "out", *still, "--init", tuning / "imported"))
    same(ewald_jax.load_checkpoint(tmp_path / "out", "last")[1], before)
    given = ("data.statistics.scale=0.5", "train.epochs=1")
    succeed(*tune(tuning, tmp_path / "own", *given, "--init", tuning / "imported"))
    assert ewald_jax.load_checkpoint(tmp_path / "own")[3].scale == 0.5


def test_a_run_killed_before_its_first_checkpoint_keeps_its_start(tuning, tmp_path):
    out, start = tmp_path / "out", tuning / "imported"
    still = ("optim.lr=1e-30", "train.epochs=1")
    succeed(*tune(tuning, out, *still, "--init", start))
    shutil.rmtree(out / "checkpoints")
    succeed(*tune(tuning, out, *still, "--resume"))
    same(ewald_jax.load_checkpoint(out)[1], ewald_jax.load_checkpoint(start)[1])


def test_settings_that_change_no_parameter_may_differ_and_are_said(tuning, tmp_path):
    options = ("model.cutoff=5.0", "train.epochs=1", "--init", tuning / "imported")
    arguments = [*tune(tuning, tmp_path / "out", *options)]
    arguments.remove("--no-progress")
    shown = succeed(*arguments).stdout.replace("\n", " ")
    assert f"from {tuning / 'imported'}" in shown
    assert "note: model.cutoff is 6.0 in " in shown and "and 5.0 here" in shown


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("model.num_filters=48", "interaction_0/filter_0/bias has shape [32] in"),
        ("model.num_interactions=1", "parameter interaction_1/filter_0/bias is only in"),
    ],
)
def test_another_model_is_refused(option, words, tuning, tmp_path):
    arguments = tune(tuning, tmp_path / "out", option, "--init", tuning / "imported")
    sentence = refuse(*arguments)
    assert "is of another model: parameter" in sentence and words in sentence
    assert not (tmp_path / "out").exists()


def test_a_start_that_is_none(tuning, tmp_path):
    out = tmp_path / "out"
    sentence = refuse(*tune(tuning, out, "--init", tmp_path / "nowhere"))
    assert f"there is no checkpoint directory {tmp_path / 'nowhere'}" in sentence
    copy = shutil.copytree(tuning / "imported", tmp_path / "copy")
    sentence = refuse(*tune(tuning, copy, "--resume"))
    assert "was not made by a training; expected it as --init" in sentence
    shutil.rmtree(copy / "checkpoints")
    assert "has no checkpoint" in refuse(*tune(tuning, out, "--init", copy))
    assert not out.exists()


def test_parameters_from_python(tuning, tmp_path):
    from ewald_jax.data import dataset_from_atoms

    model, params, _, _ = ewald_jax.load_checkpoint(tuning / "imported")
    dataset = dataset_from_atoms(toy_atoms(8), ewald_jax.models.neighborhood(model))
    options = dict(
        train=TrainConfig(epochs=1, batch_size=8, tensorboard=False),
        loss=LossConfig(),
        optim=OptimConfig(lr=1e-30),
        progress=False,
    )
    splits = {"train": np.arange(8)}
    result = fit(model, dataset, splits, output_dir=tmp_path / "a", init=params, **options)
    same(result.params, params)
    assert ewald_jax.load_checkpoint(tmp_path / "a")[2]["init"] == "given parameters"
    left = {key: value for key, value in params.items() if key != "output_1"}
    with pytest.raises(InputError, match="init: is of another model: parameter output_1"):
        fit(model, dataset, splits, output_dir=tmp_path / "b", init=left, **options)
    start = tuning / "imported"
    result = fit(model, dataset, splits, output_dir=tmp_path / "b", init=start, **options)
    assert ewald_jax.load_checkpoint(tmp_path / "b")[3].scale == STD
    same(result.params, params)
