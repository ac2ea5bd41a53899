"""Weights under the names of the PyTorch reference and of the Open Catalyst Project.

Weights come as a mapping of name to array; `interop.torch_checkpoint` reads them from files.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import ase
import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from ewald_jax.interop.torch_config import (
    EMBEDDINGS,
    OWN_ARRAYS,
    architecture,
    reference_model,
    without_effect,
)
from ewald_jax.interop.torch_names import IGNORED, IGNORED_PARTS, Rule, rules
from ewald_jax.interop.torch_scales import with_scales
from ewald_jax.interop.wording import brief
from ewald_jax.models import batch_from_atoms
from ewald_jax.nn.scaling import SCALE_FACTOR
from ewald_jax.potential import init_params
from ewald_jax.typing import InputError, PyTree


def from_reference(
    config: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    scales: Mapping[str, float] | None = None,
) -> tuple[nn.Module, PyTree]:
    """Builds a model from the reference's constructor arguments and ``state_dict`` names.

    Args:
        config: The reference's arguments and its name, ``arch`` (or ``name``, as in OCP's
            configs).
        weights: Arrays by name.
        scales: Fitted scale factors of a file beside the weights (`torch_scales.read_scales`),
            which win over those among the weights.

    Returns:
        The model and its parameters.

    Raises:
        InputError: If the architecture is not known, a weight is missing or left over, a
            shape does not fit (naming the array, both shapes and the setting that decides
            it), or scale factors are missing or of another model.
    """
    arch = architecture(config)
    of = [a for a, start in OWN_ARRAYS.items() if any(k.startswith(start) for k in weights)]
    if of and arch not in of:
        raise InputError(
            f"the weights are those of {of[0]}, but the config is one of {arch}; expected "
            "the config that belongs to the weights"
        )
    name = EMBEDDINGS[arch]
    if name not in weights:
        raise InputError(
            f"the weights have no array {name!r}, which every {arch} has; expected weights of "
            "the model that the config names"
        )
    shape = np.shape(weights[name])
    if len(shape) != 2:
        raise InputError(f"the array {name!r} has shape {shape}, expected a matrix")
    model = reference_model(config, shape[0])
    unused = without_effect(config)
    weights = {k: v for k, v in weights.items() if not (unused and k.startswith(unused))}
    if scales is not None:
        weights = with_scales(model, weights, scales)
    return model, reference_params(model, weights)


def reference_params(model: nn.Module, weights: Mapping[str, np.ndarray]) -> PyTree:
    """The parameters of a model of ours from the reference's arrays.

    Args:
        model: One of the four baselines.
        weights: Arrays by the reference's names.

    Returns:
        Parameters, numpy arrays.

    Raises:
        InputError: As `from_reference`.
    """
    wanted = rules(model)
    _check_names(model, wanted, weights)
    params = flax.traverse_util.flatten_dict(take_rules(wanted, weights))
    _check_shapes(model, wanted, params)
    for rule in wanted:
        if rule.path[-1] == SCALE_FACTOR and not params[rule.path] > 0:
            raise InputError(
                f"the scale factor {rule.name!r} is {float(params[rule.path])}, which means "
                "that it was never fitted; expected fitted scale factors (give their file)"
            )
    return flax.traverse_util.unflatten_dict(params)


def take_rules(wanted: list[Rule], weights: Mapping[str, np.ndarray]) -> PyTree:
    """The arrays of some rules as a tree, nothing checked."""
    leaves = {}
    for rule in wanted:
        array = np.asarray(weights[rule.name])
        leaves[rule.path] = array.T if rule.transpose else array
    return flax.traverse_util.unflatten_dict(leaves)


def _check_names(
    model: nn.Module, wanted: list[Rule], weights: Mapping[str, np.ndarray]
) -> None:
    missing = [rule.name for rule in wanted if rule.name not in weights]
    scales = [name for name in missing if name.endswith(SCALE_FACTOR)]
    if scales and len(scales) == len(missing):
        raise InputError(
            f"the weights have no scale factor {scales[0]!r} (and {len(scales) - 1} more); "
            "expected fitted scale factors among the weights, or their file beside them"
        )
    if missing:
        raise InputError(
            f"the weights have no array {missing[0]!r}, which the config asks for"
            f"{_culprits(model, set(missing), -1)}"
        )
    known = {rule.name for rule in wanted}
    left = [name for name in weights if name not in known and not _ignored(name)]
    if left:
        hint = _culprits(model, set(left), 1) or _hint(left[0])
        raise InputError(
            f"the weights have an array {brief(left[0])} (and {len(left) - 1} more) that the "
            f"config has no place for{hint}"
        )


def _culprits(model: nn.Module, names: set[str], step: int) -> str:
    """The integer settings without which no array would be missing, or fewer left over.

    Args:
        model: As the config makes it.
        names: Arrays that are missing or left over.
        step: -1 or 1, which takes parts away from the model or adds some.
    """
    now, found = {rule.name for rule in rules(model)}, []
    for key, changed in _changed(model, step):
        difference = now ^ {rule.name for rule in rules(changed)}
        if difference and difference <= names:
            found.append(key)
    return f"; look at {' and '.join(found)} in the config" if found else ""


def _hint(name: str) -> str:
    """Which setting an array belongs to that the config does not have."""
    for part, setting in (
        ("ewald", "ewald_hyperparams"),
        ("down.linear", "ewald_hyperparams"),
        ("_at.", "atom_to_atom_cutoff"),
        ("out_forces", "direct_forces and regress_forces"),
        ("seq_forces", "direct_forces and regress_forces"),
        ("rbf_F", "direct_forces and regress_forces"),
    ):
        if part in name:
            return f"; expected {setting} in the config, or other weights"
    return "; expected weights of the model that the config describes"


def _ignored(name: str) -> bool:
    return name.endswith(IGNORED) or any(part in name for part in IGNORED_PARTS)


def _check_shapes(
    model: nn.Module, wanted: list[Rule], params: Mapping[tuple[str, ...], np.ndarray]
) -> None:
    expected = _shapes(model)
    assert set(expected) == set(params), set(expected) ^ set(params)
    for rule in wanted:
        ours, theirs = expected[rule.path], params[rule.path].shape
        if ours != theirs:
            swap = slice(None, None, -1) if rule.transpose else slice(None)
            raise InputError(
                f"the array {rule.name!r} has shape {theirs[swap]}, but the config makes it "
                f"{ours[swap]}{_causes(model, rule.path, ours, theirs)}"
            )


def _shapes(model: nn.Module) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shapes of all parameters by path."""
    periodic = model.ewald is not None and model.ewald.scheme == "lattice"
    atoms = ase.Atoms("HH", [[0, 0, 0], [0, 0, 0.8]], cell=[9, 9, 9], pbc=periodic)
    batch = batch_from_atoms([atoms], model)
    init = functools.partial(init_params, model)
    tree = jax.eval_shape(init, jax.random.key(0), batch)
    return {k: v.shape for k, v in flax.traverse_util.flatten_dict(tree).items()}


