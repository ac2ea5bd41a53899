"""Ensembles: members that are single trainings, one program, means and spreads."""

import dataclasses
import json
import os
import pickle
import signal

import ase.build
import ase.io
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError
from commands import CONFIG, labelled, refuse, succeed, write
from structures import quick_compilation
from test_train_toy import (
    Toy,
    compilation_cache,
    toy_atoms,
    toy_dataset,
    toy_model,
    toy_splits,
)
from tiny import drawn, tiny

import ewald_jax
from ewald_jax.calculator import EwaldCalculator, SetupError
from ewald_jax.data import Statistics
from ewald_jax.data.loader import Loader
from ewald_jax.ensemble import count_members, stack_members
from ewald_jax.nn.scaling import ScaleFactor
from ewald_jax.train import (
    LossConfig,
    NonFiniteError,
    OptimConfig,
    TrainConfig,
    create_state,
    evaluate,
    fit,
    load_checkpoint,
    make_optimizer,
    make_train_step,
    members_of,
)
from ewald_jax.train.checkpoint import restore_state
from ewald_jax.train.display import Display
from ewald_jax.train.ensemble import first_failure, means_of_each
from ewald_jax.train.position import Position
from ewald_jax.train.scales import scale_factors
from ewald_jax.typing import InputError

__all__ = ["quick_compilation"]

LOSS = LossConfig(forces="l2")
OPTIM = OptimConfig(lr=1e-2, amsgrad=True, clip_norm=5.0, ema_decay=0.9, warmup_steps=2)
SPLITS = toy_splits(24, 6)  # 18 structures: five batches of 4
TRAIN = TrainConfig(
    members=2, seed=3, max_steps=3, batch_size=4, max_buckets=1, tensorboard=False
)


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def close(first, second, rtol):
    # Weights that are zero but for rounding have no relative error.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol), first, second
    )


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with compilation_cache(tmp_path_factory.mktemp("compilations")):
        yield


@pytest.fixture(autouse=True)
def quick(quick_compilation):
    """Every test here."""


def run(directory, train=TRAIN, **options):
    options = {"optim": OPTIM, "progress": False} | options
    return fit(
        toy_model(),
        toy_dataset(24),
        SPLITS,
        train=train,
        loss=LOSS,
        output_dir=directory,
        **options,
    )


# -- training --------------------------------------------------------------------------------


def test_steps_of_members_are_steps_of_single_models(x64):
    """In float64, with everything that has a state."""
    model, tx = toy_model(), make_optimizer(OPTIM, 3)
    loader = Loader(toy_dataset(12), batch_size=4, max_buckets=1, dtype=np.float64)
    batches = list(loader.epoch())
    members = [drawn(model, batches[0], seed) for seed in range(3)]
    members = [jax.tree.map(np.float64, one) for one in members]
    create = lambda params: create_state(params, tx, jax.random.key(0), ema=True)
    make = lambda members: make_train_step(model, tx, LOSS, OPTIM, 2.0, members=members)
    state, step, each = jax.vmap(create)(stack_members(members)), make(3), []
    for batch in batches:
        state, sums = step(state, batch)
        each.append(sums)
    step = make(1)
    for index, params in enumerate(members):
        single = create(params)
        for batch, found in zip(batches, each, strict=True):
            single, sums = step(single, batch)
            close(ewald_jax.member(found, index), sums, 1e-9)
        close(ewald_jax.member(state, index), single, 1e-9)
        assert np.abs(single.params["out"]["bias"] - params["out"]["bias"]).max() > 1e-3


