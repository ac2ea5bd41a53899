"""The Ewald block: weights around the k-space sums.

Three lines add it to any network::

    kspace = kspace_geometry(config, batch)                # once per step
    low_rank = EwaldFilter(config)(kspace)                 # once per model
    h = h + EwaldBlock(config)(h, kspace, low_rank)        # once per interaction

`EwaldConfig` holds the settings.
"""

import math
import operator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ewald_jax import kspace as ks
from ewald_jax import ops
from ewald_jax.graph.schema import Batch
from ewald_jax.nn.layers import ResidualLayer, ScaledDense, he_orthogonal
from ewald_jax.nn.scaling import ScaleFactor
from ewald_jax.typing import Array, Float, InputError, Int

PAPER_PREFACTOR = 0.01
"""Constant in front of the message of the paper's two schemes (reference code; not in the
paper). It keeps the messages of a hundred atoms or more of order one; those of small molecules
start far below that, and learn slowly."""


@dataclass(frozen=True)
class EwaldConfig:
    """Settings of Ewald message passing.

    Attributes:
        scheme: "lattice", the paper's periodic one: a free filter per reciprocal-lattice index;
            "voxel", the paper's aperiodic one: a radial filter on a cubic grid in the
            molecule's principal axes.
        num_k: lattice: largest index (n_x, n_y, n_z) along each reciprocal lattice vector.
        k_cutoff: voxel: largest |k|, 1/Å.
        delta_k: voxel: grid spacing, 1/Å.
        num_k_rbf: voxel: Gaussians of the radial filter basis.
        bottleneck: Rank of the filters.
        num_hidden: Residual layers of the update network.
        sinc: voxel: form of the damping; "normalized" only for weights of the reference.
        float32_prune: voxel: prune the grid as the reference does.
        min_frame_nodes: voxel: fewest atoms that are turned into principal axes; the
            reference has 3.
        prefactor: c in front of the message.
    """

    scheme: Literal["lattice", "voxel"] = "voxel"
    num_k: tuple[int, int, int] = (1, 1, 3)
    k_cutoff: float = 0.6
    delta_k: float = 0.2
    num_k_rbf: int = 128
    bottleneck: int = 8
    num_hidden: int = 0
    sinc: Literal["exact", "normalized"] = "exact"
    float32_prune: bool = False
    min_frame_nodes: int = 2
    prefactor: float = PAPER_PREFACTOR

    def __post_init__(self):
        """Checks the values.

        Raises:
            InputError: If one is out of range.
        """
        if self.scheme not in SCHEMES:
            raise InputError(f"ewald.scheme must be one of {SCHEMES}, not {self.scheme!r}")
        if self.sinc not in ("exact", "normalized"):
            raise InputError(
                f"ewald.sinc must be 'exact' or 'normalized', not {self.sinc!r}"
            )
        if self.bottleneck < 1 or self.num_hidden < 0:
            raise InputError(
                "ewald.bottleneck must be >= 1 and ewald.num_hidden >= 0, not "
                f"{self.bottleneck} and {self.num_hidden}"
            )
        for name in ("k_cutoff", "delta_k", "prefactor"):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"ewald.{name} must be finite, not {getattr(self, name)}")
        if self.num_k_rbf < 2:
            raise InputError(f"ewald.num_k_rbf must be >= 2, not {self.num_k_rbf}")
        try:
            num_k = tuple(operator.index(n) for n in self.num_k)
        except TypeError:
            num_k = ()
        if len(num_k) != 3:
            raise InputError(f"ewald.num_k must be three integers, not {self.num_k!r}")
        object.__setattr__(self, "num_k", num_k)
        host_kvecs(self)  # refuses an empty set

    @classmethod
    def as_published(cls, **fields) -> "EwaldConfig":
        """The reference's way in every detail, its defects included; loads its weights."""
        return cls(sinc="normalized", float32_prune=True, min_frame_nodes=3, **fields)


SCHEMES = ("lattice", "voxel")


class KSpace(NamedTuple):
    """Everything that the blocks share, computed once per step.

    Attributes:
        phases: [rows, slots, 2 kvecs], see `kspace.sums.phases`.
        basis: [kvecs, basis] of radial filters, None for free tables.
        dense_index: [rows, slots] node of each slot.
        node_slot: [nodes] slot of each node.
    """

    phases: Float[Array, "rows slots two_kvecs"]
    basis: Float[Array, "kvecs basis"] | None
    dense_index: Int[Array, "rows slots"]
    node_slot: Int[Array, " nodes"]


