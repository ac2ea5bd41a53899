"""A packaged model: a JSON file that describes it, and its parameters as plain arrays."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ewald_jax.data.statistics import Statistics
from ewald_jax.models import build_model
from ewald_jax.typing import InputError, PyTree

PRETRAINED: tuple[str, ...] = ("dimers", "dimers-painn", "slabs")
"""Names of the packaged models."""

PREFIX = "pretrained:"
"""In place of a checkpoint directory, ``pretrained:dimers`` is a packaged model."""

HERE = Path(__file__).resolve().parent


def pretrained_name(place: str | Path) -> str | None:
    """The name in ``pretrained:NAME``, None for anything else (a directory)."""
    text = str(place)
    return text.removeprefix(PREFIX) if text.startswith(PREFIX) else None


def load_pretrained(name: str) -> tuple[nn.Module, PyTree, dict[str, Any], Statistics]:
    """A packaged model.

    Args:
        name: One of `PRETRAINED`.

    Returns:
        As `load_checkpoint`: model, parameters, the resolved config of its training (plain
        values), statistics of its data.

    Raises:
        InputError: If there is no such model, naming the nearest.
    """
    description = _described(name)
    config = description["config"]
    with np.load(HERE / f"{name}.npz", allow_pickle=False) as arrays:
        flat = {path: jnp.asarray(arrays[path]) for path in arrays.files}
    statistics = Statistics.from_dict(description["statistics"])
    return build_model(**config["model"]), unflatten_dict(flat, sep="/"), config, statistics


def model_card(name: str) -> dict[str, Any]:
    """What a packaged model was trained on, how well it does, and its limits.

    Args:
        name: One of `PRETRAINED`.

    Returns:
        Plain values: ``data``, ``limits``, ``command`` (what trains it), ``metrics`` by split
        (eV, eV/Å), ``parameters``, ``machine``.

    Raises:
        InputError: If there is no such model, naming the nearest.
    """
    return _described(name)["card"]


def write_pretrained(
    name: str,
    params: PyTree,
    config: Mapping[str, Any],
    statistics: Statistics,
    card: Mapping[str, Any],
    folder: Path = HERE,
) -> None:
    """Writes the two files of a packaged model.

    Args:
        name: Of the model.
        params: Its parameters; kept in float32.
        config: Of its training, plain values.
        statistics: Of its data.
        card: See `model_card`.
        folder: Where.
    """
    flat = flatten_dict(jax.device_get(params), sep="/")
    np.savez_compressed(
        folder / f"{name}.npz", **{k: np.asarray(v, np.float32) for k, v in flat.items()}
    )
    description = {
        "config": dict(config),
        "statistics": statistics.to_dict(),
        "card": dict(card),
    }
    text = json.dumps(description, indent=1, allow_nan=False) + "\n"
    (folder / f"{name}.json").write_text(text, encoding="utf-8")


def _described(name: str) -> dict[str, Any]:
    if name not in PRETRAINED:
        near = difflib.get_close_matches(name, PRETRAINED, n=1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"there are {', '.join(PRETRAINED)}"
        )
        raise InputError(f"there is no pretrained model {name!r}; {hint}")
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
