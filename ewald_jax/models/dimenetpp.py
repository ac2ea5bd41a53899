"""DimeNet++, with and without Ewald message passing.

Source: Gasteiger, Giri, Margraf, Günnemann, "Fast and uncertainty-aware directional message
passing for non-equilibrium molecules" (2020); architecture details as in PyTorch Geometric
and the Open Catalyst Project, so that their weights load. Ewald message passing works on
atoms, which DimeNet++ has no features of: Kosmala et al. give it a stream of its own.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ewald_jax import ops
from ewald_jax.graph.schema import Batch, Triplets
from ewald_jax.nn.angles import triplet_cosines
from ewald_jax.nn.atom_to_atom import AtomToAtomConfig
from ewald_jax.nn.basis import SineBasis, legendre_basis, spherical_bessel_basis
from ewald_jax.nn.ewald import EwaldConfig, KSpace
from ewald_jax.nn.layers import (
    ElementEmbedding,
    fan_in_uniform,
    glorot_orthogonal,
    unit_uniform,
)
from ewald_jax.nn.long_range import LongRange, merge
from ewald_jax.nn.sizes import check_sizes
from ewald_jax.typing import Array, Float

_STREAM_ELEMENTS = 83
"""Rows of the element embedding of the atoms' own stream (reference code)."""


class DimeNetPlusPlus(nn.Module):
    """Directional messages: edge features that depend on distances and angles.

    Attributes:
        hidden_channels: Width of the edge features.
        out_emb_channels: Width of the atom features in the output blocks.
        num_blocks: Interaction blocks.
        int_emb_size: Width of the edge features while angles act on them.
        basis_emb_size: Width of the embedded bases.
        num_spherical: Angular functions.
        num_radial: Radial functions.
        num_before_skip: Residual layers of an interaction before the skip connection.
        num_after_skip: Residual layers after it.
        num_output_layers: Dense layers of each output block.
        envelope_exponent: p of the cutoff function.
        cutoff: Å.
        max_neighbors: Nearest neighbors of each atom that are kept; None keeps all.
        num_elements: Rows of the element embedding; atomic numbers stay below it.
        ewald: Ewald message passing in the atoms' own stream; None for the baseline.
        atomic: Atom-to-atom block in that stream; None for none.
    """

    hidden_channels: int = 128
    out_emb_channels: int = 192
    num_blocks: int = 3
    int_emb_size: int = 64
    basis_emb_size: int = 8
    num_spherical: int = 7
    num_radial: int = 6
    num_before_skip: int = 1
    num_after_skip: int = 2
    num_output_layers: int = 3
    envelope_exponent: int = 5
    cutoff: float = 6.0
    max_neighbors: int | None = None
    num_elements: int = 95
    ewald: EwaldConfig | None = None
    atomic: AtomToAtomConfig | None = None

    needs_triplets: ClassVar[bool] = True

    @property
    def max_atomic_number(self) -> int:
        """The heaviest element that has an embedding."""
        alone = self.ewald is None and self.atomic is None
        return (
            self.num_elements - 1 if alone else min(self.num_elements - 1, _STREAM_ELEMENTS)
        )

    def __post_init__(self):
        """Refuses sizes that make no network.

        Raises:
            InputError: If one is out of range.
        """
        check_sizes(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, batch: Batch, kspace: KSpace | None = None
    ) -> Float[Array, " nodes"]:
        """Computes the energy of each node.

        Args:
            batch: Structures, with triplets.
            kspace: From `kspace_geometry` if `ewald` is set.

        Returns:
            Node energies in model units; arbitrary for padding nodes.
        """
        graph, species = batch.graph, batch.graph.nodes["species"]
        vectors = ops.edge_vectors(graph)
        distances = ops.safe_norm(vectors)
        rbf = SineBasis(self.num_radial, self.cutoff, self.envelope_exponent, name="rbf")(
            distances
        )
        angular = self._angular_basis(vectors, distances, batch.triplets)
        receivers, n_node = graph.receivers, species.shape[0]

        long_range = LongRange(self.ewald, self.atomic, batch, kspace)
        h = None  # the atoms' own stream
        if long_range:
            h = ElementEmbedding(_STREAM_ELEMENTS, self.hidden_channels, name="embedding")(
                species
            ).astype(distances.dtype)
        x = EdgeEmbedding(self.num_elements, self.hidden_channels, name="edge_embedding")(
            species, rbf, graph.senders, receivers
        )
        # The stream with Ewald messages has weights of its own in the output.
        options = (self.out_emb_channels, self.num_output_layers, self.ewald is not None)
        energy = OutputBlock(*options, name="output_0")(x, rbf, receivers, n_node, h)
        for i in range(self.num_blocks):
            x = Interaction(
                self.int_emb_size,
                self.basis_emb_size,
                self.num_before_skip,
                self.num_after_skip,
                name=f"interaction_{i}",
            )(x, rbf, *angular, batch.triplets)
            if long_range:
                h = merge(h, *long_range(i, h))
            energy = energy + OutputBlock(*options, name=f"output_{i + 1}")(
                x, rbf, receivers, n_node, h
            )
        return energy[:, 0]

    def _angular_basis(
        self, vectors: Array, distances: Array, triplets: Triplets
    ) -> tuple[
        Float[Array, "edges spherical radial"],
        Float[Array, "nodes in_slots out_slots spherical"],
    ]:
        """The two factors of the 2D basis: of the edge k -> j, and of the angle k -> j -> i."""
        radial = spherical_bessel_basis(
            # Padding edges have no length.
            jnp.where(distances > 0, distances, self.cutoff),
            self.cutoff,
            self.num_spherical,
            self.num_radial,
            self.envelope_exponent,
        )
        cosine, exists = triplet_cosines(vectors, distances, triplets)
        harmonics = legendre_basis(cosine, self.num_spherical)
        return radial, jnp.where(exists[..., None], harmonics, 0.0)


