"""Training: one visible loop around one jitted step.

Whatever happens (Ctrl-C, SIGKILL, a full disk, a NaN), the output directory holds complete
checkpoints, and continuing from the last one gives, to the bit, the parameters of a training
that nothing has happened to. (On GPUs, where sums in arbitrary order are faster, only with
``XLA_FLAGS=--xla_gpu_deterministic_ops=true``, as for any two runs.)
"""

import collections
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from ewald_jax.data.base import GraphDataset
from ewald_jax.data.statistics import Statistics
from ewald_jax.train.board import Board
from ewald_jax.train.checkpoint import restore_params
from ewald_jax.train.culprits import NonFiniteError, blame
from ewald_jax.train.directory import (
    TENSORBOARD,
    append_history,
    withdrawn_on_failure,
    write_history,
    write_metrics,
)
from ewald_jax.train.display import Display
from ewald_jax.train.evaluate import means, run_evaluation
from ewald_jax.train.initial import Initial
from ewald_jax.train.interrupt import Interruptible
from ewald_jax.train.keeper import Keeper
from ewald_jax.train.losses import LossConfig
from ewald_jax.train.meter import Meter
from ewald_jax.train.metrics import LARGER_IS_BETTER, Sums
from ewald_jax.train.optim import OptimConfig, update_plateau
from ewald_jax.train.prepare import TRAIN, VAL, Position, Run, set_up
from ewald_jax.train.report import FitResult, report, summary
from ewald_jax.train.settings import TrainConfig
from ewald_jax.train.state import TrainState, count_parameters
from ewald_jax.typing import InputError, PyTree

__all__ = ["FitResult", "TrainConfig", "fit"]


def fit(
    model: nn.Module,
    dataset: GraphDataset,
    splits: Mapping[str, Sequence[int] | np.ndarray],
    *,
    train: TrainConfig,
    loss: LossConfig,
    optim: OptimConfig,
    output_dir: str | Path,
    statistics: Statistics | None = None,
    config: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    init: str | Path | Initial | PyTree | None = None,
    progress: bool = True,
    console: Console | None = None,
) -> FitResult:
    """Trains a model.

    Args:
        model: The network.
        dataset: Structures with labels.
        splits: ``train``, and optionally ``val`` and others to evaluate at the end -> indices.
        train: How long, and what to do on the way.
        loss: What to minimise.
        optim: How.
        output_dir: Where checkpoints and metrics go.
        statistics: Of the training data; None fits them with the defaults, and keeps the
            scale of the checkpoint in `init`.
        config: The resolved config to keep with the checkpoint (plain values); the sections
            "model", "loss", "optim" and "train" are filled in from the arguments.
        resume: Continue the training in `output_dir`; start one if there is none.
        overwrite: Replace the training in `output_dir`.
        init: A checkpoint directory, or parameters, to start from instead of random ones.
        progress: Show lines, and a bar on a terminal.
        console: Where to show them; None is standard output.

    Returns:
        The best parameters and what is known about them.

    Raises:
        InputError: For settings or data that do not fit together, an output directory in
            use, a full disk; `NonFiniteError` for a loss that is not finite.
    """
    run, state, at, history = set_up(
        model,
        dataset,
        splits,
        train=train,
        loss=loss,
        optim=optim,
        statistics=statistics,
        directory=Path(output_dir),
        config=config,
        resume=resume,
        overwrite=overwrite,
        init=init,
    )
    board_dir = run.directory / TENSORBOARD if train.tensorboard else None
    with (
        withdrawn_on_failure(run.directory),
        Interruptible() as stop,
        Display(progress, run.num_steps, console) as display,
        Board(board_dir, at.step) as board,
    ):
        live = _Live(
            at=at,
            history=history,
            meter=Meter(at.sums, at.seconds),
            keeper=Keeper(run.directory, train.checkpoint_seconds),
            stop=stop,
            display=display,
            board=board,
        )
        display.print(summary(run, state, at))
        write_history(run.directory, history)
        if at.step == 0:
            # A disk without room for a checkpoint is better found before training.
            _save(run, live, state)
        while not stop.requested and (at.evaluation_due or at.step < run.num_steps):
            if at.evaluation_due:
                state = _evaluate(run, live, state)
                if live.keeper.due:
                    _save(run, live, state)
                continue
            with contextlib.closing(run.batches(at.step)) as batches:
                live.meter.start()
                for batch in batches:
                    traced = len(run.train_traces)
                    state, sums = run.train_step(state, batch)
                    at.step += 1
                    live.meter.add(sums, compiled=len(run.train_traces) > traced)
                    display.step(at.step)

                    epoch_ends = at.step % run.steps_per_epoch == 0
                    at.evaluation_due = _evaluation_due(run, at.step)
                    pause = epoch_ends or at.evaluation_due or stop.requested
                    save = _every(train.checkpoint_every, at.step)
                    save |= epoch_ends and not at.evaluation_due and live.keeper.due
                    if pause or save or _every(train.log_every, at.step):
                        _read(run, live, state)
                    if save:
                        _save(run, live, state)
                    if pause:
                        break
        _save(run, live, state)
        return _finish(run, live, state)


@dataclasses.dataclass(frozen=True)
class _Live:
    """What changes or is open while a training runs, the state on the device aside."""

    at: Position
    history: list[dict[str, Any]]
    meter: Meter
    keeper: Keeper
    stop: Interruptible
    display: Display
    board: Board


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0


