"""A training that is stopped and continued gives the bits of one that is not.

What is killed is a process, with SIGKILL, at a random step or in the middle of a save.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_train_toy import compilation_cache, toy_dataset, toy_model, toy_splits

from ewald_jax.train import LossConfig, OptimConfig, TrainConfig, fit, load_checkpoint
from ewald_jax.train import arrays as arrays_module
from ewald_jax.train import checkpoint as checkpoint_module
from ewald_jax.train.checkpoint import read_progress, restore_state
from ewald_jax.train.display import Display
from ewald_jax.train.optim import Plateau, make_optimizer, update_plateau
from ewald_jax.train.state import create_state

# Everything that has state: AMSGrad, EMA, the plateau rule, a warm-up, uneven last batches,
# evaluations and saves that fall between the ends of epochs.
TRAIN = TrainConfig(
    epochs=3,
    batch_size=4,
    log_every=3,
    eval_every_steps=7,
    checkpoint_every=4,
    checkpoint_seconds=0,
    tensorboard=True,
    monitor="forces_mae",
)
OPTIM = OptimConfig(
    lr=1e-2,
    amsgrad=True,
    clip_norm=5.0,
    warmup_steps=6,
    schedule="plateau",
    plateau_patience=0,
    plateau_threshold=0.5,
    ema_decay=0.9,
)
SPLITS = toy_splits(24, 6)  # 18 structures: four batches of 4, one of 2
NUM_STEPS = 15
SAVES = (0, 4, 5, 7, 8, 10, 12, 14, 15)


# What is saved when does not change what is learned.
SELDOM = dataclasses.replace(TRAIN, checkpoint_every=0, checkpoint_seconds=1e6)


def run(directory, train=TRAIN, **options):
    return fit(
        toy_model(),
        toy_dataset(24),
        SPLITS,
        train=train,
        loss=LossConfig(forces="l2"),
        optim=OPTIM,
        output_dir=directory,
        progress=False,
        **options,
    )


def state_of(directory):
    tx = make_optimizer(OPTIM, NUM_STEPS)
    params = load_checkpoint(directory, "last")[1]
    return restore_state(directory, create_state(params, tx, jax.random.key(0), ema=True))


def without_seconds(records):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in records]


def history_of(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return without_seconds(map(json.loads, lines))


def assert_same_run(directory, other):
    """Every array of the state, the best parameters, the history: equal to the last bit."""
    (state, progress), (expected, expected_progress) = state_of(directory), state_of(other)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    for key in progress.keys() - {"seconds", "files"}:
        assert progress[key] == expected_progress[key], key
    jax.tree.map(
        np.testing.assert_array_equal,
        load_checkpoint(directory)[1],
        load_checkpoint(other)[1],
    )
    assert history_of(directory) == history_of(other)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compilations")


@pytest.fixture(scope="module", autouse=True)
def cached(cache):
    with compilation_cache(cache):
        yield


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "reference"
    assert run(directory, SELDOM).step == NUM_STEPS
    return directory


def test_the_plateau_rule_lowers_the_learning_rate(reference):
    """The reference is not trivial: what is recorded follows from the losses before it."""
    state, expected = Plateau(), []
    history = history_of(reference)
    for record in history:
        expected.append(OPTIM.lr * state.scale)
        state = update_plateau(state, record["val_forces_mae"], OPTIM)
    assert [record["lr"] for record in history] == pytest.approx(expected)
    assert expected[-1] < expected[0]
    assert float(state_of(reference)[0].lr_scale) == state.scale


def kill_at_step(step):
    """SIGKILL this process when it has taken a step."""
    original = Display.step

    def stepping(self, done):
        original(self, done)
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Display.step = stepping


def kill_in_save(number, moment):
    """SIGKILL this process in its save of some number: before, within or after the rename."""
    saves = iter(range(1, number + 1))
    write, remove = arrays_module.write_arrays, checkpoint_module.shutil.rmtree
    state = {"armed": False}

    def writing(place, trees):
        state["armed"] = next(saves, None) == number
        if state["armed"] and moment == "writing":
            write(place, dict(list(trees.items())[:1]))
            os.kill(os.getpid(), signal.SIGKILL)
        write(place, trees)
        if state["armed"] and moment == "written":
            os.kill(os.getpid(), signal.SIGKILL)

    def removing(path, **options):
        # After the rename, the directory before it is removed.
        if state["armed"] and Path(path).name.isdecimal():
            os.kill(os.getpid(), signal.SIGKILL)
        remove(path, **options)

    checkpoint_module.write_arrays = writing
    if moment == "renamed":
        checkpoint_module.shutil.rmtree = removing


def start(directory, cache, *death):
    """Runs this file as a program that trains until it dies; returns its exit status."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, str(directory), str(cache), *map(str, death)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def test_killed_at_a_random_step_and_in_a_save(reference, cache, tmp_path):
    """Twice killed: at a step nobody chose, then while a checkpoint is half written."""
    directory = tmp_path / "run"
    step = int(np.random.default_rng().integers(1, NUM_STEPS + 1))
    print(f"killed at step {step}")
    assert start(directory, cache, "step", step) == -signal.SIGKILL
    assert read_progress(directory, "last")["step"] == max(x for x in SAVES if x < step)
    start(directory, cache, "writing", 2)
    read_progress(directory, "last")
    result = run(directory, SELDOM, resume=True)
    assert result.step == NUM_STEPS and not result.interrupted
    assert_same_run(directory, reference)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["writing", "written", "renamed"])
