"""Everything that stands before the first step: settings, checks, loaders, state, resuming."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from ewald_jax.data import Statistics, StatisticsConfig, dataset_statistics
from ewald_jax.data.base import GraphDataset
from ewald_jax.data.loader import Loader
from ewald_jax.graph.budgets import budgets_from_sizes
from ewald_jax.graph.schema import Batch
from ewald_jax.models import check_structure, model_to_config, neighborhood
from ewald_jax.nn.products import check_type, precision_of
from ewald_jax.train.checkpoint import restore_state
from ewald_jax.train.description import read_description, write_description
from ewald_jax.train.directory import (
    check_directory,
    check_same_run,
    make_directory,
    read_history,
    withdrawn_on_failure,
)
from ewald_jax.train.initial import INIT, Initial, find_initial, keep_scale, recorded
from ewald_jax.train.losses import LossConfig
from ewald_jax.train.metrics import metric_names
from ewald_jax.train.optim import OptimConfig, learning_rate, make_optimizer
from ewald_jax.train.position import Position
from ewald_jax.train.settings import TrainConfig
from ewald_jax.train.sharding import data_mesh, replicate, stacked
from ewald_jax.train.start import starting_state
from ewald_jax.train.state import TrainState
from ewald_jax.train.step import (
    BatchShape,
    EvalStep,
    TrainStep,
    make_eval_step,
    make_train_step,
)
from ewald_jax.typing import InputError, PyTree

TRAIN, VAL = "train", "val"


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same during a training."""

    model: nn.Module
    dataset: GraphDataset
    statistics: Statistics
    train: TrainConfig
    loss: LossConfig
    optim: OptimConfig
    directory: Path
    loaders: Mapping[str, Loader]  # by split
    schedule: optax.Schedule
    train_step: TrainStep
    eval_step: EvalStep
    train_traces: list[BatchShape]  # grows with each compilation
    data_hash: str
    dtype: np.dtype
    origin: str  # what it starts from, in words

    @property
    def steps_per_epoch(self) -> int:
        """Steps that it takes to see the training split once."""
        return -(-self.loaders[TRAIN].num_batches // self.train.devices)

    def batches(self, step: int) -> Iterator[Batch]:
        """What the steps after `step` take, to the end of the epoch."""
        epoch, start = divmod(step, self.steps_per_epoch)
        devices = self.train.devices
        batches = self.loaders[TRAIN].epoch(epoch, start * devices)
        return batches if devices == 1 else stacked(batches, devices)

    def structures(self, step: int) -> np.ndarray:
        """Indices of the structures that a step, counted from 0, takes."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        size = self.train.batch_size
        return self.loaders[TRAIN].order(epoch)[batch * size : (batch + 1) * size]

    @property
    def num_steps(self) -> int:
        """Steps of the whole training."""
        return count_steps(self.train, self.steps_per_epoch)


def count_steps(train: TrainConfig, steps_per_epoch: int) -> int:
    """Steps of the whole training."""
    steps = train.epochs * steps_per_epoch
    return min(steps, train.max_steps) if train.max_steps else steps


def set_up(
    model: nn.Module,
    dataset: GraphDataset,
    splits: Mapping[str, Sequence[int] | np.ndarray],
    *,
    train: TrainConfig,
    loss: LossConfig,
    optim: OptimConfig,
    statistics: Statistics | None,
    directory: Path,
    config: Mapping[str, Any] | None,
    resume: bool,
    overwrite: bool,
    init: str | Path | Initial | PyTree | None,
) -> tuple[Run, TrainState, Position, list[dict[str, Any]]]:
    """Checks everything, then opens the output directory; arguments as in `fit`.

    Returns:
        The run, the state and position to start from, and the history up to there.

    Raises:
        InputError: For anything that would make the training fail or destroy another.
    """
    continues = check_directory(directory, resume, overwrite)
    initial = None if continues else find_initial(init, directory, resume, train.members)
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    check_type(precision_of(model), dtype)
    dataset = dataset.suited_to(neighborhood(model))
    splits = _check_data(model, dataset, splits, loss, train)
    written = dict(config or {}) | {
        "model": model_to_config(model),
        "loss": dataclasses.asdict(loss),
        "optim": dataclasses.asdict(optim),
        "train": dataclasses.asdict(train),
    }
    start = None if initial is None else initial.name
    if continues:
        check_same_run(directory, written)
        _, statistics = read_description(directory)
        start = recorded(directory)
    if start is not None:
        written[INIT] = start
    if statistics is None:
        settings = keep_scale(StatisticsConfig(), initial)
        statistics = dataset_statistics(dataset, splits[TRAIN], settings)

    used = np.unique(np.concatenate(list(splits.values())))
    # One shape for all devices, or else the batches of a step could not be stacked.
    size = train.batch_size // train.devices
    buckets = train.max_buckets if train.devices == 1 else 1
    budgets = budgets_from_sizes(
        dataset.sizes.take(used), size, buckets, triplets=dataset.neighborhood.triplets
    )
    mesh = data_mesh(train.devices)
    loaders = {
        name: Loader(
            dataset,
            indices,
            size,
            budgets,
            statistics,
            shuffle_seed=train.seed if name == TRAIN else None,
            dtype=dtype,
        )
        for name, indices in splits.items()
    }
    num_steps = count_steps(train, -(-loaders[TRAIN].num_batches // train.devices))
    tx = make_optimizer(optim, num_steps)
    traces: list[BatchShape] = []
    run = Run(
        model=model,
        dataset=dataset,
        statistics=statistics,
        train=train,
        loss=loss,
        optim=optim,
        directory=directory,
        loaders=loaders,
        schedule=learning_rate(optim, num_steps),
        train_step=make_train_step(
            model, tx, loss, optim, statistics.scale, traces, mesh, train.members
        ),
        eval_step=make_eval_step(model, loss, statistics.scale, members=train.members),
        train_traces=traces,
        data_hash=_hash(dataset, splits),
        dtype=dtype,
        origin=_origin(initial, model),
    )
    state = starting_state(
        model,
        tx,
        dataset,
        splits[TRAIN],
        train=train,
        ema=optim.ema_decay > 0,
        initial=initial,
        scales=not continues,
        dtype=dtype,
    )
    position, history = Position(), []
    if continues:
        state, position = _restore(run, state)
        history = read_history(directory, position.records)
    state = replicate(state, mesh)
    with withdrawn_on_failure(directory):
        make_directory(directory, overwrite)
        write_description(directory, written, statistics)
    return run, state, position, history


def _origin(initial: Initial | None, model: nn.Module) -> str:
    if initial is None:
        return "from the start"
    return "\n".join([f"from {initial.name}", *initial.differences(model)])


def _check_data(model, dataset, splits, loss, train) -> dict[str, np.ndarray]:
    splits = {name: np.asarray(indices, np.int64) for name, indices in splits.items()}
    if not len(splits.get(TRAIN, ())):
        raise InputError("there are no training structures: the split 'train' is empty")
    splits = {name: indices for name, indices in splits.items() if len(indices)}
    for name, indices in splits.items():
        if indices.min() < 0 or indices.max() >= len(dataset):
            raise InputError(
                f"the split {name!r} has structure {indices.max()}, but the data set has "
                f"{len(dataset)}"
            )
    for label in loss.weights:
        if label not in dataset.labels:
            raise InputError(
                f"the loss needs {label}, but the data set has labels for "
                f"{', '.join(dataset.labels) or 'nothing'}; expected loss.{label}: none, or "
                f"structures with {label}"
            )
    names = metric_names(loss.needs_forces, loss.needs_stress)
    if VAL not in splits:
        names = ("loss",)
    if train.monitor not in names:
        raise InputError(
            f"train.monitor is {train.monitor!r}, expected one of {', '.join(names)}"
        )
    for index in dataset.kinds(np.concatenate(list(splits.values()))):
        graph = dataset[index].graph
        try:
            check_structure(model, graph.nodes["species"], graph.globals["pbc"][0])
        except InputError as error:
            raise InputError(f"{dataset.where(index)} {error}") from None
    return splits


def _restore(run: Run, state: TrainState) -> tuple[TrainState, Position]:
    state, progress = restore_state(run.directory, state)
    if progress.get("data") != run.data_hash:
        raise InputError(
            f"cannot resume: the checkpoint in {run.directory} was trained on other data or "
            "other splits"
        )
    return state, Position.from_dict(progress)


def _hash(dataset: GraphDataset, splits: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(dataset.fingerprint.encode())
    for name in (TRAIN, VAL):
        digest.update(name.encode() + splits.get(name, np.zeros(0, np.int64)).tobytes())
    return digest.hexdigest()
