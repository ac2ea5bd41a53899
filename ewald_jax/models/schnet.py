"""SchNet, with and without Ewald message passing.

Source: Schütt et al., "SchNet: a continuous-filter convolutional neural network for modeling
quantum interactions" (NeurIPS 2017); architecture details as in PyTorch Geometric and the
Open Catalyst Project, so that their weights load.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ewald_jax import ops
from ewald_jax.graph.schema import Batch
from ewald_jax.nn.basis import cosine_cutoff, gaussian_rbf
from ewald_jax.nn.ewald import EwaldBlock, EwaldConfig, EwaldFilter, KSpace
from ewald_jax.nn.layers import shifted_softplus
from ewald_jax.typing import Array, Float, InputError

_xavier = nn.initializers.xavier_uniform()


class SchNet(nn.Module):
    """Continuous-filter convolutions on interatomic distances.

    Attributes:
        hidden_channels: Width of the node features.
        num_filters: Width of the convolution filters.
        num_interactions: Interaction blocks.
        num_gaussians: Gaussians that expand the distances.
        cutoff: Å.
        max_neighbors: Nearest neighbors of each atom that are kept; None keeps all.
        num_elements: Rows of the element embedding; atomic numbers stay below it.
        ewald: Ewald message passing beside each interaction; None for the baseline.
    """

    hidden_channels: int = 128
    num_filters: int = 128
    num_interactions: int = 3
    num_gaussians: int = 50
    cutoff: float = 6.0
    max_neighbors: int | None = None
    num_elements: int = 100
    ewald: EwaldConfig | None = None

    needs_triplets: ClassVar[bool] = False

    def __post_init__(self):
        """Refuses sizes that make no network.

        Raises:
            InputError: If one is out of range.
        """
        for name in ("hidden_channels", "num_filters", "num_interactions", "num_elements"):
            value, least = getattr(self, name), 2 if name == "hidden_channels" else 1
            if value < least:
                raise InputError(f"model.{name} must be at least {least}, not {value}")
        if not 0 < self.cutoff < float("inf"):
            raise InputError(f"model.cutoff must be a length above 0 Å, not {self.cutoff}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, batch: Batch, kspace: KSpace | None = None
    ) -> Float[Array, " nodes"]:
        """Computes the energy of each node.

        Args:
            batch: Structures.
            kspace: From `kspace_geometry` if `ewald` is set.

        Returns:
            Node energies in model units; arbitrary for padding nodes.
        """
        graph = batch.graph
        distances = ops.safe_norm(ops.edge_vectors(graph))
        rbf = gaussian_rbf(
            distances, 0.0, self.cutoff, self.num_gaussians, float32_centres=True
        )
        weights = cosine_cutoff(distances, self.cutoff)
        if self.ewald is not None:
            low_rank = EwaldFilter(self.ewald, name="ewald_filter")(kspace)
        h = nn.Embed(
            self.num_elements,
            self.hidden_channels,
            embedding_init=nn.initializers.normal(1.0),
            name="embedding",
        )(graph.nodes["species"])
        h = h.astype(distances.dtype)
        for i in range(self.num_interactions):
            update = Interaction(self.num_filters, name=f"interaction_{i}")(
                h, rbf, weights, graph.senders, graph.receivers
            )
            if self.ewald is None:
                h = h + update
            else:
                long_range = EwaldBlock(self.ewald, name=f"ewald_{i}")(h, kspace, low_rank)
                h = (h + update + long_range) / jnp.sqrt(jnp.asarray(3.0, h.dtype))
        h = nn.Dense(self.hidden_channels // 2, kernel_init=_xavier, name="output_0")(h)
        h = nn.Dense(1, kernel_init=_xavier, name="output_1")(shifted_softplus(h))
        return h[:, 0]


class Interaction(nn.Module):
    """One continuous-filter convolution and its dense layers.

    Attributes:
        num_filters: Width of the filters.
    """

    num_filters: int

    @nn.compact
    def __call__(
        self,
        h: Float[Array, "nodes feat"],
        rbf: Float[Array, "edges basis"],
        weights: Float[Array, " edges"],
        senders: Array,
        receivers: Array,
    ) -> Float[Array, "nodes feat"]:
        """Computes the update of the node features.

        Args:
            h: Node features.
            rbf: Expanded distances.
            weights: Cutoff function of each edge.
            senders: [edges].
            receivers: [edges], ascending.

        Returns:
            The update.
        """
        filters = nn.Dense(self.num_filters, kernel_init=_xavier, name="filter_0")(rbf)
        filters = nn.Dense(self.num_filters, kernel_init=_xavier, name="filter_1")(
            shifted_softplus(filters)
        )
        filters = filters * weights[:, None]
        x = nn.Dense(self.num_filters, use_bias=False, kernel_init=_xavier, name="lin_in")(
            h
        )
        x = jax.ops.segment_sum(
            x[senders] * filters, receivers, h.shape[0], indices_are_sorted=True
        )
        x = nn.Dense(h.shape[-1], kernel_init=_xavier, name="lin_out")(x)
        return nn.Dense(h.shape[-1], kernel_init=_xavier, name="lin")(shifted_softplus(x))
