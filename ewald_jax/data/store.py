"""Graphs of one file as flat arrays, in memory or as .npy files that are mapped, not read.

One array per quantity holds all structures end to end; `n_node` and `n_edge` say where each
begins. Floats are float64 so that nothing is lost; indices take as few bytes as they can.
"""

import contextlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jraph
import numpy as np

from ewald_jax.graph.schema import (
    CELL,
    ENERGY,
    FORCES,
    FREE,
    PBC,
    POSITIONS,
    SHIFTS,
    SPECIES,
    STRESS,
)
from ewald_jax.typing import InputError

N_NODE, N_EDGE, SENDERS, RECEIVERS = "n_node", "n_edge", "senders", "receivers"

# name -> (what there is one row of, shape of a row, dtype on disk)
_LAYOUT: dict[str, tuple[str, tuple[int, ...], type]] = {
    N_NODE: ("graph", (), np.int32),
    N_EDGE: ("graph", (), np.int32),
    CELL: ("graph", (3, 3), np.float64),
    PBC: ("graph", (3,), np.bool_),
    SPECIES: ("node", (), np.uint8),
    POSITIONS: ("node", (3,), np.float64),
    FREE: ("node", (), np.bool_),
    SENDERS: ("edge", (), np.int32),
    RECEIVERS: ("edge", (), np.int32),
    SHIFTS: ("edge", (3,), np.int16),
    ENERGY: ("graph", (), np.float64),
    FORCES: ("node", (3,), np.float64),
    STRESS: ("graph", (3, 3), np.float64),
}
_LABELS = (ENERGY, FORCES, STRESS)
_META, _INFOS = "meta.json", "infos.jsonl"


class Sample(NamedTuple):
    """One structure.

    Attributes:
        graph: Unpadded graph of numpy arrays, floats in float64 (see `graph.schema`).
        targets: ``energy`` [] eV, ``forces`` [n, 3] eV/Å, ``stress`` [3, 3] eV/Å^3, ``free``
            [n] bool; labels that the data set does not have are absent.
    """

    graph: jraph.GraphsTuple
    targets: dict[str, np.ndarray]


