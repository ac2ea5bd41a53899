"""DimeNet++, with and without Ewald message passing.

Source: Gasteiger, Giri, Margraf, Günnemann, "Fast and uncertainty-aware directional message
passing for non-equilibrium molecules" (2020); architecture details as in PyTorch Geometric
and the Open Catalyst Project, so that their weights load. Ewald message passing works on
atoms, which DimeNet++ has no features of: Kosmala et al. give it a stream of its own.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from ewald_jax import ops
from ewald_jax.graph.schema import Batch, Triplets
from ewald_jax.models.dimenet_blocks import EdgeEmbedding, Interaction, OutputBlock
from ewald_jax.nn.angles import triplet_cosines
from ewald_jax.nn.atom_to_atom import AtomToAtomConfig
from ewald_jax.nn.basis import SineBasis, legendre_basis, spherical_bessel_basis
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.nn.ewald_geometry import KSpace
from ewald_jax.nn.layers import ElementEmbedding
from ewald_jax.nn.long_range import LongRange, merge
from ewald_jax.nn.products import Precision
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
        precision: Of the products of matrices, see `nn.products`: "float32", "tf32", "bfloat16"
            or "float64".
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
    precision: Precision = "float32"

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
        list[Float[Array, "nodes out_slots in_slots"]],
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
        cosine, exists = jnp.swapaxes(cosine, 1, 2), jnp.swapaxes(exists, 1, 2)
        harmonics = jnp.unstack(legendre_basis(cosine, self.num_spherical), axis=-1)
        return radial, [jnp.where(exists, harmonic, 0.0) for harmonic in harmonics]
