"""What a model needs to know of the surroundings of atoms."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ewald_jax.graph.schema import Sizes
from ewald_jax.kspace.waves import WaveRule
from ewald_jax.typing import InputError


@dataclass(frozen=True)
class Neighborhood:
    """Which edges a model needs between the atoms of a structure.

    Attributes:
        cutoff: Distance cutoff of the edges, Å.
        max_neighbors: Nearest senders kept for each receiver, None for all.
        symmetric: Keep every pair in both directions, or not at all, although
            `max_neighbors` cuts (see `neighbors.symmetrised`).
        triplets: Also list the edges that meet at each node.
        far_cutoff: Cutoff of the second set of edges, Å; None for no such set.
        far_max_neighbors: Nearest senders kept in it, None for all.
        waves: Which wave vectors the `radial` scheme needs; None for none.
        pairs: Also list the two edges of each pair of atoms, wherever both are there.
        complete: No atom has as many neighbors as `max_neighbors` allows (see `suited`).
    """

    cutoff: float
    max_neighbors: int | None = None
    symmetric: bool = False
    triplets: bool = False
    far_cutoff: float | None = None
    far_max_neighbors: int | None = None
    waves: WaveRule | None = None
    pairs: bool = False
    complete: bool = False

    def __post_init__(self):
        """Checks the numbers.

        Raises:
            InputError: If a cutoff or a number of neighbors is not positive and finite.
        """
        for cutoff in (self.cutoff, self.far_cutoff):
            if cutoff is not None and not (cutoff > 0 and math.isfinite(cutoff)):
                raise InputError(
                    f"the distance cutoff must be finite and larger than 0 Å, not {cutoff}"
                )
        for count in (self.max_neighbors, self.far_max_neighbors):
            if count is not None and count < 1:
                raise InputError(f"max_neighbors must be at least 1 or None, not {count}")

    @classmethod
    def of(cls, value: "Neighborhood | float") -> "Neighborhood":
        """A number is a cutoff that keeps all neighbors."""
        return value if isinstance(value, cls) else cls(float(value))

    @property
    def near_pairs(self) -> bool:
        """Whether pairs are listed, and every pair within the cutoff has both edges."""
        cut = self.max_neighbors is not None and not self.complete
        return self.pairs and (self.symmetric or not cut)

    @property
    def far_pairs(self) -> bool:
        """Whether the second set has both edges of every pair: then they are listed."""
        return self.far_cutoff is not None and self.far_max_neighbors is None

    def suited(self, sizes: Sizes) -> "Neighborhood":
        """The same for structures of these sizes, `complete` if nothing was cut in any."""
        most = int(np.max(sizes.in_slots, initial=0))
        complete = self.max_neighbors is not None and most < self.max_neighbors
        return dataclasses.replace(self, complete=complete)

    def edge_fields(self) -> dict[str, Any]:
        """The fields that decide which edges there are; equal for equal edges."""
        fields = dataclasses.asdict(self)
        # Tables of the same edges, and no edges.
        for name in ("triplets", "waves", "pairs", "complete"):
            del fields[name]
        # Without a limit nothing is cut, and the edges are symmetric anyway.
        fields["symmetric"] = self.symmetric and self.max_neighbors is not None
        if self.far_cutoff is None:
            fields["far_max_neighbors"] = None
        for name in ("cutoff", "far_cutoff"):
            # 4 and 4.0 are one cutoff, but not one text.
            if fields[name] is not None:
                fields[name] = float(fields[name])
        return fields
