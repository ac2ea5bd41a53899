"""Checkpoint directories: they describe themselves, and say what is wrong with them."""

import errno
import json
import os
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train_toy import toy_atoms, toy_model

from ewald_jax.data import Statistics
from ewald_jax.models import batch_from_atoms, model_to_config
from ewald_jax.potential import init_params
from ewald_jax.train import OptimConfig, create_state, load_checkpoint, make_optimizer
from ewald_jax.train import checkpoint as module
from ewald_jax.train.arrays import write_arrays
from ewald_jax.train.checkpoint import (
    has_checkpoint,
    read_progress,
    restore_state,
    save_checkpoint,
)
from ewald_jax.train.description import write_description
from ewald_jax.train.files import write_json, write_text
from ewald_jax.typing import InputError

MODEL = toy_model()
STATISTICS = Statistics((0.0, -13.5, *[0.0] * 117), 0.25, 1.5, (1, 6))


@pytest.fixture(scope="module")
def params():
    batch = batch_from_atoms(toy_atoms(2), MODEL)
    return init_params(MODEL, jax.random.key(0), batch)


def make_state(params, ema=True, seed=0):
    tx = make_optimizer(OptimConfig(amsgrad=True, clip_norm=1.0), 10)
    state = create_state(params, tx, jax.random.key(seed), ema)
    noise = jax.tree.map(lambda x: x + 0.1 if x.dtype == jnp.float32 else x + 1, state)
    return noise.replace(healthy=state.healthy)


@pytest.fixture
def saved(tmp_path, params):
    """A directory with both checkpoints, and the state in it."""
    state = make_state(params)
    write_description(tmp_path, {"model": model_to_config(MODEL)}, STATISTICS)
    save_checkpoint(tmp_path, "last", state, {"step": 7})
    save_checkpoint(tmp_path, "best", state, {"step": 5})
    return tmp_path, state


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_a_directory_is_all_it_takes(saved):
    directory, state = saved
    model, params, config, statistics = load_checkpoint(str(directory))
    assert model == MODEL
    assert config == {"model": model_to_config(MODEL)}
    assert statistics == STATISTICS
    assert_same(params, state.ema_params)
    assert_same(load_checkpoint(directory, "last")[1], state.ema_params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    assert read_progress(directory)["step"] == 5


def test_without_an_average_the_parameters_are_the_raw_ones(tmp_path, params):
    state = make_state(params, ema=False)
    write_description(tmp_path, {"model": model_to_config(MODEL)}, STATISTICS)
    save_checkpoint(tmp_path, "best", state, {})
    assert_same(load_checkpoint(tmp_path)[1], state.params)


def test_the_state_comes_back_to_the_bit(saved, params):
    directory, state = saved
    fresh = make_state(params, seed=1)
    restored, progress = restore_state(directory, fresh)
    assert_same(restored, state)
    assert progress["step"] == 7


def test_the_directory_holds_json_and_arrays_only(saved):
    directory, _ = saved
    assert sorted(path.name for path in directory.iterdir()) == [
        "checkpoints",
        "config.json",
        "statistics.json",
        "versions.json",
    ]
    assert json.loads((directory / "versions.json").read_text())["format"] == 1
    for path in directory.rglob("*"):
        assert path.suffix not in (".pkl", ".pickle", ".msgpack")
        assert str(directory) not in path.name


def test_a_moved_directory_still_loads(saved):
    directory, state = saved
    moved = directory.parent / f"{directory.name}-moved"
    shutil.move(directory, moved)
    assert_same(load_checkpoint(moved)[1], state.ema_params)


def test_each_save_replaces_the_one_before(saved):
    directory, state = saved
    for step in (8, 9):
        save_checkpoint(directory, "last", state, {"step": step})
    assert [p.name for p in (directory / "checkpoints" / "last").iterdir()] == ["3"]
    assert read_progress(directory, "last")["step"] == 9


def test_leftovers_of_a_kill_are_ignored_and_cleaned(saved):
    """Killed before the rename (unfinished), and after it, before the deletion (two)."""
    directory, state = saved
    root = directory / "checkpoints" / "last"
    (root / ".2.unfinished" / "params").mkdir(parents=True)
    assert read_progress(directory, "last")["step"] == 7
    shutil.copytree(root / "1", root / "0")
    assert read_progress(directory, "last")["step"] == 7
    save_checkpoint(directory, "last", state, {"step": 8})
    assert sorted(p.name for p in root.iterdir()) == ["2"]


@pytest.mark.parametrize("when", ["before", "between", "after", "json"])
def test_a_full_disk_keeps_the_checkpoint_before(saved, monkeypatch, when):
    directory, state = saved
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def failing_arrays(place, trees):
        if when == "before":
            raise full
        first, *_ = trees.items()
        write_arrays(place, dict([first]) if when == "between" else trees)
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']")

    def failing_json(path, value):
        raise full

    with monkeypatch.context() as patch:
        if when == "json":
            patch.setattr(module, "write_json", failing_json)
        else:
            patch.setattr(module, "write_arrays", failing_arrays)
        with pytest.raises(InputError) as error:
            save_checkpoint(directory, "last", state, {"step": 8})
    message = str(error.value)
    assert message.startswith("the disk is full: could not write the checkpoint 'last'")
    assert message.endswith("the checkpoint before it is kept")
    assert [p.name for p in (directory / "checkpoints" / "last").iterdir()] == ["1"]
    assert restore_state(directory, state)[1]["step"] == 7


def test_other_errors_of_the_disk_are_a_sentence_too(tmp_path):
    place = tmp_path / "file"
    place.write_text("in the way")
    with pytest.raises(InputError, match="could not write the description"):
        write_description(place, {}, STATISTICS)


def test_files_are_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def full(*args):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError):
            write_text(path, "new")
    with pytest.raises(ValueError):
        write_json(path, {"bad": float("nan")})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_no_directory(tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint directory"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"versions.json is missing; expected a directory"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "statistics.json", "versions.json"])
@pytest.mark.parametrize("how", ["missing", "cut", "empty"])
def test_broken_descriptions(saved, name, how):
    directory, _ = saved
    path = directory / name
    if how == "missing":
        path.unlink()
    else:
        path.write_text(path.read_text()[:20] if how == "cut" else "{}")
    with pytest.raises(InputError) as error:
        load_checkpoint(directory)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_newer_format(saved):
    directory, _ = saved
    write_json(directory / "versions.json", {"format": 2, "ewald_jax": "9.1"})
    with pytest.raises(InputError, match="format 2, from ewald_jax 9.1; .* up to 1"):
        load_checkpoint(directory)


def test_no_checkpoint_yet(saved):
    directory, _ = saved
    shutil.rmtree(directory / "checkpoints" / "best")
    assert not has_checkpoint(directory, "best")
    with pytest.raises(
        InputError, match="no checkpoint 'best'; there is one called 'last'"
    ):
        load_checkpoint(directory)
    with pytest.raises(InputError, match="expected 'best' or 'last'"):
        load_checkpoint(directory, "first")


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"hidden_channels": 16}, r"another model: parameter .* has shape .*8.*16"),
        ({"num_layers": 2}, "another model: .* is not in the checkpoint"),
        ({"num_layers": 0}, "another model: .* only in the checkpoint"),
    ],
)
def test_a_checkpoint_from_another_model(saved, fields, match, params):
    directory, _ = saved
    other = toy_model(**fields)
    write_json(directory / "config.json", {"model": model_to_config(other)})
    with pytest.raises(InputError, match=match):
        load_checkpoint(directory)
    batch = batch_from_atoms(toy_atoms(1), other)
    state = make_state(init_params(other, jax.random.key(0), batch))
    with pytest.raises(InputError, match=match):
        restore_state(directory, state)


def test_an_unknown_model(saved):
    directory, _ = saved
    write_json(directory / "config.json", {"model": {"name": "schnett"}})
    with pytest.raises(InputError, match="schnet"):
        load_checkpoint(directory)


@pytest.mark.parametrize("damage", ["cut", "missing", "flipped"])
def test_damaged_files(saved, damage, capfd):
    """Each file of the checkpoint in turn: one sentence that names it, and no noise."""
    directory, state = saved
    place = directory / "checkpoints" / "best" / "1"
    files = [p for p in place.rglob("*") if p.is_file() and "/params/" not in p.as_posix()]
    assert len(files) > 4
    for path in files:
        content = path.read_bytes()
        middle = len(content) // 2
        if damage == "missing":
            path.unlink()
        elif damage == "cut" or not content:
            path.write_bytes(content[:middle] + b"x" * (not content))
        elif path.suffix == ".json":
            continue  # a bit flipped in a number is still JSON
        else:
            flipped = bytes([content[middle] ^ 1])
            path.write_bytes(content[:middle] + flipped + content[middle + 1 :])
        with pytest.raises(InputError) as error:
            load_checkpoint(directory)
        assert path.name in str(error.value) and "\n" not in str(error.value)
        path.write_bytes(content)
    assert_same(load_checkpoint(directory)[1], state.ema_params)
    assert capfd.readouterr().err == ""


def test_saving_and_loading_warn_of_nothing(saved, params):
    directory, state = saved
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_checkpoint(directory, "last", state, {})
        restore_state(directory, make_state(params))
