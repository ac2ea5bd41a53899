"""Continuous-filter convolution: SchNet's interaction, and the paper's comparison block.

Source: Schütt et al., "SchNet: a continuous-filter convolutional neural network for modeling
quantum interactions" (NeurIPS 2017); layers as in PyTorch Geometric.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import export

from ewald_jax.nn.layers import shifted_softplus
from ewald_jax.typing import Array, Float

_xavier = nn.initializers.xavier_uniform()

_LARGE = 2**26
"""Filters on edges, in numbers, beyond which not all of them are in memory at once."""


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
        rbf: Float[Array, "pairs basis"],
        weights: Float[Array, " pairs"],
        senders: Array,
        receivers: Array,
        pair: Array | None = None,
    ) -> Float[Array, "nodes feat"]:
        """Computes the update of the node features.

        Args:
            h: Node features.
            rbf: Expanded distances of pairs of atoms.
            weights: Cutoff function of each pair.
            senders: [edges].
            receivers: [edges], ascending.
            pair: [edges] the pair of each edge; None if each edge is one.

        Returns:
            The update.
        """
        x = nn.Dense(self.num_filters, use_bias=False, kernel_init=_xavier, name="lin_in")(
            h
        )
        size = senders.shape[0] * self.num_filters
        # In an exported model the size is a symbol.
        if export.is_symbolic_dim(size) or size <= _LARGE:
            x = self._sum(x, (rbf, weights, senders, receivers), pair)
        else:
            if pair is not None:
                rbf, weights = rbf[pair], weights[pair]
            x = self._sum_in_blocks(x, (rbf, weights, senders, receivers))
        x = nn.Dense(h.shape[-1], kernel_init=_xavier, name="lin_out")(x)
        return nn.Dense(h.shape[-1], kernel_init=_xavier, name="lin")(shifted_softplus(x))

    def _sum(
        self, x: Array, edges: tuple[Array, ...], pair: Array | None = None
    ) -> Float[Array, "nodes filters"]:
        """What all edges send."""
        rbf, weights, senders, receivers = edges
        filters = nn.Dense(self.num_filters, kernel_init=_xavier, name="filter_0")(rbf)
        filters = nn.Dense(self.num_filters, kernel_init=_xavier, name="filter_1")(
            shifted_softplus(filters)
        )
        filters = filters * weights[:, None]
        if pair is not None:
            filters = filters[pair]
        return jax.ops.segment_sum(
            x[senders] * filters, receivers, x.shape[0], indices_are_sorted=True
        )

    def _sum_in_blocks(
        self, x: Array, edges: tuple[Array, ...]
    ) -> Float[Array, "nodes filters"]:
        """The same, a block of edges at a time; derivatives compute the blocks again."""
        count, rows = len(edges[0]), _LARGE // (4 * self.num_filters)
        num = -(-count // rows)

        def cut(values, fill):
            room = ((0, num * rows - count),) + ((0, 0),) * (values.ndim - 1)
            filled = jnp.pad(values, room, constant_values=fill)
            return filled.reshape(num, rows, *values.shape[1:])

        def add(module, total, block):
            return total + module._sum(x, block), None

        # Receivers stay in order, and what has no weight sends nothing.
        blocks = tuple(map(cut, edges, (0, 0, 0, len(x) - 1)))
        scan = nn.scan(
            nn.remat(add, prevent_cse=False),
            variable_broadcast="params",
            split_rngs={"params": False},
        )
        return scan(self, jnp.zeros_like(x), blocks)[0]
