"""SchNet, with and without Ewald message passing.

Source: Schütt et al., "SchNet: a continuous-filter convolutional neural network for modeling
quantum interactions" (NeurIPS 2017); architecture details as in PyTorch Geometric and the
Open Catalyst Project, so that their weights load.
"""

from typing import ClassVar

import flax.linen as nn

from ewald_jax import ops
from ewald_jax.graph.schema import Batch
from ewald_jax.nn.atom_to_atom import AtomToAtomConfig
from ewald_jax.nn.basis import cosine_cutoff, gaussian_rbf
from ewald_jax.nn.cfconv import ContinuousFilterConvolution
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.nn.ewald_geometry import KSpace
from ewald_jax.nn.layers import shifted_softplus
from ewald_jax.nn.long_range import LongRange, merge
from ewald_jax.nn.products import Dense, Precision, Readout
from ewald_jax.nn.sizes import check_sizes
from ewald_jax.typing import Array, Float

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
        atomic: Atom-to-atom block beside each interaction; None for none.
        precision: Of the products of matrices, see `nn.products`: "float32", "tf32", "bfloat16"
            or "float64".
    """

    hidden_channels: int = 128
    num_filters: int = 128
    num_interactions: int = 3
    num_gaussians: int = 50
    cutoff: float = 6.0
    max_neighbors: int | None = None
    num_elements: int = 100
    ewald: EwaldConfig | None = None
    atomic: AtomToAtomConfig | None = None
    precision: Precision = "float32"

    needs_triplets: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = True

    def __post_init__(self):
        """Refuses sizes that make no network.

        Raises:
            InputError: If one is out of range.
        """
        check_sizes(self, at_least={"hidden_channels": 2})
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
        pairs = batch.pairs
        distances = ops.pair_lengths(graph, pairs)
        rbf = gaussian_rbf(
            distances, 0.0, self.cutoff, self.num_gaussians, float32_centres=True
        )
        weights = cosine_cutoff(distances, self.cutoff)
        ends = graph.senders, graph.receivers, pairs
        long_range = LongRange(self.ewald, self.atomic, batch, kspace)
        h = nn.Embed(
            self.num_elements,
            self.hidden_channels,
            embedding_init=nn.initializers.normal(1.0),
            name="embedding",
        )(graph.nodes["species"])
        h = h.astype(distances.dtype)
        for i in range(self.num_interactions):
            update = ContinuousFilterConvolution(self.num_filters, name=f"interaction_{i}")(
                h, rbf, weights, *ends
            )
            # The baseline has no factor, as published.
            h = merge(h, update, *long_range(i, h)) if long_range else h + update
        h = Dense(self.hidden_channels // 2, kernel_init=_xavier, name="output_0")(h)
        h = Readout(kernel_init=_xavier, name="output_1")(shifted_softplus(h))
        return h[:, 0]
