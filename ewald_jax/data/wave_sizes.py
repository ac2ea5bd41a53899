"""How many wave vectors structures have, which cannot be told without making them."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ewald_jax.data.content import keep
from ewald_jax.kspace.waves import WaveSet

_VERSION = 1
"""Raise it whenever the same rule gives other wave vectors."""


def wave_sizes(
    waves: Iterable[WaveSet],
    n_node: np.ndarray,
    cache: Path | None,
    key: str,
    advance: Callable[[int, int], None],
) -> np.ndarray:
    """[3, structures] wave vectors, pairs and quadrature nodes, int64.

    Args:
        waves: Of each structure, made as they are asked for; not if the cache has the sizes.
        n_node: [structures] atoms of each.
        cache: Folder to keep the sizes in; None for none.
        key: Everything that they depend on.
        advance: Called with the structures that are done and all.
    """
    entry = None
    if cache is not None:
        name = hashlib.sha256(f"{_VERSION} {key}".encode()).hexdigest()
        entry = cache / "sizes" / f"{name}.int64"
        # A damaged entry is no entry.
        with contextlib.suppress(OSError, ValueError):
            return np.fromfile(entry, np.int64).reshape(3, len(n_node))
    sizes = np.zeros((3, len(n_node)), np.int64)
    # The vectors themselves take 35 kB each, and are made anew for each batch.
    for index, found in enumerate(waves):
        sizes[:, index] = len(found.nodes), 0, found.num_quad
        advance(index + 1, len(n_node))
    pairs = n_node.astype(np.int64) * (n_node - 1) // 2
    sizes[1] = np.where(sizes[2] > 0, pairs, 0)
    if entry is not None:
        keep(entry, sizes.tobytes())
    return sizes
