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

from typing import Any, Final, NamedTuple

import jraph

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


class Batch(NamedTuple):
    """Structures ready for a model: graph, dense layout, labels (see the module's table).

    Attributes:
        graph: Atoms and edges, padded.
        dense_index: [rows, slots] int32, node of each slot of the dense layout.
        targets: Labels; empty when there are none.
        triplets: Triplet indices of models that need them, else None.
    """

    graph: jraph.GraphsTuple
    dense_index: Array
    targets: dict[str, Array]
    triplets: Any = None


class Budget(NamedTuple):
    """Static sizes of a padded batch.

    Attributes:
        n_node: Nodes, at least one more than the structures have.
        n_edge: Edges.
        n_graph: Graphs, at least one more than there are structures.
        max_nodes: Slots of the dense layout, atoms of the largest structure.
    """

    n_node: int
    n_edge: int
    n_graph: int
    max_nodes: int
