"""From a PyTorch checkpoint to a checkpoint directory of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import numpy as np

from ewald_jax.data.statistics import Statistics
from ewald_jax.graph.schema import MAX_ATOMIC_NUMBER
from ewald_jax.interop.torch_checkpoint import read_checkpoint
from ewald_jax.interop.torch_config import config_notes
from ewald_jax.interop.torch_reference import from_reference
from ewald_jax.interop.torch_scales import read_scales
from ewald_jax.interop.torch_settings import model_arguments, normalisation, read_config
from ewald_jax.models import PaiNN, model_to_config
from ewald_jax.train.publish import publish_checkpoint
from ewald_jax.typing import InputError, PyTree


class Imported(NamedTuple):
    """A model of another program.

    Attributes:
        model: The network.
        params: Its parameters, numpy arrays.
        statistics: Mean and scale of the energies it was trained on; reference energies are
            0, and every element that it has an embedding for counts as seen.
        notes: What somebody who goes on with it should know, sentences.
    """

    model: nn.Module
    params: PyTree
    statistics: Statistics
    notes: tuple[str, ...] = ()


def import_checkpoint(
    checkpoint: str | Path,
    config: str | Path | Mapping[str, Any] | None = None,
    scale_file: str | Path | None = None,
    ema: bool = False,
) -> Imported:
    """Reads a checkpoint of the PyTorch reference or of the Open Catalyst Project.

    Energies are ``mean + std * output`` there and here. Forces that are derivatives follow
    the energies' scale. Direct forces have a standard deviation of their own there, while
    there is one scale here: the ratio of the two is multiplied into the last layer of the
    force head, which is linear in it.

    Args:
        checkpoint: A .pt file; nothing in it is executed.
        config: A YAML file, or its values: the model's arguments and the normalisation; None
            takes the config inside the checkpoint.
        scale_file: Fitted scale factors, where they are not among the weights; they win over
            those that are.
        ema: Take the running averages of the parameters.

    Returns:
        The model and its parameters.

    Raises:
        InputError: If a file is missing, damaged or holds code, if config and weights do not
            fit together, or if scale factors are missing.
    """
    loaded = read_checkpoint(checkpoint, ema)
    values = read_config(config) if isinstance(config, str | Path) else config
    scales = None if scale_file is None else read_scales(scale_file)
    used = loaded.config if values is None else values
    if used is None:
        raise InputError(f"{checkpoint}: has no config in it, expected one beside it")
    weights = loaded.weights if loaded.averaged is None else loaded.averaged
    try:
        arguments = model_arguments(used)
        model, params = from_reference(arguments, weights, scales)
        notes = config_notes(arguments)
        scaling = normalisation(loaded, values)
    except InputError as error:
        raise InputError(f"{checkpoint}: {error}") from None
    if loaded.has_averages and not ema:
        notes.append("the file also has running averages of the parameters, not taken")
    mean, std = (0.0, 1.0) if scaling is None else scaling.energy
    if scaling is None:
        notes.append("no normalisation is known: energies are the outputs as they are")
    elif getattr(model, "direct_forces", False):
        if scaling.forces is None:
            raise InputError(
                f"{checkpoint}: the model has direct forces, but no standard deviation of "
                "forces is known, expected grad_target beside target"
            )
        params = _with_forces(model, params, scaling.forces / std)
    elif scaling.forces is not None and not np.isclose(scaling.forces, std, rtol=1e-4):
        notes.append(
            f"warning: forces were normalised by {scaling.forces:g} and energies by {std:g}, "
            "which contradict each other where forces are derivatives; forces follow the "
            "energies here"
        )
    known = getattr(model, "max_atomic_number", model.num_elements - 1)
    species = tuple(range(1, min(known, MAX_ATOMIC_NUMBER) + 1))
    statistics = Statistics(mean=mean, scale=std, species=species)
    return Imported(model, params, statistics, tuple(notes))


def write_imported(
    imported: Imported, directory: str | Path, source: str = "", overwrite: bool = False
) -> None:
    """Writes a directory that `load_checkpoint` and the command line read.

    Args:
        imported: From `import_checkpoint`.
        directory: To write.
        source: Where it comes from, kept in config.json.
        overwrite: Replace a training or an import that is there.

    Raises:
        InputError: If the directory is in use, or cannot be written to.
    """
    config = {"model": model_to_config(imported.model), "imported": {"from": source}}
    publish_checkpoint(
        Path(directory), imported.params, imported.statistics, config, overwrite=overwrite
    )


def _with_forces(model: nn.Module, params: PyTree, ratio: float) -> PyTree:
    """The parameters with the direct forces multiplied by a number."""
    if isinstance(model, PaiNN):
        last = {("force_1", "vectors", "kernel")}
    else:
        last = {(f"force_{i}", "force", "kernel") for i in range(model.num_blocks + 1)}
    flat = flax.traverse_util.flatten_dict(params)
    assert last <= flat.keys()
    ratio = np.float32(ratio)
    return flax.traverse_util.unflatten_dict(
        {path: x * ratio if path in last else x for path, x in flat.items()}
    )
