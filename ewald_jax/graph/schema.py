"""The data structure of the package: one padded batch of structures.

`Batch.graph` is a `jraph.GraphsTuple` in jraph's words. Every array of it:

==================== ================= ========================================== ==========
key                  shape, dtype      meaning, unit                              padding
==================== ================= ========================================== ==========
``n_node``           [graphs] int32    atoms of each structure                    the rest
``n_edge``           [graphs] int32    edges of each structure                    the rest
``senders``          [edges] int32     node that sends                            first pad node
``receivers``        [edges] int32     node that receives                         first pad node
``nodes.positions``  [nodes, 3] float  Cartesian positions, Å                     0
``nodes.species``    [nodes] int32     atomic number                              0
``edges.shifts``     [edges, 3] int32  lattice translation of the sender          0
``globals.cell``     [graphs, 3, 3]    rows are lattice vectors, Å                identity
``globals.pbc``      [graphs, 3] bool  periodic along each lattice vector         False
==================== ================= ========================================== ==========

An edge's vector is ``positions[senders] + shifts @ cell - positions[receivers]``: it points
from the receiver to the image of the sender. Lattice vectors that are zero and not periodic
are completed by unit vectors orthogonal to the others (a structure without a cell has the
identity), so that the cell can always be inverted.

Padding follows jraph: one or more graphs at the end, the first of which holds all padding
nodes and edges.

``Batch.dense_index`` [rows, slots] int32 gives the dense per-structure layout of the k-space
sums: the node in each slot, or ``nodes`` (one past the end) for an empty slot. Its shape
carries the static sizes. ``rows`` leaves out the last graph of a padded batch, which is
always padding.

``Batch.triplets``, for models with angles, lists the edges that meet at each node; each pair of
them is a triplet of atoms. ``Batch.far_edges``, for models with the atom-to-atom block, is a
second set of edges on the same nodes with a larger cutoff. ``Batch.pairs`` and ``far_pairs``
join the two edges of each pair of atoms, for filters that depend on the distance alone.
``Batch.waves``, for models with the `radial` scheme of Ewald message passing, holds the wave
vectors as the host chose them for the boundary conditions. All are absent (None) for models
that do not need them; see `Triplets`, `Edges`, `Pairs` and `Waves` for shapes and padding.

``Batch.targets`` holds labels beside the graph, where no model sees them:

=========== =================== ========================================= =======
key         shape               meaning, unit                             padding
=========== =================== ========================================= =======
``energy``  [graphs] float      energy of the structure, eV               0
``forces``  [nodes, 3] float    -dE/dx, eV/Å                              0
``stress``  [graphs, 3, 3]      dE/dstrain / V, eV/Å^3                    0
``free``    [nodes] bool        atoms that count in force losses, metrics False
=========== =================== ========================================= =======

A label that the data do not have is an absent key, never a NaN.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import jraph
import numpy as np

from ewald_jax.kspace.waves import WaveSet
from ewald_jax.typing import Array

POSITIONS: Final = "positions"
SPECIES: Final = "species"
SHIFTS: Final = "shifts"
CELL: Final = "cell"
PBC: Final = "pbc"

ENERGY: Final = "energy"
FORCES: Final = "forces"
STRESS: Final = "stress"
FREE: Final = "free"

MAX_ATOMIC_NUMBER: Final = 118

GRAPH_TARGETS: Final = (ENERGY, STRESS)
"""Targets with one value per structure."""

NODE_TARGETS: Final = (FORCES, FREE)
"""Targets with one value per atom."""


class Edges(NamedTuple):
    """A second set of edges on the nodes of a graph.

    Attributes:
        senders: [far_edges] int32; the first padding node for padding.
        receivers: [far_edges] int32, ascending; the first padding node for padding.
        shifts: [far_edges, 3] int32 lattice translation of the sender; 0 for padding.
    """

    senders: Array
    receivers: Array
    shifts: Array


class Pairs(NamedTuple):
    """The two edges of each pair of atoms: what depends on the distance alone they share.

    Edges of padding are pairs among themselves, the last of an odd number by itself.

    Attributes:
        first: [pairs] int32 one edge of each pair.
        second: [pairs] int32 the edge the other way.
        pair: [edges] int32 the pair that each edge belongs to.
    """

    first: Array
    second: Array
    pair: Array


class Triplets(NamedTuple):
    """The edges that meet at each node, in slots: dense, so that sums over them are products.

    Edges k -> j and j -> i are a triplet with j in the middle, as are two edges into j. Empty
    slots and edges of padding hold one past the last index.

    Attributes:
        in_edges: [nodes, in_slots] int32 edges that end at each node.
        out_edges: [nodes, out_slots] int32 edges that start at each node.
        in_slot: [edges] int32 where an edge stands in `in_edges`, flattened.
        out_slot: [edges] int32 where it stands in `out_edges`, flattened.
        reverse: [edges] int32 the same pair of atoms the other way, empty if there is none.
    """

    in_edges: Array
    out_edges: Array
    in_slot: Array
    out_slot: Array
    reverse: Array


class Waves(NamedTuple):
    """Wave vectors of the `radial` scheme, periodic axes first (see `kspace.waves`).

    Attributes:
        indices: [rows, kvecs, 3] int32 on the reciprocal lattice; 0 for padding.
        directions: [rows, kvecs, 3] float unit vectors on open axes; 0 for padding.
        nodes: [rows, kvecs] float nodes of the quadrature; 0 for padding.
        weights: [rows, kvecs] float quadrature weights; 0 for padding.
        pair_index: [pair_rows, slots] int32 nodes of the molecules whose message is a sum over
            pairs, as many molecules to a row as fit; ``nodes`` for an empty slot.
        senders: [pairs] int32 first node of each pair i < j of these molecules, in order; the
            first padding node for padding.
        receivers: [pairs] int32 second node of it.
        quad_nodes: [quad] float nodes x = k / k_cutoff of the pair form.
        quad_weights: [quad] float their weights.
    """

    indices: Array
    directions: Array
    nodes: Array
    weights: Array
    pair_index: Array
    senders: Array
    receivers: Array
    quad_nodes: Array
    quad_weights: Array


class Structure(NamedTuple):
    """One structure before batching.

    Attributes:
        graph: One unpadded graph, numpy arrays.
        far_edges: The second set of edges, if the neighborhood has one.
        waves: The wave vectors, if the neighborhood has a rule for them.
    """

    graph: jraph.GraphsTuple
    far_edges: Edges | None = None
    waves: WaveSet | None = None


class Batch(NamedTuple):
    """Structures ready for a model: graph, dense layout, labels (see the module's table).

    Attributes:
        graph: Atoms and edges, padded.
        dense_index: [rows, slots] int32, node of each slot of the dense layout.
        targets: Labels; empty when there are none.
        triplets: For models with angles, else None.
        far_edges: For models with the atom-to-atom block, else None.
        waves: For models with the `radial` scheme, else None.
        mesh: For crystals on a mesh int32 indices of its waves along each axis, else None.
        pairs: Of `graph`'s edges, for models that share what both edges of a pair have in
            common, else None.
        far_pairs: Of `far_edges`, likewise.
    """

    graph: jraph.GraphsTuple
    dense_index: Array
    targets: dict[str, Array]
    triplets: Triplets | None = None
    far_edges: Edges | None = None
    waves: Waves | None = None
    mesh: tuple[Array, Array, Array] | None = None
    pairs: Pairs | None = None
    far_pairs: Pairs | None = None


class Sizes(NamedTuple):
    """What structures take up in a batch, one entry per structure.

    Attributes:
        n_node: [structures] atoms.
        n_edge: [structures] edges.
        n_far: [structures] edges of the second set.
        in_slots: [structures] most edges that end at one node.
        out_slots: [structures] most edges that start at one node.
        n_kvecs: [structures] wave vectors.
        n_pairs: [structures] pairs of atoms, of molecules in pair form.
        n_quad: [structures] nodes of the pair form.
    """

    n_node: Array
    n_edge: Array
    n_far: Array
    in_slots: Array
    out_slots: Array
    n_kvecs: Array
    n_pairs: Array
    n_quad: Array

    def take(self, indices: Sequence[int] | np.ndarray) -> "Sizes":
        """The sizes of some of the structures."""
        return Sizes(*(sizes[indices] for sizes in self))


class Budget(NamedTuple):
    """Static sizes of a padded batch.

    Attributes:
        n_node: Nodes, at least one more than the structures have.
        n_edge: Edges.
        n_graph: Graphs, at least one more than there are structures.
        max_nodes: Slots of the dense layout, atoms of the largest structure.
        n_far: Edges of the second set, 0 without one.
        in_slots: Slots for edges that end at a node, 0 for no triplets.
        out_slots: Slots for edges that start at a node, 0 for no triplets.
        n_kvecs: Wave vectors of a structure, 0 for none.
        n_pairs: Pairs of atoms of all molecules in pair form, 0 for none.
        pair_rows: Rows of `max_nodes` slots for these molecules.
        n_quad: Nodes of the pair form, 0 for none.
        mesh: Least points of a mesh along each lattice vector.
    """

    n_node: int
    n_edge: int
    n_graph: int
    max_nodes: int
    n_far: int = 0
    in_slots: int = 0
    out_slots: int = 0
    n_kvecs: int = 0
    n_pairs: int = 0
    pair_rows: int = 0
    n_quad: int = 0
    mesh: tuple[int, int, int] = (0, 0, 0)
