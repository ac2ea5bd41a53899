"""The blocks of DimeNet++: embedding, exchange between edges, output.

Source: Gasteiger, Giri, Margraf, Günnemann, "Fast and uncertainty-aware directional message
passing for non-equilibrium molecules" (2020), figure 1.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ewald_jax import ops
from ewald_jax.graph.schema import Triplets
from ewald_jax.nn.layers import fan_in_uniform, glorot_orthogonal, silu, unit_uniform
from ewald_jax.nn.long_range import merge
from ewald_jax.nn.products import Dense, Readout, einsum, matmul
from ewald_jax.typing import Array, Float


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
        radial = silu(_torch_dense(width, rbf.shape[-1], "radial")(rbf))
        kernel = self.param("kernel", fan_in_uniform(3 * width), (3 * width, width))
        bias = self.param("bias", fan_in_uniform(3 * width), (width,))
        # The product of a concatenation, without repeating the nodes' part on every edge.
        of_receiver, of_sender, of_radial = jnp.split(kernel, 3)
        out = matmul(h, of_receiver)[receivers] + matmul(h, of_sender)[senders]
        out = out + matmul(radial, of_radial)
        return silu(out + bias[None])


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
        harmonics: Sequence[Float[Array, "nodes out_slots in_slots"]],
        triplets: Triplets,
    ) -> Float[Array, "edges feat"]:
        """Computes the new edge features."""
        width, basis = x.shape[-1], self.basis_emb_size
        x_ji = silu(_dense(width, "lin_ji")(x))
        x_kj = silu(_dense(width, "lin_kj")(x))
        x_kj = x_kj * _linear(width, "rbf_1")(_linear(basis, "rbf_0")(rbf))
        x_kj = silu(_linear(self.int_emb_size, "down")(x_kj))

        # Sum over k of x_kj times a bilinear function of both factors of the basis.
        _, spherical, count = radial.shape
        kernel = self.param("sbf_0", glorot_orthogonal, (spherical * count, basis))
        kernel = kernel.reshape(spherical, count, basis)
        of_edge = einsum("elr,lrb->elb", radial, kernel)
        of_edge = jnp.transpose(ops.to_dense(of_edge, triplets.in_edges), (2, 0, 3, 1))
        # One by one: matrices of so few rows and columns would be slower.
        of_pair = sum(
            harmonic[:, :, None] * embedded[:, None]
            for harmonic, embedded in zip(harmonics, of_edge, strict=True)
        )  # [nodes, out_slots, basis, in_slots]
        message = ops.to_dense(x_kj, triplets.in_edges)
        total = einsum("nobi,nif->nobf", of_pair, message)
        total = ops.from_dense(total, triplets.out_slot)
        expand = self.param("sbf_1", glorot_orthogonal, (basis, self.int_emb_size))
        x_kj = silu(_linear(width, "up")(jnp.sum(total * expand[None], axis=1)))

        h = x_ji + x_kj
        for i in range(self.num_before_skip):
            h = Residual(name=f"before_skip_{i}")(h)
        h = silu(_dense(width, "lin")(h)) + x
        for i in range(self.num_after_skip):
            h = Residual(name=f"after_skip_{i}")(h)
        return h


class Residual(nn.Module):
    """``x + D2(D1(x))`` with SiLU after each dense layer."""

    @nn.compact
    def __call__(self, x: Float[Array, "edges feat"]) -> Float[Array, "edges feat"]:
        """Applies the layer."""
        y = silu(_dense(x.shape[-1], "lin_0")(x))
        return x + silu(_dense(x.shape[-1], "lin_1")(y))


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
        x = Dense(self.features, kernel_init=glorot_orthogonal, bias_init=bias, name="up")(
            x
        )
        for i in range(self.num_layers):
            x = silu(_dense(self.features, f"lin_{i}")(x))
        zeros = nn.initializers.zeros
        return Readout(use_bias=False, kernel_init=zeros, name="energy")(x)


def _dense(features: int, name: str) -> nn.Dense:
    return Dense(features, kernel_init=glorot_orthogonal, name=name)


def _linear(features: int, name: str) -> nn.Dense:
    return Dense(features, use_bias=False, kernel_init=glorot_orthogonal, name=name)


def _torch_dense(features: int, fan_in: int, name: str) -> nn.Dense:
    init = fan_in_uniform(fan_in)
    return Dense(features, kernel_init=init, bias_init=init, name=name)
