"""Fitting, writing and reading scale factors (see `nn.scaling`)."""

import itertools
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from ewald_jax.graph.schema import Batch
from ewald_jax.nn.scaling import OBSERVED, SCALE_FACTOR
from ewald_jax.potential import apply_model
from ewald_jax.train.files import read_json, write_json, writing
from ewald_jax.typing import InputError, PyTree

FIT = "fit"
"""Value of the setting `train.scales` that fits them when training starts."""

NONE = "none"
"""Value that leaves them 1."""

FITTING_BATCHES = 16
"""Batches that they are fitted to, as in the Open Catalyst Project."""

_TOLERANCE = 1e-3


def scale_factors(params: PyTree) -> dict[str, float]:
    """The scale factors among parameters: place, parts joined by "/", to value."""
    flat = flax.traverse_util.flatten_dict(params)
    return {
        "/".join(path[:-1]): float(leaf)
        for path, leaf in flat.items()
        if path[-1] == SCALE_FACTOR
    }


def with_scale_factors(params: PyTree, factors: Mapping[str, float]) -> PyTree:
    """Parameters with other scale factors.

    Args:
        params: Parameters.
        factors: Every scale factor, as `scale_factors` gives them.

    Returns:
        New parameters.

    Raises:
        InputError: If one is missing, unknown, or not a positive number.
    """
    places = scale_factors(params)
    for place in places:
        if place not in factors:
            raise InputError(f"the scale factor {place!r} is missing, which the model has")
    for place, value in factors.items():
        if place not in places:
            raise InputError(f"the model has no scale factor {place!r}")
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and 0 < value < float("inf")):
            raise InputError(
                f"the scale factor {place!r} is {value!r}, expected a number above 0"
            )
    flat = flax.traverse_util.flatten_dict(params)
    for place in places:
        path = (*place.split("/"), SCALE_FACTOR)
        flat[path] = np.asarray(factors[place], flat[path].dtype)
    return flax.traverse_util.unflatten_dict(flat)


def fit_scales(
    model: nn.Module,
    params: PyTree,
    batches: Iterable[Batch],
    count: int = FITTING_BATCHES,
) -> dict[str, float]:
    """Finds the scale factors that keep variances, for given weights and data.

    Each factor depends on those before it in the network. All are corrected in each pass, so
    that the n-th is right after n passes at the latest.

    Args:
        model: The network.
        params: Its parameters, usually random ones.
        batches: Typical structures.
        count: Batches to use.

    Returns:
        The factors by place; none for a model that has none.

    Raises:
        InputError: If there is no batch, or a factor sees nothing that varies.
    """
    factors = scale_factors(params)
    if not factors:
        return {}
    chosen = [batch._replace(targets={}) for batch in itertools.islice(batches, count)]
    if not chosen:
        raise InputError("scale factors need at least one batch of structures")
    for _ in range(len(factors) + 1):
        scaled = with_scale_factors(params, factors)
        sums = [_observe(model, scaled, batch) for batch in chosen]
        total = jax.tree.map(lambda *x: np.sum(jax.device_get(x), axis=0), *sums)
        corrections = {place: _correction(place, *total[place]) for place in factors}
        factors = {place: factors[place] * corrections[place] for place in factors}
        if all(abs(np.log(value)) < _TOLERANCE for value in corrections.values()):
            break
    return factors


def initial_scales(
    setting: str, model: nn.Module, params: PyTree, batches: Iterable[Batch]
) -> PyTree:
    """Parameters with the scale factors that the setting `train.scales` asks for.

    Args:
        setting: ``none``, ``fit`` or a file.
        model: The network.
        params: Its parameters.
        batches: To fit on.

    Raises:
        InputError: If the file is missing or does not fit the model, naming it.
    """
    if setting == NONE:
        return params
    if setting == FIT:
        return with_scale_factors(params, fit_scales(model, params, batches))
    try:
        return with_scale_factors(params, read_scales(Path(setting)))
    except InputError as error:
        named = setting in str(error)
        raise InputError(str(error) if named else f"{setting}: {error}") from None


def write_scales(path: Path, factors: Mapping[str, float]) -> None:
    """Writes scale factors as JSON.

    Raises:
        InputError: If the file cannot be written.
    """
    with writing(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dict(factors))


def read_scales(path: Path) -> dict[str, float]:
    """Reads what `write_scales` wrote.

    Raises:
        InputError: If the file is missing, or is no JSON object of numbers.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such file, expected scale factors (ewald-jax fit-scales makes them)"
        )
    factors = read_json(path)
    if not isinstance(factors, dict):
        raise InputError(f"{path}: expected a JSON object of scale factors")
    return factors


@partial(jax.jit, static_argnames="model")
def _observe(model: nn.Module, params: PyTree, batch: Batch) -> dict[str, jax.Array]:
    """Sums over rows of (variance found, variance wanted, 1) for each factor."""
    _, state = apply_model(model, params, batch, mutable=[OBSERVED])
    flat = flax.traverse_util.flatten_dict(state[OBSERVED])
    return {"/".join(path[:-1]): sum(leaf) for path, leaf in flat.items()}


def _correction(place: str, found: float, wanted: float, rows: float) -> float:
    if not (np.isfinite([found, wanted]).all() and found > 0 and wanted > 0):
        raise InputError(
            f"the scale factor {place!r} sees nothing that varies in {int(rows)} rows; "
            "expected structures with several neighbors per atom"
        )
    return float(np.sqrt(wanted / found))