def test_members_are_single_trainings(tmp_path):
    """The second single run starts as its seed says, and gets the batches of the first."""
    found = run(tmp_path / "ensemble")
    assert found.step == 3 and found.compilations == 1
    first = run(tmp_path / "first", dataclasses.replace(TRAIN, members=1))
    batch = ewald_jax.batch_from_atoms(toy_atoms(1), toy_model())
    key, _ = jax.random.split(jax.random.key(TRAIN.seed + 1))
    init = ewald_jax.init_params(toy_model(), key, batch)
    second = run(tmp_path / "second", dataclasses.replace(TRAIN, members=1), init=init)
    assert count_members(found.params) == 2
    for index, single in enumerate((first, second)):
        close(ewald_jax.member(found.params, index), single.params, 1e-5)
        for name, value in single.metrics["val"].items():
            each = found.member_metrics["val"][name]
            assert each[index] == pytest.approx(value, rel=1e-4)
            assert found.metrics["val"][name] == pytest.approx(np.mean(each), rel=1e-12)
            assert found.history[-1]["members"][f"val_{name}"] == each
    difference = jax.tree.map(lambda x: float(jnp.abs(x[0] - x[1]).max()), found.params)
    assert min(jax.tree.leaves(difference)) > 0


def test_what_is_written(tmp_path):
    result = run(tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["val"] == result.metrics["val"]
    assert metrics["members"] == {"seeds": [3, 4], "val": result.member_metrics["val"]}
    count = sum(x.size for x in jax.tree.leaves(result.params))
    assert metrics["parameters"] == count // 2
    best = min(result.history, key=lambda record: record["val_loss"])
    assert result.best_step == best["step"]
    model, params, config, _ = load_checkpoint(tmp_path / "run")
    assert config["train"]["members"] == members_of(config) == 2
    same(params, result.params)
    assert model == toy_model()


def test_interrupted_and_resumed_to_the_bit(tmp_path, monkeypatch):
    train = dataclasses.replace(TRAIN, max_steps=6, eval_every_steps=4)
    whole = run(tmp_path / "whole", train)
    stepping = Display.step

    def interrupting(self, step):
        stepping(self, step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Display, "step", interrupting)
        assert run(tmp_path / "parts", train).interrupted
    parts = run(tmp_path / "parts", train, resume=True)
    assert parts.step == whole.step == 6
    drop = lambda history: [{**record, "seconds": 0} for record in history]
    assert drop(parts.history) == drop(whole.history)
    tx = make_optimizer(OPTIM, 6)
    create = lambda params, key: create_state(params, tx, key, ema=True)
    like = jax.vmap(create)(whole.params, jax.random.split(jax.random.key(0)))
    states = [restore_state(tmp_path / name, like)[0] for name in ("whole", "parts")]
    assert states[0].step.tolist() == [6, 6] and states[0].healthy.all()
    same(*states)
    with pytest.raises(InputError, match=r"train\.members is 2 there and 3 here"):
        run(tmp_path / "parts", dataclasses.replace(train, members=3), resume=True)
    same(load_checkpoint(tmp_path / "parts")[1], parts.params)


def test_a_position_keeps_the_sums_of_each_member():
    sums = {"energy_loss": (np.array([0.1, 1 / 3]), np.array([4.0, 4.0]))}
    for kept in (sums, {"energy_loss": (0.1, 4.0)}):
        plain = json.loads(json.dumps(Position(step=3, sums=kept).to_dict()))
        same(Position.from_dict(plain).sums, kept)
    values, each = means_of_each(sums, LossConfig(), 2)
    assert each["loss"] == [0.025, 1 / 12]
    assert values["energy_loss"] == pytest.approx((0.025 + 1 / 12) / 2, rel=1e-15)


def test_one_member_is_no_ensemble(tmp_path):
    result = run(tmp_path / "run", dataclasses.replace(TRAIN, members=1))
    assert result.member_metrics == {} and "members" not in result.history[0]
    assert "members" not in json.loads((tmp_path / "run" / "metrics.json").read_text())
    batch = ewald_jax.batch_from_atoms(toy_atoms(1), toy_model())
    assert ewald_jax.predict(toy_model(), result.params, batch).energy.ndim == 1


def test_devices_share_the_structures_of_an_ensemble(tmp_path):
    one = run(tmp_path / "one")
    two = run(tmp_path / "two", dataclasses.replace(TRAIN, devices=2))
    assert two.metrics["val"] == pytest.approx(one.metrics["val"], rel=1e-3)


def broken(params, index):
    """The parameters with a NaN in one member."""
    layer = params["out"]["bias"]
    return params | {"out": params["out"] | {"bias": layer.at[index].set(jnp.nan)}}


def test_a_member_that_is_not_finite_is_named(tmp_path):
    batch = ewald_jax.batch_from_atoms(toy_atoms(1), toy_model())
    keys = jax.random.split(jax.random.key(0), 2)
    good = stack_members([ewald_jax.init_params(toy_model(), x, batch) for x in keys])
    with pytest.raises(
        NonFiniteError, match=r"^member 1 \(seed 4\), step 1: .*the predicted"
    ):
        run(tmp_path / "run", init=broken(good, 1))
    with pytest.raises(NonFiniteError, match=r"^member 1: energy_mae is not fin") as caught:
        evaluate(
            toy_model(),
            broken(good, 1),
            toy_dataset(8),
            statistics=Statistics(),
            members=2,
        )
    assert caught.value.member == 1
    assert first_failure(np.array([True, False, False]), np.int32([9, 7, 5])) == (2, 5)
    assert first_failure(np.array(False), np.int32(5)) == (None, 5)


class Scaled(Toy):
    """The toy with a scale factor."""

    @nn.compact
    def __call__(self, batch, kspace=None):
        sites = Toy(self.hidden_channels)(batch)
        mask = batch.graph.nodes["species"] > 0
        reference = jnp.arange(len(mask), dtype=sites.dtype)
        arguments = (sites[:, None], reference[:, None], mask, mask)
        return ScaleFactor(name="last")(*arguments)[:, 0]


def test_scale_factors_are_fitted_for_each_member(tmp_path):
    model = ewald_jax.build_model("test_ensembles.Scaled")
    options = dict(loss=LOSS, optim=OPTIM, progress=False)
    train = dataclasses.replace(TRAIN, scales="fit", max_steps=1)
    found = fit(
        model, toy_dataset(24), SPLITS, train=train, output_dir=tmp_path / "a", **options
    )
    one = dataclasses.replace(train, members=1)
    single = fit(
        model, toy_dataset(24), SPLITS, train=one, output_dir=tmp_path / "b", **options
    )
    factors = [scale_factors(ewald_jax.member(found.params, i))["last"] for i in range(2)]
    assert factors[0] == pytest.approx(scale_factors(single.params)["last"], rel=1e-5)
    assert factors[0] != pytest.approx(factors[1], rel=1e-2)


# -- from a checkpoint -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with structures, a config, a trained ensemble of three and a single model."""
    folder = tmp_path_factory.mktemp("ensembles")
    write(folder / "all.extxyz", [labelled(atoms) for atoms in toy_atoms(24)])
    config = CONFIG.replace("PATH", str(folder / "all.extxyz"))
    (folder / "toy.yaml").write_text(config + "loss: {forces: l2}\n")
    for name, options in {"three": ["--seeds", 3], "one": ["--seeds", 1]}.items():
        done = succeed(
            "train", folder / "toy.yaml", *options, "-o", folder / name, "--json"
        )
        (folder / f"{name}.json").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def loaded(place):
    return load_checkpoint(place / "three")


def singles(loaded, atoms):
    """Results of each member's own calculator."""
    model, params, _, statistics = loaded
    out = []
    for index in range(3):
        calc = EwaldCalculator(model, ewald_jax.member(params, index), statistics)
        calc.calculate(atoms)
        out.append(calc.results)
    return out


def assert_spread(results, members):
    for key in ("energy", "forces"):
        values = np.stack([x[key] for x in members])
        tolerance = dict(rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(results[key], values.mean(axis=0), **tolerance)
        np.testing.assert_allclose(results[f"{key}_std"], values.std(axis=0), **tolerance)
        assert np.max(results[f"{key}_std"]) > 1e-3


def test_calculator(place, loaded, tmp_path):
    atoms = ase.build.molecule("HCN")
    calc = EwaldCalculator.from_checkpoint(place / "three")
    atoms.calc = calc
    atoms.get_forces()
    members = singles(loaded, atoms)
    assert_spread(calc.results, members)
    assert calc.results["forces_std"].shape == (3, 3)
    assert "energy_std" in calc.implemented_properties
    assert "energy_std" not in EwaldCalculator.implemented_properties
    assert calc.get_energy_std(atoms) == calc.results["energy_std"]
    np.testing.assert_array_equal(calc.get_forces_std(), calc.results["forces_std"])
    assert calc.compilations == 1
    copied = pickle.loads(pickle.dumps(calc))
    assert copied.get_energy_std(atoms) == calc.get_energy_std(atoms)

    crystal = ase.build.bulk("C", cubic=True)
    many = calc.calculate_many([atoms, crystal])
    assert_spread(many[0], members)
    assert many[1]["stress"].shape == (6,) and many[1]["forces_std"].shape == (8, 3)

    for name in ("out.extxyz", "out.traj", "out.json"):  # which know no such results
        ase.io.write(tmp_path / name, atoms)
        assert ase.io.read(tmp_path / name).get_potential_energy() == pytest.approx(
            atoms.get_potential_energy()
        )
    single = EwaldCalculator.from_checkpoint(place / "one")
    single.calculate(atoms)
    assert "energy_std" not in single.results
    with pytest.raises(PropertyNotImplementedError):
        single.get_energy_std(atoms)


def test_predictions_of_a_model_with_k_space(x64):
    """Crystal and molecule in one batch; the sums over k are vectorised over members too."""
    model = tiny("schnet", ewald={"k_cutoff": 1.5}, cutoff=4.0)
    structures = [ase.build.bulk("NaCl", "rocksalt", a=5.6), ase.build.molecule("H2O")]
    batch = ewald_jax.batch_from_atoms(structures, model)
    members = [drawn(model, batch, seed) for seed in range(3)]
    members = [jax.tree.map(lambda x: x.astype(np.float64), one) for one in members]
    statistics = Statistics(scale=1.7, mean=0.3, species=(1, 8, 11, 17))
    options = dict(statistics=statistics, stress=True)
    found = ewald_jax.predict_ensemble(model, stack_members(members), batch, **options)
    each = [ewald_jax.predict(model, one, batch, **options) for one in members]
    for name in ("energy", "forces", "stress"):
        values = np.stack([getattr(x, name) for x in each])
        np.testing.assert_allclose(
            getattr(found, name), values.mean(axis=0), rtol=1e-9, atol=1e-12
        )
        if name != "stress":
            spread = getattr(found, f"{name}_std")
            np.testing.assert_allclose(spread, values.std(axis=0), rtol=1e-9, atol=1e-12)
    assert found.energy_std[-1] == 0  # padding


def test_an_ensemble_is_never_taken_for_one_model(place, loaded, tmp_path):
    model, params, _, statistics = loaded
    batch = ewald_jax.batch_from_atoms(toy_atoms(1), model)
    with pytest.raises(InputError, match=r"other shapes than .*predict_ensemble"):
        ewald_jax.predict(model, params, batch)
    with pytest.raises(InputError, match="no leading axis of members"):
        ewald_jax.predict_ensemble(model, ewald_jax.member(params, 0), batch)
    calc = EwaldCalculator(model, params, statistics)
    with pytest.raises(SetupError, match=r"^the parameters have other shapes"):
        calc.calculate(toy_atoms(1)[0])
    with pytest.raises(SetupError, match="members is 2, but .* leading axis of 3"):
        EwaldCalculator(model, params, members=2)
    for index in (-1, 3):
        with pytest.raises(InputError, match="3 members, from 0"):
            ewald_jax.member(params, index)
    path = place / "three" / "config.json"
    config = json.loads(path.read_text())
    for value, expected in {
        1: r"is of another model: parameter .* has shape \[3, ",
        4: r"\[3, .* \[4, ",
        "three": "config.json: train.members is 'three'",
        0: "config.json: train.members is 0",
    }.items():
        try:
            changed = config | {"train": config["train"] | {"members": value}}
            path.write_text(json.dumps(changed))
            with pytest.raises(InputError, match=expected):
                load_checkpoint(place / "three")
        finally:
            path.write_text(json.dumps(config))


def test_command_line_evaluates_the_mean(place, loaded):
    done = succeed("evaluate", place / "three", "--split", "all", "--json", "--no-progress")
    metrics = json.loads(done.stdout)["metrics"]
    frames = ase.io.read(place / "all.extxyz", ":")
    calc = EwaldCalculator.from_checkpoint(place / "three")
    found = calc.calculate_many(frames, batch_size=24)
    errors = [
        x["energy"] - y.get_potential_energy() for x, y in zip(found, frames, strict=True)
    ]
    assert metrics["energy_mae"] == pytest.approx(np.mean(np.abs(errors)), rel=1e-3)
    spread = np.mean([x["energy_std"] for x in found])
    assert metrics["energy_std"] == pytest.approx(spread, rel=1e-3)
    spread = np.mean(np.concatenate([x["forces_std"] for x in found]))
    assert metrics["forces_std"] == pytest.approx(spread, rel=1e-3)
    said = json.loads((place / "three.json").read_text())
    assert set(said["members"]) == {"val", "test"}
    assert len(said["members"]["test"]["energy_mae"]) == 3
    assert np.mean(said["members"]["test"]["loss"]) == pytest.approx(
        said["metrics"]["test"]["loss"]
    )


def test_command_line_predicts_with_spread(place, tmp_path):
    frames = toy_atoms(2)
    frames[0].info["energy_std"] = "of another method"
    frames[1].arrays["forces_std"] = np.ones((len(frames[1]), 3))
    source, out = write(tmp_path / "in.extxyz", frames), tmp_path / "out.extxyz"
    succeed("predict", place / "three", source, "-o", out)
    calc = EwaldCalculator.from_checkpoint(place / "three")
    for atoms, expected in zip(
        ase.io.read(out, ":"), calc.calculate_many(frames), strict=True
    ):
        assert atoms.get_potential_energy() == pytest.approx(expected["energy"], rel=1e-6)
        assert atoms.info["energy_std"] == pytest.approx(expected["energy_std"], rel=1e-3)
        np.testing.assert_allclose(
            atoms.arrays["forces_std"], expected["forces_std"], atol=1e-4
        )
    succeed("predict", place / "one", source, "-o", tmp_path / "single.extxyz")
    for atoms in ase.io.read(tmp_path / "single.extxyz", ":"):
        assert "energy_std" not in atoms.info and "forces_std" not in atoms.arrays


def test_command_line_relaxes(place, tmp_path):
    source = write(tmp_path / "in.extxyz", toy_atoms(1))
    out = tmp_path / "out.traj"
    succeed("relax", place / "three", source, "-o", out, "--steps", 3, "--json")
    assert len(ase.io.read(out, ":")) > 1


def test_command_line_exports_one_member(place, tmp_path):
    said = refuse("export", place / "three", "-o", tmp_path / "out")
    assert "holds an ensemble of" in said and "--member 0" in said


def test_refusals(place, tmp_path):
    config, out = place / "toy.yaml", tmp_path / "out"
    for seeds in (0, -2):
        said = refuse("train", config, f"--seeds={seeds}", "-o", out)
        assert said == f"error: --seeds must be at least 1, not {seeds}"
    said = refuse("train", config, "train.members=2", "--seeds", 4, "-o", out)
    assert "--seeds 4 and train.members=2 contradict each other" in said
    assert "train.members must be at least 1" in refuse(
        "train", config, "train.members=0", "-o", out
    )
    said = refuse("train", config, "--seeds", 2, "--resume", "-o", place / "three")
    assert "train.members is 3 there and 2 here" in said
    said = refuse("train", config, "--seeds", 3, "--init", place / "one", "-o", out)
    assert "would stay equal; expected a checkpoint of an ensemble of 3 members" in said
    said = refuse("train", config, "--init", place / "three", "-o", out)
    assert "cannot start one network from" in said and "ensemble of 3 members" in said
    assert not out.exists()


def test_fine_tuning_an_ensemble(place, loaded, tmp_path):
    """Each member goes on from its own parameters."""
    out = tmp_path / "out"
    words = ["train.epochs=1", "optim.lr=1e-30", "optim.weight_decay=0"]
    succeed(
        *("train", place / "toy.yaml", *words, "--seeds", 3),
        *("--init", place / "three", "-o", out, "--json"),
    )
    same(load_checkpoint(out, "last")[1], loaded[1])
