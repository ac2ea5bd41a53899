"""Training as a whole: what it learns, shows, writes, counts and refuses."""

import io
import json
import math
import struct

import jax
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto import event_pb2
from test_train_toy import compilation_cache, toy_atoms, toy_dataset, toy_model, toy_splits

from ewald_jax.data import LabelOptions, dataset_from_atoms, dataset_statistics
from ewald_jax.models import batch_from_atoms
from ewald_jax.potential import init_params
from ewald_jax.train import (
    LossConfig,
    OptimConfig,
    TrainConfig,
    evaluate,
    fit,
    load_checkpoint,
)
from ewald_jax.train.checkpoint import read_progress
from ewald_jax.typing import InputError

FORCES = LossConfig(forces="l2")
ENERGY = LossConfig()
QUIET = dict(progress=False, loss=ENERGY, optim=OptimConfig(lr=1e-2))


def settings(**fields):
    return TrainConfig(**{"epochs": 2, "batch_size": 4, "tensorboard": False, **fields})


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with compilation_cache(tmp_path_factory.mktemp("compilations")):
        yield


@pytest.fixture(scope="module")
def dataset():
    return toy_dataset(24)


def lines(directory):
    return [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """Three epochs of four batches with everything on, and what was shown."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    shown = io.StringIO()
    result = fit(
        toy_model(),
        dataset,
        toy_splits(24, 6, 3),
        train=TrainConfig(epochs=3, batch_size=4, log_every=2, checkpoint_every=3),
        loss=FORCES,
        optim=OptimConfig(lr=3e-3, ema_decay=0.9, amsgrad=True, clip_norm=10.0),
        output_dir=directory,
        config={"data": {"name": "toy"}, "seed": 0},
        console=Console(file=shown, width=60),
    )
    return result, directory, shown.getvalue()


def test_result(trained):
    result, directory, _ = trained
    assert result.step == 12 and not result.interrupted and result.directory == directory
    assert set(result.metrics) == {"val", "test"}
    assert all(
        math.isfinite(v) for split in result.metrics.values() for v in split.values()
    )
    assert [record["step"] for record in result.history] == [4, 8, 12]
    best = min(result.history, key=lambda record: record["val_loss"])
    assert result.best_step == best["step"]
    assert result.metrics["val"]["loss"] == best["val_loss"]
    assert 0 < result.seconds_per_step < 1


def test_history_on_disk(trained):
    result, directory, _ = trained
    history = lines(directory)
    assert history == result.history
    assert [record["epoch"] for record in history] == [1, 2, 3]
    for record in history:
        assert {"lr", "seconds", "train_loss", "val_energy_mae", "val_efwt"} <= set(record)


def test_metrics_on_disk(trained):
    result, directory, _ = trained
    metrics = json.loads((directory / "metrics.json").read_text())
    assert metrics["val"] == result.metrics["val"]
    assert metrics["test"] == result.metrics["test"]
    assert metrics["finished"] and metrics["best_step"] == result.best_step
    assert metrics["compilations"] == result.compilations_per_bucket


def test_directory_describes_itself(trained):
    result, directory, _ = trained
    model, params, config, statistics = load_checkpoint(directory)
    assert model == toy_model()
    assert set(config) == {"data", "seed", "model", "loss", "optim", "train"}
    assert config["data"] == {"name": "toy"} and config["optim"]["ema_decay"] == 0.9
    assert statistics.scale > 0 and len(statistics.species) == 4
    jax.tree.map(np.testing.assert_array_equal, params, result.params)


def test_loaded_parameters_give_the_reported_metrics(trained, dataset):
    result, directory, _ = trained
    model, params, _, statistics = load_checkpoint(directory)
    for split in ("val", "test"):
        indices = toy_splits(24, 6, 3)[split]
        done = []
        values = evaluate(
            model,
            params,
            dataset,
            indices,
            statistics=statistics,
            loss=FORCES,
            batch_size=5,
            on_batch=lambda *counts, done=done: done.append(counts),
        )
        assert values == pytest.approx(result.metrics[split], rel=1e-4)
        assert done[-1][0] == done[-1][1] == -(-len(indices) // 5)


def test_shown_on_something_that_is_no_terminal(trained):
    """Plain lines without control characters, not folded: a header, one line per epoch."""
    result, directory, shown = trained
    assert "\x1b" not in shown and "\r" not in shown
    rows = shown.splitlines()
    assert "parameters" in rows[0] and "from the start" in rows[0]
    assert rows[1].split()[:3] == ["epoch", "step", "lr"]
    assert [row.split()[:2] for row in rows[2:5]] == [["1", "4"], ["2", "8"], ["3", "12"]]
    assert len(rows[1]) == len(rows[2])
    assert f"compilations of the training step: {result.compilations} (" in shown
    assert "median step" in shown


def events(path):
    """Events of a TensorBoard file: records of length, checksum, data, checksum."""
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield event_pb2.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_tensorboard(trained):
    result, directory, _ = trained
    (path,) = (directory / "tensorboard").iterdir()
    written = {
        (value.tag, event.step): value.simple_value
        for event in events(path)
        for value in event.summary.value
    }
    for record in result.history:
        step = record["step"]
        assert written["lr", step] == pytest.approx(record["lr"])
        assert written["val/energy_mae", step] == pytest.approx(record["val_energy_mae"])
    # The running loss is the mean since the reading before it.
    steps = [step for tag, step in written if tag == "train/loss"]
    assert steps == [2, 3, 4, 6, 8, 9, 10, 12]


def test_last_checkpoint_is_the_last_step(trained):
    _, directory, _ = trained
    progress = read_progress(directory, "last")
    assert progress["step"] == 12 and not progress["evaluation_due"]
    assert len(list((directory / "checkpoints" / "last").iterdir())) == 1


def test_resuming_a_finished_training_changes_nothing(trained, dataset):
    result, directory, _ = trained
    again = fit(
        toy_model(),
        dataset,
        toy_splits(24, 6, 3),
        train=TrainConfig(epochs=3, batch_size=4, log_every=2, checkpoint_every=3),
        loss=FORCES,
        optim=OptimConfig(lr=3e-3, ema_decay=0.9, amsgrad=True, clip_norm=10.0),
        output_dir=directory,
        resume=True,
        progress=False,
    )
    assert again.history == result.history and again.step == 12
    assert again.metrics == result.metrics
    jax.tree.map(np.testing.assert_array_equal, again.params, result.params)


def test_overfits_eight_structures(tmp_path):
    dataset = toy_dataset(8)
    result = fit(
        toy_model(hidden_channels=16),
        dataset,
        {"train": np.arange(8)},
        train=settings(epochs=200, batch_size=8, eval_every=50),
        loss=FORCES,
        optim=OptimConfig(lr=1e-2, schedule="cosine", weight_decay=0.0),
        output_dir=tmp_path / "run",
        progress=False,
    )
    first, last = result.history[0]["train_loss"], result.history[-1]["train_loss"]
    start = evaluate(
        toy_model(hidden_channels=16),
        jax.tree.map(lambda x: 0 * x, result.params),
        dataset,
        statistics=dataset_statistics(dataset, np.arange(8)),
        loss=FORCES,
    )
    assert last < 0.5 * first and last < 0.1 * start["loss"]


def test_one_compilation_per_bucket(tmp_path):
    """Sizes so uneven that batches need several shapes; the last batch fits one too."""
    atoms = toy_atoms(31, names=("H2",) * 7 + ("C6H6",))
    result = fit(
        toy_model(),
        dataset_from_atoms(atoms, 4.0),
        {"train": np.arange(31)},
        train=settings(epochs=3, batch_size=2),
        output_dir=tmp_path / "run",
        **QUIET,
    )
    assert result.step == 48
    assert 2 <= result.compilations <= 3
    assert set(result.compilations_per_bucket.values()) == {1}


def test_at_most_four_buckets_by_default():
    assert TrainConfig().max_buckets == 4


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"epochs": 3, "eval_every": 2}, [12, 18]),
        ({"epochs": 3, "max_steps": 8}, [6, 8]),
        ({"epochs": 2, "eval_every_steps": 4}, [4, 8, 12]),
    ],
)
def test_the_last_step_is_evaluated_and_saved(dataset, tmp_path, fields, steps):
    result = fit(
        toy_model(),
        dataset,
        {"train": np.arange(24)},
        train=settings(**fields),
        output_dir=tmp_path / "run",
        **QUIET,
    )
    assert [record["step"] for record in result.history] == steps
    assert read_progress(tmp_path / "run", "last")["step"] == steps[-1] == result.step
    assert result.metrics == {}  # no split but the training one


def test_existing_directory(trained, dataset, tmp_path):
    _, directory, _ = trained
    before = sorted(p for p in directory.rglob("*"))
    common = dict(train=settings(), **QUIET)
    splits = {"train": np.arange(4)}
    with pytest.raises(InputError, match="use --resume .* --overwrite"):
        fit(toy_model(), dataset, splits, output_dir=directory, **common)
    with pytest.raises(InputError, match="contradict"):
        both = dict(resume=True, overwrite=True)
        fit(toy_model(), dataset, splits, output_dir=directory, **both, **common)
    assert sorted(p for p in directory.rglob("*")) == before
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        fit(toy_model(), dataset, splits, output_dir=file, overwrite=True, **common)
    with pytest.raises(InputError, match="holds files, but no training"):
        fit(toy_model(), dataset, splits, output_dir=tmp_path, resume=True, **common)
    assert file.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_overwrite_removes_a_training_and_nothing_else(dataset, tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "notes.txt").write_text("mine")
    common = dict(output_dir=directory, overwrite=True, **QUIET)
    for epochs in (2, 1):
        fit(
            toy_model(),
            dataset,
            {"train": np.arange(8)},
            train=settings(epochs=epochs, tensorboard=True),
            **common,
        )
    assert (directory / "notes.txt").read_text() == "mine"
    assert len(lines(directory)) == 1
    assert len(list((directory / "tensorboard").iterdir())) == 1


def test_overwrite_refuses_a_folder_with_files_of_the_same_names(dataset, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="cannot overwrite: .* but no training"):
        fit(
            toy_model(),
            dataset,
            {"train": np.arange(8)},
            train=settings(),
            output_dir=tmp_path,
            overwrite=True,
            **QUIET,
        )
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_full_disk_before_the_first_checkpoint_leaves_nothing(
    dataset, tmp_path, monkeypatch
):
    def full(*args, **kwargs):
        raise InputError("no space")

    monkeypatch.setattr("ewald_jax.train.keeper.save_checkpoint", full)
    arguments = dict(train=settings(), output_dir=tmp_path / "run", **QUIET)
    with pytest.raises(InputError, match="no space"):
        fit(toy_model(), dataset, {"train": np.arange(8)}, **arguments)
    assert not (tmp_path / "run").exists()
    monkeypatch.undo()
    assert fit(toy_model(), dataset, {"train": np.arange(8)}, **arguments).step > 0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"model": toy_model(hidden_channels=4)},
            "another model: model.hidden_channels is 8",
        ),
        (
            {"optim": OptimConfig(lr=1.0)},
            "another run: optim.amsgrad is True there and False here",
        ),
        ({"loss": ENERGY}, "another run: loss.forces is 'l2'"),
        ({"train": settings(batch_size=3)}, "another run: train.batch_size is 4"),
        ({"splits": toy_splits(24, 5, 3)}, "other data or other splits"),
    ],
)
def test_resuming_another_training(trained, dataset, changes, match):
    _, directory, _ = trained
    before = (directory / "config.json").read_text()
    arguments = dict(
        model=toy_model(),
        splits=toy_splits(24, 6, 3),
        train=settings(),
        loss=FORCES,
        optim=OptimConfig(lr=3e-3, ema_decay=0.9, amsgrad=True, clip_norm=10.0),
    )
    with pytest.raises(InputError, match=match):
        fit(
            dataset=dataset,
            output_dir=directory,
            resume=True,
            progress=False,
            **{**arguments, **changes},
        )
    assert (directory / "config.json").read_text() == before


def test_evaluate_needs_labels(tmp_path):
    atoms = [a.copy() for a in toy_atoms(2)]
    unlabelled = dataset_from_atoms(atoms, 4.0, options=LabelOptions(labels=()))
    labelled = toy_dataset(2)
    statistics = dataset_statistics(labelled, [0, 1])
    model = toy_model()
    params = init_params(model, jax.random.key(0), batch_from_atoms(atoms, model))
    with pytest.raises(InputError, match="no labels to compare with"):
        evaluate(model, params, unlabelled, statistics=statistics)


@pytest.mark.slow
def test_float64_where_the_user_asks_for_it(x64, tmp_path):
    result = fit(
        toy_model(),
        toy_dataset(8),
        {"train": np.arange(8)},
        train=settings(epochs=1),
        output_dir=tmp_path / "run",
        **QUIET,
    )
    # Flax keeps parameters in float32; what is computed with them is float64.
    assert math.isfinite(result.history[0]["train_loss"])
    loss = result.history[0]["train_loss"]
    assert float(np.float32(loss)) != loss
