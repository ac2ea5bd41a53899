"""PaiNN, with and without Ewald message passing.

Source: Schütt, Unke, Gastegger, "Equivariant message passing for the prediction of tensorial
properties and molecular spectra" (ICML 2021); architecture details as in the Open Catalyst
Project, so that its weights load.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ewald_jax import ops
from ewald_jax.graph.schema import Batch
from ewald_jax.nn.atom_to_atom import AtomToAtomConfig
from ewald_jax.nn.basis import enveloped_gaussians, polynomial_envelope
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.nn.ewald_geometry import KSpace
from ewald_jax.nn.layers import ElementEmbedding, scaled_silu
from ewald_jax.nn.long_range import LongRange, merge
from ewald_jax.nn.products import Dense, Precision, Readout, matmul
from ewald_jax.nn.scaling import ScaleFactor
from ewald_jax.nn.sizes import check_sizes
from ewald_jax.typing import Array, Float

_xavier = nn.initializers.xavier_uniform()

_NORM_EPSILON = 1e-8
"""Added to squared norms of features, so that their roots have slopes at zero, as published."""


class PaiNN(nn.Module):
    """Scalar and vector features, coupled by equivariant messages and updates.

    Attributes:
        hidden_channels: Width of the scalar and of the vector features.
        num_layers: Message and update blocks.
        num_rbf: Gaussians that expand the distances.
        cutoff: Å.
        max_neighbors: Nearest neighbors of each atom that are kept; None keeps all.
        num_elements: Rows of the element embedding, the largest atomic number.
        smooth_cutoff: Multiply the whole filter by the envelope, as the paper does. The Open
            Catalyst Project's leaves out its bias, so that energies jump where an edge
            appears; False only for its weights.
        direct_forces: Predict forces from the vector features in place of the derivative.
        ewald: Ewald message passing beside each message; None for the baseline.
        atomic: Atom-to-atom block beside each message; None for none.
        precision: Of the products of matrices, see `nn.products`: "float32", "tf32", "bfloat16"
            or "float64".
    """

    hidden_channels: int = 128
    num_layers: int = 4
    num_rbf: int = 64
    cutoff: float = 6.0
    max_neighbors: int | None = None
    num_elements: int = 83
    smooth_cutoff: bool = True
    direct_forces: bool = False
    ewald: EwaldConfig | None = None
    atomic: AtomToAtomConfig | None = None
    precision: Precision = "float32"

    needs_triplets: ClassVar[bool] = False
    symmetric_edges: ClassVar[bool] = True
    has_vectors: ClassVar[bool] = True

    @property
    def max_atomic_number(self) -> int:
        """The heaviest element that has an embedding."""
        return self.num_elements

    def __post_init__(self):
        """Refuses sizes that make no network.

        Raises:
            InputError: If one is out of range.
        """
        check_sizes(self, at_least={"hidden_channels": 2, "num_rbf": 2})
        super().__post_init__()

    @nn.compact
    def __call__(
        self, batch: Batch, kspace: KSpace | None = None
    ) -> Float[Array, " nodes"] | tuple[Float[Array, " nodes"], Float[Array, "nodes 3"]]:
        """Computes the energy of each node, and with `direct_forces` its force.

        Args:
            batch: Structures.
            kspace: From `kspace_geometry` if `ewald` is set.

        Returns:
            Node energies in model units, arbitrary for padding nodes; with `direct_forces`
            also the forces.
        """
        graph = batch.graph
        vectors = ops.edge_vectors(graph)
        distances = ops.safe_norm(vectors)
        units = vectors / jnp.where(distances > 0, distances, 1.0)[:, None]
        rbf = enveloped_gaussians(distances, self.cutoff, self.num_rbf)
        envelope = (
            polynomial_envelope(distances / self.cutoff) if self.smooth_cutoff else None
        )
        long_range = LongRange(self.ewald, self.atomic, batch, kspace)
        x = ElementEmbedding(self.num_elements, self.hidden_channels, name="embedding")(
            graph.nodes["species"]
        ).astype(distances.dtype)
        v = jnp.zeros((x.shape[0], 3, x.shape[1]), x.dtype)
        edges = (rbf, envelope, units, graph.senders, graph.receivers)
        for i in range(self.num_layers):
            dx, dv = Message(name=f"message_{i}")(x, v, *edges)
            x, v = merge(x, dx, *long_range(i, x)), sum(long_range.vectors(i, v), v + dv)
            dx, dv = Update(name=f"update_{i}")(x, v)
            x = ScaleFactor(name=f"scale_{i}")(x + dx, mask=ops.node_mask(graph))
            v = v + dv
        half = self.hidden_channels // 2
        h = Dense(half, kernel_init=_xavier, name="output_0")(x)
        energy = Readout(kernel_init=_xavier, name="output_1")(scaled_silu(h))[:, 0]
        if not self.direct_forces:
            return energy
        y, v = GatedBlock(half, name="force_0")(x, v)
        _, v = GatedBlock(1, name="force_1")(y, v)
        return energy, v[:, :, 0]


class Message(nn.Module):
    """Messages along the edges: scalars, and vectors of the sender and of the edge."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "nodes feat"],
        v: Float[Array, "nodes 3 feat"],
        rbf: Float[Array, "edges basis"],
        envelope: Float[Array, " edges"] | None,
        units: Float[Array, "edges 3"],
        senders: Array,
        receivers: Array,
    ) -> tuple[Float[Array, "nodes feat"], Float[Array, "nodes 3 feat"]]:
        """Computes the updates of scalars and vectors."""
        width = x.shape[-1]
        normed = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")(x)
        features = _mlp(normed, width, 3 * width, "features")
        kernel = self.param(
            "filter_kernel", _xavier, (rbf.shape[-1], 3 * width), jnp.float32
        )
        bias = self.param("filter_bias", nn.initializers.zeros, (3 * width,), jnp.float32)
        bias = bias.astype(rbf.dtype)[None]
        filters = matmul(rbf, kernel) + (
            bias if envelope is None else envelope[:, None] * bias
        )
        messages = features[senders] * filters
        dx, along_v, along_edge = jnp.split(messages, 3, axis=-1)
        along_v = along_v / jnp.sqrt(jnp.asarray(3.0, x.dtype))
        dv = v[senders] * along_v[:, None] + units[:, :, None] * along_edge[:, None]
        dv = dv / jnp.sqrt(jnp.asarray(width, x.dtype))

        def total(messages: Array) -> Array:
            return jax.ops.segment_sum(
                messages, receivers, x.shape[0], indices_are_sorted=True
            )

        return total(dx), total(dv)