class GraphStore:
    """All graphs of one file.

    Attributes:
        source: The file, for messages.
        fingerprint: What the content depends on, as a hash.
        arrays: Flat arrays by name.
        labels: The labels that every structure has.
        n_node: [structures] atoms of each.
        n_edge: [structures] edges of each.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        infos: list[dict[str, Any]] | Path,
        source: str,
        fingerprint: str,
    ):
        """Checks that the arrays belong together.

        Raises:
            ValueError: If they do not.
        """
        # Slices of a memmap cost ten times those of a plain view of the same memory.
        self.arrays = {name: np.asarray(array) for name, array in arrays.items()}
        self.source, self.fingerprint, self._infos = source, fingerprint, infos
        self.labels = tuple(name for name in _LABELS if name in self.arrays)
        self.n_node = np.array(self.arrays[N_NODE], np.int64)
        self.n_edge = np.array(self.arrays[N_EDGE], np.int64)
        self._first_node = np.concatenate([[0], np.cumsum(self.n_node)])
        self._first_edge = np.concatenate([[0], np.cumsum(self.n_edge)])
        rows = {
            "graph": len(self.n_node),
            "node": int(self._first_node[-1]),
            "edge": int(self._first_edge[-1]),
        }
        for name, (per, shape, dtype) in _LAYOUT.items():
            if name in _LABELS and name not in self.arrays:
                continue
            array = self.arrays[name]
            if array.shape != (rows[per], *shape) or array.dtype != dtype:
                raise ValueError(f"array {name} is {array.dtype} {array.shape}")

    def __len__(self) -> int:
        """Number of structures."""
        return len(self.n_node)

    @cached_property
    def all_free(self) -> bool:
        """Whether no atom of the file is fixed."""
        return bool(self.arrays[FREE].all())

    @cached_property
    def infos(self) -> list[dict[str, Any]]:
        """Metadata of every structure."""
        if isinstance(self._infos, Path):
            with open(self._infos, encoding="utf-8") as lines:
                return [json.loads(line) for line in lines]
        return self._infos

    def species(self, index: int) -> np.ndarray:
        """Atomic numbers [n] of a structure, int32."""
        nodes = slice(self._first_node[index], self._first_node[index + 1])
        return self.arrays[SPECIES][nodes].astype(np.int32)

    def sample(self, index: int) -> Sample:
        """One structure: views into the flat arrays where dtypes allow it."""
        a, n, e = self.arrays, self._first_node, self._first_edge
        graphs = slice(index, index + 1)
        nodes = slice(int(n[index]), int(n[index + 1]))
        edges = slice(int(e[index]), int(e[index + 1]))
        graph = jraph.GraphsTuple(
            nodes={
                POSITIONS: a[POSITIONS][nodes],
                SPECIES: a[SPECIES][nodes].astype(np.int32),
            },
            edges={SHIFTS: a[SHIFTS][edges].astype(np.int32)},
            senders=a[SENDERS][edges],
            receivers=a[RECEIVERS][edges],
            globals={CELL: a[CELL][graphs], PBC: a[PBC][graphs]},
            n_node=a[N_NODE][graphs],
            n_edge=a[N_EDGE][graphs],
        )
        where = {ENERGY: index, STRESS: index, FORCES: nodes}
        targets = {name: a[name][where[name]] for name in self.labels}
        return Sample(graph, {**targets, FREE: a[FREE][nodes]})


def check_storable(graph: jraph.GraphsTuple) -> None:
    """Refuses graphs that the small integer types cannot hold.

    Raises:
        InputError: If neighbors are too many lattice vectors apart.
    """
    shifts, limit = graph.edges[SHIFTS], np.iinfo(_LAYOUT[SHIFTS][2]).max
    if len(shifts) and np.abs(shifts).max() > limit:
        raise InputError(
            f"has atoms more than {limit} lattice vectors apart, expected positions near the "
            "cell"
        )


class StoreWriter:
    """Collects graphs one by one, in memory or in the files of a directory.

    Use as a context manager, so that files are closed whatever happens.
    """

    def __init__(self, directory: Path | None = None):
        """Args: directory: Where to write; None keeps everything in memory."""
        self._directory = directory
        self._columns: dict[str, _Column] = {}
        self._infos: list[dict[str, Any]] = []
        self._info_file: BinaryIO | None = None
        if directory is not None:
            self._info_file = open(directory / _INFOS, "wb")

    def __enter__(self) -> "StoreWriter":
        """Nothing to do: files are open already."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the files; `finish` has closed them already if all went well."""
        files = [column.file for column in self._columns.values()] + [self._info_file]
        for file in files:
            # On a full disk, closing fails as writing did.
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()

    def add(
        self,
        graph: jraph.GraphsTuple,
        targets: Mapping[str, np.ndarray],
        info: dict[str, Any],
    ) -> None:
        """Appends one structure; all structures must have the same labels."""
        rows = {
            **graph.nodes,
            **graph.edges,
            **graph.globals,
            SENDERS: graph.senders,
            RECEIVERS: graph.receivers,
            N_NODE: graph.n_node,
            N_EDGE: graph.n_edge,
            **targets,
        }
        for name, values in rows.items():
            per, shape, dtype = _LAYOUT[name]
            if name not in self._columns:
                path = self._directory and self._directory / f"{name}.npy"
                self._columns[name] = _Column(path, shape, np.dtype(dtype))
            self._columns[name].append(np.reshape(values, (-1, *shape)))
        if self._info_file is None:
            self._infos.append(info)
        else:
            self._info_file.write(json.dumps(info).encode() + b"\n")

    def finish(self) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """Completes the files, or returns what was collected in memory."""
        arrays = {name: column.finish() for name, column in self._columns.items()}
        if self._directory is None:
            return arrays, self._infos
        self._info_file.close()
        size = (self._directory / _INFOS).stat().st_size
        meta = json.dumps({"arrays": sorted(arrays), "infos_bytes": size})
        # Last, so that a directory with this file has all the others.
        (self._directory / _META).write_text(meta, encoding="utf-8")
        return {}, []


def open_store(directory: Path, source: str, fingerprint: str) -> GraphStore:
    """Maps the files that a `StoreWriter` made.

    Raises:
        OSError: If a file is missing.
        ValueError: If a file is truncated or the files do not belong together.
    """
    meta = json.loads((directory / _META).read_text(encoding="utf-8"))
    missing = set(_LAYOUT) - set(_LABELS) - set(meta["arrays"])
    if missing:
        raise ValueError(f"array {min(missing)} is missing")
    if (directory / _INFOS).stat().st_size != meta["infos_bytes"]:
        raise ValueError("metadata are truncated")
    arrays = {
        name: np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for name in meta["arrays"]
    }
    return GraphStore(arrays, directory / _INFOS, source, fingerprint)


class _Column:
    """One growing array: a list of pieces, or a .npy file whose header comes last."""

    def __init__(self, path: Path | None, shape: tuple[int, ...], dtype: np.dtype):
        self._shape, self._dtype, self._length = shape, dtype, 0
        self._pieces: list[np.ndarray] = []
        self.file: BinaryIO | None = None
        if path is not None:
            self.file = open(path, "wb")
            self._write_header()

    def append(self, rows: np.ndarray) -> None:
        # A copy even of the right dtype: rows may be a view of something large.
        rows = np.array(rows, self._dtype, order="C")
        self._length += len(rows)
        if self.file is None:
            self._pieces.append(rows)
        else:
            # Not tofile, which forgets why it failed (a full disk).
            self.file.write(rows.tobytes())

    def finish(self) -> np.ndarray | None:
        if self.file is None:
            return np.concatenate(self._pieces)
        self.file.seek(0)
        self._write_header()
        self.file.close()
        return None

    def _write_header(self) -> None:
        # numpy leaves room in the header for the first dimension to grow.
        np.lib.format.write_array_header_1_0(
            self.file,
            {
                "descr": np.lib.format.dtype_to_descr(self._dtype),
                "fortran_order": False,
                "shape": (self._length, *self._shape),
            },
        )
