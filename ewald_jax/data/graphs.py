"""Graphs, labels and metadata of the structures of one source, by one process or several."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from ewald_jax.data.labels import (
    LABELS,
    USE_LABELS,
    LabelOptions,
    standardise,
    structure_targets,
)
from ewald_jax.data.parallel import in_order
from ewald_jax.data.store import TAGS, check_storable
from ewald_jax.data.structure_info import metadata
from ewald_jax.graph.build import structure_from_atoms
from ewald_jax.graph.crowding import TooCloseError
from ewald_jax.graph.neighborhood import Neighborhood
from ewald_jax.graph.schema import Structure
from ewald_jax.typing import InputError

_CHUNK = 32
"""Structures that a process gets at a time: megabytes, and a tenth of a second of work."""

Item = tuple[Structure, dict[str, np.ndarray], dict[str, Any]]


class Graphs(NamedTuple):
    """Graphs of one source, made when they are iterated.

    Attributes:
        frames: Structures as read, None in place of those that were skipped.
        source: The file, for messages.
        options: Which labels to read.
        neighborhood: Which edges.
        skipped: Takes sentences about broken structures by their number; None to stop at
            the first.
        workers: Processes.
        progress: Show a progress bar on stderr.
    """

    frames: Iterable[ase.Atoms | None]
    source: str
    options: LabelOptions
    neighborhood: Neighborhood
    skipped: dict[int, str] | None = None
    workers: int = 1
    progress: bool = False

    def items(self) -> Iterator[Item]:
        """Graph with far edges, targets with tags, and metadata of each structure, in order.

        Raises:
            InputError: As `labels.standardise`, or if a structure is broken.
        """
        made = self._made(self.frames) if self.workers < 2 else self._made_together()
        if not self.progress:
            yield from made
            return
        with _progress_bar() as bar:
            task = bar.add_task(f"graphs of {Path(self.source).name}", total=None)
            for item in made:
                yield item
                bar.advance(task)

    def check_labels(self, count: int) -> None:
        """Refuses labels that a structure decided which is unlike most of the others.

        Args:
            count: Structures that were not skipped.

        Raises:
            InputError: If more than half were skipped for having other labels.
        """
        sentences = (self.skipped or {}).values()
        others = [sentence for sentence in sentences if sentence.endswith(USE_LABELS)]
        total = count + len(sentences)
        if 2 * len(others) > total:
            raise InputError(
                f"{self.source}: {len(others)} of {total} structures have other labels than "
                f"the first that is whole and would be skipped, expected {USE_LABELS}; the "
                f"first of them: {others[0]}"
            )

    def _made(
        self,
        frames: Iterable[ase.Atoms | None],
        start: int = 0,
        decided: tuple[str, ...] | None = None,
    ) -> Iterator[Item]:
        standard = standardise(
            frames, self.source, self.options, self.skipped, start, decided
        )
        # Wave vectors are made anew for each batch.
        neighborhood = dataclasses.replace(self.neighborhood, waves=None)
        for index, atoms in enumerate(standard, start):
            if atoms is None:
                continue
            try:
                structure = structure_from_atoms(atoms, neighborhood, np.float64)
                check_storable(structure)
            except InputError as error:
                sentence = f"{self.source}: structure {index} {error}"
                if isinstance(error, TooCloseError):
                    sentence += "; is data.length_unit right?"
                if self.skipped is None:
                    raise InputError(sentence) from error
                self.skipped[index] = sentence
                continue
            yield (
                structure,
                structure_targets(atoms) | {TAGS: atoms.get_tags()},
                metadata(atoms),
            )

    def _made_together(self) -> Iterator[Item]:
        """The first structures here, as they decide which labels there are."""
        frames, start, decided = iter(self.frames), 0, None
        while decided is None and (chunk := list(itertools.islice(frames, _CHUNK))):
            for item in self._made(chunk, start):
                decided = tuple(name for name in LABELS if name in item[1])
                yield item
            start += len(chunk)
        alone = self._replace(frames=(), workers=1, progress=False, skipped=None)
        work = functools.partial(_make_chunk, alone, self.skipped is not None, decided)
        with contextlib.closing(
            in_order(work, _chunks(frames, start), self.workers, Path(self.source))
        ) as made:
            for items, skipped in made:
                yield from items
                if self.skipped is not None:
                    self.skipped.update(skipped)


def _chunks(
    frames: Iterator[ase.Atoms | None], start: int
) -> Iterator[tuple[int, list[ase.Atoms | None]]]:
    while chunk := list(itertools.islice(frames, _CHUNK)):
        yield start, chunk
        start += len(chunk)


def _make_chunk(
    graphs: Graphs,
    skip: bool,
    decided: tuple[str, ...],
    start: int,
    frames: list[ase.Atoms | None],
) -> tuple[list[Item], dict[int, str]]:
    """Runs in another process."""
    skipped: dict[int, str] = {}
    graphs = graphs._replace(skipped=skipped if skip else None)
    return list(graphs._made(frames, start, decided)), skipped


def _progress_bar() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
    )
