"""Which structures of a sample set are for training, validation, test and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

SPLITS: dict[str, tuple[str, ...]] = {
    "dimers": ("random", "far"),
    "slabs": ("random", "system"),
}
FAR_FROM = 8.0
VAL_SHARE = 0.1
TEST_SHARE = 0.1
SYSTEM_SHARE = 0.15


def split_indices(
    name: str, split: str, infos: Sequence[Mapping], seed: int = 0
) -> dict[str, np.ndarray]:
    """Split a sample set.

    - ``random``: 80/10/10 by ``seed``.
    - ``far`` (dimers): the test set is everything from a surface distance of 8 Å on;
      training and validation (90/10 by ``seed``) are everything below.
    - ``system`` (slabs): the test set is a seventh or so of the systems, chosen by
      ``seed``; training and validation (90/10) are the other systems.

    Args:
        name: ``dimers`` or ``slabs``.
        split: One of ``SPLITS[name]``.
        infos: ``atoms.info`` of every structure, in file order.
        seed: Seed of the shuffles.

    Returns:
        Sorted structure indices ``[n]`` under ``train``, ``val``, ``test`` and ``curve``.
        ``curve`` holds the binding curves of held-out pairs (empty for slabs), which are
        in no other part.

    Raises:
        ValueError: If the set has no such split.
    """
    if name not in SPLITS:
        raise ValueError(f"Unknown sample set {name!r}; choose one of {', '.join(SPLITS)}.")
    if split not in SPLITS[name]:
        known = ", ".join(SPLITS[name])
        raise ValueError(f"The {name} set has no split {split!r}; choose one of {known}.")
    rng = np.random.default_rng(seed)
    is_curve = np.array([info.get("subset") == "curve" for info in infos], dtype=bool)
    pool = np.flatnonzero(~is_curve)
    if split == "random":
        shuffled = rng.permutation(pool)
        n_test = round(TEST_SHARE * len(pool))
        n_val = round(VAL_SHARE * len(pool))
        test, val, train = np.split(shuffled, [n_test, n_test + n_val])
    else:
        held_out = _far(infos) if split == "far" else _other_system(infos, rng)
        test = pool[held_out[pool]]
        rest = rng.permutation(pool[~held_out[pool]])
        val, train = np.split(rest, [round(VAL_SHARE * len(rest))])
    parts = {"train": train, "val": val, "test": test, "curve": np.flatnonzero(is_curve)}
    return {key: np.sort(indices) for key, indices in parts.items()}


def _far(infos: Sequence[Mapping]) -> np.ndarray:
    return np.array([float(info["distance"]) >= FAR_FROM for info in infos], dtype=bool)


def _other_system(infos: Sequence[Mapping], rng: np.random.Generator) -> np.ndarray:
    systems = sorted({info["system"] for info in infos})
    chosen = set(rng.permutation(systems)[: max(1, round(SYSTEM_SHARE * len(systems)))])
    return np.array([info["system"] in chosen for info in infos], dtype=bool)
