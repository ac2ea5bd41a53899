"""What the command line takes for data: a data config, a file, or a sample set's name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import numpy as np
import typer

from ewald_jax.cli.common import note, split_arguments
from ewald_jax.config import Config, load_config, load_section
from ewald_jax.data.base import DataConfig, GraphDataset, source_files
from ewald_jax.data.plausible import unit_warnings
from ewald_jax.data.readers import READERS
from ewald_jax.data.reading import REST, kind_of
from ewald_jax.data.samples import SAMPLES
from ewald_jax.data.splits import split_dataset
from ewald_jax.data.statistics import Statistics
from ewald_jax.models import check_structure
from ewald_jax.potential import check_elements
from ewald_jax.typing import InputError

SOURCE_HELP = "A data config (.yaml), a file of structures, or the name of a sample set."

EvaluatedData = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[DATA] [KEY=VALUE]...", help=f"{SOURCE_HELP} Default: the training's own."
    ),
]
EvaluatedSplit = Annotated[
    str, typer.Option(help="train, val, test, ..., or all; a file of its own is all.")
]


def composed_config(arguments: Sequence[str], verb: str) -> tuple[Config, list[Path]]:
    """The config of the files and overrides that a verb was given, and the files.

    Raises:
        InputError: If there is no file, or the config is wrong.
    """
    paths, overrides = split_arguments(arguments)
    if not paths:
        raise InputError(f"{verb} needs at least one config file before the overrides")
    return load_config(paths, overrides), paths


def data_config(source: str, overrides: Sequence[str] = ()) -> DataConfig:
    """The data config that a word of the command line stands for.

    Args:
        source: A YAML file with a section `data`, the name of a sample set, or a path of
            structures.
        overrides: `data.key=value` strings.

    Raises:
        InputError: If the config or an override is wrong.
    """
    _check_overrides(overrides)
    if source.endswith((".yaml", ".yml")):
        return load_section(source, "data", overrides)
    kind = "name" if source in SAMPLES and not Path(source).exists() else "path"
    return load_section({kind: source}, "data", overrides)


def checkpoint_data(
    saved: Mapping[str, Any], directory: Path, overrides: Sequence[str] = ()
) -> DataConfig:
    """The data config that a checkpoint was trained with.

    Args:
        saved: The config of the checkpoint, plain values.
        directory: Of the checkpoint, for messages.
        overrides: `data.key=value` strings.

    Raises:
        InputError: If it has none, as checkpoints made by other programs do, or an override
            is wrong.
    """
    _check_overrides(overrides)
    if not saved.get("data"):
        raise InputError(f"{directory}: says not which data it was trained on; name them")
    return load_section(saved["data"], "data", overrides)


def evaluated_data(
    arguments: Sequence[str], saved: Mapping[str, Any], checkpoint: Path, split: str
) -> tuple[str, DataConfig, str]:
    """The data that a checkpoint is to be evaluated on.

    Args:
        arguments: One source at most, and `data.key=value` strings; without a source, the
            data that the checkpoint was trained with.
        saved: The config of the checkpoint, plain values.
        checkpoint: Its directory, for messages.
        split: Of the data; "" for the usual one.

    Returns:
        The name of the data, their config, the split.

    Raises:
        InputError: If there are several sources, or none that can be read.
    """
    sources, overrides = split_arguments(arguments)
    if len(sources) > 1:
        raise InputError(f"{sources[0]} and {sources[1]} are both data, expected one")
    if not sources:
        config = checkpoint_data(saved, checkpoint, overrides)
        return f"the data of {checkpoint}", config, split or "test"
    name = str(sources[0])
    config = data_config(name, overrides)
    return name, config, split or ("all" if name == config.path else "test")


def shared_with_training(
    saved: Mapping[str, Any], config: DataConfig, dataset: GraphDataset, indices: np.ndarray
) -> str:
    """A warning if a checkpoint was trained on structures that it is evaluated on.

    Args:
        saved: The config of the checkpoint, plain values.
        config: The data it is evaluated on.
        dataset: The same, loaded.
        indices: Structures of the evaluation.

    Returns:
        The warning, "" if nothing is known to be shared.
    """
    try:
        trained = load_section(saved.get("data") or {}, "data")
        before = [(role, path.resolve()) for role, path in source_files(trained)]
        now = [(role, path.resolve()) for role, path in source_files(config)]
        if before == now:
            known = split_dataset(trained, dataset)["train"]
            count = len(np.intersect1d(known, indices))
            total = f"{count} of these {len(indices)} structures"
            return f"warning: the training data had {total}" if count else ""
    except InputError:  # the data of the training have gone, or changed
        return ""
    fitted = {path for role, path in before if role in ("", "train")}
    roles = set(dataset.roles[indices])
    shared = sorted(p.name for role, p in now if role in roles and p in fitted)
    if not shared:
        return ""
    return f"warning: training used {shared[0]} too, so structures may overlap"


def check_known(
    model: nn.Module,
    statistics: Statistics,
    species: np.ndarray,
    pbc: np.ndarray,
    where: str,
) -> None:
    """Refuses a structure that the model was not made or not trained for.

    Args:
        model: The network.
        statistics: Of its training data.
        species: [n] atomic numbers.
        pbc: [3] bool.
        where: What to call the structure in a message.

    Raises:
        InputError: If it is one.
    """
    try:
        check_structure(model, species, pbc)
    except InputError as error:
        raise InputError(f"{where} {error}") from None
    check_elements(statistics, species, where)


def _check_overrides(overrides: Sequence[str]) -> None:
    for override in overrides:
        if override.partition("=")[0].partition(".")[0] != "data":
            raise InputError(f"override {override!r}: expected data.key=value")


def structures_of(dataset: GraphDataset, config: DataConfig, split: str) -> np.ndarray:
    """Indices of a split of a data set, or of all its structures.

    Raises:
        InputError: If there is no such split, or it is empty.
    """
    if split == "all":
        return np.arange(len(dataset))
    splits = split_dataset(config, dataset)
    if split not in splits:
        known = ", ".join((*splits, "all"))
        raise InputError(f"the data have no split {split!r}; they have {known}")
    if len(splits[split]) == 0:
        raise InputError(f"the split {split!r} is empty")
    return splits[split]


def note_skipped(dataset: GraphDataset, shown: int = 5) -> None:
    """Says on stderr which structures were left out (``data.on_error: skip``)."""
    skipped = dataset.skipped
    for sentence in skipped[:shown]:
        note(f"skipped: {sentence}")
    if skipped:
        more = f", {len(skipped) - shown} more than shown" if len(skipped) > shown else ""
        rests = any(sentence.endswith(REST) for sentence in skipped)
        counted = ", the rest of a file counted as one" if rests else ""
        were = "structure was" if len(skipped) == 1 else "structures were"
        note(f"{len(skipped)} broken {were} left out{counted}{more}")


def note_units(dataset: GraphDataset, config: DataConfig) -> None:
    """Says on stderr if labels are a guess, or look like those of another unit."""
    first = source_files(config)[0][1]
    if not config.kind and kind_of(first, READERS) == "oc20_s2ef":
        note(
            f"{first} is read as OC20's S2EF, for the reference energies beside it: energies "
            "are adsorption energies (data.kind: extxyz reads total energies)"
        )
    for sentence in unit_warnings(dataset, config.energy_unit, config.length_unit):
        note(f"warning: {sentence}")
