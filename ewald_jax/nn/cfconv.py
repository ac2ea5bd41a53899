"""Continuous-filter convolution: SchNet's interaction, and the paper's comparison block.

Source: Schütt et al., "SchNet: a continuous-filter convolutional neural network for modeling
quantum interactions" (NeurIPS 2017); layers as in PyTorch Geometric.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import export

from ewald_jax.graph.schema import Pairs
from ewald_jax.nn.layers import shifted_softplus
from ewald_jax.nn.products import Dense
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
        pairs: Pairs | None = None,
    ) -> Float[Array, "nodes feat"]:
        """Computes the update of the node features.

        Args:
            h: Node features.
            rbf: Expanded distances of pairs of atoms.
            weights: Cutoff function of each pair.
            senders: [edges].
            receivers: [edges], ascending.
            pairs: The two edges of each pair; None if each edge is one.

        Returns:
            The update.
        """
        x = Dense(self.num_filters, use_bias=False, kernel_init=_xavier, name="lin_in")(h)
        size = senders.shape[0] * self.num_filters
        # In an exported model the size is a symbol.
        if export.is_symbolic_dim(size) or size <= _LARGE:
            filters = self._filters(rbf, weights)
            if pairs is not None:
                filters = filters[pairs.pair]
            x = jax.ops.segment_sum(
                x[senders] * filters, receivers, x.shape[0], indices_are_sorted=True
            )
        else:
            if pairs is not None:
                senders, receivers = senders[pairs.first], receivers[pairs.first]
            edges = rbf, weights, senders, receivers
            x = self._sum_in_blocks(x, edges, both_ways=pairs is not None)
        x = Dense(h.shape[-1], kernel_init=_xavier, name="lin_out")(x)
        return Dense(h.shape[-1], kernel_init=_xavier, name="lin")(shifted_softplus(x))

    def _filters(self, rbf: Array, weights: Array) -> Float[Array, "pairs filters"]:
        filters = Dense(self.num_filters, kernel_init=_xavier, name="filter_0")(rbf)
        filters = Dense(self.num_filters, kernel_init=_xavier, name="filter_1")(
            shifted_softplus(filters)
        )
        return filters * weights[:, None]

    def _sum_in_blocks(
        self, x: Array, edges: tuple[Array, ...], both_ways: bool
    ) -> Float[Array, "nodes filters"]:
        """What all edges send, with `both_ways` also the other way, a block of them at a time.

        Derivatives compute the blocks again.
        """
        count, rows = len(edges[0]), _LARGE // (4 * self.num_filters)
        num = -(-count // rows)

        def cut(values, fill):
            room = ((0, num * rows - count),) + ((0, 0),) * (values.ndim - 1)
            filled = jnp.pad(values, room, constant_values=fill)
            return filled.reshape(num, rows, *values.shape[1:])

        def add(module, total, block):
            *distances, senders, receivers = block
            filters = module._filters(*distances)
            sent = x[senders] * filters
            total = total.at[receivers].add(sent, indices_are_sorted=True)
            if both_ways:
                total = total.at[senders].add(x[receivers] * filters)
            return total, None

        # Receivers stay in order, and what has no weight sends nothing. Edges of padding, of
        # which the last may be a pair by itself, send to padding.
        blocks = tuple(map(cut, edges, (0, 0, 0, len(x) - 1)))
        scan = nn.scan(
            nn.remat(add, prevent_cse=False),
            variable_broadcast="params",
            split_rngs={"params": False},
        )
        return scan(self, jnp.zeros_like(x), blocks)[0]
