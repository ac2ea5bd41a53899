"""Graphs on disk, built once per file, neighborhood and choice of labels.

An entry is a directory named by a hash of everything its content depends on. It is written
under another name and renamed when complete, so an interrupted build leaves no entry, and
two processes that build the same entry do not disturb each other. An entry that does not
open, because a disk lost part of it, is built anew.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ase
import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from ewald_jax.data.content import content_hash
from ewald_jax.data.labels import LabelOptions, standardise, structure_targets
from ewald_jax.data.reading import NothingWholeError, Reader, check_file, iterate
from ewald_jax.data.store import TAGS, GraphStore, check_storable, open_store
from ewald_jax.data.store_writer import StoreWriter
from ewald_jax.data.structure_info import metadata
from ewald_jax.graph.build import structure_from_atoms
from ewald_jax.graph.schema import Neighborhood, Structure
from ewald_jax.typing import InputError

FORMAT_VERSION = 3
"""Raise it whenever an entry's arrays, or the graphs in them, change their meaning."""

ENVIRONMENT = "EWALD_JAX_CACHE"
OFF = "none"

_FULL = (errno.ENOSPC, errno.EDQUOT)
_STALE_SECONDS = 24 * 3600
_ATTEMPTS = 3


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
) -> GraphStore:
    """The graphs of a file, from the cache if they are there, else built (and cached).

    Args:
        path: The file.
        reader: How it is read.
        options: Which labels to read.
        neighborhood: Which edges; a number is a cutoff, Å, that keeps all neighbors.
        cache_dir: See `cache_directory`.
        progress: Show a progress bar on stderr while building.

    Raises:
        InputError: If the file or a structure in it is broken, or the cache cannot be written.
    """
    neighborhood = Neighborhood.of(neighborhood)
    folder = cache_directory(cache_dir)
    key = _key(path, reader, options, neighborhood, folder)
    skipped: dict[int, str] | None = {} if options.on_error == "skip" else None
    frames = standardise(iterate(path, reader, skipped), path, options, skipped)
    graphs = _Graphs(frames, str(path), neighborhood, progress, skipped)
    if folder is None:
        return _build_in_memory(graphs, str(path), key)
    entry = folder / key
    store = _open(entry, path, key)
    if store is None:
        with _write_errors(folder):
            _build(entry, graphs)
            store = open_store(entry, str(path), key)
    return store


def find_store(
    path: Path,
    reader: Reader,
    options: LabelOptions,
    neighborhood: Neighborhood | float,
    cache_dir: str = "",
) -> GraphStore | None:
    """The graphs of a file if they are in the cache; arguments as of `cached_store`."""
    folder = cache_directory(cache_dir)
    if folder is None:
        return None
    key = _key(path, reader, options, Neighborhood.of(neighborhood), folder)
    return _open(folder / key, path, key)


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
    standard = standardise(frames, source, options)
    graphs = _Graphs(standard, source, Neighborhood.of(neighborhood), progress=False)
    return _build_in_memory(graphs, source)


class _Graphs:
    """Graph and far edges, targets and metadata of each structure; errors name the place."""

    def __init__(self, frames, source, neighborhood, progress, skipped=None):
        self._frames, self.source, self._progress = frames, source, progress
        self.skipped = skipped
        # Wave vectors are made anew for each batch.
        self._neighborhood = dataclasses.replace(neighborhood, waves=None)

    def __iter__(self) -> Iterator[tuple[Structure, dict[str, np.ndarray], dict[str, Any]]]:
        name = Path(self.source).name
        with contextlib.ExitStack() as stack:
            if self._progress:
                bar = stack.enter_context(_progress_bar())
                task = bar.add_task(f"graphs of {name}", total=None)
            for index, atoms in enumerate(self._frames):
                if atoms is None:
                    continue
                try:
                    structure = structure_from_atoms(atoms, self._neighborhood, np.float64)
                    check_storable(structure)
                except InputError as error:
                    sentence = f"{self.source}: structure {index} {error}"
                    if self.skipped is None:
                        raise InputError(sentence) from error
                    self.skipped[index] = sentence
                    continue
                columns = structure_targets(atoms) | {TAGS: atoms.get_tags()}
                yield structure, columns, metadata(atoms)
                if self._progress:
                    bar.advance(task)


def _progress_bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _key(
    path: Path,
    reader: Reader,
    options: LabelOptions,
    neighborhood: Neighborhood,
    folder: Path | None,
) -> str:
    check_file(path)
    try:
        content = [content_hash(p, folder) for p in (path, *reader.companions(path))]
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}), expected a readable file"
        ) from error
    chosen = options._asdict()
    if not options.subtract:
        del chosen["subtract"]  # entries are older than the option
    parts = {
        "format": FORMAT_VERSION,
        "reader": reader.read.__name__,
        "content": content,
        "options": chosen,
        "edges": neighborhood.edge_fields(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(str(FORMAT_VERSION).encode())
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def _open(entry: Path, path: Path, key: str) -> GraphStore | None:
    """The entry, or None if there is none that is complete."""
    try:
        return open_store(entry, str(path), key)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _build_in_memory(graphs: _Graphs, source: str, key: str = "") -> GraphStore:
    with StoreWriter() as writer:
        for structure, targets, info in graphs:
            writer.add(structure, targets, info)
        arrays, infos = writer.finish(graphs.skipped) if len(writer) else ({}, [])
    _check_some(graphs, source, len(infos))
    return GraphStore(arrays, infos, source, key or _hash_arrays(arrays), graphs.skipped)


def _check_some(graphs: _Graphs, source: str, count: int) -> None:
    if count == 0 and graphs.skipped:
        raise NothingWholeError(source, list(graphs.skipped.values()))
    if count == 0:
        raise InputError(f"{source} has no structures, expected at least one")


def _build(entry: Path, graphs: _Graphs) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(entry)
    building = entry.with_name(f"{entry.name}.tmp-{uuid.uuid4().hex}")
    building.mkdir()
    try:
        with StoreWriter(building) as writer:
            for structure, targets, info in graphs:
                writer.add(structure, targets, info)
            _check_some(graphs, graphs.source, len(writer))
            writer.finish(graphs.skipped)
        _publish(building, entry)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _publish(building: Path, entry: Path) -> None:
    """Gives a complete directory its name, unless another process was faster."""
    for _ in range(_ATTEMPTS):
        try:
            building.rename(entry)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _open(entry, entry, "") is not None:
            return
        torn = entry.with_name(f"{building.name}-torn")
        # Fails only if another process repairs the entry at this moment.
        with contextlib.suppress(OSError):
            entry.rename(torn)
        shutil.rmtree(torn, ignore_errors=True)
    raise OSError(errno.EBUSY, "another process keeps replacing the same entry")


def _remove_stale(entry: Path) -> None:
    """What a killed process left of this entry, once nobody can be working on it."""
    for path in entry.parent.glob(f"{entry.name}.tmp-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    """Turns what a file system may answer into a sentence about the cache."""
    try:
        yield
    except OSError as error:
        remedy = f"free space, or set data.cache_dir or {ENVIRONMENT} (a folder, or 'none')"
        if error.errno in _FULL:
            raise InputError(
                f"the disk of the cache folder {folder} is full, nothing was kept: {remedy}"
            ) from error
        raise InputError(
            f"the cache folder {folder} cannot be written ({error.strerror or error}), "
            f"expected a writable folder: {remedy}"
        ) from error
