"""A data set as training sees it: structures by number, from one file or several."""

import bisect
import copy
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ewald_jax.data.store import FORMULA, FORMULAS, GraphStore, Sample
from ewald_jax.data.wave_sizes import wave_sizes
from ewald_jax.graph.neighborhood import Neighborhood
from ewald_jax.graph.schema import ENERGY, FREE, MAX_ATOMIC_NUMBER, PBC, Sizes
from ewald_jax.graph.waves import with_waves
from ewald_jax.typing import InputError

_PART = 4096
"""Structures that are looked at together."""


class GraphDataset:
    """Structures as graphs with labels, from one file or several, read on demand.

    Attributes:
        neighborhood: Which edges the structures have, and whether batches list triplets.
        n_node: [structures] atoms of each.
        n_edge: [structures] edges of each.
        labels: Labels that every structure has; ``free`` among them if any atom is fixed.
        roles: [structures] split that each structure's file was given for, "" if none.
        fingerprint: Hash of everything the content depends on.
        cache: Folder of what was computed from the structures once, None for none.
    """

    def __init__(
        self,
        stores: Sequence[GraphStore],
        neighborhood: Neighborhood | float,
        roles: Sequence[str] | None = None,
        cache: Path | None = None,
        left_out: Sequence[str] = (),
    ):
        """Joins the graphs of several files.

        Args:
            stores: One per file, at least one.
            neighborhood: Which edges they were built with; a number is a cutoff, Å.
            roles: Split that each file was given for.
            cache: Folder to keep what is computed from them all; None for none.
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
        self.cache = cache
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
        return self.count_waves()

    def count_waves(self, advance: Callable[[int, int], None] = lambda *_: None) -> Sizes:
        """`sizes`; `advance` is called with the structures done and all that take a while."""
        if self.neighborhood.waves is None:
            return self._sizes
        waves = (self._with_waves(index).waves for index in range(len(self)))
        key = f"{self.fingerprint} {self.neighborhood.waves}"
        n_kvecs, n_pairs, n_quad = wave_sizes(waves, self.n_node, self.cache, key, advance)
        return self._sizes._replace(n_kvecs=n_kvecs, n_pairs=n_pairs, n_quad=n_quad)

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
        # Copies: a view would keep its file open.
        return np.concatenate([store.arrays[ENERGY].copy() for store in self._stores])

    def info(self, index: int) -> dict[str, Any]:
        """Metadata of a structure: the scalars that stood beside it in the file."""
        store, local = self._locate(index)
        return store.infos[local]

    def infos(self) -> list[dict[str, Any]]:
        """Metadata of all structures."""
        return [info for store in self._stores for info in store.infos]

    def values(self, key: str) -> np.ndarray | None:
        """A metadatum of all structures [structures], texts as ranks among the different ones.

        Returns:
            None if a structure lacks it, or the values are not all truth values, all whole
            numbers, all numbers or all texts of similar length.
        """
        columns = [store.infos.column(key) for store in self._stores]
        if any(column is None for column in columns):
            return None
        values, tables = zip(*columns, strict=True)
        if len({(v.dtype.kind, t is None) for v, t in columns}) > 1:
            return None
        if tables[0] is not None:
            ranks = np.unique(np.concatenate(tables), return_inverse=True)[1]
            starts = np.cumsum([0, *map(len, tables)])[:-1]
            values = [ranks[v + start] for v, start in zip(values, starts, strict=True)]
        return np.concatenate(values)

    def compositions(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """What structures are made of, file by file.

        Yields:
            The structures of a file; for each of them [structures] a row of a table; the
            table [rows, 119], atoms of each element, with no row twice.
        """
        for start, store in zip(self._starts, self._stores, strict=False):
            arrays = store.arrays
            where = slice(start, start + len(store))
            yield where, arrays[FORMULA].copy(), arrays[FORMULAS].copy()

    def square_sum(self, label: str, times: np.ndarray) -> tuple[float, int]:
        """Sum of the squares of a label of atoms, and how many numbers it was of.

        Args:
            label: Such as ``forces``; 0 of 0 numbers if the data set does not have it.
            times: [structures] how often each counts.
        """
        squares, components = 0.0, 0
        for start, store in zip(self._starts, self._stores, strict=False):
            if label not in store.labels:
                continue
            values, end = store.arrays[label], 0
            here = slice(start, start + len(store))
            counts, n_node = times[here], self.n_node[here]
            for first in range(0, len(store), _PART):
                part = slice(first, first + _PART)
                weights = np.repeat(counts[part], n_node[part])
                begin, end = end, end + len(weights)
                each = np.square(values[begin:end]).sum(axis=1)
                squares += float(weights @ each)
                components += int(weights.sum()) * values.shape[1]
        return squares, components

    def elements(self, indices: np.ndarray | Sequence[int]) -> tuple[int, ...]:
        """Atomic numbers of the atoms of some structures, ascending."""
        chosen = np.zeros(len(self), bool)
        chosen[np.asarray(indices, np.int64)] = True
        seen = np.zeros(MAX_ATOMIC_NUMBER + 1, bool)
        for where, rows, table in self.compositions():
            seen |= (table[np.unique(rows[chosen[where]])] > 0).any(axis=0)
        return tuple(np.flatnonzero(seen).tolist())

    def kinds(self, indices: np.ndarray | Sequence[int]) -> np.ndarray:
        """Of some structures, the first with each set of elements and periodic directions."""
        chosen = np.zeros(len(self), bool)
        chosen[np.asarray(indices, np.int64)] = True
        first: dict[bytes, int] = {}
        bits = 1 << np.arange(3)
        for (where, rows, table), store in zip(
            self.compositions(), self._stores, strict=True
        ):
            here = np.flatnonzero(chosen[where])
            codes = 8 * rows[here].astype(np.int64) + store.arrays[PBC][here] @ bits
            sets = np.packbits(table > 0, axis=1)
            for code, place in zip(*np.unique(codes, return_index=True), strict=True):
                name = sets[code // 8].tobytes() + bytes([code % 8])
                found = where.start + int(here[place])
                first[name] = min(first.get(name, found), found)
        return np.array(sorted(first.values()), np.int64)

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
            numbers.append(count + store.numbers())
            count += len(store) + len(store.skipped)
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
