"""Trees of arrays on disk, by orbax: the one place that knows its interface."""

import contextlib
import logging
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from ewald_jax.typing import InputError, PyTree


def write_arrays(place: Path, trees: Mapping[str, PyTree]) -> None:
    """Writes each tree into a directory of its name, and waits until all are written.

    Args:
        place: Exists.
        trees: Name -> tree of arrays.

    Raises:
        OSError: If the disk is full; also ValueError, from tensorstore, with the reason.
    """
    # Imported late: half a second that only those pay who save or load.
    import orbax.checkpoint as ocp

    handler = ocp.StandardCheckpointHandler()
    with _quiet_absl(), ocp.Checkpointer(handler) as checkpointer:
        for name, tree in trees.items():
            path = (place / name).resolve()
            checkpointer.save(path, args=ocp.args.StandardSave(tree))


def checksums(place: Path) -> dict[str, int]:
    """CRC-32 of every file below a directory, by relative path."""
    files = (path for path in sorted(place.rglob("*")) if path.is_file())
    return {path.relative_to(place).as_posix(): _checksum(path) for path in files}


def read_arrays(
    place: Path, name: str, like: PyTree, expected: Mapping[str, int]
) -> PyTree:
    """Reads a tree of numpy arrays.

    Args:
        place: What `write_arrays` wrote to.
        name: Of the tree.
        like: Arrays or shapes in the structure that was written.
        expected: From `checksums` of `place` after writing. tensorstore notices damage too,
            but late, in other threads, and not in every file.

    Raises:
        InputError: If the directory is missing, damaged or holds something else.
    """
    import orbax.checkpoint as ocp

    path = place / name
    for file, checksum in expected.items():
        if file.startswith(f"{name}/"):
            if not (place / file).is_file():
                raise InputError(f"{path}: the checkpoint is damaged: {file} is missing")
            if _checksum(place / file) != checksum:
                raise InputError(f"{path}: the checkpoint is damaged: {file} has changed")
    # Numpy arrays, because they carry no devices: a checkpoint loads on any machine.
    target = jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), like)
    try:
        with _quiet_absl(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            return reader.restore(path.resolve(), args=ocp.args.StandardRestore(target))
    # tensorstore and orbax raise what they like for files that are cut short or missing.
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"{path}: the checkpoint is damaged ({reason})") from error


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


@contextlib.contextmanager
def _quiet_absl() -> Iterator[None]:
    """Keeps orbax from logging tracebacks of errors that we report in a sentence."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
