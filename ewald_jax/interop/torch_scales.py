"""Files of scale factors, which the reference keeps beside its checkpoints.

GemNet-T and PaiNN have constants that were fitted before training. They are either among the
weights, as ``<module>.scale_factor``, or in a file of their own: JSON or .pt, a dictionary of
numbers by the module's path, or, in older files of GemNet-T, by a name with a number.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from ewald_jax.data.torch_pickle import load_torch
from ewald_jax.interop.torch_names import rules
from ewald_jax.interop.wording import brief
from ewald_jax.models import GemNetT
from ewald_jax.nn.scaling import SCALE_FACTOR
from ewald_jax.typing import InputError

# Older names; interactions count from 1, outputs from 0.
_OLDER = (
    (r"OutBlock_(\d{1,6})_sum", 0, "out_blocks.{}.scale_sum"),
    (r"OutBlock_(\d{1,6})_had", 0, "out_blocks.{}.scale_rbf_F"),
    (r"AtomUpdate_(\d{1,6})_sum", 1, "int_blocks.{}.atom_update.scale_sum"),
    (r"TripInteraction_(\d{1,6})_had_rbf", 1, "int_blocks.{}.trip_interaction.scale_rbf"),
    (
        r"TripInteraction_(\d{1,6})_sum_cbf",
        1,
        "int_blocks.{}.trip_interaction.scale_cbf_sum",
    ),
    (r"EwaldUpdate_(\d{1,6})_sum", 1, "int_blocks.{}.ewald_block.ewald_scale_sum"),
)


def read_scales(path: str | Path) -> dict[str, float]:
    """Reads a file of scale factors.

    Args:
        path: A .json file, or a .pt file (nothing in it is executed).

    Returns:
        Scale factors by the names that the file has for them.

    Raises:
        InputError: If the file is missing, damaged, or not numbers above 0 by name.
    """
    path = Path(path)
    content = _read_json(path) if path.suffix.lower() == ".json" else load_torch(path)
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path}: holds a {type(content).__name__}, expected scale factors by name"
        )
    scales = {}
    for name, value in content.items():
        if name == "comment":
            continue
        number = _number(value)
        if not isinstance(name, str) or not (math.isfinite(number) and number > 0):
            fitted = " (it was never fitted)" if number == 0 else ""
            raise InputError(
                f"{path}: the scale factor {brief(name)} is {brief(value)}{fitted}, expected a "
                "number above 0"
            )
        scales[name] = number
    if not scales:
        raise InputError(f"{path}: is empty, expected scale factors by name")
    return scales


def with_scales(
    model: nn.Module, weights: Mapping[str, np.ndarray], scales: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """The weights with the scale factors of a file, which win over those among the weights.

    Args:
        model: That the weights are of.
        weights: Arrays by the reference's names.
        scales: From `read_scales`.

    Returns:
        All arrays.

    Raises:
        InputError: If a scale factor is none of the model's, or is given twice.
    """
    known = [rule.name for rule in rules(model) if rule.path[-1] == SCALE_FACTOR]
    if not known:
        raise InputError(
            f"there are scale factors, but a {type(model).__name__} has none; expected the "
            "file of another model"
        )
    spare = set()
    if isinstance(model, GemNetT):
        # Files have them whether or not the model has the direct forces that they are for.
        spare = {f"{_direct(i)}.{SCALE_FACTOR}" for i in range(model.num_blocks + 1)}
    found: dict[str, np.ndarray] = {}
    for name, value in scales.items():
        place = f"{_module(name)}.{SCALE_FACTOR}"
        if place not in known and place not in spare:
            raise InputError(
                f"the scale factor {brief(name)} is none of the model's, expected names like "
                f"{known[0].removesuffix(f'.{SCALE_FACTOR}')!r}"
            )
        if place in found:
            raise InputError(
                f"the scale factor {brief(name)} is given twice, expected it once"
            )
        found[place] = np.asarray(value, np.float32)
    used = {place: value for place, value in found.items() if place in known}
    return {**weights, **used}


def _direct(block: int) -> str:
    return f"out_blocks.{block}.scale_rbf_F"


def _module(name: str) -> str:
    """The path of the module that a name of a scale factor stands for."""
    for pattern, first, module in _OLDER:
        if match := re.fullmatch(pattern, name):
            return module.format(int(match[1]) - first)
    return re.sub(r"^(module\.)+", "", name).removesuffix(f".{SCALE_FACTOR}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no file of scale factors {path}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: is not JSON, expected scale factors by name") from None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.ndarray):
        return math.nan
    if isinstance(value, np.ndarray) and value.size != 1:
        return math.nan
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return float(array.reshape(()))
