"""What a checkpoint directory says about itself: config, statistics, versions."""

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ewald_jax.data.statistics import Statistics
from ewald_jax.train.files import read_json, write_json, writing
from ewald_jax.typing import InputError

FORMAT = 1
"""Version of the directory's layout (see `checkpoint`); a reader refuses newer ones."""

CONFIG, STATISTICS, VERSIONS = "config.json", "statistics.json", "versions.json"
_LIBRARIES = ("ewald_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write_description(
    directory: Path, config: Mapping[str, Any], statistics: Statistics
) -> None:
    """Writes what a checkpoint directory says about itself, before the first checkpoint.

    Args:
        directory: Exists.
        config: Plain values, with the section "model".
        statistics: Of the training data.

    Raises:
        InputError: If the disk is full or not writable.
    """
    versions = {name: _version(name) for name in _LIBRARIES}
    with writing(f"the description in {directory}"):
        write_json(directory / CONFIG, config)
        write_json(directory / STATISTICS, statistics.to_dict())
        # Last: a directory with this file has the others.
        write_json(
            directory / VERSIONS,
            {"format": FORMAT, "python": platform.python_version(), **versions},
        )


def read_description(directory: Path) -> tuple[dict[str, Any], Statistics]:
    """Config and statistics of a checkpoint directory.

    Raises:
        InputError: If it is none, is damaged, or was written by a newer version.
    """
    if not directory.is_dir():
        raise InputError(f"there is no checkpoint directory {directory}")
    versions = read_json(directory / VERSIONS)
    written = versions.get("format") if isinstance(versions, dict) else None
    if not isinstance(written, int):
        raise InputError(f"{directory / VERSIONS}: names no format; the file is damaged")
    if written > FORMAT:
        raise InputError(
            f"{directory}: the checkpoint has format {written}, from ewald_jax "
            f"{versions.get('ewald_jax')}; this version reads formats up to {FORMAT}"
        )
    config = read_json(directory / CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise InputError(f"{directory / CONFIG}: has no section 'model'")
    try:
        members_of(config)
    except InputError as error:
        raise InputError(f"{directory / CONFIG}: {error}") from None
    try:
        statistics = Statistics.from_dict(read_json(directory / STATISTICS))
    except InputError as error:
        place = f"{directory / STATISTICS}"
        words = str(error)
        raise InputError(words if place in words else f"{place}: {words}") from None
    return config, statistics


def members_of(config: Mapping[str, Any]) -> int:
    """How many networks a checkpoint holds; its parameters have a leading axis if above 1.

    Args:
        config: From `load_checkpoint`; its ``train.members`` says so.

    Raises:
        InputError: If it is no number of networks.
    """
    train = config.get("train")
    members = train.get("members", 1) if isinstance(train, Mapping) else 1
    if not isinstance(members, int) or isinstance(members, bool) or members < 1:
        raise InputError(f"train.members is {members!r}, expected a whole number above 0")
    return members


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
