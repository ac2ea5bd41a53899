"""Configs of the Open Catalyst Project and of the Ewald reference: model and normalisation.

::

    model: {name: painn, hidden_channels: 512, ...}
    dataset:
      - {src: ..., normalize_labels: true, target_mean: -0.75, target_std: 2.89,
         grad_target_mean: 0.0, grad_target_std: 2.89}

``model`` may be the name, with ``model_attributes`` beside it, and all of it may stand below
``fixed``. A mapping without ``model`` is taken for the model's arguments.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from ewald_jax.interop.torch_checkpoint import Normalizer, TorchCheckpoint
from ewald_jax.interop.wording import brief, given
from ewald_jax.typing import InputError

_DATASETS = ("normalizer", "dataset", "dataset_train")
_KEYS = {
    "target": ("target_mean", "target_std"),
    "grad_target": ("grad_target_mean", "grad_target_std"),
}


class Normalisation(NamedTuple):
    """What turns a network's outputs into eV and eV/Å.

    Attributes:
        energy: Energies are mean + std times the output.
        forces: Standard deviation of forces, None if it is not known.
    """

    energy: Normalizer
    forces: float | None


def read_config(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file with the safe loader.

    Args:
        path: A .yml or .yaml file.

    Returns:
        Its plain values.

    Raises:
        InputError: If it is missing, not YAML, or not a mapping.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no config file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"{path}: cannot be read as a config ({reason})") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None)
        reason = f" ({problem})" if problem else ""
        raise InputError(f"{path}{place}: not valid YAML{reason}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a config with a section 'model'")
    return values


def model_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor arguments of the model, and its name.

    Args:
        config: A whole config, or these arguments alone.

    Returns:
        Arguments, with ``name`` or ``arch``.

    Raises:
        InputError: If there are none.
    """
    config = _fixed(config)
    model = config.get("model")
    if isinstance(model, str):
        attributes = config.get("model_attributes")
        if given(attributes) and not isinstance(attributes, Mapping):
            raise InputError(
                f"the config has model_attributes: {brief(attributes)}, expected the model's "
                "arguments by name"
            )
        model = {**(attributes or {}), "name": model}
    elif model is None and ("arch" in config or "name" in config):
        model = dict(config)
    if not isinstance(model, Mapping) or not {"name", "arch"} & model.keys():
        raise InputError(
            "the config names no model, expected a section 'model' with 'name' and the "
            "model's arguments"
        )
    return dict(model)


def normalisation(
    checkpoint: TorchCheckpoint, config: Mapping[str, Any] | None
) -> Normalisation | None:
    """How a checkpoint's outputs become energies and forces.

    Args:
        checkpoint: Its normalizers come first.
        config: Its data set comes next, and then that of the checkpoint's own config.

    Returns:
        None if no place says anything.

    Raises:
        InputError: If what they say is incomplete or no numbers.
    """
    normalizers = dict(checkpoint.normalizers)
    for source in (config, checkpoint.config):
        if not normalizers and source is not None:
            normalizers = _of_dataset(_fixed(source))
    if not normalizers:
        return None
    for name, (mean, std) in normalizers.items():
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise InputError(
                f"the normalisation of {name!r} has the mean {mean} and the standard "
                f"deviation {std}, expected finite numbers, the latter above 0"
            )
    forces = normalizers.get("grad_target")
    if forces is not None and forces.mean != 0:
        raise InputError(
            f"forces are normalised with the mean {forces.mean}, expected 0: a constant "
            "force on every atom is not supported"
        )
    return Normalisation(normalizers["target"], None if forces is None else forces.std)


def _fixed(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("fixed")
    return inner if isinstance(inner, Mapping) and "model" not in config else config


def _of_dataset(config: Mapping[str, Any]) -> dict[str, Normalizer]:
    """Normalizers that the training data of a config name."""
    dataset = next((config[key] for key in _DATASETS if given(config.get(key))), None)
    if isinstance(dataset, list | tuple):
        dataset = dataset[0]
    elif isinstance(dataset, Mapping) and isinstance(dataset.get("train"), Mapping):
        dataset = dataset["train"]
    if not isinstance(dataset, Mapping):
        if given(config.get("includes")):
            raise InputError(
                "the config takes its data set from other files ('includes'), expected "
                "'dataset' with its normalisation in the same file"
            )
        return {}
    if not given(dataset.get("normalize_labels")):
        return {}
    if dataset.get("target_mean") is None:
        raise InputError(
            "the config normalises labels but has no target_mean and target_std, expected "
            "both beside normalize_labels"
        )
    return {
        name: Normalizer(*(_number(dataset, key) for key in keys))
        for name, keys in _KEYS.items()
        if dataset.get(keys[0]) is not None or dataset.get(keys[1]) is not None
    }


def _number(values: Mapping[str, Any], key: str) -> float:
    value = values.get(key)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    try:
        # YAML takes numbers like 1e-4 for text.
        return float(value if isinstance(value, int | float | str) else None)
    except (OverflowError, TypeError, ValueError):
        raise InputError(
            f"the config has {key}: {brief(value)}, expected a number"
        ) from None
