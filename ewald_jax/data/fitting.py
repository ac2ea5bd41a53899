"""Fits reference energies, mean and scale to a data set, and keeps them with its graphs.

Structures of equal composition enter the least squares as one row, their mean with the root
of their number as its weight, and rows are reduced by QR decompositions as they come: a
million structures need a few megabytes and have the same solution.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import scipy.optimize
from ase.data import atomic_numbers

from ewald_jax.data.cache_key import versions
from ewald_jax.data.content import keep
from ewald_jax.data.dataset import GraphDataset
from ewald_jax.data.statistics import Statistics, StatisticsConfig
from ewald_jax.graph.schema import FORCES, MAX_ATOMIC_NUMBER
from ewald_jax.typing import InputError

_LENGTH = MAX_ATOMIC_NUMBER + 1
_NEGLIGIBLE = 1e-11
"""A residual spread below this share of the largest energy is rounding, not a scale."""
_FOLDER = "statistics"
_FIT_VERSION = 1
_ROWS = 16384

Block = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Energies [structures], eV; for each of them a row [structures] of the table [rows, 119]."""


def fit_statistics(
    data: Iterable[tuple[np.ndarray, float, np.ndarray | None]],
    config: StatisticsConfig | None = None,
) -> Statistics:
    """Fits reference energies, mean and scale.

    Args:
        data: Per structure: atomic numbers [n], energy in eV, forces [n, 3] in eV/Å or None.
        config: What to fit and what is given.

    Returns:
        The statistics. The scale is 1 if the energies leave no spread to scale by, as those
        of a single structure do.

    Raises:
        InputError: If there are no structures, or forces are asked for and missing.
    """
    table: dict[bytes, int] = {}
    rows, energies, squares, components = [], [], 0.0, 0
    for species, energy, forces in data:
        counted = np.bincount(np.asarray(species), minlength=_LENGTH).astype(np.int64)
        rows.append(table.setdefault(counted.tobytes(), len(table)))
        energies.append(float(energy))
        if forces is not None:
            squares += float(np.sum(np.square(forces, dtype=np.float64)))
            components += np.size(forces)
    counts = np.frombuffer(b"".join(table), np.int64).reshape(-1, _LENGTH)
    block = np.array(energies, np.float64), np.array(rows, np.int64), counts
    return _fit([block], (squares, components), config or StatisticsConfig())


def dataset_statistics(
    dataset: GraphDataset,
    indices: Sequence[int] | np.ndarray,
    config: StatisticsConfig | None = None,
) -> Statistics:
    """`fit_statistics` of a data set's training split, or all of it if `config` says so.

    What was fitted once to the same structures with the same settings is kept beside the
    cached graphs, and read from there.

    Args:
        dataset: Structures with energies.
        indices: The training split.
        config: What to fit and what is given.

    Raises:
        InputError: As `fit_statistics`, and if the data set has no energies.
    """
    config = config or StatisticsConfig()
    energies = dataset.energies
    chosen = np.arange(len(dataset)) if config.fit_on == "all" else np.asarray(indices)
    entry = None
    if dataset.cache is not None:
        entry = dataset.cache / _FOLDER / f"{_name(dataset, chosen, config)}.json"
        # A damaged entry is no entry.
        with contextlib.suppress(OSError, ValueError):
            return Statistics.from_dict(json.loads(entry.read_text(encoding="utf-8")))
    blocks, times = [], np.bincount(chosen, minlength=len(dataset))
    for where, rows, table in dataset.compositions():
        here = np.repeat(np.arange(where.start, where.stop), times[where])
        if len(here):
            blocks.append((energies[here], rows[here - where.start], table))
    wanted = config.scale_from == "forces" and config.scale is None
    found = _fit(blocks, dataset.square_sum(FORCES, times) if wanted else (0.0, 0), config)
    if entry is not None:
        keep(entry, json.dumps(found.to_dict()).encode())
    return found


def _name(dataset: GraphDataset, chosen: np.ndarray, config: StatisticsConfig) -> str:
    settings = [_FIT_VERSION, dataset.fingerprint, dataclasses.asdict(config)]
    settings.append(versions(["ase", "dftd3"]))  # read and changed the labels
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(chosen, np.int64).tobytes())
    return digest.hexdigest()


