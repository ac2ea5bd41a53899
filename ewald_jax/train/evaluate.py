"""Evaluation of parameters on structures: exact metrics over batches of unequal size."""

import contextlib
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import numpy as np

from ewald_jax.data.base import GraphDataset
from ewald_jax.data.loader import Loader
from ewald_jax.data.statistics import Statistics
from ewald_jax.ensemble import member
from ewald_jax.graph.schema import FORCES, STRESS
from ewald_jax.models import neighborhood
from ewald_jax.train.culprits import NonFiniteError, blame
from ewald_jax.train.ensemble import bad_member, culprit, make_ensemble_eval_step
from ewald_jax.train.losses import LossConfig, means
from ewald_jax.train.meter import as_floats
from ewald_jax.train.metrics import Sums, merge
from ewald_jax.train.step import EvalStep, make_eval_step
from ewald_jax.typing import InputError, PyTree

_READ_EVERY = 32
"""Batches between two waits for the device."""


def evaluate(
    model: nn.Module,
    params: PyTree,
    dataset: GraphDataset,
    indices: Sequence[int] | np.ndarray | None = None,
    *,
    statistics: Statistics,
    loss: LossConfig | None = None,
    batch_size: int = 32,
    max_buckets: int = 4,
    dtype: np.dtype | type = np.float32,
    on_batch: Callable[[int, int], None] | None = None,
    members: int = 1,
) -> dict[str, float]:
    """Metrics of a model on structures, or of the mean prediction of an ensemble.

    Forces and stress are evaluated where the data have them.

    Args:
        model: The network.
        params: Its parameters, of an ensemble with a leading axis of members.
        dataset: Structures with labels.
        indices: Which of them; None for all.
        statistics: Of the model's training data.
        loss: If given, ``loss`` and its terms, in model units, are among the metrics.
        batch_size: Structures per batch.
        max_buckets: Most shapes that are compiled.
        dtype: Of the computation.
        on_batch: Called with the batches done and the batches there are.
        members: How many networks the parameters are of (`members_of` a checkpoint's config).

    Returns:
        Name -> value, as in `metrics.metric_sums`; of an ensemble also its mean spread, as in
        `ensemble.make_ensemble_eval_step`.

    Raises:
        InputError: If the data have no labels or other edges than the model needs, or a
            result is not finite (`NonFiniteError`).
    """
    dataset = dataset.suited_to(neighborhood(model))
    forces, stress = FORCES in dataset.labels, STRESS in dataset.labels
    make = make_eval_step if members == 1 else make_ensemble_eval_step
    step = make(model, loss, statistics.scale, forces=forces, stress=stress)
    loader = Loader(
        dataset,
        indices,
        batch_size,
        statistics=statistics,
        max_buckets=max_buckets,
        dtype=dtype,
    )
    try:
        sums = run_evaluation(step, params, loader, on_batch)
    except NonFiniteError as error:
        what, bad = str(error), error.structures
        batch = dict(budgets=loader.budgets, statistics=statistics, dtype=dtype)
        index = None
        if members > 1:
            index = culprit(model, params, dataset, bad, members=members, **batch)
            what, params = f"member {index}: {what}", member(params, index)
        raise blame(what, model, params, dataset, bad, **batch, member=index) from None
    if not sums:
        raise InputError("the data have no labels to compare with, expected energies")
    return means(sums, loss)


def run_evaluation(
    eval_step: EvalStep,
    params: PyTree,
    loader: Loader,
    on_batch: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Sums | None:
    """Sums of an evaluation step over all batches of a loader, float64 on the host.

    Args:
        eval_step: From `make_eval_step`.
        params: Parameters.
        loader: Batches.
        on_batch: Called with the batches done and the batches there are.
        stop: Asked after each batch whether to give up.

    Returns:
        The sums; None if stopped.

    Raises:
        NonFiniteError: If a sum is not finite, with the structures of the batch and, of
            several members, the first that is to blame.
    """
    total: Sums = {}
    pending: list[Sums] = []
    with contextlib.closing(loader.epoch(0)) as batches:
        for number, batch in enumerate(batches, 1):
            pending.append(eval_step(params, batch))
            if len(pending) == _READ_EVERY or number == loader.num_batches:
                first = number - len(pending)
                for offset, sums in enumerate(jax.device_get(pending)):
                    sums = as_floats(sums)
                    _check_finite(sums, loader, first + offset)
                    total = merge(total, sums)
                pending = []
            if on_batch is not None:
                on_batch(number, loader.num_batches)
            if stop is not None and stop():
                return None
    return total


def _check_finite(sums: Sums, loader: Loader, number: int) -> None:
    bad = [name for name, (total, _) in sums.items() if not np.isfinite(total).all()]
    if bad:
        size = loader.batch_size
        structures = loader.order(0)[number * size : (number + 1) * size]
        what = f"{bad[0]} is not finite in the evaluation"
        raise NonFiniteError(what, structures, bad_member(sums[bad[0]][0]))
