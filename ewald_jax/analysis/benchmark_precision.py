"""What the precision of a network's products costs in accuracy, and what it gains in time.

Every setting is compared with float64 on the same structures with the same weights, and its
training step with that in float32, in turn within one run.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ewald_jax.analysis.benchmark import interleaved
from ewald_jax.data.base import GraphDataset
from ewald_jax.data.loader import Loader
from ewald_jax.data.statistics import Statistics
from ewald_jax.graph.budgets import budgets_from_sizes
from ewald_jax.graph.schema import ENERGY, FORCES, Batch
from ewald_jax.models import neighborhood
from ewald_jax.nn.products import with_precision
from ewald_jax.potential import Prediction, model_outputs
from ewald_jax.train.losses import LossConfig
from ewald_jax.train.step import make_loss_fn
from ewald_jax.typing import InputError, PyTree

_EXACT = "float64"


@dataclass(frozen=True)
class PrecisionResult:
    """One setting on one data set.

    Attributes:
        precision: The setting, see `nn.products`.
        energy_error: Mean over structures of the difference from float64, meV per atom.
        energy_error_max: The largest, meV per atom.
        forces_error: Mean over force components of the difference from float64, meV/Å.
        forces_error_max: The largest, meV/Å.
        energy_mae: Mean error against the labels, meV per atom.
        forces_mae: Mean error of force components against the labels, meV/Å, or None.
        step_ratio: Time of the gradient of a training step over that in float32.
        step_ratio_spread: Interquartile range of the ratio.
    """

    precision: str
    energy_error: float
    energy_error_max: float
    forces_error: float
    forces_error_max: float
    energy_mae: float
    forces_mae: float | None
    step_ratio: float
    step_ratio_spread: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def settings_of_device() -> tuple[str, ...]:
    """The settings that differ: TF32 is for GPUs, and float32 everywhere else."""
    rounded = ("tf32", "bfloat16") if jax.default_backend() == "gpu" else ("bfloat16",)
    return ("float32", *rounded, _EXACT)


def compare_precisions(
    model: nn.Module,
    params: PyTree,
    dataset: GraphDataset,
    indices: Sequence[int] | np.ndarray,
    statistics: Statistics,
    batch_size: int = 16,
    repeats: int = 5,
) -> list[PrecisionResult]:
    """Energies, forces and training steps of a network in every setting.

    Args:
        model: The network, whose own setting does not count.
        params: Its parameters, of a single network.
        dataset: Structures with energies, or energies and forces.
        indices: Which of them.
        statistics: Of the model's training data.
        batch_size: Structures per batch.
        repeats: Timed steps of each setting, on the first batch.

    Returns:
        One result for each of `settings_of_device`, the first float32.

    Raises:
        InputError: If the model has no such setting, or the data no energies.
    """
    if ENERGY not in dataset.labels:
        raise InputError("the data have no labels to compare with, expected energies")
    dataset = dataset.suited_to(neighborhood(model))
    indices = np.asarray(indices)
    # One shape, so that each setting is compiled once.
    sizes, triplets = dataset.sizes.take(indices), dataset.neighborhood.triplets
    budgets = budgets_from_sizes(sizes, min(batch_size, len(indices)), 1, triplets=triplets)
    settings = [
        _Setting(name, model, params, FORCES in dataset.labels, statistics.scale)
        for name in settings_of_device()
    ]
    found: dict[str, list[tuple[np.ndarray, ...]]] = {s.name: [] for s in settings}
    loader = partial(Loader, dataset, indices, batch_size, budgets, statistics, prefetch=0)
    exact, single = (loader(dtype=dtype) for dtype in (np.float64, np.float32))
    steps = []
    for batches in zip(exact.epoch(), single.epoch(), strict=True):
        given = [batches[0 if s.name == _EXACT else 1] for s in settings]
        for setting, batch in zip(settings, given, strict=True):
            found[setting.name].append(setting.outputs(batch))
        steps = steps or [partial(s.step, b) for s, b in zip(settings, given, strict=True)]
    seconds = interleaved(tuple(steps), repeats)
    ratios = seconds / np.median(seconds[0])
    joined = {
        name: [np.concatenate(values) for values in zip(*parts, strict=True)]
        for name, parts in found.items()
    }
    labels = [_labels(batch) for batch in exact.epoch()]
    energies, forces, atoms = (np.concatenate(x) for x in zip(*labels, strict=True))
    results = []
    for setting, times in zip(settings, ratios, strict=True):
        energy, force = joined[setting.name]
        exact_energy, exact_force = joined[_EXACT]
        per_atom = 1e3 * np.abs(energy - exact_energy) / atoms
        of_force = 1e3 * np.abs(force - exact_force)
        has_forces = len(forces) > 0
        results.append(
            PrecisionResult(
                precision=setting.name,
                energy_error=float(per_atom.mean()),
                energy_error_max=float(per_atom.max()),
                forces_error=float(of_force.mean()),
                forces_error_max=float(of_force.max()),
                energy_mae=float(np.mean(1e3 * np.abs(energy - energies) / atoms)),
                forces_mae=float(1e3 * np.abs(force - forces).mean())
                if has_forces
                else None,
                step_ratio=float(np.median(times)),
                step_ratio_spread=float(np.subtract(*np.percentile(times, [75, 25]))),
            )
        )
    return results


class _Setting:
    """The network in one setting, compiled on first use."""

    def __init__(
        self, name: str, model: nn.Module, params: PyTree, forces: bool, scale: float
    ):
        self.name, self._params, self._scale = name, params, scale
        with self._floats():
            changed = with_precision(model, name)
        self._outputs = jax.jit(partial(model_outputs, changed, forces=True))
        loss = LossConfig(forces="l2" if forces else "none")
        loss_fn = make_loss_fn(changed, loss, scale)
        self._step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))

    def _floats(self) -> Any:
        return jax.enable_x64(self.name == _EXACT)

    def outputs(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Energies of the structures and forces of the atoms, eV and eV/Å, without padding."""
        with self._floats():
            out: Prediction = self._outputs(self._params, batch._replace(targets={}))
            energy, forces = (np.asarray(x, np.float64) for x in (out.energy, out.forces))
        real, atoms = _real(batch)
        return self._scale * energy[real], self._scale * forces[atoms]

    def step(self, batch: Batch) -> Any:
        """Loss and gradient of the parameters."""
        with self._floats():
            return jax.block_until_ready(self._step(self._params, batch))


def _real(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Places of structures and of atoms that are not padding."""
    species = np.asarray(batch.graph.nodes["species"])
    ends = np.cumsum(np.asarray(batch.graph.n_node))
    starts = ends - np.asarray(batch.graph.n_node)
    last = len(species) - 1
    real = (ends > starts) & (species[np.minimum(starts, last)] > 0)
    return real, species > 0


def _labels(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energies without reference energies, forces (none if there are no labels), atoms."""
    real, atoms = _real(batch)
    forces = batch.targets.get(FORCES)
    forces = np.zeros((0, 3)) if forces is None else np.asarray(forces)[atoms]
    return (
        np.asarray(batch.targets[ENERGY])[real],
        forces,
        np.asarray(batch.graph.n_node)[real],
    )