class EdgeEmbedding(nn.Module):
    """First edge features: both elements and the distance.

    Attributes:
        num_elements: Rows of the element embedding.
        features: Width of the edge features.
    """

    num_elements: int
    features: int

    @nn.compact
    def __call__(
        self,
        species: Array,
        rbf: Float[Array, "edges basis"],
        senders: Array,
        receivers: Array,
    ) -> Float[Array, "edges feat"]:
        """Computes the features."""
        width = self.features
        table = nn.Embed(
            self.num_elements, width, embedding_init=unit_uniform, name="elements"
        )
        h = table(species).astype(rbf.dtype)
        radial = nn.silu(_torch_dense(width, rbf.shape[-1], "radial")(rbf))
        kernel = self.param("kernel", fan_in_uniform(3 * width), (3 * width, width))
        bias = self.param("bias", fan_in_uniform(3 * width), (width,))
        # The product of a concatenation, without repeating the nodes' part on every edge.
        of_receiver, of_sender, of_radial = jnp.split(kernel, 3)
        out = (h @ of_receiver)[receivers] + (h @ of_sender)[senders] + radial @ of_radial
        return nn.silu(out + bias)


class Interaction(nn.Module):
    """One exchange between edges that meet at a node.

    Attributes:
        int_emb_size: Width of the messages.
        basis_emb_size: Width of the embedded bases.
        num_before_skip: Residual layers before the skip connection.
        num_after_skip: Residual layers after it.
    """

    int_emb_size: int
    basis_emb_size: int
    num_before_skip: int
    num_after_skip: int

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "edges feat"],
        rbf: Float[Array, "edges basis"],
        radial: Float[Array, "edges spherical radial"],
        harmonics: Float[Array, "nodes in_slots out_slots spherical"],
        triplets: Triplets,
    ) -> Float[Array, "edges feat"]:
        """Computes the new edge features."""
        width, basis = x.shape[-1], self.basis_emb_size
        x_ji = nn.silu(_dense(width, "lin_ji")(x))
        x_kj = nn.silu(_dense(width, "lin_kj")(x))
        x_kj = x_kj * _linear(width, "rbf_1")(_linear(basis, "rbf_0")(rbf))
        x_kj = nn.silu(_linear(self.int_emb_size, "down")(x_kj))

        # Sum over k of x_kj times a bilinear function of both factors of the basis.
        _, spherical, count = radial.shape
        kernel = self.param("sbf_0", glorot_orthogonal, (spherical * count, basis))
        kernel = kernel.reshape(spherical, count, basis)
        of_edge = jnp.einsum("elr,lrb->elb", radial, kernel)
        of_edge = ops.to_dense(of_edge, triplets.in_edges)
        of_pair = jnp.einsum("niol,nilb->nobi", harmonics, of_edge)
        message = ops.to_dense(x_kj, triplets.in_edges)
        total = jnp.einsum("nobi,nif->nobf", of_pair, message)
        total = ops.from_dense(total, triplets.out_slot)
        expand = self.param("sbf_1", glorot_orthogonal, (basis, self.int_emb_size))
        x_kj = nn.silu(_linear(width, "up")(jnp.sum(total * expand, axis=1)))

        h = x_ji + x_kj
        for i in range(self.num_before_skip):
            h = Residual(name=f"before_skip_{i}")(h)
        h = nn.silu(_dense(width, "lin")(h)) + x
        for i in range(self.num_after_skip):
            h = Residual(name=f"after_skip_{i}")(h)
        return h


class Residual(nn.Module):
    """``x + D2(D1(x))`` with SiLU after each dense layer."""

    @nn.compact
    def __call__(self, x: Float[Array, "edges feat"]) -> Float[Array, "edges feat"]:
        """Applies the layer."""
        y = nn.silu(_dense(x.shape[-1], "lin_0")(x))
        return x + nn.silu(_dense(x.shape[-1], "lin_1")(y))


class OutputBlock(nn.Module):
    """From edge features to node energies.

    Attributes:
        features: Width of the node features.
        num_layers: Dense layers.
        concatenate: Give the atoms' own stream weights of its own; otherwise it is added.
    """

    features: int
    num_layers: int
    concatenate: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "edges feat"],
        rbf: Float[Array, "edges basis"],
        receivers: Array,
        n_node: int,
        stream: Float[Array, "nodes feat"] | None,
    ) -> Float[Array, "nodes 1"]:
        """Computes the energies."""
        x = x * _linear(x.shape[-1], "rbf")(rbf)
        x = jax.ops.segment_sum(x, receivers, n_node, indices_are_sorted=True)
        if stream is not None:
            # Added, the stream needs no more weights: the paper's atom-to-atom variant has
            # none, and its stream never reached the output.
            x = jnp.concatenate([x, stream], -1) if self.concatenate else merge(x, stream)
        bias = fan_in_uniform(x.shape[-1])
        x = nn.Dense(
            self.features, kernel_init=glorot_orthogonal, bias_init=bias, name="up"
        )(x)
        for i in range(self.num_layers):
            x = nn.silu(_dense(self.features, f"lin_{i}")(x))
        zeros = nn.initializers.zeros
        return nn.Dense(1, use_bias=False, kernel_init=zeros, name="energy")(x)


def _dense(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=glorot_orthogonal, name=name)


def _linear(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, use_bias=False, kernel_init=glorot_orthogonal, name=name)


def _torch_dense(features: int, fan_in: int, name: str) -> nn.Dense:
    init = fan_in_uniform(fan_in)
    return nn.Dense(features, kernel_init=init, bias_init=init, name=name)
