"""A checkpoint directory for parameters that no training of ours has made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import optax

from ewald_jax.data.statistics import Statistics
from ewald_jax.train.checkpoint import save_checkpoint
from ewald_jax.train.description import write_description
from ewald_jax.train.directory import (
    check_directory,
    make_directory,
    withdrawn_on_failure,
)
from ewald_jax.train.state import create_state
from ewald_jax.typing import InputError, PyTree


def publish_checkpoint(
    directory: Path,
    params: PyTree,
    statistics: Statistics,
    config: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Writes parameters as a training would, as ``best`` and as ``last``.

    Args:
        directory: May not exist.
        params: Of the model in `config`.
        statistics: What turns the network's outputs into eV.
        config: Plain values, with the section "model"; without "train" it says that nothing
            can be resumed here.
        overwrite: Replace a checkpoint directory that is there.

    Raises:
        InputError: If the directory is in use, or cannot be written to; nothing half-written
            stays behind.
    """
    check_output(directory, overwrite)
    state = create_state(params, optax.identity(), jax.random.key(0))
    with withdrawn_on_failure(directory):
        make_directory(directory, overwrite)
        write_description(directory, config, statistics)
        for which in ("best", "last"):
            save_checkpoint(directory, which, state, {"step": 0})


def check_output(directory: Path, overwrite: bool) -> None:
    """Refuses a directory that `publish_checkpoint` would not write to.

    Args:
        directory: May not exist.
        overwrite: Replace a checkpoint directory that is there.

    Raises:
        InputError: If the directory is in use.
    """
    if not overwrite and directory.is_dir() and any(directory.iterdir()):
        raise InputError(
            f"the output directory {directory} exists and is not empty; use --overwrite to "
            "replace what is in it, or another directory"
        )
    check_directory(directory, resume=False, overwrite=overwrite)
