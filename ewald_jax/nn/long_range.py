"""Long-range messages beside those of a network: Ewald, atom-to-atom, both or none.

A model has the fields ``ewald`` and ``atomic`` and two lines::

    long_range = LongRange(self.ewald, self.atomic, batch, kspace)  # once
    h = merge(h, update, *long_range(i, h))                         # per interaction
"""

import jax.numpy as jnp

from ewald_jax.graph.schema import Batch
from ewald_jax.nn.atom_to_atom import AtomToAtomConfig, far_geometry
from ewald_jax.nn.cfconv import ContinuousFilterConvolution
from ewald_jax.nn.ewald import EwaldBlock, EwaldFilter, EwaldVectorBlock
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.nn.ewald_geometry import KSpace
from ewald_jax.typing import Array, Float, InputError


class LongRange:
    """The long-range blocks of a model; made and called inside its compact ``__call__``.

    The modules belong to the model: ``ewald_filter``, ``ewald_0`` ..., ``atomic_0`` ....
    """

    def __init__(
        self,
        ewald: EwaldConfig | None,
        atomic: AtomToAtomConfig | None,
        batch: Batch,
        kspace: KSpace | None,
        num_hidden: int | None = None,
        scaled: bool = False,
    ):
        """Computes what all interactions share.

        Args:
            ewald: Settings of Ewald message passing, None for none.
            atomic: Settings of the atom-to-atom block, None for none.
            batch: Structures.
            kspace: From `kspace_geometry` if `ewald` is set.
            num_hidden: As in `EwaldBlock`.
            scaled: As in `EwaldBlock`.

        Raises:
            InputError: If `kspace` or the far edges of `batch` are missing.
        """
        self._ewald, self._atomic, self._kspace = ewald, atomic, kspace
        self._options = {"num_hidden": num_hidden, "scaled": scaled}
        if ewald is not None:
            if kspace is None:
                raise InputError(
                    "the model has Ewald blocks, but got no k-space geometry; call it "
                    "through ewald_jax.predict, or with kspace_geometry(model.ewald, batch)"
                )
            self._low_rank = EwaldFilter(ewald, name="ewald_filter")(kspace)
        if atomic is not None:
            self._far = far_geometry(atomic, batch)

    def vectors(
        self, i: int, v: Float[Array, "nodes 3 feat"]
    ) -> list[Float[Array, "nodes 3 feat"]]:
        """Updates of vector features: one if `ewald.equivariant`, else none.

        Args:
            i: Number of the interaction.
            v: Vector features.

        Returns:
            Arrays like `v`.
        """
        if not self._has_ewald(i) or not self._ewald.equivariant:
            return []
        block = EwaldVectorBlock(self._ewald, name=f"ewald_vectors_{i}")
        return [block(v, self._kspace, self._low_rank)]

    def __bool__(self) -> bool:
        """Whether there are long-range messages."""
        return self._ewald is not None or self._atomic is not None

    def __call__(self, i: int, h: Float[Array, "nodes feat"]) -> list[Array]:
        """Updates of the node features: none, one or two.

        Args:
            i: Number of the interaction.
            h: Node features.

        Returns:
            Arrays like `h`.
        """
        updates = []
        if self._has_ewald(i):
            block = EwaldBlock(self._ewald, name=f"ewald_{i}", **self._options)
            updates.append(block(h, self._kspace, self._low_rank))
        if self._atomic is not None:
            block = ContinuousFilterConvolution(
                self._atomic.num_filters, name=f"atomic_{i}"
            )
            updates.append(block(h, *self._far))
        return updates

    def _has_ewald(self, i: int) -> bool:
        if self._ewald is None:
            return False
        return self._ewald.blocks is None or i in self._ewald.blocks


def merge(h: Float[Array, "nodes feat"], *updates: Array) -> Float[Array, "nodes feat"]:
    """Sum divided by the square root of the number of terms, which keeps the variance."""
    return sum(updates, h) / jnp.sqrt(jnp.asarray(1.0 + len(updates), h.dtype))
