"""What stops a training, or never lets it start: NaN, settings, a full disk."""

import json

import jax
import numpy as np
import pytest
from test_train_toy import compilation_cache, toy_atoms, toy_dataset, toy_model, toy_splits

from ewald_jax.data import dataset_from_atoms, dataset_statistics
from ewald_jax.graph import Neighborhood
from ewald_jax.train import (
    LossConfig,
    NonFiniteError,
    OptimConfig,
    TrainConfig,
    evaluate,
    fit,
    load_checkpoint,
)
from ewald_jax.train import keeper as keeper_module
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


def test_a_data_set_for_another_model(dataset, tmp_path):
    """Other edges are refused before anything is written; triplets are the model's affair."""
    common = dict(output_dir=tmp_path / "run", train=settings(max_steps=1), **QUIET)
    splits = {"train": np.arange(8)}
    atoms = toy_atoms(8)
    wide = dataset_from_atoms(atoms, Neighborhood(4.0, far_cutoff=6.0))
    short = dataset_from_atoms(atoms, 3.0)
    for given, sentence in (
        (short, "neighborhood cutoff = 3.0, but the model needs 4.0"),
        (wide, "neighborhood far_cutoff = 6.0, but the model needs None"),
    ):
        with pytest.raises(InputError, match=sentence):
            fit(toy_model(), given, splits, **common)
        with pytest.raises(InputError, match=sentence):
            evaluate(
                toy_model(), {}, given, statistics=dataset_statistics(dataset, range(8))
            )
    assert not (tmp_path / "run").exists()
    fit(toy_model(), dataset.suited_to(Neighborhood(4.0, triplets=True)), splits, **common)


def lines(directory):
    return [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]


class Poisoned:
    """A data set in which something is NaN that no reader would let through."""

    def __init__(self, dataset, bad, label):
        self._dataset, self._bad, self._label = dataset, bad, label

    def __getattr__(self, name):
        return getattr(self._dataset, name)

    def suited_to(self, needed):
        return Poisoned(self._dataset.suited_to(needed), self._bad, self._label)

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, index):
        sample = self._dataset[index]
        if index in self._bad:
            values = sample.targets[self._label] * np.nan
            sample = sample._replace(targets={**sample.targets, self._label: values})
        return sample


def test_nan_in_the_data_names_the_structures(dataset, tmp_path):
    """Two of 24, found within the first epoch; the checkpoint before it stays as it was."""
    directory = tmp_path / "run"
    common = dict(output_dir=directory, **QUIET)
    splits = {"train": np.arange(24)}
    good = fit(toy_model(), dataset, splits, train=settings(epochs=1), **common)
    bad = Poisoned(dataset, (5, 17), "energy")
    with pytest.raises(NonFiniteError) as error:
        fit(toy_model(), bad, splits, train=settings(epochs=2), resume=True, **common)
    message = str(error.value)
    assert set(error.value.structures) <= {5, 17}
    for index in error.value.structures:
        assert f"structure {index} of the data set ({dataset.where(index)}): " in message
    assert "the label energy is not finite" in message and "are kept" in message
    assert "\n" not in message and "step " in message
    jax.tree.map(np.testing.assert_array_equal, load_checkpoint(directory)[1], good.params)
    _, last, _, _ = load_checkpoint(directory, "last")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(last))
    resumed = fit(
        toy_model(), dataset, splits, train=settings(epochs=2), resume=True, **common
    )
    assert resumed.step == 12


def test_nan_in_the_validation_data_names_the_structure(dataset, tmp_path):
    splits = {"train": np.arange(0, 24, 2), "val": np.arange(1, 24, 2)}
    culprit = int(splits["val"][3])
    with pytest.raises(NonFiniteError, match="evaluation of the split 'val'") as error:
        fit(
            toy_model(),
            Poisoned(dataset, (culprit,), "energy"),
            splits,
            train=settings(epochs=1),
            output_dir=tmp_path / "run",
            statistics=dataset_statistics(dataset, np.arange(24)),
            **QUIET,
        )
    assert error.value.structures == (culprit,)


def test_divergence_is_said_to_be_one(dataset, tmp_path):
    """No structure is at fault when the learning rate is."""
    with pytest.raises(
        NonFiniteError, match="diverged, expected a smaller optim.lr"
    ) as error:
        fit(
            toy_model(),
            dataset,
            {"train": np.arange(24)},
            train=settings(epochs=2, log_every=1),
            loss=LossConfig(energy="mse"),
            optim=OptimConfig(lr=1e30),
            output_dir=tmp_path / "run",
            progress=False,
        )
    assert len(error.value.structures) == 4


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"splits": {"val": np.arange(3)}}, "the split 'train' is empty"),
        ({"splits": {"train": np.arange(30)}}, "structure 29, but the data set has 24"),
        ({"loss": LossConfig(stress="mae")}, "the loss needs stress, .* energy, forces"),
        (
            {"train": settings(monitor="forces_mae")},
            "monitor is 'forces_mae', expected one",
        ),
        (
            {"train": settings(monitor="energy_mae"), "splits": {"train": np.arange(4)}},
            "loss",
        ),
        ({"model": toy_model(num_elements=7)}, "structure 1 has atomic number 8"),
    ],
)
def test_what_cannot_be_trained(dataset, tmp_path, changes, match):
    arguments = dict(
        model=toy_model(),
        splits=toy_splits(24, 6),
        train=settings(),
        loss=ENERGY,
        optim=OptimConfig(),
    )
    with pytest.raises(InputError, match=match):
        fit(
            dataset=dataset,
            output_dir=tmp_path / "run",
            progress=False,
            **{**arguments, **changes},
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "match"),
    [({"epochs": 0}, "epochs"), ({"log_every": 0}, "log_every"), ({"seed": -1}, "seed")],
)
def test_train_config_refuses(fields, match):
    with pytest.raises(InputError, match=f"train.{match}"):
        TrainConfig(**fields)


def test_full_disk_stops_training_with_a_sentence(dataset, tmp_path, monkeypatch):
    saves = []
    original = keeper_module.save_checkpoint

    def failing(directory, which, state, progress):
        saves.append(which)
        if saves.count("last") > 2:
            raise InputError("the disk is full: could not write")
        original(directory, which, state, progress)

    monkeypatch.setattr(keeper_module, "save_checkpoint", failing)
    with pytest.raises(InputError, match="the disk is full"):
        fit(
            toy_model(),
            dataset,
            {"train": np.arange(24)},
            train=settings(checkpoint_seconds=0),
            output_dir=tmp_path / "run",
            **QUIET,
        )
    assert read_progress(tmp_path / "run", "last")["step"] == 6
    load_checkpoint(tmp_path / "run")