def _evaluation_due(run: Run, step: int) -> bool:
    interval = run.train.eval_every_steps or run.train.eval_every * run.steps_per_epoch
    return step == run.num_steps or step % interval == 0


def _read(run: Run, live: _Live, state: TrainState) -> None:
    """Reads the running sums back; raises if a step since the last reading was not finite."""
    window, healthy, good_steps = live.meter.read(state)
    if not healthy:
        what = f"step {good_steps + 1}: the loss is not finite"
        raise _blame(run, live, state.params, what, run.structures(good_steps))
    values = means(window, run.loss)
    live.display.note(values)
    live.board.scalars({f"train/{k}": v for k, v in values.items()}, live.at.step)


def _save(run: Run, live: _Live, state: TrainState) -> None:
    """Saves everything that resuming needs; nothing pending may be left in the meter."""
    live.at.sums, live.at.seconds = live.meter.sums, live.meter.seconds
    live.keeper.last(state, {**live.at.to_dict(), "data": run.data_hash})


def _evaluate(run: Run, live: _Live, state: TrainState) -> TrainState:
    """Validates, records, and keeps the best; leaves the evaluation due if interrupted."""
    at, train = live.at, run.train
    lr = float(run.schedule(at.step - 1)) * at.plateau.scale
    epoch = -(-at.step // run.steps_per_epoch)
    record: dict[str, Any] = {"epoch": epoch, "step": at.step, "lr": lr}
    record |= {f"train_{k}": v for k, v in means(live.meter.sums, run.loss).items()}
    if VAL in run.loaders:
        sums = _sums(run, live, state.eval_params, VAL)
        if sums is None:
            return state
        record |= {f"val_{k}": v for k, v in means(sums, run.loss).items()}
    record["seconds"] = live.meter.seconds

    split = VAL if VAL in run.loaders else TRAIN
    if f"{split}_{train.monitor}" not in record:
        raise InputError(
            f"train.monitor is {train.monitor!r}, which the structures of the split '{split}' "
            "have no free atoms or cells for; expected another metric"
        )
    value = record[f"{split}_{train.monitor}"]
    value = -value if train.monitor in LARGER_IS_BETTER else value
    if run.optim.schedule == "plateau":
        at.plateau = update_plateau(at.plateau, value, run.optim)
        state = state.replace(lr_scale=jnp.full_like(state.lr_scale, at.plateau.scale))
    if at.best is None or value < at.best:
        at.best = value
        live.keeper.best(state, record)
    live.history.append(record)
    append_history(run.directory, record)
    live.display.record(record)
    tags = {"lr": lr} | {f"val/{k[4:]}": v for k, v in record.items() if k[:4] == "val_"}
    live.board.scalars(tags, at.step)
    live.board.flush()
    at.records, at.evaluation_due = len(live.history), False
    live.meter.reset()
    return state


def _sums(run: Run, live: _Live, params: PyTree, split: str) -> Sums | None:
    """Evaluates a split; None if interrupted."""
    loader, shown = run.loaders[split], live.display.evaluating
    stop = lambda: live.stop.requested
    try:
        return run_evaluation(run.eval_step, params, loader, shown, stop)
    except NonFiniteError as error:
        what = f"after step {live.at.step}: {error} of the split '{split}'"
        raise _blame(run, live, params, what, error.structures) from None


def _blame(
    run: Run, live: _Live, params: PyTree, what: str, indices: Sequence[int]
) -> NonFiniteError:
    live.keeper.flush()
    return blame(
        what,
        run.model,
        params,
        run.dataset,
        indices,
        budgets=run.loaders[TRAIN].budgets,
        statistics=run.statistics,
        loss=run.loss,
        dtype=run.dtype,
        kept=f"the checkpoints in {run.directory} are kept",
    )


def _finish(run: Run, live: _Live, state: TrainState) -> FitResult:
    """Evaluates the best parameters on the other splits, and says what has been done."""
    at = live.at
    params, best = state.eval_params, {}
    if at.best is not None:
        params, best = restore_params(run.directory, "best", state.params)
    val = {k[4:]: v for k, v in best.items() if k[:4] == "val_"}
    metrics = {VAL: val} if val else {}
    others = [name for name in run.loaders if name not in (TRAIN, VAL)]
    for split in others if not live.stop.requested else ():
        sums = _sums(run, live, params, split)
        if sums is not None:
            metrics[split] = means(sums, run.loss)
    interrupted = live.stop.requested
    buckets = dict(collections.Counter(map(str, run.train_traces)))
    result = FitResult(
        params=params,
        metrics=metrics,
        history=live.history,
        step=at.step,
        best_step=best.get("step", at.step),
        compilations=len(run.train_traces),
        compilations_per_bucket=buckets,
        seconds_per_step=live.meter.seconds_per_step,
        interrupted=interrupted,
        directory=run.directory,
    )
    plain = {"step": at.step, "best_step": result.best_step, **metrics}
    plain |= {"parameters": count_parameters(params), "compilations": buckets}
    plain |= {"seconds_per_step": result.seconds_per_step, "finished": not interrupted}
    write_metrics(run.directory, plain)
    report(result, live.display)
    return result
