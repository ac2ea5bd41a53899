"""Graphs on disk, built once per file, neighborhood and choice of labels.

An entry is a file named by a hash of everything its content depends on. It is written under
another name and renamed when complete, so an interrupted build leaves no entry, and two
processes that build the same entry do not disturb each other. An entry that does not open,
because a disk lost part of it, is built anew.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import ase
import numpy as np

from ewald_jax.data.cache_key import Key, check_unchanged, make_key
from ewald_jax.data.graphs import Graphs
from ewald_jax.data.labels import LabelOptions
from ewald_jax.data.packed import OpenMaps, read_header, refuse_too_many
from ewald_jax.data.reading import NothingWholeError, Reader, iterate
from ewald_jax.data.store import GraphStore, open_store
from ewald_jax.data.store_writer import StoreWriter
from ewald_jax.graph.neighborhood import Neighborhood
from ewald_jax.typing import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

ENVIRONMENT = "EWALD_JAX_CACHE"
OFF = "none"

_FULL = (errno.ENOSPC, errno.EDQUOT)
_STALE_SECONDS = 24 * 3600
_SETTLED_SECONDS = 5
_SUFFIX = ".graphs"


def cache_directory(cache_dir: str = "") -> Path | None:
    """The folder of cached graphs.

    Args:
        cache_dir: A folder; ``""`` for the one in the environment variable EWALD_JAX_CACHE,
            or else ``ewald_jax`` in the user's cache folder; ``"none"`` for no cache.

    Returns:
        The folder, which need not exist, or None.
    """
    chosen = cache_dir or os.environ.get(ENVIRONMENT, "")
    if chosen == OFF:
        return None
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ewald_jax"


def cached_store(
    path: Path,
    reader: Reader,
    options: LabelOptions,
    neighborhood: Neighborhood | float,
    cache_dir: str = "",
    progress: bool = False,
    workers: int = 1,
    maps: OpenMaps | None = None,
) -> GraphStore:
    """The graphs of a file, from the cache if they are there, else built (and cached).

    Args:
        path: The file.
        reader: How it is read.
        options: Which labels to read.
        neighborhood: Which edges; a number is a cutoff, Å, that keeps all neighbors.
        cache_dir: See `cache_directory`.
        progress: Show a progress bar on stderr while building.
        workers: Processes that build.
        maps: Opens the entry when needed; one for all files of a data set, so that few are
            open at a time.

    Raises:
        InputError: If the file or a structure in it is broken, or changes while it is read,
            or the cache cannot be written.
    """
    neighborhood = Neighborhood.of(neighborhood)
    folder, maps = cache_directory(cache_dir), maps or OpenMaps()
    key = make_key(path, reader, options, neighborhood, folder)
    skipped: dict[int, str] | None = {} if options.on_error == "skip" else None
    frames = iterate(path, reader, skipped)
    graphs = Graphs(frames, str(path), options, neighborhood, skipped, workers, progress)
    if folder is None:
        return _build_in_memory(graphs, key)
    entry = folder / f"{key.entry}{_SUFFIX}"
    store = _open(entry, path, key, maps)
    if store is None:
        with _write_errors(folder):
            _build(entry, graphs, key)
            store = open_store(read_header(entry), str(path), key.fingerprint, maps)
    return store


def find_store(
    path: Path,
    reader: Reader,
    options: LabelOptions,
    neighborhood: Neighborhood | float,
    cache_dir: str = "",
    maps: OpenMaps | None = None,
) -> GraphStore | None:
    """The graphs of a file if they are in the cache; arguments as of `cached_store`."""
    folder = cache_directory(cache_dir)
    if folder is None:
        return None
    key = make_key(path, reader, options, Neighborhood.of(neighborhood), folder)
    return _open(folder / f"{key.entry}{_SUFFIX}", path, key, maps or OpenMaps())


def store_from_atoms(
    frames: Iterable[ase.Atoms],
    source: str,
    options: LabelOptions,
    neighborhood: Neighborhood | float,
) -> GraphStore:
    """The graphs of structures in memory.

    Raises:
        InputError: If a structure is broken, or labels are missing.
    """
    return _build_in_memory(Graphs(frames, source, options, Neighborhood.of(neighborhood)))


def _open(entry: Path, path: Path, key: Key, maps: OpenMaps) -> GraphStore | None:
    """The entry, or None if there is none that is complete."""
    try:
        return open_store(read_header(entry), str(path), key.fingerprint, maps)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        refuse_too_many(error, entry)
        return None


def _build_in_memory(graphs: Graphs, key: Key | None = None) -> GraphStore:
    with StoreWriter() as writer:
        _add_all(writer, graphs, key)
        fingerprint = "" if key is None else key.fingerprint
        store = writer.in_memory(graphs.source, fingerprint, graphs.skipped)
    store.fingerprint = store.fingerprint or _hash_arrays(store)
    return store


def _hash_arrays(store: GraphStore) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(store.arrays.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _add_all(writer: StoreWriter, graphs: Graphs, key: Key | None) -> None:
    with contextlib.closing(graphs.items()) as items:
        for structure, targets, info in items:
            writer.add(structure, targets, info)
    graphs.check_labels(len(writer))
    if not len(writer) and graphs.skipped:
        raise NothingWholeError(graphs.source, list(graphs.skipped.values()))
    if not len(writer):
        raise InputError(f"{graphs.source} has no structures, expected at least one")
    if key is not None:
        check_unchanged(key)


def _build(entry: Path, graphs: Graphs, key: Key) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(entry)
    building = entry.with_name(f"{entry.name}.tmp-{uuid.uuid4().hex}")
    building.mkdir()
    try:
        with _locked(building), StoreWriter(building) as writer:
            _add_all(writer, graphs, key)
            writer.finish(building / entry.name, graphs.source, graphs.skipped)
            _publish(building / entry.name, entry)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _publish(complete: Path, entry: Path) -> None:
    """Gives a complete file its name; one that is there is the same, or torn."""
    complete.replace(entry)


def _remove_stale(entry: Path) -> None:
    """What a killed process left of this entry, once nobody can be working on it."""
    for path in entry.parent.glob(f"{entry.name}.tmp-*"):
        with contextlib.suppress(OSError):
            age = time.time() - path.stat().st_mtime
            if age > _STALE_SECONDS or (age > _SETTLED_SECONDS and _abandoned(path)):
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Holds a directory as long as the process lives; yields whether it was free."""
    if fcntl is None:
        yield False
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        free = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # somebody has it, or the file system knows no locks
            free = False
        yield free
    finally:
        os.close(descriptor)


def _abandoned(directory: Path) -> bool:
    """Whether the process that made a directory has ended; False if nobody can tell."""
    with _locked(directory) as free:
        return free


@contextlib.contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    """Turns what a file system may answer into a sentence about the cache."""
    try:
        yield
    except OSError as error:
        refuse_too_many(error, folder)
        remedy = f"free space, or set data.cache_dir or {ENVIRONMENT} (a folder, or 'none')"
        if error.errno in _FULL:
            raise InputError(
                f"the disk of the cache folder {folder} is full, nothing was kept: {remedy}"
            ) from error
        raise InputError(
            f"the cache folder {folder} cannot be written ({error.strerror or error}), "
            f"expected a writable folder: {remedy}"
        ) from error
