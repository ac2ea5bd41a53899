"""Checkpoints: a directory that describes itself.

::

    config.json       the resolved config; its "model" rebuilds the network
    statistics.json   scale and reference energies
    versions.json     format of this directory, versions of the libraries that wrote it
    metrics.jsonl     one line per evaluation
    metrics.json      results so far
    checkpoints/best  parameters with the best validation result
    checkpoints/last  everything that resuming needs

Arrays are orbax checkpoints, everything else is JSON. Under ``best`` and ``last``, each save
is a new numbered directory that appears by one rename, and only then is the one before it
deleted: whenever the process is killed, a complete checkpoint stays behind.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ase
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from ewald_jax.data.statistics import Statistics
from ewald_jax.models import batch_from_atoms, build_model
from ewald_jax.potential import init_params
from ewald_jax.pretrained import load_pretrained, pretrained_name
from ewald_jax.train.arrays import checksums, read_arrays, write_arrays
from ewald_jax.train.description import members_of, read_description
from ewald_jax.train.files import read_json, write_json, writing
from ewald_jax.train.state import TrainState
from ewald_jax.typing import InputError, PyTree

CHECKPOINTS, PROGRESS = "checkpoints", "progress.json"
_PARAMS, _EMA_PARAMS, _OPTIMIZER = "params", "ema_params", "optimizer"

Which = Literal["best", "last"]


def save_checkpoint(
    directory: Path, which: Which, state: TrainState, progress: Mapping[str, Any]
) -> None:
    """Saves a checkpoint and then deletes the one it replaces.

    Args:
        directory: The output directory.
        which: ``best`` keeps the parameters, raw and averaged; ``last`` the whole state.
        state: To save.
        progress: Plain values to keep with it.

    Raises:
        InputError: If the disk is full; the checkpoint before this one then still stands.
    """
    root = directory / CHECKPOINTS / which
    arrays = {_PARAMS: state.params}
    if state.ema_params is not None:
        arrays[_EMA_PARAMS] = state.ema_params
    if which == "last":
        arrays[_OPTIMIZER] = _optimizer_arrays(state)
    before = _numbered(root)
    number = before[-1] + 1 if before else 1
    temporary = root / f".{number}.unfinished"
    kept = "the checkpoint before it is kept" if before else ""
    with writing(f"the checkpoint '{which}' in {directory}", kept):
        try:
            root.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            write_arrays(temporary, arrays)
            files = {
                "parameters": parameter_shapes(state.params),
                "files": checksums(temporary),
            }
            write_json(temporary / PROGRESS, {**progress, **files})
            temporary.rename(root / str(number))
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    for old in before:
        shutil.rmtree(root / str(old), ignore_errors=True)


def has_checkpoint(directory: Path, which: Which) -> bool:
    """Whether the directory holds a complete checkpoint of this kind."""
    return bool(_numbered(directory / CHECKPOINTS / which))


def restore_state(directory: Path, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The state and the progress of ``last``, to the bit.

    Args:
        directory: The output directory.
        state: A fresh state of the same model and optimiser, for its structure.

    Raises:
        InputError: If there is no such checkpoint, it is damaged, or of another model.
    """
    place = _newest(directory, "last")
    progress = _read_progress(place)
    check_parameters(directory, progress["parameters"], state.params)
    read = lambda name, like: read_arrays(place, name, like, progress["files"])
    params, ema_params = read(_PARAMS, state.params), state.ema_params
    if ema_params is not None:
        ema_params = read(_EMA_PARAMS, ema_params)
    optimizer = read(_OPTIMIZER, _optimizer_arrays(state))
    restored = state.replace(params=params, ema_params=ema_params, **optimizer)
    return jax.tree.map(jnp.asarray, restored), progress


def restore_params(
    directory: Path, which: Which, like: PyTree
) -> tuple[PyTree, dict[str, Any]]:
    """The parameters to evaluate (averaged ones where there are), and what was kept with them.

    Args:
        directory: The output directory.
        which: Of which checkpoint.
        like: Parameters, arrays or shapes, of the same model.

    Raises:
        InputError: If there is no such checkpoint, it is damaged, or of another model.
    """
    place = _newest(directory, which)
    progress = _read_progress(place)
    saved = progress["parameters"]
    check_parameters(directory, saved, like)
    name = _EMA_PARAMS if (place / _EMA_PARAMS).is_dir() else _PARAMS
    # The types are the checkpoint's own: it may come from a float64 run.
    shapes = {k: jax.ShapeDtypeStruct(tuple(v[0]), v[1]) for k, v in saved.items()}
    tree = unflatten_dict(shapes, sep="/")
    params = read_arrays(place, name, tree, progress["files"])
    return jax.tree.map(jnp.asarray, params), progress


