"""Writes what a `store.GraphStore` holds: graphs one by one, into flat arrays or files."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ewald_jax.data.store import (
    FAR_RECEIVERS,
    FAR_SENDERS,
    FAR_SHIFTS,
    INFOS,
    LAYOUT,
    META,
    N_FAR,
    RECEIVERS,
    SENDERS,
)
from ewald_jax.graph.budgets import sizes_of
from ewald_jax.graph.schema import Structure


class StoreWriter:
    """Collects graphs one by one, in memory or in the files of a directory.

    Use as a context manager, so that files are closed whatever happens.
    """

    def __init__(self, directory: Path | None = None):
        """Args: directory: Where to write; None keeps everything in memory."""
        self._directory = directory
        self._columns: dict[str, _Column] = {}
        self._count = 0
        self._infos: list[dict[str, Any]] = []
        self._info_file: BinaryIO | None = None
        if directory is not None:
            self._info_file = open(directory / INFOS, "wb")

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
        rows = {
            **graph.nodes,
            **graph.edges,
            **graph.globals,
            SENDERS: graph.senders,
            RECEIVERS: graph.receivers,
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
                path = self._directory and self._directory / f"{name}.npy"
                self._columns[name] = _Column(path, shape, np.dtype(dtype))
            self._columns[name].append(np.reshape(values, (-1, *shape)))
        if self._info_file is None:
            self._infos.append(info)
        else:
            self._info_file.write(json.dumps(info).encode() + b"\n")

    def finish(
        self, skipped: Mapping[int, str] | None = None
    ) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """Completes the files, or returns what was collected in memory.

        Args:
            skipped: Sentences about structures that were left out, by their number.
        """
        arrays = {name: column.finish() for name, column in self._columns.items()}
        if self._directory is None:
            return arrays, self._infos
        self._info_file.close()
        size = (self._directory / INFOS).stat().st_size
        left_out = sorted((skipped or {}).items())
        meta = json.dumps(
            {"arrays": sorted(arrays), "infos_bytes": size, "skipped": left_out}
        )
        # Last, so that a directory with this file has all the others.
        (self._directory / META).write_text(meta, encoding="utf-8")
        return {}, []


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