def _fit(
    blocks: Sequence[Block], forces: tuple[float, int], config: StatisticsConfig
) -> Statistics:
    if not any(len(energies) for energies, _, _ in blocks):
        raise InputError(
            "statistics need at least one structure, the training set is empty"
        )
    seen = np.zeros(_LENGTH, bool)
    for _, rows, table in blocks:
        seen |= (table[np.unique(rows)] > 0).any(axis=0)
    seen = np.flatnonzero(seen)
    reference = np.zeros(_LENGTH)
    for symbol, energy in config.reference_energies.items():
        reference[atomic_numbers[symbol]] = energy
    given = [atomic_numbers[symbol] for symbol in config.reference_energies]
    mean = float(config.mean or 0.0)
    fitted = [int(z) for z in seen if z not in given] if config.reference != "none" else []
    intercept = config.intercept and config.mean is None
    if fitted or intercept:
        equations = _equations(blocks, fitted, intercept, reference, mean)
        coefficients = _solve(*equations, config.reference == "nonnegative", intercept)
        reference[fitted] = coefficients[: len(fitted)]
        mean = float(coefficients[-1]) if intercept else mean

    if config.scale is not None:
        scale = float(config.scale)
    elif config.scale_from == "forces":
        squares, components = forces
        if not components:
            raise InputError(
                "statistics.scale_from is 'forces', but the data have no forces"
            )
        scale = float(np.sqrt(squares / components)) or 1.0
    else:
        left = [e - (table @ reference)[rows] - mean for e, rows, table in blocks]
        largest = max(np.abs(energies).max(initial=0.0) for energies, _, _ in blocks)
        floor = _NEGLIGIBLE * max(float(largest), 1.0)
        spread = float(np.std(np.concatenate(left)))
        scale = spread if spread > floor else 1.0
    return Statistics(tuple(reference.tolist()), mean, scale, tuple(seen.tolist()))


def _equations(
    blocks: Sequence[Block],
    fitted: list[int],
    intercept: bool,
    reference: np.ndarray,
    mean: float,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Matrix and right side of the same least squares with few rows, and how many it had."""
    pending: list[np.ndarray] = []
    total = 0
    for energies, rows, table in blocks:
        for piece in _weighted(energies, rows, table, fitted, intercept, reference, mean):
            pending.append(piece)
            if sum(map(len, pending)) > 2 * _ROWS:
                pending = [np.linalg.qr(np.concatenate(pending), mode="r")]
        total += len(energies)
    matrix = np.concatenate(pending)
    return matrix[:, :-1], matrix[:, -1], total


def _weighted(
    energies: np.ndarray,
    rows: np.ndarray,
    table: np.ndarray,
    fitted: list[int],
    intercept: bool,
    reference: np.ndarray,
    mean: float,
) -> Iterator[np.ndarray]:
    """Equations of a block, one for each composition, the right side as the last column."""
    number = np.bincount(rows, minlength=len(table))
    residual = energies - (table @ reference)[rows] - mean
    sums = np.bincount(rows, residual, minlength=len(table))
    used = np.flatnonzero(number)
    for start in range(0, len(used), _ROWS):
        part = used[start : start + _ROWS]
        columns = [table[part][:, fitted].astype(np.float64)]
        columns += [np.ones((len(part), 1))] if intercept else []
        columns.append((sums[part] / number[part])[:, None])
        yield np.sqrt(number[part])[:, None] * np.concatenate(columns, axis=1)


def _solve(
    matrix: np.ndarray, energies: np.ndarray, total: int, nonnegative: bool, intercept: bool
) -> np.ndarray:
    """Least squares of smallest norm; on request, no coefficient above zero."""
    if not nonnegative:
        # What counts as zero follows from the number of rows before they were reduced.
        precision = np.finfo(np.float64).eps * max(total, matrix.shape[1])
        return np.linalg.lstsq(matrix, energies, rcond=precision)[0]
    if intercept:
        # The constant may have either sign: the difference of two that may not.
        matrix = np.concatenate([matrix, -matrix[:, -1:]], axis=1)
    solution = -scipy.optimize.nnls(matrix, -energies)[0]
    if intercept:
        solution = np.append(solution[:-2], solution[-2] - solution[-1])
    return solution
