"""Checkpoints of the Open Catalyst Project and of programs built on it, read without PyTorch.

Such a file is a dictionary::

    state_dict   arrays by name, "module." before each for every parallel wrapper
    ema          running averages of the trained ones, "shadow_params", a list
    normalizers  "target" and "grad_target", each with "mean" and "std"
    config       "model", a name, and "model_attributes", its arguments

All but the first may be missing, and the file may be the ``state_dict`` alone.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ewald_jax.data.budget import most_entries
from ewald_jax.data.torch_pickle import load_torch
from ewald_jax.interop.torch_names import first_name, is_constant
from ewald_jax.interop.wording import brief, given
from ewald_jax.typing import InputError

_EXPECTED = (
    "expected a checkpoint of the Open Catalyst Project, a dictionary with 'state_dict', "
    "or arrays by name"
)
_NORMALIZERS = ("target", "grad_target")


class Normalizer(NamedTuple):
    """What labels had subtracted from them, and were then divided by."""

    mean: float
    std: float


class TorchCheckpoint(NamedTuple):
    """What a file holds.

    Attributes:
        path: Of the file.
        weights: Arrays by name, without "module." prefixes; float32 or float64.
        averaged: The same with running averages in place of what was trained, None if they
            were not asked for.
        has_averages: Whether the file has running averages, of whatever kind.
        normalizers: ``target`` for energies and ``grad_target`` for forces, where there are.
        config: The file's own config, None if it has none.
    """

    path: Path
    weights: dict[str, np.ndarray]
    averaged: dict[str, np.ndarray] | None
    has_averages: bool
    normalizers: dict[str, Normalizer]
    config: dict[str, Any] | None


def read_checkpoint(path: str | Path, ema: bool = False) -> TorchCheckpoint:
    """Reads a checkpoint; nothing in the file is executed.

    Args:
        path: A .pt file.
        ema: Also look at the running averages. They come as a list without names, in the
            order of the model's parameters, and are taken only if their number and every
            shape agree with the weights.

    Returns:
        What it holds.

    Raises:
        InputError: If the file is missing, damaged, holds code or no checkpoint, or, with
            `ema`, no running averages that fit.
    """
    path = Path(path)
    content = load_torch(path)
    try:
        most = most_entries(path.stat().st_size)
        weights = _weights(content, most)
        whole = content if "state_dict" in content else {}
        averaged = _averaged(weights, whole.get("ema"), most) if ema else None
        normalizers = _normalizers(whole.get("normalizers"))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    config = whole.get("config")
    config = config if isinstance(config, dict) else None
    averages = given(whole.get("ema"))
    return TorchCheckpoint(path, weights, averaged, averages, normalizers, config)


def _weights(content: Any, most: int) -> dict[str, np.ndarray]:
    if not isinstance(content, Mapping):
        raise InputError(f"holds a {type(content).__name__}, {_EXPECTED}")
    state = content.get("state_dict")
    if state is None:
        if not content or not all(isinstance(x, np.ndarray) for x in content.values()):
            keys = ", ".join(brief(key) for key in list(content)[:5]) or "nothing"
            raise InputError(f"has no state_dict but {keys}, {_EXPECTED}")
        state = content
    if not isinstance(state, Mapping) or not state:
        what = "is empty" if isinstance(state, Mapping) else f"is {brief(state)}"
        raise InputError(f"its state_dict {what}, expected arrays by name")
    _check_entries(state.values(), most)
    weights: dict[str, np.ndarray] = {}
    for name, array in state.items():
        if not isinstance(name, str):
            raise InputError(f"its state_dict has the name {brief(name)}, expected text")
        short = re.sub(r"^(module\.)+", "", name)
        if short in weights:
            raise InputError(
                f"its state_dict has {brief(short)} twice, with and without 'module.', "
                "expected one of them"
            )
        weights[short] = _floats(array, f"the array {brief(name)}")
    return weights


def _check_entries(arrays: Iterable[Any], most: int) -> None:
    """Refuses arrays that together are much larger than their file: some are copied below."""
    if sum(array.size for array in arrays if isinstance(array, np.ndarray)) > most:
        raise InputError(
            f"its arrays have more than {most} entries, far more than the file; expected "
            "arrays that are not repeated"
        )


def _floats(array: Any, what: str) -> np.ndarray:
    """An array of float32 or float64, finite."""
    if not isinstance(array, np.ndarray):
        raise InputError(f"{what} is a {type(array).__name__}, expected an array")
    if array.dtype.kind != "f":
        raise InputError(f"{what} holds {array.dtype}, expected floating-point numbers")
    if not np.isfinite(array).all():
        raise InputError(f"{what} has NaN or infinite numbers, expected finite ones")
    return array.astype(np.promote_types(array.dtype, np.float32), copy=False)


def _averaged(
    weights: Mapping[str, np.ndarray], state: Any, most: int
) -> dict[str, np.ndarray]:
    """The weights with running averages in place of those that were trained."""
    if not given(state):
        raise InputError("has no running averages ('ema'), expected them beside state_dict")
    shadow = state.get("shadow_params") if isinstance(state, Mapping) else None
    if not isinstance(shadow, Sequence) or isinstance(shadow, str):
        raise InputError("its 'ema' has no list 'shadow_params', expected running averages")
    names = (first_name(name, weights) for name in weights if not is_constant(name))
    trained = list(dict.fromkeys(names))
    if len(shadow) != len(trained):
        raise InputError(
            f"has {len(shadow)} running averages for {len(trained)} trained arrays, expected "
            "one for each"
        )
    _check_entries(shadow, most)
    averages = {}
    for number, (name, array) in enumerate(zip(trained, shadow, strict=True)):
        average = _floats(array, f"running average {number}")
        if average.shape != weights[name].shape:
            raise InputError(
                f"running average {number} has shape {average.shape}, but the array "
                f"{brief(name)} in its place has {weights[name].shape}"
            )
        averages[name] = average
    return {
        name: averages.get(first_name(name, weights), array)
        for name, array in weights.items()
    }


def _normalizers(state: Any) -> dict[str, Normalizer]:
    if not given(state):
        return {}
    if not isinstance(state, Mapping) or "target" not in state:
        keys = map(brief, list(state)[:5]) if isinstance(state, Mapping) else [brief(state)]
        raise InputError(f"its normalizers are for {', '.join(keys)}, expected 'target'")
    found = {}
    for name in _NORMALIZERS:
        values = state.get(name)
        if values is None:
            continue
        if not isinstance(values, Mapping) or not {"mean", "std"} <= values.keys():
            raise InputError(f"its normalizer {name!r} has no mean and std, expected both")
        found[name] = Normalizer(*(_scalar(values, name, key) for key in ("mean", "std")))
    return found


def _scalar(values: Mapping[str, Any], name: str, key: str) -> float:
    value = values[key]
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    try:
        return float(value if isinstance(value, int | float) else None)
    except (OverflowError, TypeError):
        raise InputError(
            f"the {key} of its normalizer {name!r} is not one number but {brief(value)}"
        ) from None
