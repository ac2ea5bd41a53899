"""Writes what a `store.GraphStore` holds: graphs one by one, into arrays or a file."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ewald_jax.data.info import InfoTable, to_columns
from ewald_jax.data.packed import Column, write_packed
from ewald_jax.data.store import (
    FAR_RECEIVERS,
    FAR_SENDERS,
    FAR_SHIFTS,
    FORMULA,
    FORMULAS,
    LAYOUT,
    N_FAR,
    RECEIVERS,
    SENDERS,
    GraphStore,
)
from ewald_jax.graph.budgets import sizes_of
from ewald_jax.graph.schema import FREE, SPECIES, Structure

_INFOS = "infos.jsonl"


class StoreWriter:
    """Collects graphs one by one, in memory or in the files of a directory.

    Use as a context manager, so that files are closed whatever happens.
    """

    def __init__(self, directory: Path | None = None):
        """Args: directory: Where to write; None keeps everything in memory."""
        self._directory = directory
        self._columns: dict[str, _Column] = {}
        self._count = 0
        self._formulas: dict[bytes, int] = {}
        self._all_free = True
        self._infos: list[dict[str, Any]] = []
        self._info_file: BinaryIO | None = None
        if directory is not None:
            self._info_file = open(directory / _INFOS, "wb")

    def __len__(self) -> int:
        """Structures so far."""
        return self._count

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
        structure: Structure,
        targets: Mapping[str, np.ndarray],
        info: dict[str, Any],
    ) -> None:
        """Appends one structure; all must have the same labels, and far edges or none."""
        graph, far_edges = structure.graph, structure.far_edges
        self._count += 1
        self._all_free &= bool(np.all(targets[FREE]))
        rows = {
            **graph.nodes,
            **graph.edges,
            **graph.globals,
            SENDERS: graph.senders,
            RECEIVERS: graph.receivers,
            FORMULA: self._formula(graph.nodes[SPECIES]),
            **sizes_of([structure])._asdict(),
            **targets,
        }
        # Wave vectors depend on the model's settings and are not stored.
        del rows["n_kvecs"], rows["n_pairs"], rows["n_quad"]
        if far_edges is None:
            del rows[N_FAR]
        else:
            rows[FAR_SENDERS], rows[FAR_RECEIVERS], rows[FAR_SHIFTS] = far_edges
        for name, values in rows.items():
            _, shape, dtype = LAYOUT[name]
            if name not in self._columns:
                path = self._directory and self._directory / name
                self._columns[name] = _Column(path, shape, np.dtype(dtype))
            self._columns[name].append(np.reshape(values, (-1, *shape)))
        if self._info_file is None:
            self._infos.append(info)
        else:
            self._info_file.write(json.dumps(info).encode() + b"\n")

    def in_memory(
        self, source: str, fingerprint: str, skipped: Mapping[int, str] | None = None
    ) -> GraphStore:
        """The graphs, of a writer without a directory; arguments as of `GraphStore`."""
        arrays = {name: column.joined() for name, column in self._columns.items()}
        arrays[FORMULAS] = self._table()
        columns, keys = to_columns(self._infos)
        infos = InfoTable(lambda: columns, keys, self._count)
        return GraphStore(
            lambda: arrays, infos, source, fingerprint, skipped, self._all_free
        )

    def finish(
        self, path: Path, source: str, skipped: Mapping[int, str] | None = None
    ) -> None:
        """Joins the files of the directory into one.

        Args:
            path: The file to write.
            source: The file that the graphs are of.
            skipped: Sentences about structures that were left out, by their number; each
                begins with `source`, which is left out as it may change.
        """
        columns = {name: column.close() for name, column in self._columns.items()}
        table = self._table()
        columns[FORMULAS] = Column(table.dtype, table.shape, table)
        self._info_file.close()
        arrays, keys = to_columns(self._read_infos())
        for name, array in arrays.items():
            columns[name] = Column(array.dtype, array.shape, array)
        left_out = [
            (index, sentence.removeprefix(source))
            for index, sentence in sorted((skipped or {}).items())
        ]
        facts = {"infos": keys, "skipped": left_out, "all_free": self._all_free}
        write_packed(path, columns, facts)

    def _formula(self, species: np.ndarray) -> np.ndarray:
        """Row of the table of compositions, a new one if needed."""
        width = LAYOUT[FORMULAS][1][0]
        counted = np.bincount(species, minlength=width).astype(np.int32).tobytes()
        return np.array(self._formulas.setdefault(counted, len(self._formulas)))

    def _table(self) -> np.ndarray:
        _, shape, dtype = LAYOUT[FORMULAS]
        return np.frombuffer(b"".join(self._formulas), dtype).reshape(-1, *shape)

    def _read_infos(self) -> Iterator[dict[str, Any]]:
        with open(self._directory / _INFOS, encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)


class _Column:
    """One growing array: a list of pieces, or a file of its bytes."""

    def __init__(self, path: Path | None, shape: tuple[int, ...], dtype: np.dtype):
        self._path, self._shape, self._dtype, self._length = path, shape, dtype, 0
        self._pieces: list[np.ndarray] = []
        self.file: BinaryIO | None = None if path is None else open(path, "wb")

    def append(self, rows: np.ndarray) -> None:
        # A copy even of the right dtype: rows may be a view of something large.
        rows = np.array(rows, self._dtype, order="C")
        self._length += len(rows)
        if self.file is None:
            self._pieces.append(rows)
        else:
            # Not tofile, which forgets why it failed (a full disk).
            self.file.write(rows.tobytes())

    def joined(self) -> np.ndarray:
        """All rows, of a column in memory."""
        return np.concatenate(self._pieces)

    def close(self) -> Column:
        """What was written, of a column on disk."""
        self.file.close()
        return Column(self._dtype, (self._length, *self._shape), self._path)