def host_kvecs(config: EwaldConfig) -> np.ndarray:
    """The wave vectors [kvecs, 3]: integer indices (lattice) or 1/Å (voxel)."""
    if config.scheme == "lattice":
        return ks.half_box(*config.num_k)
    return ks.voxel_grid(config.k_cutoff, config.delta_k, config.float32_prune)


def kspace_geometry(config: EwaldConfig, batch: Batch) -> KSpace:
    """Phases and filter basis of a batch; differentiable in positions and cells.

    Args:
        config: Settings.
        batch: Structures; all periodic for "lattice", all open for "voxel" (see
            `check_boundary`; here, under jit, it cannot be checked).

    Returns:
        The geometry for the blocks.
    """
    graph, index = batch.graph, batch.dense_index
    rows, slots = index.shape
    positions = graph.nodes["positions"]
    node_slot = ops.node_slots(graph, rows, slots)
    dense = ops.to_dense(positions, index)
    if config.scheme == "lattice":
        scaled = ks.fractional(dense, graph.globals["cell"][:rows])
        indices = host_kvecs(config)
        table = jax.vmap(lambda s: ks.lattice_phases(s, indices))(scaled)
        return KSpace(table, None, index, node_slot)
    kvecs = jnp.asarray(host_kvecs(config), positions.dtype)
    mask = ops.slot_mask(index, positions.shape[0])
    framed = ks.svd_frame(dense, mask, config.min_frame_nodes)
    damping = ks.sinc_damping(framed, config.delta_k, config.sinc)
    table = jax.vmap(ks.phases, (0, None, 0))(framed, kvecs, damping)
    basis = ks.radial_basis(
        jnp.linalg.norm(kvecs, axis=-1), config.k_cutoff, config.num_k_rbf
    )
    return KSpace(table, basis, index, node_slot)


def check_boundary(config: EwaldConfig | None, pbc: np.ndarray) -> None:
    """Refuses boundary conditions that a scheme does not have (host side).

    Args:
        config: Settings, None for no Ewald block.
        pbc: [3] bool of one structure.

    Raises:
        InputError: If there is no way to apply the scheme.
    """
    if config is None:
        return
    if config.scheme == "lattice" and not np.all(pbc):
        raise InputError(
            f"has pbc {np.asarray(pbc).tolist()}, but ewald scheme 'lattice' needs a structure "
            "that is periodic along all three lattice vectors"
        )
    if config.scheme == "voxel" and np.any(pbc):
        raise InputError(
            f"has pbc {np.asarray(pbc).tolist()}, but ewald scheme 'voxel' needs a structure "
            "without periodic boundaries"
        )


class EwaldFilter(nn.Module):
    """The shared half of the filters: a learned basis of `bottleneck` functions of k.

    Attributes:
        config: Settings.
    """

    config: EwaldConfig

    @nn.compact
    def __call__(self, kspace: KSpace) -> Float[Array, "kvecs bottleneck"]:
        """Returns the low-rank basis values at the wave vectors of the batch."""
        num_kvecs = kspace.phases.shape[-1] // 2
        size = num_kvecs if kspace.basis is None else kspace.basis.shape[-1]
        down = self.param("down", he_orthogonal, (size, self.config.bottleneck))
        return down if kspace.basis is None else kspace.basis @ down


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
        self,
        h: Float[Array, "nodes feat"],
        kspace: KSpace,
        low_rank: Float[Array, "kvecs bottleneck"],
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
        # [kvecs, feat]; weights stored in float32 lose nothing in float64.
        filter = low_rank.astype(h.dtype) @ up
        dense = ops.to_dense(ResidualLayer(name="pre_residual")(h), kspace.dense_index)
        message = jax.vmap(ks.message_from_phases, (0, 0, None, None))(
            dense, kspace.phases, filter, self.config.prefactor
        )
        update = ops.from_dense(message, kspace.node_slot)
        if self.scaled:
            mask = jnp.zeros(h.shape[0], bool).at[kspace.dense_index].set(True, mode="drop")
            update = ScaleFactor(name="scale_sum")(update, h, mask)
        update = ScaledDense(features, name="update")(update)
        layers = self.config.num_hidden if self.num_hidden is None else self.num_hidden
        for i in range(layers):
            update = ResidualLayer(name=f"hidden_{i}")(update)
        return update
