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
from jax import export

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
    """`bottleneck` learned filters.

    Attributes:
        waves: Their values at the wave vectors, [kvecs, bottleneck]; for the `radial` scheme
            [rows, kvecs, bottleneck] with the weights of the vectors.
        kernel: [rows, slots, slots, bottleneck] their kernels between the atoms of molecules,
            None if there are none in pair form.
        mesh: [rows, bottleneck, num_waves, k2, k3] their values at the waves of a mesh, None if
            there is none.
    """

    waves: Float[Array, "*rows kvecs bottleneck"]
    kernel: Float[Array, "rows slots slots bottleneck"] | None = None
    mesh: Float[Array, "rows bottleneck num_waves k2 k3"] | None = None


class EwaldFilter(nn.Module):
    """What the blocks of a model share: `bottleneck` learned functions of k.

    In the paper's schemes they are a basis, of which each block makes a filter for each
    feature. In the `radial` scheme they are the filters themselves, each for its head of the
    features: what a basis of them would do, the dense layers around the sum do as well, and a
    sum over pairs costs as much for many heads as for one.

    Attributes:
        config: Settings.
    """

    config: EwaldConfig

    @nn.compact
    def __call__(self, kspace: KSpace) -> LowRank:
        """Returns the filters at the wave vectors of the batch."""
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
        mesh = None
        if kspace.mesh is not None:
            mesh = jnp.moveaxis(ops.full_matmul(kspace.mesh.basis, down), -1, 1)
        return LowRank(ops.full_matmul(kspace.basis, down), kernel, mesh)


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
        sent = ResidualLayer(name="pre_residual")(h)
        if self.config.scheme == "radial":
            update = _message_of_heads(self.config, sent, kspace, low_rank)
        else:
            up = self.param("up", he_orthogonal, (self.config.bottleneck, features))
            # Weights stored in float32 lose nothing in float64.
            waves, up = low_rank.waves.astype(h.dtype), up.astype(h.dtype)
            filter = ops.full_matmul(waves, up)
            update = _message(self.config, sent, kspace, filter)
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
        # A feature and all its components belong to one head.
        heads = self.config.bottleneck
        padded = jnp.pad(v, ((0, 0), (0, 0), (0, -features % heads)))
        sent = jnp.swapaxes(padded.reshape(nodes, 3, heads, -1), 1, 2)
        message = _message_of_heads(self.config, sent.reshape(nodes, -1), kspace, low_rank)
        message = jnp.swapaxes(message.reshape(nodes, heads, 3, -1), 1, 2)
        return LinearMap(features, name="update")(
            message.reshape(nodes, 3, -1)[:, :, :features]
        )


def _kernel(pairs: PairSpace, down: Array) -> Array:
    """Kernels of the low-rank filters between the atoms of molecules, else zero."""
    kernel = ks.pair_kernel
    size = pairs.square.size * pairs.k_square.size
    # In an exported model the size is a symbol.
    if export.is_symbolic_dim(size) or size > _LARGE_TABLE:
        kernel = jax.checkpoint(kernel)
    # Far from each other atoms see sums of many terms with alternating signs.
    low_rank = ops.full_matmul(pairs.basis, down)
    values = kernel(pairs.square, pairs.k_square, low_rank)
    of_itself = jnp.sum(low_rank, axis=0, keepdims=True)  # at distance 0
    return ops.gather(jnp.concatenate([values, of_itself]), pairs.index)


def _message(
    config: EwaldConfig, h: Array, kspace: KSpace, filter: Array
) -> Float[Array, "nodes feat"]:
    """The message of filters [kvecs, feat], or of one such table for each row of slots."""
    axes = (0, 0, 0 if filter.ndim == 3 else None, None, 0)
    dense = ops.to_dense(h, kspace.dense_index)
    dense = jax.vmap(ks.message_from_phases, axes)(
        dense, kspace.phases, filter, config.prefactor, kspace.planes
    )
    return ops.from_dense(dense, kspace.node_slot)


def _message_of_heads(
    config: EwaldConfig, h: Array, kspace: KSpace, low_rank: LowRank
) -> Float[Array, "nodes feat"]:
    """The message of one filter for each head of the features, see `kspace.pair_message`."""
    message = jnp.zeros_like(h)
    if kspace.phases.shape[-1] > 0:
        waves = low_rank.waves.astype(h.dtype)
        size = -(-h.shape[1] // waves.shape[-1])
        filter = jnp.repeat(waves, size, axis=-1)[..., : h.shape[1]]
        message += _message(config, h, kspace, filter)
    if low_rank.kernel is not None:
        pairs = kspace.pairs
        dense = ops.to_dense(h, pairs.nodes)
        dense = jax.vmap(ks.pair_message)(dense, low_rank.kernel)
        message += config.prefactor * ops.from_dense(dense, pairs.node_slot)
    if low_rank.mesh is not None:
        message += config.prefactor * _message_on_mesh(config, h, kspace, low_rank.mesh)
    return message


def _message_on_mesh(
    config: EwaldConfig, h: Array, kspace: KSpace, filters: Array
) -> Array:
    """Structures one after the other, for the sake of memory."""
    mesh = kspace.mesh
    dense = ops.to_dense(h, mesh.nodes)
    dense = jax.lax.map(
        lambda row: ks.mesh_message(*row, config.mesh_order, len(mesh.size)),
        (dense, mesh.first, mesh.offset, filters.astype(h.dtype)),
    )
    return ops.from_dense(dense, mesh.node_slot)