def load_checkpoint(
    directory: str | Path, which: Which = "best"
) -> tuple[nn.Module, PyTree, dict[str, Any], Statistics]:
    """Everything that a prediction needs, from a directory that training has written.

    The directory is all it takes: no training code, no pickle, no data set.

    Args:
        directory: The output directory of a training, or ``pretrained:NAME``, a model that
            comes with the package.
        which: ``best`` by validation, or the ``last`` one saved. Where training averages
            parameters, these are the averaged ones.

    Returns:
        Model, parameters, the resolved config (plain values), statistics of the data. Of an
        ensemble, whose config has ``train.members`` above 1, every parameter has a leading
        axis of so many members: `predict_ensemble` takes them, `ewald_jax.member` one of
        them, and `predict` refuses them.

    Raises:
        InputError: If files are missing or damaged, the format is newer than this version
            knows, or the parameters do not belong to the model of the config.
    """
    packaged = pretrained_name(directory)
    if packaged is not None:
        if which not in ("best", "last"):
            raise _unknown(which)
        return load_pretrained(packaged)
    directory = Path(directory)
    config, statistics = read_description(directory)
    model = build_model(**config["model"])
    like, members = _abstract_params(model), members_of(config)
    if members > 1:
        axis = lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype)
        like = jax.tree.map(axis, like)
    params, _ = restore_params(directory, which, like)
    return model, params, config, statistics


def read_progress(directory: str | Path, which: Which = "best") -> dict[str, Any]:
    """The plain values saved with a checkpoint: its step, epoch and results.

    Raises:
        InputError: If there is no such checkpoint.
    """
    return _read_progress(_newest(Path(directory), which))


def _optimizer_arrays(state: TrainState) -> dict[str, PyTree]:
    """What is left of a state without its parameters."""
    names = ("step", "opt_state", "key", "lr_scale", "healthy")
    return {name: getattr(state, name) for name in names}


def _numbered(root: Path) -> list[int]:
    """Numbers of the complete checkpoints, ascending."""
    names = (path.name for path in root.iterdir()) if root.is_dir() else ()
    return sorted(int(name) for name in names if name.isdecimal())


def _newest(directory: Path, which: Which) -> Path:
    if which not in ("best", "last"):
        raise _unknown(which)
    root = directory / CHECKPOINTS / which
    numbers = _numbered(root)
    if not numbers:
        other = "last" if which == "best" else "best"
        hint = (
            f"; there is one called '{other}'" if has_checkpoint(directory, other) else ""
        )
        raise InputError(f"{directory}: has no checkpoint '{which}'{hint}")
    return root / str(numbers[-1])


def _unknown(which: str) -> InputError:
    return InputError(f"there is no checkpoint {which!r}; expected 'best' or 'last'")


def _read_progress(place: Path) -> dict[str, Any]:
    progress = read_json(place / PROGRESS)
    for key in ("parameters", "files"):
        if not isinstance(progress, dict) or not isinstance(progress.get(key), dict):
            raise InputError(f"{place / PROGRESS}: lists no {key}; the file is damaged")
    return progress


def parameter_shapes(params: PyTree) -> dict[str, list]:
    """Path of each parameter -> [shape, dtype], plain values."""
    return {
        path: [list(x.shape), str(x.dtype)]
        for path, x in sorted(flatten_dict(params, sep="/").items())
    }


def _abstract_params(model: nn.Module) -> PyTree:
    """Shapes and types of a model's parameters, computed without making any."""
    hydrogen = ase.Atoms("H", cell=[10.0, 10.0, 10.0])
    try:
        batch = batch_from_atoms([hydrogen], model)
    except InputError:  # a model for periodic structures only
        hydrogen.pbc = True
        batch = batch_from_atoms([hydrogen], model)
    return jax.eval_shape(lambda key: init_params(model, key, batch), jax.random.key(0))


def check_parameters(
    directory: str | Path, saved: Mapping[str, list], params: PyTree
) -> None:
    """Refuses parameters of another model.

    Args:
        directory: What to call the place of the checkpoint.
        saved: `parameter_shapes` of the parameters in it.
        params: Arrays or shapes of the model's own.

    Raises:
        InputError: If a parameter is missing, left over or of another shape, naming it.
    """
    expected = parameter_shapes(params)
    for path in sorted(saved.keys() | expected.keys()):
        there, here = saved.get(path), expected.get(path)
        if there is None or here is None:
            where = "only in the checkpoint" if here is None else "not in the checkpoint"
            raise InputError(
                f"{directory}: is of another model: parameter {path} is {where}"
            )
        if there[0] != here[0]:
            raise InputError(
                f"{directory}: is of another model: parameter {path} has shape {there[0]} "
                f"in the checkpoint, {here[0]} in the model of the config"
            )
