"""The Ewald block: weights around the k-space sums.

Three lines add it to any network::

    kspace = kspace_geometry(config, batch)                # once per step
    low_rank = EwaldFilter(config)(kspace)                 # once per model
    h = h + EwaldBlock(config)(h, kspace, low_rank)        # once per interaction

`EwaldConfig` holds the settings.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ewald_jax import kspace as ks
from ewald_jax import ops
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.nn.ewald_geometry import KSpace, PairSpace
from ewald_jax.nn.layers import LinearMap, ResidualLayer, ScaledDense, he_orthogonal
from ewald_jax.nn.scaling import ScaleFactor
from ewald_jax.typing import Array, Float

_LARGE_TABLE = 2**22
"""Entries of a table of sines above which it is computed again for derivatives."""


class LowRank(NamedTuple):
    """A learned basis of `bottleneck` filters.

    Attributes:
        waves: Their values at the wave vectors, [kvecs, bottleneck]; for the `radial` scheme
            [rows, kvecs, bottleneck] with the weights of the vectors.
        kernel: [rows, slots, slots, bottleneck] their kernels between the atoms of molecules,
            None if there are none in pair form.
    """

    waves: Float[Array, "*rows kvecs bottleneck"]
    kernel: Float[Array, "rows slots slots bottleneck"] | None = None


class EwaldFilter(nn.Module):
    """The shared half of the filters: a learned basis of `bottleneck` functions of k.

    Attributes:
        config: Settings.
    """

    config: EwaldConfig

    @nn.compact
    def __call__(self, kspace: KSpace) -> LowRank:
        """Returns the low-rank basis at the wave vectors of the batch."""
        num_kvecs = kspace.phases.shape[-1] // 2
        size = num_kvecs if kspace.basis is None else kspace.basis.shape[-1]
        rank, channels = self.config.bottleneck, self.config.channels
        if self.config.scheme != "radial":
            channels = ()
        down = self.param("down", he_orthogonal, (size - len(channels), rank))
        if kspace.basis is None:
            return LowRank(down)
        if channels:
            # Without amplitude at first: only what the data ask for reaches far.
            zeros = nn.initializers.zeros_init()
            rows = self.param("channels", zeros, (len(channels), rank))
            down = jnp.concatenate([down, rows])
        down = down.astype(kspace.basis.dtype)
        kernel = None if kspace.pairs is None else _kernel(kspace.pairs, down)
        return LowRank(kspace.basis @ down, kernel)


class EwaldBlock(nn.Module):
    """One Fourier-space message and its update network.

    Source: Kosmala et al., ICML 2023, section 4 and figure 2.

    Attributes:
        config: Settings.
        num_hidden: Residual layers of the update network; None takes them from `config`.
        scaled: Multiply the message by a fitted constant (GemNet), see `nn.scaling`.
    """

    config: EwaldConfig
    num_hidden: int | None = None
    scaled: bool = False

    @nn.compact
    def __call__(
        self, h: Float[Array, "nodes feat"], kspace: KSpace, low_rank: LowRank
    ) -> Float[Array, "nodes feat"]:
        """Computes the update of the node features.

        Args:
            h: Node features.
            kspace: From `kspace_geometry`.
            low_rank: From `EwaldFilter`.

        Returns:
            What the network adds to its own message; zero-padded like `h`.
        """
        features = h.shape[-1]
        up = self.param("up", he_orthogonal, (self.config.bottleneck, features))
        sent = ResidualLayer(name="pre_residual")(h)
        update = _message(self.config, sent, kspace, low_rank, up)
        if self.scaled:
            mask = jnp.zeros(h.shape[0], bool).at[kspace.dense_index].set(True, mode="drop")
            update = ScaleFactor(name="scale_sum")(update, h, mask)
        update = ScaledDense(features, name="update")(update)
        layers = self.config.num_hidden if self.num_hidden is None else self.num_hidden
        for i in range(layers):
            update = ResidualLayer(name=f"hidden_{i}")(update)
        return update


class EwaldVectorBlock(nn.Module):
    """The same message between vector features.

    A radial filter commutes with rotations, so that the sum over each Cartesian component is
    equivariant; the channels are mixed without a bias or an activation.

    Attributes:
        config: Settings, of the `radial` scheme.
    """

    config: EwaldConfig

    @nn.compact
    def __call__(
        self, v: Float[Array, "nodes 3 feat"], kspace: KSpace, low_rank: LowRank
    ) -> Float[Array, "nodes 3 feat"]:
        """Computes the update of the vector features.

        Args:
            v: Vector features.
            kspace: From `kspace_geometry`.
            low_rank: From `EwaldFilter`.

        Returns:
            What the network adds to them.
        """
        nodes, _, features = v.shape
        up = self.param("up", he_orthogonal, (self.config.bottleneck, features))
        flat = v.reshape(nodes, 3 * features)
        up = jnp.tile(up, (1, 3))
        message = _message(self.config, flat, kspace, low_rank, up)
        return LinearMap(features, name="update")(message.reshape(v.shape))


def _kernel(pairs: PairSpace, down: Array) -> Array:
    """Kernels of the low-rank filters between the atoms of molecules, else zero."""
    kernel = ks.pair_kernel
    if pairs.square.size * pairs.k_square.size > _LARGE_TABLE:
        kernel = jax.checkpoint(kernel)
    # Far from each other atoms see sums of many terms with alternating signs.
    low_rank = jnp.matmul(pairs.basis, down, precision=jax.lax.Precision.HIGHEST)
    values = kernel(pairs.square, pairs.k_square, low_rank)
    of_itself = jnp.sum(low_rank, axis=0, keepdims=True)  # at distance 0
    return ops.gather(jnp.concatenate([values, of_itself]), pairs.index)


def _message(
    config: EwaldConfig, h: Array, kspace: KSpace, low_rank: LowRank, up: Array
) -> Float[Array, "nodes feat"]:
    """The message of filters ``low_rank @ up``, in the layout of the nodes."""
    # Weights stored in float32 lose nothing in float64.
    up = up.astype(h.dtype)
    message = jnp.zeros_like(h)
    if kspace.phases.shape[-1] > 0:
        filter = low_rank.waves.astype(h.dtype) @ up  # [kvecs, feat], or one for each row
        axes = (0, 0, 0 if filter.ndim == 3 else None, None)
        dense = jax.vmap(ks.message_from_phases, axes)(
            ops.to_dense(h, kspace.dense_index), kspace.phases, filter, config.prefactor
        )
        message += ops.from_dense(dense, kspace.node_slot)
    if low_rank.kernel is not None:
        pairs = kspace.pairs
        dense = jax.vmap(ks.pair_message, (0, 0, None))(
            ops.to_dense(h, pairs.nodes), low_rank.kernel, up
        )
        message += config.prefactor * ops.from_dense(dense, pairs.node_slot)
    return message