class Update(nn.Module):
    """Exchange between scalars and vectors of one node."""

    @nn.compact
    def __call__(
        self, x: Float[Array, "nodes feat"], v: Float[Array, "nodes 3 feat"]
    ) -> tuple[Float[Array, "nodes feat"], Float[Array, "nodes 3 feat"]]:
        """Computes the updates of scalars and vectors."""
        width = x.shape[-1]
        mixed = Dense(2 * width, use_bias=False, kernel_init=_xavier, name="vectors")(v)
        left, right = jnp.split(mixed, 2, axis=-1)
        product = jnp.sum(left * right, axis=1) / jnp.sqrt(jnp.asarray(width, x.dtype))
        norm = jnp.sqrt(jnp.sum(right**2, axis=1) + _NORM_EPSILON)
        gates = _mlp(jnp.concatenate([x, norm], axis=-1), width, 3 * width, "gates")
        shift, scale, along = jnp.split(gates, 3, axis=-1)
        dx = (shift + scale * product) / jnp.sqrt(jnp.asarray(2.0, x.dtype))
        return dx, along[:, None] * left


class GatedBlock(nn.Module):
    """Vectors multiplied by gates that scalars and norms make (the direct force head).

    Attributes:
        features: Output channels.
    """

    features: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "nodes feat"], v: Float[Array, "nodes 3 feat"]
    ) -> tuple[Float[Array, "nodes out"], Float[Array, "nodes 3 out"]]:
        """Computes new scalars and vectors."""
        width = x.shape[-1]
        dense = lambda size, name: Dense(
            size, use_bias=False, kernel_init=_xavier, name=name
        )
        norm = ops.safe_norm(dense(width, "norms")(v), axis=1)
        x = _mlp(jnp.concatenate([x, norm], axis=-1), width, 2 * self.features, "gates")
        x, gates = jnp.split(x, 2, axis=-1)
        return scaled_silu(x), gates[:, None] * dense(self.features, "vectors")(v)


def _mlp(x: Float[Array, "*batch in"], hidden: int, out: int, name: str) -> Array:
    """Two dense layers with scaled SiLU between, inside a compact method."""
    x = Dense(hidden, kernel_init=_xavier, name=f"{name}_0")(x)
    return Dense(out, kernel_init=_xavier, name=f"{name}_1")(scaled_silu(x))
