"""GemNet-T and GemNet-dT, with and without Ewald message passing.

Source: Gasteiger, Becker, Günnemann, "GemNet: universal directional graph neural networks for
molecules" (NeurIPS 2021), the variant without quadruplets; architecture details as in the
Open Catalyst Project, so that its weights load. Names of sizes are those of its configs.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ewald_jax import ops
from ewald_jax.graph.schema import Batch
from ewald_jax.models.gemnet_blocks import (
    AtomUpdate,
    DirectForces,
    EdgeEmbedding,
    EdgeGraph,
    Shared,
    TripletBasis,
    TripletInteraction,
    residuals,
)
from ewald_jax.nn.angles import receiver_cosines
from ewald_jax.nn.atom_to_atom import AtomToAtomConfig
from ewald_jax.nn.basis import enveloped_gaussians, legendre_basis
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.nn.ewald_geometry import KSpace
from ewald_jax.nn.layers import ElementEmbedding, LinearMap, ScaledDense, he_orthogonal
from ewald_jax.nn.long_range import LongRange, merge
from ewald_jax.nn.products import Precision, Readout
from ewald_jax.nn.sizes import check_sizes
from ewald_jax.typing import Array, Float


class GemNetT(nn.Module):
    """Directional messages between edges, with symmetric exchange along both directions.

    Attributes:
        emb_size_atom: Width of the node features.
        emb_size_edge: Width of the edge features.
        emb_size_trip: Width of the edge features while angles act on them.
        emb_size_rbf: Width of the embedded radial bases.
        emb_size_cbf: Width of the embedded angular basis.
        emb_size_bil_trip: Width behind the bilinear layer of the angles.
        num_blocks: Interaction blocks.
        num_spherical: Angular functions.
        num_radial: Gaussians that expand the distances.
        num_before_skip: Residual layers of an interaction before the skip connection.
        num_after_skip: Residual layers after it.
        num_concat: Residual layers after the node features join the edges'.
        num_atom: Residual layers of the node updates, and of the Ewald blocks.
        cutoff: Å.
        max_neighbors: Nearest neighbors of each atom that are kept; None keeps all.
        num_elements: Rows of the element embedding, the largest atomic number.
        direct_forces: Predict forces along the edges in place of the derivative (GemNet-dT).
        ewald: Ewald message passing beside each node update; None for the baseline. Its
            `num_hidden` is not used: `num_atom` takes its place, as published.
        atomic: Atom-to-atom block beside each node update; None for none.
        precision: Of the products of matrices, see `nn.products`: "float32", "tf32", "bfloat16"
            or "float64".
    """

    emb_size_atom: int = 128
    emb_size_edge: int = 128
    emb_size_trip: int = 64
    emb_size_rbf: int = 16
    emb_size_cbf: int = 16
    emb_size_bil_trip: int = 64
    num_blocks: int = 3
    num_spherical: int = 7
    num_radial: int = 128
    num_before_skip: int = 1
    num_after_skip: int = 2
    num_concat: int = 1
    num_atom: int = 3
    cutoff: float = 6.0
    max_neighbors: int | None = None
    num_elements: int = 83
    direct_forces: bool = False
    ewald: EwaldConfig | None = None
    atomic: AtomToAtomConfig | None = None
    precision: Precision = "float32"

    needs_triplets: ClassVar[bool] = True
    symmetric_edges: ClassVar[bool] = True

    @property
    def max_atomic_number(self) -> int:
        """The heaviest element that has an embedding."""
        return self.num_elements

    def __post_init__(self):
        """Refuses sizes that make no network.

        Raises:
            InputError: If one is out of range.
        """
        check_sizes(self, at_least={"num_radial": 2})
        super().__post_init__()

    @nn.compact
    def __call__(
        self, batch: Batch, kspace: KSpace | None = None
    ) -> Float[Array, " nodes"] | tuple[Float[Array, " nodes"], Float[Array, "nodes 3"]]:
        """Computes the energy of each node, and with `direct_forces` its force.

        Args:
            batch: Structures, with triplets.
            kspace: From `kspace_geometry` if `ewald` is set.

        Returns:
            Node energies in model units, arbitrary for padding nodes; with `direct_forces`
            also the forces.
        """
        graph, triplets = batch.graph, batch.triplets
        vectors = ops.edge_vectors(graph)
        distances = ops.safe_norm(vectors)
        rbf = enveloped_gaussians(distances, self.cutoff, self.num_radial)
        cosine, exists = receiver_cosines(vectors, distances, triplets)
        harmonics = legendre_basis(cosine, self.num_spherical)
        harmonics = jnp.where(exists[..., None], harmonics, 0.0)
        edges = EdgeGraph(graph.senders, graph.receivers, ops.node_mask(graph))
        shared = Shared(
            edges,
            triplets,
            harmonics,
            TripletBasis(self.num_spherical, self.emb_size_cbf, name="triplet_basis")(rbf),
            *(
                LinearMap(self.emb_size_rbf, name=f"rbf_{name}")(rbf)
                for name in ("triplets", "atoms", "output")
            ),
        )
        long_range = LongRange(
            self.ewald, self.atomic, batch, kspace, num_hidden=self.num_atom, scaled=True
        )
        h = ElementEmbedding(self.num_elements, self.emb_size_atom, name="embedding")(
            graph.nodes["species"]
        ).astype(distances.dtype)
        m = EdgeEmbedding(self.emb_size_edge, name="edge_embedding")(h, rbf, edges)

        energy, force = self._output(0, m, shared)
        for i in range(self.num_blocks):
            h, m = self._interaction(i, h, m, shared, long_range)
            more_energy, more_force = self._output(i + 1, m, shared)
            energy, force = energy + more_energy, force + more_force
        if not self.direct_forces:
            return energy[:, 0]
        # Edge vectors point to the sender; a positive force pushes the receiver away.
        units = -vectors / jnp.where(distances > 0, distances, 1.0)[:, None]
        forces = jax.ops.segment_sum(
            force * units, graph.receivers, h.shape[0], indices_are_sorted=True
        )
        return energy[:, 0], forces

    def _output(self, i: int, m: Array, shared: Shared) -> tuple[Array, Array]:
        """Energies [nodes, 1] and forces along the edges [edges, 1] of one block."""
        rbf, edges = shared.rbf_output, shared.edges
        x = AtomUpdate(self.emb_size_atom, self.num_atom, name=f"output_{i}")(m, rbf, edges)
        readout = Readout(use_bias=False, kernel_init=he_orthogonal, name=f"energy_{i}")
        energy = readout(x)
        if not self.direct_forces:
            return energy, jnp.zeros((m.shape[0], 1), m.dtype)
        return energy, DirectForces(self.num_atom, name=f"force_{i}")(m, rbf, edges)

    def _interaction(
        self, i: int, h: Array, m: Array, shared: Shared, long_range: LongRange
    ) -> tuple[Array, Array]:
        """Exchange between edges, from edges to nodes, and back."""
        name, width = f"block_{i}", self.emb_size_edge
        skip = ScaledDense(width, name=f"{name}_skip")(m)
        x = TripletInteraction(
            self.emb_size_trip, self.emb_size_bil_trip, name=f"{name}_triplets"
        )(m, shared)
        x = residuals(merge(skip, x), self.num_before_skip, f"{name}_before_skip")
        m = residuals(merge(m, x), self.num_after_skip, f"{name}_after_skip")
        update = AtomUpdate(self.emb_size_atom, self.num_atom, name=f"{name}_atoms")(
            m, shared.rbf_atoms, shared.edges
        )
        h = merge(h, update, *long_range(i, h))
        x = EdgeEmbedding(width, name=f"{name}_concat")(h, m, shared.edges)
        return h, merge(m, residuals(x, self.num_concat, f"{name}_residual"))
