"""Which structures train, validate and test: at random, by key, by file, as published."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ewald_jax.data import samples
from ewald_jax.data.base import ROLES, DataConfig, GraphDataset
from ewald_jax.typing import InputError

_SIZES = ("train_size", "val_size", "test_size")
_OE62_SHARES = {"val_size": 6000 / 61489, "test_size": 5489 / 61489}
_OE62_SEED = 42


def split_dataset(config: DataConfig, dataset: GraphDataset) -> dict[str, np.ndarray]:
    """Splits a data set as its config says.

    Args:
        config: The config that the data set was loaded with.
        dataset: The data set.

    Returns:
        Sorted indices under ``train``, ``val`` and ``test``; a split that the config asks
        nothing for (size 0, no file) is left out. Sample sets may add others.

    Raises:
        InputError: If a split would be empty, or metadata for it are missing.
    """
    if config.name:
        splits = _sample_split(config, dataset)
    elif config.train:
        splits = _file_split(config, dataset)
    elif config.split in ("", "random"):
        splits = random_split(len(dataset), config)
    elif config.split == "oe62":
        splits = _among_all_rows(config, dataset)
    elif config.split == "key":
        values = _values(dataset, config.split_key)
        splits = group_split(values, config)
    else:
        raise InputError(
            f"data.split is {config.split!r}, expected 'random', 'key' or 'oe62', or a "
            "sample set that has such a split"
        )
    for role, indices in splits.items():
        if len(indices) == 0:
            raise _empty(role, len(dataset), config)
    return {role: _limited(role, indices, config) for role, indices in splits.items()}


def random_split(count: int, config: DataConfig) -> dict[str, np.ndarray]:
    """Splits `count` structures at random, by sizes and seed of the config.

    Raises:
        InputError: If there are not enough structures.
    """
    order = np.random.default_rng(config.split_seed).permutation(count)
    return _take(config, count, lambda first, wanted: order[first : first + wanted])


def oe62_split(count: int, config: DataConfig) -> dict[str, np.ndarray]:
    """The paper's split of OE62: 50,000, 6,000 and 5,489 of its 61,489 molecules.

    Args:
        count: Number of structures.
        config: Sizes; those of validation and test at their defaults are the paper's shares.

    Raises:
        InputError: If there are not enough structures.
    """
    # What DataFrame.sample(frac=1, random_state=42) of pandas draws.
    order = np.random.RandomState(_OE62_SEED).permutation(count)[::-1]  # noqa: NPY002
    shares = {key: s for key, s in _OE62_SHARES.items() if _is_default(config, key)}
    config = dataclasses.replace(config, **shares)
    return _take(config, count, lambda first, wanted: order[first : first + wanted])


def _among_all_rows(config: DataConfig, dataset: GraphDataset) -> dict[str, np.ndarray]:
    """OE62's split: rows that were skipped leave their sets, and change no other."""
    rows, count = dataset.rows()
    return {
        role: np.flatnonzero(np.isin(rows, chosen))
        for role, chosen in oe62_split(count, config).items()
    }


def group_split(values: Sequence, config: DataConfig) -> dict[str, np.ndarray]:
    """Splits structures so that equal values stay together.

    Groups are drawn at random until a split has at least the structures that it wants.

    Args:
        values: [structures] one hashable value each.
        config: Sizes, in structures or shares of them, and seed.

    Raises:
        InputError: If there are not enough groups.
    """
    codes = _codes(values)
    counts = np.bincount(codes)
    drawn = np.random.default_rng(config.split_seed).permutation(len(counts))
    rank = np.empty_like(drawn)
    rank[drawn] = np.arange(len(drawn))
    order = np.argsort(rank[codes], kind="stable")
    ends = np.cumsum(counts[drawn])

    def take(first: int, wanted: int) -> np.ndarray:
        reached = np.searchsorted(ends, first + wanted)
        end = ends[reached] if reached < len(ends) else len(order)
        return order[first : end if wanted else first]

    return _take(config, len(order), take)


def _codes(values: Sequence | np.ndarray) -> np.ndarray:
    """[structures] the rank of each value among the different ones.

    Sorted, so that a split does not depend on the order of the structures.
    """
    if isinstance(values, np.ndarray):
        return np.unique(values, return_inverse=True)[1]
    different = sorted(set(values), key=lambda value: (str(type(value)), value))
    ranks = {value: rank for rank, value in enumerate(different)}
    return np.array([ranks[value] for value in values], np.int64)


