"""The atom-to-atom block: what the paper compares Ewald message passing with (SchNet-LR).

A SchNet interaction with a cutoff of its own stands where the Ewald block would: the plain
way to see further, at a cost that grows with the cube of the cutoff.

Source: Kosmala et al., ICML 2023, section 6 and appendix.
"""

from dataclasses import dataclass
from typing import NamedTuple

from ewald_jax import ops
from ewald_jax.graph.schema import Batch, Pairs
from ewald_jax.nn.basis import cosine_cutoff, gaussian_rbf
from ewald_jax.typing import Array, Float, InputError


@dataclass(frozen=True)
class AtomToAtomConfig:
    """Settings of the atom-to-atom block.

    Attributes:
        cutoff: Distance cutoff of its edges, Å.
        max_neighbors: Nearest neighbors of each atom that are kept; None keeps all.
        num_gaussians: Gaussians that expand the distances.
        num_filters: Width of the convolution filters.
    """

    cutoff: float = 12.0
    max_neighbors: int | None = None
    num_gaussians: int = 200
    num_filters: int = 256

    def __post_init__(self):
        """Checks the values.

        Raises:
            InputError: If one is out of range.
        """
        if not 0 < self.cutoff < float("inf"):
            raise InputError(f"atomic.cutoff must be a length above 0 Å, not {self.cutoff}")
        for name, least in (("max_neighbors", 1), ("num_gaussians", 2), ("num_filters", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"atomic.{name} must be at least {least}, not {value}")


class FarGeometry(NamedTuple):
    """What the blocks of all interactions share.

    Attributes:
        rbf: [pairs, basis] expanded distances; without pairs one for each far edge.
        weights: [pairs] cutoff function.
        senders: [far_edges].
        receivers: [far_edges].
        pairs: The two edges of each, None without.
    """

    rbf: Float[Array, "pairs basis"]
    weights: Float[Array, " pairs"]
    senders: Array
    receivers: Array
    pairs: Pairs | None


def far_geometry(config: AtomToAtomConfig, batch: Batch) -> FarGeometry:
    """Distances of the second set of edges; differentiable in positions and cells.

    Raises:
        InputError: If the batch has no far edges.
    """
    if batch.far_edges is None:
        raise InputError(
            "the model has an atom-to-atom block, but the batch has no far edges; build it "
            "with the model's neighborhood (ewald_jax.models.neighborhood)"
        )
    far, pairs = batch.far_edges, batch.far_pairs
    distances = ops.pair_lengths(batch.graph, pairs, far)
    rbf = gaussian_rbf(
        distances, 0.0, config.cutoff, config.num_gaussians, float32_centres=True
    )
    weights = cosine_cutoff(distances, config.cutoff)
    return FarGeometry(rbf, weights, far.senders, far.receivers, pairs)
