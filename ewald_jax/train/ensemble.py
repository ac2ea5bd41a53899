"""Trainings of several networks at once: their numbers on the host, and what they say together.

Every member takes each step as if it were alone, in one vectorised program, so sums have a
leading axis over members. What is shown and what decides is the mean over members; the numbers
of each are kept beside it.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np

from ewald_jax import ops
from ewald_jax.data.base import GraphDataset
from ewald_jax.data.loader import Loader
from ewald_jax.data.statistics import Statistics
from ewald_jax.ensemble import ensemble_outputs, member
from ewald_jax.graph.schema import STRESS, Batch, Budget
from ewald_jax.potential import Prediction, predict
from ewald_jax.train.losses import LossConfig, means
from ewald_jax.train.metrics import Sums, counted_nodes, masked_sum
from ewald_jax.train.step import EvalStep, prediction_sums
from ewald_jax.typing import PyTree

MEMBERS = "members"
"""Key of the numbers of each member, in metrics.jsonl and metrics.json."""


def means_of_each(
    sums: Sums, loss: LossConfig, members: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Final values of the sums of a training.

    Args:
        sums: On the host; of each member, if there are several.
        loss: What is minimised.
        members: How many networks are trained.

    Returns:
        Name -> mean over members, and name -> value of each, nothing for one network.
    """
    if members == 1:
        return means(sums, loss), {}
    found = [
        means({name: (s[i], c[i]) for name, (s, c) in sums.items()}, loss)
        for i in range(members)
    ]
    each = {name: [values[name] for values in found] for name in found[0]}
    return {name: float(np.mean(values)) for name, values in each.items()}, each


def first_failure(healthy: np.ndarray, steps: np.ndarray) -> tuple[int | None, int]:
    """Whose step was the first that was not finite.

    Args:
        healthy: [] or [members], whether all steps of a network were finite.
        steps: The same shape; the finite ones, at which those that were not are frozen.

    Returns:
        The member, None for a single network, and its finite steps.
    """
    if not healthy.ndim:
        return None, int(steps)
    bad = np.flatnonzero(~healthy)
    index = int(bad[np.argmin(steps[bad])])
    return index, int(steps[index])


def bad_member(total: float | np.ndarray) -> int | None:
    """The first member with a sum that is not finite; None for a single network."""
    return int(np.argmin(np.isfinite(total))) if np.ndim(total) else None


def make_ensemble_eval_step(
    model: nn.Module,
    loss_config: LossConfig | None,
    scale: float,
    *,
    forces: bool,
    stress: bool,
) -> EvalStep:
    """Builds the jitted evaluation of an ensemble's mean prediction.

    Args:
        model: The network.
        loss_config: The loss to report; None for none.
        scale: eV per model unit.
        forces: Whether to compute forces.
        stress: Whether to compute stress.

    Returns:
        ``(params, batch) -> sums`` as of `make_eval_step`, and of the spread over members:
        ``energy_std`` (eV, of structures) and ``forces_std`` (eV/Å, of the components of free
        atoms).
    """

    @jax.jit
    def eval_step(params: PyTree, batch: Batch) -> Sums:
        out = ensemble_outputs(model, params, batch, forces, stress)
        mean = Prediction(out.energy, out.forces, out.stress)
        sums = dict(prediction_sums(mean, batch, loss_config, scale))
        sums["energy_std"] = masked_sum(out.energy_std * scale, ops.graph_mask(batch.graph))
        if out.forces_std is not None:
            sums["forces_std"] = masked_sum(out.forces_std * scale, counted_nodes(batch))
        return sums

    return eval_step


def culprit(
    model: nn.Module,
    params: PyTree,
    dataset: GraphDataset,
    indices: Sequence[int] | np.ndarray,
    *,
    members: int,
    budgets: Sequence[Budget],
    statistics: Statistics,
    dtype: np.dtype | type,
) -> int:
    """The first member whose prediction of a batch is not finite; arguments as of `blame`."""
    loader = Loader(
        dataset, indices, len(indices), budgets, statistics, dtype=dtype, prefetch=0
    )
    batch = next(loader.epoch())
    for index in range(members):
        one = member(params, index)
        out = predict(model, one, batch, stress=STRESS in dataset.labels)
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(out)):
            return index
    return 0
