"""Graphs of one file as flat arrays, in memory or as .npy files that are mapped, not read.

One array per quantity holds all structures end to end; `n_node`, `n_edge` and `n_far` say where
each begins. Floats are float64 so that nothing is lost; indices take as few bytes as they can.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

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
    Edges,
    Sizes,
    Structure,
)
from ewald_jax.kspace.waves import WaveSet
from ewald_jax.typing import InputError

N_NODE, N_EDGE, SENDERS, RECEIVERS = "n_node", "n_edge", "senders", "receivers"
IN_SLOTS, OUT_SLOTS, N_FAR = "in_slots", "out_slots", "n_far"
FAR_SENDERS, FAR_RECEIVERS, FAR_SHIFTS = "far_senders", "far_receivers", "far_shifts"
TAGS = "tags"

# name -> (what there is one row of, shape of a row, dtype on disk)
LAYOUT: dict[str, tuple[str, tuple[int, ...], type]] = {
    N_NODE: ("graph", (), np.int32),
    N_EDGE: ("graph", (), np.int32),
    IN_SLOTS: ("graph", (), np.int32),
    OUT_SLOTS: ("graph", (), np.int32),
    CELL: ("graph", (3, 3), np.float64),
    PBC: ("graph", (3,), np.bool_),
    SPECIES: ("node", (), np.uint8),
    POSITIONS: ("node", (3,), np.float64),
    FREE: ("node", (), np.bool_),
    TAGS: ("node", (), np.int32),
    SENDERS: ("edge", (), np.int32),
    RECEIVERS: ("edge", (), np.int32),
    SHIFTS: ("edge", (3,), np.int16),
    ENERGY: ("graph", (), np.float64),
    FORCES: ("node", (3,), np.float64),
    STRESS: ("graph", (3, 3), np.float64),
    N_FAR: ("graph", (), np.int32),
    FAR_SENDERS: ("far edge", (), np.int32),
    FAR_RECEIVERS: ("far edge", (), np.int32),
    FAR_SHIFTS: ("far edge", (3,), np.int16),
}
_LABELS = (ENERGY, FORCES, STRESS)
_FAR = (N_FAR, FAR_SENDERS, FAR_RECEIVERS, FAR_SHIFTS)
META, INFOS = "meta.json", "infos.jsonl"


class Sample(NamedTuple):
    """One structure.

    Attributes:
        graph: Unpadded graph of numpy arrays, floats in float64 (see `graph.schema`).
        targets: ``energy`` [] eV, ``forces`` [n, 3] eV/Å, ``stress`` [3, 3] eV/Å^3, ``free``
            [n] bool; labels that the data set does not have are absent.
        far_edges: The second set of edges, if the data set was made with one.
        waves: The wave vectors, if the data set's neighborhood asks for them.
        tags: [n] ASE's tags, 0 where a file has none; in OC20 0 is below the surface, 1 the
            surface, 2 the adsorbate.
    """

    graph: jraph.GraphsTuple
    targets: dict[str, np.ndarray]
    far_edges: Edges | None = None
    waves: WaveSet | None = None
    tags: np.ndarray | None = None

    @property
    def structure(self) -> Structure:
        """What goes into a batch beside the labels."""
        return Structure(self.graph, self.far_edges, self.waves)


class GraphStore:
    """All graphs of one file.

    Attributes:
        source: The file, for messages.
        fingerprint: What the content depends on, as a hash.
        arrays: Flat arrays by name.
        labels: The labels that every structure has.
        sizes: What each structure takes up in a batch.
        skipped: Sentences about broken structures that were left out, by their number.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        infos: list[dict[str, Any]] | Path,
        source: str,
        fingerprint: str,
        skipped: Mapping[int, str] | None = None,
    ):
        """Checks that the arrays belong together.

        Raises:
            ValueError: If they do not.
        """
        # Slices of a memmap cost ten times those of a plain view of the same memory.
        self.arrays = {name: np.asarray(array) for name, array in arrays.items()}
        self.source, self.fingerprint, self._infos = source, fingerprint, infos
        self.skipped = dict(skipped or {})
        self.labels = tuple(name for name in _LABELS if name in self.arrays)
        self._has_far = N_FAR in self.arrays
        no_far = np.zeros(len(self.arrays[N_NODE]))
        columns = [
            np.array(self.arrays.get(name, no_far), np.int64)
            for name in (N_NODE, N_EDGE, N_FAR, IN_SLOTS, OUT_SLOTS)
        ]
        # Wave vectors depend on the model's settings and are not stored.
        none = np.zeros(len(columns[0]), np.int64)
        self.sizes = Sizes(*columns, n_kvecs=none, n_pairs=none, n_quad=none)
        self._first_node, self._first_edge, self._first_far = (
            np.concatenate([[0], np.cumsum(count)]) for count in self.sizes[:3]
        )
        rows = {
            "graph": len(self.sizes.n_node),
            "node": int(self._first_node[-1]),
            "edge": int(self._first_edge[-1]),
            "far edge": int(self._first_far[-1]),
        }
        absent = set(_LABELS) - set(self.arrays) | set(() if self._has_far else _FAR)
        for name, (per, shape, dtype) in LAYOUT.items():
            if name in absent:
                continue
            array = self.arrays[name]
            if array.shape != (rows[per], *shape) or array.dtype != dtype:
                raise ValueError(f"array {name} is {array.dtype} {array.shape}")

    def __len__(self) -> int:
        """Number of structures."""
        return len(self.sizes.n_node)

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

    def number_in_file(self, index: int) -> int:
        """Which structure of the file it is, those that were left out counted."""
        for left_out in sorted(self.skipped):
            index += left_out <= index
        return index

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
        targets[FREE] = a[FREE][nodes]
        return Sample(graph, targets, self._far_edges(index), tags=a[TAGS][nodes])

    def _far_edges(self, index: int) -> Edges | None:
        if not self._has_far:
            return None
        far = slice(int(self._first_far[index]), int(self._first_far[index + 1]))
        return Edges(
            self.arrays[FAR_SENDERS][far],
            self.arrays[FAR_RECEIVERS][far],
            self.arrays[FAR_SHIFTS][far].astype(np.int32),
        )


def check_storable(structure: Structure) -> None:
    """Refuses structures that the small integer types cannot hold.

    Raises:
        InputError: If neighbors are too many lattice vectors apart.
    """
    limit = np.iinfo(LAYOUT[SHIFTS][2]).max
    far = () if structure.far_edges is None else (structure.far_edges.shifts,)
    for shifts in (structure.graph.edges[SHIFTS], *far):
        if np.abs(shifts).max(initial=0) > limit:
            raise InputError(
                f"has atoms more than {limit} lattice vectors apart, expected positions near "
                "the cell"
            )


def open_store(directory: Path, source: str, fingerprint: str) -> GraphStore:
    """Maps the files that a `store_writer.StoreWriter` made.

    Raises:
        OSError: If a file is missing.
        ValueError: If a file is truncated or the files do not belong together.
    """
    meta = json.loads((directory / META).read_text(encoding="utf-8"))
    missing = set(LAYOUT) - set(_LABELS) - set(_FAR) - set(meta["arrays"])
    if missing:
        raise ValueError(f"array {min(missing)} is missing")
    if (directory / INFOS).stat().st_size != meta["infos_bytes"]:
        raise ValueError("metadata are truncated")
    arrays = {
        name: np.load(directory / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        for name in meta["arrays"]
    }
    skipped = {int(index): str(sentence) for index, sentence in meta["skipped"]}
    return GraphStore(arrays, directory / INFOS, source, fingerprint, skipped)