def _take(
    config: DataConfig, count: int, take: Callable[[int, int], np.ndarray]
) -> dict[str, np.ndarray]:
    """Test and validation first, so that they do not depend on `train_size`."""
    splits, first = {}, 0
    for role in ("test", "val"):
        wanted = _wanted(getattr(config, f"{role}_size"), count)
        splits[role] = take(first, wanted)
        if len(splits[role]) < wanted:
            raise _empty(role, count, config)
        first += len(splits[role])
        if not wanted:
            del splits[role]
    wanted = _wanted(config.train_size, count) or count - first
    splits["train"] = take(first, wanted)
    if len(splits["train"]) < max(wanted, 1):
        raise _empty("train", count, config)
    return {role: np.sort(splits[role]) for role in ROLES if role in splits}


def _wanted(size: float, count: int) -> int:
    return int(size) if size >= 1 or size == 0 else max(1, round(size * count))


def _file_split(config: DataConfig, dataset: GraphDataset) -> dict[str, np.ndarray]:
    if config.split not in ("", "file"):
        raise InputError(
            f"data.split is {config.split!r} beside data.train, expected it unset: the files "
            "are the splits"
        )
    unused = ("train_size", "test_size", "val_size")[: 3 if config.val else 2]
    _refuse_sizes(config, unused, "beside data.train the files are the splits")
    splits = {
        role: np.flatnonzero(dataset.roles == role)
        for role in ROLES
        if getattr(config, role)
    }
    if config.val or not config.val_size:
        return splits
    train = splits["train"]
    order = np.random.default_rng(config.split_seed).permutation(len(train))
    wanted = _wanted(config.val_size, len(train))
    if wanted >= len(train):
        raise _empty("train", len(train), config)
    splits["val"] = np.sort(train[order[:wanted]])
    splits["train"] = np.sort(train[order[wanted:]])
    return {role: splits[role] for role in ROLES if role in splits}


def _sample_split(config: DataConfig, dataset: GraphDataset) -> dict[str, np.ndarray]:
    known = samples.SPLITS[config.name]
    if config.split and config.split not in known:
        raise InputError(
            f"data.split is {config.split!r}, but the sample set {config.name!r} has "
            f"{', '.join(known)}"
        )
    _refuse_sizes(
        config, _SIZES, f"the splits of the sample set {config.name!r} have fixed sizes"
    )
    splits = samples.split_indices(
        config.name, config.split or known[0], dataset.infos(), config.split_seed
    )
    return {
        role: np.asarray(indices)
        for role, indices in splits.items()
        if role in ROLES or len(indices)
    }


def _refuse_sizes(config: DataConfig, keys: Sequence[str], reason: str) -> None:
    for key in keys:
        if not _is_default(config, key):
            raise InputError(
                f"data.{key} is set, but {reason}; expected data.limit or data.limit_eval"
            )


def _is_default(config: DataConfig, key: str) -> bool:
    return getattr(config, key) == DataConfig.__dataclass_fields__[key].default


def _values(dataset: GraphDataset, key: str) -> Sequence | np.ndarray:
    values = dataset.values(key)
    if values is not None:
        return values
    infos = dataset.infos()
    for index, info in enumerate(infos):
        if key not in info:
            present = ", ".join(map(repr, sorted(info))) or "none"
            raise InputError(
                f"{dataset.where(index)} has no metadata {key!r} to split by; it has "
                f"{present}, expected data.split_key to be one of them"
            )
    return [info[key] for info in infos]


def _limited(role: str, indices: np.ndarray, config: DataConfig) -> np.ndarray:
    limit = config.limit if role == "train" else config.limit_eval
    if role not in ROLES or not limit or limit >= len(indices):
        return indices
    # A limit keeps the first of one fixed order, so that smaller sets are in larger ones.
    order = np.random.default_rng(config.split_seed).permutation(len(indices))
    return np.sort(indices[order[:limit]])


def _empty(role: str, count: int, config: DataConfig) -> InputError:
    sizes = ", ".join(f"data.{key} {getattr(config, key):g}" for key in _SIZES)
    groups = f" in groups of equal {config.split_key!r}" if config.split_key else ""
    return InputError(
        f"not enough structures for the split {role!r}: there are {count}{groups} for {sizes}; "
        "expected at least one in every split"
    )