def _causes(model: nn.Module, path: tuple[str, ...], ours: tuple, theirs: tuple) -> str:
    """The integer settings on which the mismatching sizes of an array depend."""
    axes = [
        n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]
    ]
    found = []
    for key, changed in _changed(model, 1):
        shape = _shapes(changed).get(path, ours)
        if any(shape[n] != ours[n] for n in axes):
            found.append(key)
    return f"; look at {' and '.join(found)} in the config" if found else ""


def _changed(model: nn.Module, step: int) -> Iterator[tuple[str, nn.Module]]:
    """The model with each integer setting changed in turn, by the reference's names."""
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if type(value) is int and field.name not in ("max_neighbors", "num_elements"):
            yield field.name, model.clone(**{field.name: value + step})
    if model.ewald is None:
        return
    changes = {
        "downprojection_size": {"bottleneck": model.ewald.bottleneck + step},
        "num_hidden": {"num_hidden": model.ewald.num_hidden + step},
    }
    if model.ewald.scheme == "lattice":
        for axis, name in enumerate(("num_k_x", "num_k_y", "num_k_z")):
            num_k = list(model.ewald.num_k)
            num_k[axis] += step
            changes[name] = {"num_k": tuple(num_k)}
    else:
        changes["num_k_rbf"] = {"num_k_rbf": model.ewald.num_k_rbf + step}
    for name, fields in changes.items():
        with contextlib.suppress(InputError):  # below the least value
            yield name, model.clone(ewald=dataclasses.replace(model.ewald, **fields))
