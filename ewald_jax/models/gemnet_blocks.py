"""The blocks of GemNet-T: between edges, from edges to nodes, and back.

Source: Gasteiger, Becker, Günnemann, "GemNet" (NeurIPS 2021), figure 2 and appendix.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ewald_jax import ops
from ewald_jax.graph.schema import Triplets
from ewald_jax.nn.layers import (
    LinearMap,
    ResidualLayer,
    ScaledDense,
    he_orthogonal,
    scaled_silu,
)
from ewald_jax.nn.long_range import merge
from ewald_jax.nn.products import Readout, einsum, matmul
from ewald_jax.nn.scaling import ScaleFactor
from ewald_jax.typing import Array, Bool, Float, Int


class EdgeGraph(NamedTuple):
    """Ends of the edges, and which rows are real.

    Attributes:
        senders: [edges].
        receivers: [edges], ascending.
        node_mask: [nodes] True for atoms.
    """

    senders: Int[Array, " edges"]
    receivers: Int[Array, " edges"]
    node_mask: Bool[Array, " nodes"]

    @property
    def edge_mask(self) -> Bool[Array, " edges"]:
        """True for real edges."""
        return self.node_mask[self.receivers]


class Shared(NamedTuple):
    """What all blocks look at.

    Attributes:
        edges: Ends of the edges.
        triplets: Edges that meet at each node.
        harmonics: [nodes, in_slots, in_slots, spherical] of the angles, 0 where there is none.
        basis: [edges, features, spherical] from `TripletBasis`.
        rbf_triplets: [edges, features] embedded distances for `TripletInteraction`.
        rbf_atoms: The same for the node updates.
        rbf_output: The same for the output blocks.
    """

    edges: EdgeGraph
    triplets: Triplets
    harmonics: Float[Array, "nodes in_slots in_slots spherical"]
    basis: Float[Array, "edges feat spherical"]
    rbf_triplets: Float[Array, "edges rbf_feat"]
    rbf_atoms: Float[Array, "edges rbf_feat"]
    rbf_output: Float[Array, "edges rbf_feat"]


def residuals(x: Float[Array, "rows feat"], count: int, name: str) -> Array:
    """`count` residual layers, inside a compact method."""
    for i in range(count):
        x = ResidualLayer(name=f"{name}_{i}")(x)
    return x


class EdgeEmbedding(nn.Module):
    """New edge features from those of both nodes and of the edge.

    Attributes:
        features: Output channels.
    """

    features: int

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "nodes feat"],
        m: Float[Array, "edges edge_feat"],
        edges: EdgeGraph,
    ) -> Float[Array, "edges out"]:
        """Computes the features."""
        nodes, edge = h.shape[-1], m.shape[-1]
        kernel = self.param("kernel", he_orthogonal, (2 * nodes + edge, self.features))
        # The product of a concatenation, without repeating the nodes' part on every edge.
        of_sender, of_receiver, of_edge = jnp.split(kernel, (nodes, 2 * nodes))
        ends = matmul(h, of_sender)[edges.senders]
        ends = ends + matmul(h, of_receiver)[edges.receivers]
        return scaled_silu(ends + matmul(m, of_edge))


class TripletBasis(nn.Module):
    """Radial half of the basis of the angles, projected down; shared by all blocks.

    Attributes:
        num_spherical: Angular functions.
        features: Width of the projection.
    """

    num_spherical: int
    features: int

    @nn.compact
    def __call__(
        self, rbf: Float[Array, "edges basis"]
    ) -> Float[Array, "edges feat spherical"]:
        """Projects the radial basis, once for each angular function."""
        shape = (self.num_spherical, rbf.shape[-1], self.features)
        kernel = self.param("kernel", he_orthogonal, shape)
        return einsum("er,srf->efs", rbf, kernel)


class TripletInteraction(nn.Module):
    """Messages from the edges b -> a to the edge c -> a, by the angle between them.

    Attributes:
        down: Width of the messages.
        bilinear: Width behind the bilinear layer.
    """

    down: int
    bilinear: int

    @nn.compact
    def __call__(
        self, m: Float[Array, "edges feat"], shared: Shared
    ) -> Float[Array, "edges feat"]:
        """Computes the update of the edge features."""
        width, mask, triplets = m.shape[-1], shared.edges.edge_mask, shared.triplets
        x = ScaledDense(width, name="dense")(m)
        scaled = x * LinearMap(width, name="rbf")(shared.rbf_triplets)
        x = ScaleFactor(name="scale_rbf")(scaled, x, mask)
        x = ScaledDense(self.down, name="down")(x)  # [edges, down]

        # Sum over b in slots, then back to the edges: [edges, spherical, down].
        ends = ops.to_dense(x, triplets.in_edges)
        total = einsum("nbcs,nbf->ncsf", shared.harmonics, ends)
        total = ops.from_dense(total, triplets.in_slot)
        product = einsum("eis,esf->efi", shared.basis, total)
        shape = (self.down, shared.basis.shape[1], self.bilinear)
        kernel = self.param("bilinear", he_orthogonal, shape)
        y = einsum("efi,fio->eo", product, kernel)
        y = ScaleFactor(name="scale_sum")(y, x, mask)

        forward = ScaledDense(width, name="up_forward")(y)
        backward = ScaledDense(width, name="up_backward")(y)
        backward = ops.gather(backward, triplets.reverse)
        return merge(forward, backward)


class AtomUpdate(nn.Module):
    """From edges to nodes.

    Attributes:
        features: Output channels.
        num_residual: Residual layers.
    """

    features: int
    num_residual: int

    @nn.compact
    def __call__(
        self,
        m: Float[Array, "edges feat"],
        rbf: Float[Array, "edges rbf_feat"],
        edges: EdgeGraph,
    ) -> Float[Array, "nodes out"]:
        """Computes the update of the node features."""
        x = m * LinearMap(m.shape[-1], name="rbf")(rbf)
        x = jax.ops.segment_sum(
            x, edges.receivers, edges.node_mask.shape[0], indices_are_sorted=True
        )
        x = ScaleFactor(name="scale_sum")(x, m, edges.node_mask, edges.edge_mask)
        x = ScaledDense(self.features, name="dense")(x)
        return residuals(x, self.num_residual, "residual")


class DirectForces(nn.Module):
    """A force along each edge, not the derivative of anything (GemNet-dT).

    Attributes:
        num_residual: Residual layers.
    """

    num_residual: int

    @nn.compact
    def __call__(
        self,
        m: Float[Array, "edges feat"],
        rbf: Float[Array, "edges rbf_feat"],
        edges: EdgeGraph,
    ) -> Float[Array, "edges 1"]:
        """Computes the size of the force on the receiver, away from the sender."""
        x = ScaledDense(m.shape[-1], name="dense")(m)
        x = residuals(x, self.num_residual, "residual")
        scaled = x * LinearMap(m.shape[-1], name="rbf")(rbf)
        x = ScaleFactor(name="scale_rbf")(scaled, x, edges.edge_mask)
        return Readout(use_bias=False, kernel_init=he_orthogonal, name="force")(x)
