"""Graphs of one file as flat arrays, in memory or in a file that is mapped, not read.

One array per quantity holds all structures end to end; `n_node`, `n_edge` and `n_far` say where
each begins. Floats are float64 so that nothing is lost; indices take as few bytes as they can.
Structures of equal composition share a row of a table, `formulas`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jraph
import numpy as np

from ewald_jax.data.info import InfoTable, check_columns
from ewald_jax.data.packed import OpenMaps, Packed
from ewald_jax.data.reading import REST
from ewald_jax.graph.schema import (
    CELL,
    ENERGY,
    FORCES,
    FREE,
    MAX_ATOMIC_NUMBER,
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
TAGS, FORMULA, FORMULAS = "tags", "formula", "formulas"

# name -> (what there is one row of, shape of a row, dtype on disk)
LAYOUT: dict[str, tuple[str, tuple[int, ...], type]] = {
    N_NODE: ("graph", (), np.int32),
    N_EDGE: ("graph", (), np.int32),
    IN_SLOTS: ("graph", (), np.int32),
    OUT_SLOTS: ("graph", (), np.int32),
    CELL: ("graph", (3, 3), np.float64),
    PBC: ("graph", (3,), np.bool_),
    FORMULA: ("graph", (), np.int32),
    FORMULAS: ("formula", (MAX_ATOMIC_NUMBER + 1,), np.int32),
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
_COUNTS = ((N_NODE, "node"), (N_EDGE, "edge"), (N_FAR, "far edge"))


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
        labels: The labels that every structure has.
        all_free: Whether no atom of the file is fixed.
        infos: Metadata of every structure.
        skipped: Sentences about broken structures that were left out, by their number.
    """

    def __init__(
        self,
        arrays: Callable[[], Mapping[str, np.ndarray]],
        infos: Sequence[dict[str, Any]],
        source: str,
        fingerprint: str,
        skipped: Mapping[int, str] | None = None,
        all_free: bool = True,
    ):
        """Checks that the arrays belong together.

        Args:
            arrays: Gives the flat arrays by name; called for each structure anew, so that
                nothing stays open.
            infos: See above, as the other arguments.
            source: See above.
            fingerprint: See above.
            skipped: See above.
            all_free: See above.

        Raises:
            ValueError: If they do not.
        """
        self._arrays, self.infos = arrays, infos
        self.source, self.fingerprint = source, fingerprint
        self.skipped, self.all_free = dict(sorted((skipped or {}).items())), all_free
        now = arrays()
        self.labels = tuple(name for name in _LABELS if name in now)
        self._has_far = N_FAR in now
        self._count = len(now[N_NODE])
        absent = set(_LABELS) - set(now) | set(() if self._has_far else _FAR)
        rows = {"graph": self._count, "formula": len(now[FORMULAS])}
        rows |= {per: int(now[name].sum()) for name, per in _COUNTS if name in now}
        for name, (per, shape, dtype) in LAYOUT.items():
            if name in absent:
                continue
            array = now[name]
            if array.shape != (rows[per], *shape) or array.dtype != dtype:
                raise ValueError(f"array {name} is {array.dtype} {array.shape}")

    def __len__(self) -> int:
        """Number of structures."""
        return self._count

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """The flat arrays by name; a file stays open as long as one of them is kept."""
        return self._arrays()

    @property
    def sizes(self) -> Sizes:
        """What each structure takes up in a batch, made anew at each call."""
        arrays, none = self._arrays(), np.zeros(self._count, np.int64)
        columns = [
            np.array(arrays.get(name, none), np.int64)
            for name in (N_NODE, N_EDGE, N_FAR, IN_SLOTS, OUT_SLOTS)
        ]
        # Wave vectors depend on the model's settings and are not stored.
        return Sizes(*columns, n_kvecs=none, n_pairs=none, n_quad=none)

    @cached_property
    def _firsts(self) -> tuple[np.ndarray, ...]:
        """[structures + 1] where nodes, edges and far edges of each begin."""
        arrays = self._arrays()
        return tuple(
            np.concatenate([[0], np.cumsum(arrays[name], dtype=np.int64)])
            for name, _ in _COUNTS
            if name in arrays
        )

    def number_in_file(self, index: int) -> int:
        """Which structure of the file it is, those that were left out counted."""
        for left_out in self.skipped:
            index += left_out <= index
        return index

    def numbers(self) -> np.ndarray:
        """[structures] which of the file each is.

        Raises:
            InputError: If the file could not be read to its end, so that nobody knows.
        """
        torn = [text for text in self.skipped.values() if text.endswith(REST)]
        if torn:
            raise InputError(f"{torn[0]}, so that its rows cannot be counted")
        return np.setdiff1d(np.arange(len(self) + len(self.skipped)), list(self.skipped))

    def species(self, index: int) -> np.ndarray:
        """Atomic numbers [n] of a structure, int32."""
        first = self._firsts[0]
        return self._arrays()[SPECIES][first[index] : first[index + 1]].astype(np.int32)

    def sample(self, index: int) -> Sample:
        """One structure: copies, so that whoever keeps them keeps no file open."""
        arrays = self._arrays()
        graphs = slice(index, index + 1)
        nodes, edges, *far = (slice(*first[index : index + 2]) for first in self._firsts)

        def rows(name: str, where: slice, dtype: type | None = None) -> np.ndarray:
            return np.array(arrays[name][where], dtype)

        graph = jraph.GraphsTuple(
            nodes={
                POSITIONS: rows(POSITIONS, nodes),
                SPECIES: rows(SPECIES, nodes, np.int32),
            },
            edges={SHIFTS: rows(SHIFTS, edges, np.int32)},
            senders=rows(SENDERS, edges),
            receivers=rows(RECEIVERS, edges),
            globals={CELL: rows(CELL, graphs), PBC: rows(PBC, graphs)},
            n_node=rows(N_NODE, graphs),
            n_edge=rows(N_EDGE, graphs),
        )
        where = {ENERGY: index, STRESS: index, FORCES: nodes}
        targets = {name: arrays[name][where[name]].copy() for name in self.labels}
        targets[FREE] = rows(FREE, nodes)
        far_edges = None
        if self._has_far:
            far_edges = Edges(
                rows(FAR_SENDERS, far[0]),
                rows(FAR_RECEIVERS, far[0]),
                rows(FAR_SHIFTS, far[0], np.int32),
            )
        return Sample(graph, targets, far_edges, tags=rows(TAGS, nodes))


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


def open_store(packed: Packed, source: str, fingerprint: str, maps: OpenMaps) -> GraphStore:
    """The graphs in a file that a `store_writer.StoreWriter` made.

    Args:
        packed: Its header.
        source: The file they were read from, as it is called now.
        fingerprint: See `GraphStore`.
        maps: Opens it when needed.

    Raises:
        KeyError, TypeError, ValueError: If the arrays do not belong together.
    """
    facts, count = packed.facts, packed.arrays[N_NODE][1][0]
    shapes = {name: place[:2] for name, place in packed.arrays.items()}
    check_columns(shapes, facts["infos"], count)

    def arrays() -> Mapping[str, np.ndarray]:
        return maps.arrays(packed)

    skipped = {int(index): source + str(rest) for index, rest in facts["skipped"]}
    infos = InfoTable(arrays, facts["infos"], count)
    return GraphStore(arrays, infos, source, fingerprint, skipped, bool(facts["all_free"]))