@pytest.mark.parametrize("number", [1, 2, 4, 5])
def test_killed_at_every_moment_of_a_save(reference, cache, tmp_path, moment, number):
    """The fourth save is the first of the best parameters."""
    directory = tmp_path / "run"
    died = start(directory, cache, moment, number)
    # The first save of a kind replaces nothing: nothing is removed after its rename.
    assert died == -signal.SIGKILL or (moment == "renamed" and number in (1, 4))
    run(directory, SELDOM, resume=True)
    assert_same_run(directory, reference)


@pytest.mark.slow
def test_killed_again_and_again(reference, cache, tmp_path):
    """At five random moments, whatever is going on then."""
    directory, rng = tmp_path / "run", np.random.default_rng()
    for _ in range(5):
        command = [sys.executable, __file__, str(directory), str(cache)]
        child = subprocess.Popen(command, env={**os.environ, "JAX_PLATFORMS": "cpu"})
        try:
            child.wait(timeout=rng.uniform(2, 10))
        except subprocess.TimeoutExpired:
            child.kill()
        child.wait()
    run(directory, SELDOM, resume=True)
    assert_same_run(directory, reference)


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (signal.SIGINT, 7),
        (signal.SIGTERM, 10),
        (signal.SIGINT, NUM_STEPS),
    ],
)
def test_interrupted(reference, tmp_path, monkeypatch, number, step):
    """Ctrl-C saves and returns: in an epoch, before an evaluation, at the end of an epoch."""
    directory = tmp_path / "run"
    original = Display.step

    def stepping(self, done):
        original(self, done)
        if done == step:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(Display, "step", stepping)
        before = signal.getsignal(number)
        result = run(directory, SELDOM)
        assert signal.getsignal(number) is before
    assert result.interrupted and result.step == step
    assert read_progress(directory, "last")["step"] == step
    assert not json.loads((directory / "metrics.json").read_text())["finished"]
    assert not run(directory, SELDOM, resume=True).interrupted
    assert_same_run(directory, reference)


def test_interrupted_in_an_evaluation(reference, tmp_path, monkeypatch):
    """The evaluation is done anew: it is due in the checkpoint."""
    directory = tmp_path / "run"
    monkeypatch.setattr(
        Display, "evaluating", lambda self, done, total: signal.raise_signal(signal.SIGINT)
    )
    result = run(directory, SELDOM)
    monkeypatch.undo()
    assert result.interrupted and result.step == 7 and not result.history
    assert read_progress(directory, "last")["evaluation_due"]
    run(directory, SELDOM, resume=True)
    assert_same_run(directory, reference)


def test_the_second_ctrl_c_is_an_exception(tmp_path, monkeypatch):
    def twice(self, done):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Display, "step", twice)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", SELDOM)


def test_longer_than_planned(reference, tmp_path):
    """A finished training continues when it gets more epochs, as if planned from the start."""
    directory = tmp_path / "run"
    common = dict(loss=LossConfig(forces="l2"), optim=OPTIM, progress=False)
    arguments = (toy_model(), toy_dataset(24), SPLITS)
    short = TrainConfig(epochs=1, batch_size=4, tensorboard=False)
    long = dataclasses.replace(short, epochs=2)
    fit(*arguments, train=short, output_dir=directory, **common)
    resumed = fit(*arguments, train=long, output_dir=directory, resume=True, **common)
    planned = fit(*arguments, train=long, output_dir=tmp_path / "planned", **common)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, planned.params)
    assert without_seconds(resumed.history) == without_seconds(planned.history)


if __name__ == "__main__":
    place, compilations, *death = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", 2)  # as in conftest
    if death and death[0] == "step":
        kill_at_step(int(death[1]))
    elif death:
        kill_in_save(int(death[1]), death[0])
    with compilation_cache(compilations):
        run(Path(place), resume=True)
