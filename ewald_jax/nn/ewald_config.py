"""Settings of Ewald message passing, and which structures they can be used for."""

import math
import operator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ewald_jax import kspace as ks
from ewald_jax.typing import InputError

PAPER_PREFACTOR = 0.01
"""Constant in front of the message of the paper's two schemes (reference code; not in the
paper). It keeps the messages of a hundred atoms or more of order one; those of small molecules
start far below that, and learn slowly."""

SCHEMES = ("lattice", "voxel", "radial")

SUMS = ("auto", "direct", "mesh")

_DEFAULTS = {
    "lattice": {"k_cutoff": 0.6, "num_k_rbf": 128, "prefactor": PAPER_PREFACTOR},
    "voxel": {"k_cutoff": 0.6, "num_k_rbf": 128, "prefactor": PAPER_PREFACTOR},
    "radial": {"k_cutoff": 2.0, "num_k_rbf": 8, "prefactor": 1.0},
}
"""Fields that are None until the scheme is known."""


@dataclass(frozen=True)
class EwaldConfig:
    """Settings of Ewald message passing.

    Defaults that depend on the scheme are filled in when the settings are made; to change the
    scheme of finished ones, give their numbers too.

    Attributes:
        scheme: "radial", one radial filter for molecules, wires, slabs and crystals, with all
            symmetries; "lattice", the paper's periodic one: a free filter per
            reciprocal-lattice index; "voxel", the paper's aperiodic one: a radial filter on a
            cubic grid in the molecule's principal axes.
        num_k: lattice: largest index (n_x, n_y, n_z) along each reciprocal lattice vector.
        k_cutoff: radial, voxel: largest |k|, 1/Å; None is 2 for radial, 0.6 for voxel.
        delta_k: voxel: grid spacing, 1/Å.
        num_k_rbf: radial, voxel: Gaussians of the radial filter basis; None is 8 for radial,
            128 for voxel.
        channels: radial: physical asymptotics beside the Gaussians, see `kspace.channels`.
        equivariant: radial: also send the vector features of models that have them.
        bottleneck: Rank of the filters; radial: their number, each for a part of the features.
        num_hidden: Residual layers of the update network.
        blocks: Interactions that have Ewald messages beside them, 0 the first; None for all.
        zero_k: lattice, voxel: k = 0 too, which the paper leaves out and radial always has.
        sinc: voxel: form of the damping; "normalized" only for weights of the reference.
        float32_prune: voxel: prune the grid as the reference does.
        min_frame_nodes: voxel: fewest atoms that are turned into principal axes; the
            reference has 3.
        prefactor: c in front of the message; None is 1 for radial, whose messages are
            normalised, and the reference's 0.01 else.
        max_kvecs: radial: structures that need more wave vectors are refused.
        max_pair_nodes: radial: molecules of more atoms take a quadrature of the sphere in
            place of pairs.
        sum: radial: how messages in crystals are summed: "direct" over wave vectors, "mesh" by
            fast Fourier transforms, "auto" by what is faster for a crystal that is alone in
            its batch (`kspace.mesh_rule`), and directly in batches of several.
        mesh_order: Order of the B-splines of the mesh.
        mesh_spacing: Largest spacing of the mesh, Å; None for the largest with
            `mesh_accuracy`.
        mesh_accuracy: Bound of the mesh's error, see `kspace.mesh_rule.mesh_error`.
    """

    scheme: Literal["radial", "lattice", "voxel"] = "radial"
    num_k: tuple[int, int, int] = (1, 1, 3)
    k_cutoff: float | None = None
    delta_k: float = 0.2
    num_k_rbf: int | None = None
    channels: tuple[Literal["coulomb", "dispersion"], ...] = ("coulomb", "dispersion")
    equivariant: bool = False
    bottleneck: int = 8
    num_hidden: int = 0
    blocks: tuple[int, ...] | None = None
    zero_k: bool = False
    sinc: Literal["exact", "normalized"] = "exact"
    float32_prune: bool = False
    min_frame_nodes: int = 2
    prefactor: float | None = None
    max_kvecs: int = 65536
    max_pair_nodes: int = 1024
    sum: Literal["auto", "direct", "mesh"] = "auto"
    mesh_order: int = 6
    mesh_spacing: float | None = None
    mesh_accuracy: float = 1e-3

    def __post_init__(self):
        """Fills in the defaults of the scheme and checks the values.

        Raises:
            InputError: If one is out of range.
        """
        if self.scheme not in SCHEMES:
            raise InputError(f"ewald.scheme must be one of {SCHEMES}, not {self.scheme!r}")
        for name, value in _DEFAULTS[self.scheme].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
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
        if self.blocks is not None:
            blocks = tuple(self.blocks)
            if not blocks or min(blocks) < 0 or len(set(blocks)) < len(blocks):
                raise InputError(
                    "ewald.blocks must be different numbers of interactions from 0, or null "
                    f"for all, not {blocks}"
                )
            object.__setattr__(self, "blocks", blocks)
        if self.scheme == "radial":
            self._check_radial()
        else:
            host_kvecs(self)  # refuses an empty set
            if self.sum == "mesh":
                raise InputError(
                    f"ewald.sum 'mesh' needs ewald.scheme 'radial', not {self.scheme!r}"
                )
            if self.equivariant:
                raise InputError(
                    f"ewald.equivariant needs ewald.scheme 'radial', not {self.scheme!r}: "
                    "only a radial filter commutes with rotations"
                )

    def _check_radial(self) -> None:
        if not self.k_cutoff > 0:
            raise InputError(f"ewald.k_cutoff must be larger than 0, not {self.k_cutoff}")
        channels = tuple(self.channels)
        for name in channels:
            if name not in ks.CHANNELS:
                raise InputError(f"ewald.channels must be of {ks.CHANNELS}, not {name!r}")
        if len(set(channels)) < len(channels):
            raise InputError(f"ewald.channels has one twice: {channels}")
        object.__setattr__(self, "channels", channels)
        if self.zero_k:
            raise InputError(
                "ewald.zero_k is for lattice and voxel; radial always has k = 0"
            )
        for name in ("max_kvecs", "max_pair_nodes"):
            if getattr(self, name) < 0:
                raise InputError(f"ewald.{name} must be >= 0, not {getattr(self, name)}")
        if self.sum not in SUMS:
            raise InputError(f"ewald.sum must be one of {SUMS}, not {self.sum!r}")
        orders = range(ks.MIN_ORDER, ks.MAX_ORDER + 1)
        if self.mesh_order not in orders:
            raise InputError(
                f"ewald.mesh_order must be from {orders[0]} to {orders[-1]}, not "
                f"{self.mesh_order}"
            )
        if not 0 < self.mesh_accuracy < math.inf:
            raise InputError(
                f"ewald.mesh_accuracy must be larger than 0 and finite, not "
                f"{self.mesh_accuracy}"
            )
        if self.mesh_spacing is not None:
            if not self.mesh_spacing > 0:
                raise InputError(
                    f"ewald.mesh_spacing must be larger than 0 Å, not {self.mesh_spacing}"
                )
            mesh = (self.mesh_order, self.mesh_spacing, self.mesh_accuracy)
            ks.check_mesh(*mesh, self.k_cutoff)

    @classmethod
    def as_published(cls, scheme: str = "voxel", **fields) -> "EwaldConfig":
        """The reference's way in every detail, its defects included; loads its weights."""
        return cls(
            scheme, sinc="normalized", float32_prune=True, min_frame_nodes=3, **fields
        )

    @property
    def waves(self) -> ks.WaveRule | None:
        """Which wave vectors structures need, for `graph.Neighborhood`; None for fixed ones."""
        return self.wave_rule()

    @property
    def grid_spacing(self) -> float:
        """radial: `mesh_spacing`, or the largest with `mesh_accuracy`, Å."""
        chosen = (self.mesh_order, self.mesh_accuracy, self.k_cutoff)
        return self.mesh_spacing or ks.mesh_spacing(*chosen)

    def wave_rule(self, alone: bool = False) -> ks.WaveRule | None:
        """As `waves`, with a choice of the sum if structures are `alone` in their batches."""
        if self.scheme != "radial":
            return None
        mesh = None
        if self.sum == "mesh" or (self.sum == "auto" and alone):
            mesh = ks.MeshRule(self.mesh_order, self.grid_spacing, self.sum == "mesh")
        width = 1 / (self.num_k_rbf - 1)
        return ks.WaveRule(self.k_cutoff, width, self.max_pair_nodes, self.max_kvecs, mesh)


def host_kvecs(config: EwaldConfig) -> np.ndarray:
    """Wave vectors [kvecs, 3] of all structures alike: indices (lattice) or 1/Å (voxel)."""
    if config.scheme == "lattice":
        found = ks.half_box(*config.num_k)
    else:
        found = ks.voxel_grid(config.k_cutoff, config.delta_k, config.float32_prune)
    return np.concatenate([np.zeros_like(found[:1]), found]) if config.zero_k else found


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
    has = f"has pbc {np.asarray(pbc).tolist()}, but ewald"
    if config.scheme == "lattice" and not np.all(pbc):
        raise InputError(
            f"{has} scheme 'lattice' needs a structure that is periodic along all three "
            "lattice vectors; scheme 'radial' takes any"
        )
    if config.scheme == "voxel" and np.any(pbc):
        raise InputError(
            f"{has} scheme 'voxel' needs a structure without periodic boundaries; scheme "
            "'radial' takes any"
        )
    if config.scheme == "radial" and "coulomb" in config.channels and np.sum(pbc) == 1:
        raise InputError(
            f"{has} channel 'coulomb' diverges in a wire, as the potential of a charged line "
            "does; expected ewald.channels without it, or other boundary conditions"
        )
