"""Continuous-filter convolution: SchNet's interaction, and the paper's comparison block.

Source: Schütt et al., "SchNet: a continuous-filter convolutional neural network for modeling
quantum interactions" (NeurIPS 2017); layers as in PyTorch Geometric.
"""

import flax.linen as nn
import jax

from ewald_jax.nn.layers import shifted_softplus
from ewald_jax.typing import Array, Float

_xavier = nn.initializers.xavier_uniform()


class ContinuousFilterConvolution(nn.Module):
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
