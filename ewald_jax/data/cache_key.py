"""What the graphs of a file depend on, as a hash."""

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ewald_jax.data.content import content_hash
from ewald_jax.data.labels import LabelOptions
from ewald_jax.data.packed import refuse_too_many
from ewald_jax.data.reading import Reader, check_file
from ewald_jax.graph.neighborhood import Neighborhood
from ewald_jax.typing import InputError

FORMAT_VERSION = 4
"""Raise it whenever an entry's arrays, or the graphs in them, change their meaning."""


class Key(NamedTuple):
    """What the graphs of a file depend on.

    Attributes:
        entry: Hash of all of it: the name in the cache.
        fingerprint: The same without the versions of libraries, with which a training may
            go on.
        files: Size, time of change and inode of each file that is read, before its content
            was hashed.
    """

    entry: str
    fingerprint: str
    files: dict[Path, tuple[int, int, int]]


def make_key(
    path: Path,
    reader: Reader,
    options: LabelOptions,
    neighborhood: Neighborhood,
    folder: Path | None,
) -> Key:
    """The key of a file's graphs; `folder` is the cache, None for none.

    Raises:
        InputError: If the file, or one that belongs to it, cannot be read.
    """
    check_file(path)
    try:
        files = {p: _facts(p) for p in (path, *reader.companions(path))}
        content = [content_hash(p, folder) for p in files]
    except OSError as error:
        refuse_too_many(error, path)
        raise InputError(
            f"{path} cannot be read ({error.strerror}), expected a readable file"
        ) from error
    parts = {
        "format": FORMAT_VERSION,
        "reader": reader.read.__name__,
        "content": content,
        "options": options._asdict(),
        "edges": neighborhood.edge_fields(),
    }
    used = ["ase", "vesin", *(["dftd3"] if options.subtract else [])]
    return Key(hash_of(parts | {"libraries": versions(used)}), hash_of(parts), files)


def check_unchanged(key: Key) -> None:
    """Refuses graphs of a file that changed while it was read.

    Raises:
        InputError: If one did.
    """
    for path, before in key.files.items():
        try:
            now = _facts(path)
        except OSError:
            now = None
        if now != before:
            raise InputError(
                f"{path} changed while it was read, expected a complete file that nobody "
                "writes to; nothing was kept, start again when it is complete"
            )


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed versions of some packages, "" for one that is not there."""
    return {name: _version(name) for name in packages}


def hash_of(parts: Any) -> str:
    """SHA-256 of plain JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@functools.cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _facts(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino
