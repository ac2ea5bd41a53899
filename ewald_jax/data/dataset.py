"""A data set as training sees it: structures by number, from one file or several."""

import bisect
import copy
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ewald_jax.data.reading import REST
from ewald_jax.data.store import GraphStore, Sample
from ewald_jax.graph.schema import ENERGY, FREE, Neighborhood, Sizes
from ewald_jax.graph.waves import with_waves
from ewald_jax.typing import InputError


class GraphDataset:
    """Structures as graphs with labels, from one file or several, read on demand.

    Attributes:
        neighborhood: Which edges the structures have, and whether batches list triplets.
        n_node: [structures] atoms of each.
        n_edge: [structures] edges of each.
        labels: Labels that every structure has; ``free`` among them if any atom is fixed.
        roles: [structures] split that each structure's file was given for, "" if none.
        fingerprint: Hash of everything the content depends on.
    """

    def __init__(
        self,
        stores: Sequence[GraphStore],
        neighborhood: Neighborhood | float,
        roles: Sequence[str] | None = None,
        left_out: Sequence[str] = (),
    ):
        """Joins the graphs of several files.

        Args:
            stores: One per file, at least one.
            neighborhood: Which edges they were built with; a number is a cutoff, Å.
            roles: Split that each file was given for.
            left_out: Sentences about files that were left out whole.

        Raises:
            InputError: If the files have different labels.
        """
        first = stores[0]
        for store in stores:
            if store.labels != first.labels:
                raise InputError(
                    f"{store.source} has the labels {', '.join(store.labels) or 'none'} but "
                    f"{first.source} has {', '.join(first.labels) or 'none'}; expected the "
                    "same in all files, or data.labels with the labels to use"
                )
        self.neighborhood = Neighborhood.of(neighborhood)
        self._stores, self._left_out = tuple(stores), tuple(left_out)
        self._starts = list(itertools.accumulate(map(len, stores), initial=0))
        columns = zip(*(store.sizes for store in stores), strict=True)
        self._sizes = Sizes(*(np.concatenate(column) for column in columns))
        self.n_node, self.n_edge = self._sizes.n_node, self._sizes.n_edge
        self._all_free = all(store.all_free for store in stores)
        self.labels = first.labels + (() if self._all_free else (FREE,))
        self.roles = np.repeat(list(roles or [""] * len(stores)), list(map(len, stores)))
        joined = " ".join(store.fingerprint for store in stores)
        self.fingerprint = hashlib.sha256(joined.encode()).hexdigest()

    def __len__(self) -> int:
        """Number of structures."""
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        """One structure; negative indices count from the end."""
        sample = self._with_waves(index)
        if self._all_free:
            del sample.targets[FREE]
        return sample

    def __iter__(self) -> Iterator[Sample]:
        """All structures in order."""
        return (self[index] for index in range(len(self)))

    @cached_property
    def sizes(self) -> Sizes:
        """What each structure takes up in a batch.

        Raises:
            InputError: If a structure needs more wave vectors than allowed, naming it.
        """
        if self.neighborhood.waves is None:
            return self._sizes
        found = [self._with_waves(index).waves for index in range(len(self))]
        n_quad = np.array([waves.num_quad for waves in found], np.int64)
        return self._sizes._replace(
            n_kvecs=np.array([len(waves.nodes) for waves in found], np.int64),
            n_pairs=np.where(n_quad > 0, self.n_node * (self.n_node - 1) // 2, 0),
            n_quad=n_quad,
        )

    def suited_to(self, needed: Neighborhood) -> "GraphDataset":
        """The same structures for a model, with triplets if it needs them.

        Args:
            needed: What the model needs (see `models.neighborhood`).

        Returns:
            A data set that shares the arrays of this one.

        Raises:
            InputError: If the edges are not those that the model needs.
        """
        have, need = self.neighborhood.edge_fields(), needed.edge_fields()
        for name, value in need.items():
            if have[name] != value:
                raise InputError(
                    f"the data set was made with the neighborhood {name} = {have[name]}, but "
                    f"the model needs {value}; expected the same"
                )
        suited = copy.copy(self)
        suited.neighborhood = needed
        suited.__dict__.pop("sizes", None)  # they are those of other wave vectors
        return suited

    def species(self, index: int) -> np.ndarray:
        """Atomic numbers [n] of a structure."""
        store, local = self._locate(index)
        return store.species(local)

    @cached_property
    def energies(self) -> np.ndarray:
        """[structures] energies, eV, float64.

        Raises:
            InputError: If the data set has no energies.
        """
        if ENERGY not in self.labels:
            raise InputError(f"{self._stores[0].source} was read without energies")
        return np.concatenate([store.arrays[ENERGY] for store in self._stores])

    def info(self, index: int) -> dict[str, Any]:
        """Metadata of a structure: the scalars that stood beside it in the file."""
        store, local = self._locate(index)
        return dict(store.infos[local])

    def infos(self) -> list[dict[str, Any]]:
        """Metadata of all structures."""
        return [dict(info) for store in self._stores for info in store.infos]

    def where(self, index: int) -> str:
        """The file and number of a structure, as error messages name it."""
        store, local = self._locate(index)
        return f"{store.source}: structure {store.number_in_file(local)}"

    @property
    def skipped(self) -> list[str]:
        """Sentences about broken structures that were left out (``data.on_error: skip``)."""
        found = [sentence for store in self._stores for sentence in store.skipped.values()]
        return [*found, *self._left_out]

    def rows(self) -> tuple[np.ndarray, int]:
        """[structures] number of each among all of the files, and how many these are.

        Raises:
            InputError: If a file could not be read to its end, so that nobody knows.
        """
        numbers, count = [], 0
        for store in self._stores:
            torn = [text for text in store.skipped.values() if text.endswith(REST)]
            if torn:
                raise InputError(f"{torn[0]}, so that its rows cannot be counted")
            total = len(store) + len(store.skipped)
            numbers.append(count + np.setdiff1d(np.arange(total), list(store.skipped)))
            count += total
        return np.concatenate(numbers), count

    def _with_waves(self, index: int) -> Sample:
        store, local = self._locate(index)
        sample = store.sample(local)
        try:
            waves = with_waves(sample.structure, self.neighborhood).waves
        except InputError as error:
            raise InputError(f"{self.where(index)} {error}") from None
        return sample._replace(waves=waves)

    def _locate(self, index: int) -> tuple[GraphStore, int]:
        index = int(index)
        count = self._starts[-1]
        if not -count <= index < count:
            raise IndexError(f"structure {index} of {count}")
        index %= count
        number = bisect.bisect_right(self._starts, index) - 1
        return self._stores[number], index - self._starts[number]
