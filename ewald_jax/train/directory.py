"""The output directory of a training: opened without losing anybody's files."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ewald_jax.train.checkpoint import CHECKPOINTS, has_checkpoint
from ewald_jax.train.description import CONFIG, STATISTICS, VERSIONS, read_description
from ewald_jax.train.files import write_json, write_text, writing
from ewald_jax.typing import InputError

HISTORY, METRICS, TENSORBOARD = "metrics.jsonl", "metrics.json", "tensorboard"
_OURS = (CONFIG, STATISTICS, VERSIONS, HISTORY, METRICS, CHECKPOINTS, TENSORBOARD)

ADDED = {
    "data.statistics.fit_on": "train",
    "train.members": 1,
    "model.precision": "float32",
    "model.ewald.blocks": None,
    "model.ewald.zero_k": False,
}
"""Settings that runs of earlier versions do not name, and what they did."""

_MAY_DIFFER = (
    "epochs",
    "max_steps",
    "eval_every",
    "eval_every_steps",
    "checkpoint_every",
    "checkpoint_seconds",
    "log_every",
    "devices",
    "tensorboard",
)
"""Keys of the section "train" that a resumed run may change."""


def check_directory(directory: Path, resume: bool, overwrite: bool) -> bool:
    """Decides what an existing directory means, before anything is read or written.

    Args:
        directory: May not exist.
        resume: Continue what is there; where nothing is, start.
        overwrite: Replace what is there.

    Returns:
        Whether there is a checkpoint to continue from.

    Raises:
        InputError: If the directory holds something and neither option is given, or
            something else than a training is to be resumed.
    """
    if resume and overwrite:
        raise InputError("--resume and --overwrite contradict each other; give one of them")
    if directory.exists() and not directory.is_dir():
        raise InputError(f"the output directory {directory} is a file")
    if not directory.is_dir() or not any(directory.iterdir()):
        return False
    if not (resume or overwrite):
        raise InputError(
            f"the output directory {directory} exists and is not empty; use --resume to "
            "continue the training in it, --overwrite to replace it, or another directory"
        )
    ours = any((directory / name).exists() for name in _OURS)
    # A folder of somebody's own may well hold a config.json; only a training has these.
    training = any((directory / name).exists() for name in (VERSIONS, CHECKPOINTS))
    if (resume and not ours) or (overwrite and ours and not training):
        raise InputError(
            f"cannot {'resume' if resume else 'overwrite'}: {directory} holds files, but no "
            "training; expected the output directory of one, or a directory that is empty or "
            "does not exist"
        )
    return resume and has_checkpoint(directory, "last")


def make_directory(directory: Path, overwrite: bool) -> None:
    """Makes the directory, and removes an earlier training's files, only those, from it.

    Raises:
        InputError: If it cannot be made or written to.
    """
    with writing(f"the output directory {directory}"):
        directory.mkdir(parents=True, exist_ok=True)
        if overwrite:
            _remove_ours(directory)


@contextlib.contextmanager
def withdrawn_on_failure(directory: Path) -> Iterator[None]:
    """Removes what a training wrote if a mistake ends it before there is a checkpoint.

    What is left would look like a training, and refuse the same command the next time.
    """
    try:
        yield
    except InputError:
        if not has_checkpoint(directory, "last") and not has_checkpoint(directory, "best"):
            with contextlib.suppress(OSError):
                _remove_ours(directory)
                directory.rmdir()
        raise


def _remove_ours(directory: Path) -> None:
    for name in _OURS:
        path = directory / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def check_same_run(directory: Path, config: Mapping[str, Any]) -> None:
    """Refuses to continue a training with settings that would make it another one.

    Args:
        directory: Of the training to continue.
        config: The new config, plain values; "model", "loss", "optim", "train" and
            "data.statistics" count, what can be extended (epochs, intervals) does not.

    Raises:
        InputError: Naming the first setting that differs, and both values.
    """
    saved, _ = read_description(directory)
    if "train" not in saved:
        raise InputError(
            f"cannot resume: {directory} was not made by a training; expected it as --init of "
            "a training in another directory"
        )
    free = set(_MAY_DIFFER)
    if config["optim"]["schedule"] == "cosine":
        free -= {"epochs", "max_steps"}
    # Through JSON, so that tuples compare with lists.
    new = json.loads(json.dumps(config))
    for section in ("model", "loss", "optim", "train", "data.statistics"):
        before, now = (flat_section(values, section) for values in (saved, new))
        for key in sorted(before.keys() | now.keys()):
            if section == "train" and key in free:
                continue
            default = ADDED.get(f"{section}.{key}")
            if before.get(key, default) != now.get(key, default):
                what = "is of another model" if section == "model" else "is of another run"
                raise InputError(
                    f"cannot resume: the checkpoint in {directory} {what}: {section}.{key} is "
                    f"{before.get(key, default)!r} there and {now.get(key, default)!r} here"
                )


def write_history(directory: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Writes metrics.jsonl, one line per evaluation, whole."""
    with writing(f"{directory / HISTORY}", "the checkpoints are kept"):
        write_text(directory / HISTORY, "".join(map(_line, history)))


def append_history(directory: Path, record: Mapping[str, Any]) -> None:
    """Adds a line to metrics.jsonl, or nothing if it does not fit on the disk."""
    with (
        writing(f"{directory / HISTORY}", "the checkpoints are kept"),
        open(directory / HISTORY, "ab", buffering=0) as file,
    ):
        before = file.tell()
        try:
            file.write(_line(record).encode())
        except OSError:
            file.truncate(before)
            raise


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def read_history(directory: Path, records: int) -> list[dict[str, Any]]:
    """The first `records` lines of metrics.jsonl; later ones belong to a lost future.

    Raises:
        InputError: If there are fewer.
    """
    path = directory / HISTORY
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[:records]
        history = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        history = []
    if len(history) < records:
        raise InputError(
            f"{path}: the checkpoint counts {records} evaluations, the file has "
            f"{len(history)} readable ones"
        )
    return history


def write_metrics(directory: Path, metrics: Mapping[str, Any]) -> None:
    """Writes metrics.json."""
    with writing(f"{directory / METRICS}", "the checkpoints are kept"):
        write_json(directory / METRICS, metrics)


def flat_section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section of a config (parts of its name joined by dots), its keys joined by dots."""
    for key in name.split("."):
        values = values.get(key) or {}
    return _flatten(values)


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, Mapping):
        return {prefix: values}
    out = {}
    for key, value in values.items():
        out |= _flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return out
