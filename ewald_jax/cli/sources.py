"""What the command line takes for data: a data config, a file, or a sample set's name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ewald_jax.config import load_section
from ewald_jax.data.base import DataConfig, GraphDataset
from ewald_jax.data.samples import SAMPLES
from ewald_jax.data.splits import split_dataset
from ewald_jax.typing import InputError

SOURCE_HELP = "A data config (.yaml), a file of structures, or the name of a sample set."


def data_config(source: str, overrides: Sequence[str] = ()) -> DataConfig:
    """The data config that a word of the command line stands for.

    Args:
        source: A YAML file with a section `data`, the name of a sample set, or a path of
            structures.
        overrides: `data.key=value` strings.

    Raises:
        InputError: If the config or an override is wrong.
    """
    if source.endswith((".yaml", ".yml")):
        return load_section(source, "data", overrides)
    kind = "name" if source in SAMPLES and not Path(source).exists() else "path"
    return load_section({kind: source}, "data", overrides)


def checkpoint_data(saved: Mapping[str, Any], directory: Path) -> DataConfig:
    """The data config that a checkpoint was trained with.

    Args:
        saved: The config of the checkpoint, plain values.
        directory: Of the checkpoint, for messages.

    Raises:
        InputError: If it has none, as checkpoints made by other programs do.
    """
    if not saved.get("data"):
        raise InputError(f"{directory}: says not which data it was trained on; name them")
    return load_section(saved["data"], "data")


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
