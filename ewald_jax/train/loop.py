"""Training: one visible loop around one jitted step.

Whatever happens (Ctrl-C, SIGKILL, a full disk, a NaN), the output directory holds complete
checkpoints, and continuing from the last one gives, to the bit, the parameters of a training
that nothing has happened to. (On GPUs, where sums in arbitrary order are faster, only with
``XLA_FLAGS=--xla_gpu_deterministic_ops=true``, as for any two runs.)
"""

import collections
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from ewald_jax.data.base import GraphDataset
from ewald_jax.data.statistics import Statistics
from ewald_jax.interrupt import Interruptible
from ewald_jax.train.board import Board
from ewald_jax.train.checkpoint import restore_params
from ewald_jax.train.directory import (
    TENSORBOARD,
    append_history,
    withdrawn_on_failure,
    write_history,
    write_metrics,
)
from ewald_jax.train.display import Display
from ewald_jax.train.ensemble import MEMBERS, first_failure, means_of_each
from ewald_jax.train.initial import Initial
from ewald_jax.train.keeper import Keeper
from ewald_jax.train.live import Live, blamed, split_sums
from ewald_jax.train.losses import LossConfig
from ewald_jax.train.meter import Meter
from ewald_jax.train.metrics import LARGER_IS_BETTER
from ewald_jax.train.optim import OptimConfig, update_plateau
from ewald_jax.train.prepare import TRAIN, VAL, Run, set_up
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
    """Trains a model, or the members of an ensemble (``train.members``).

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
        live = Live(
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


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0


def _evaluation_due(run: Run, step: int) -> bool:
    interval = run.train.eval_every_steps or run.train.eval_every * run.steps_per_epoch
    return step == run.num_steps or step % interval == 0


def _read(run: Run, live: Live, state: TrainState) -> None:
    """Reads the running sums back; raises if a step since the last reading was not finite."""
    window, healthy, good_steps = live.meter.read(state)
    if not np.all(healthy):
        index, good = first_failure(healthy, good_steps)
        what = f"step {good + 1}: the loss is not finite"
        raise blamed(run, live, state.params, what, run.structures(good), index)
    values, _ = means_of_each(window, run.loss, run.train.members)
    live.display.note(values)
    live.board.scalars({f"train/{k}": v for k, v in values.items()}, live.at.step)


def _save(run: Run, live: Live, state: TrainState) -> None:
    """Saves everything that resuming needs; nothing pending may be left in the meter."""
    live.at.sums, live.at.seconds = live.meter.sums, live.meter.seconds
    live.keeper.last(state, {**live.at.to_dict(), "data": run.data_hash})


def _evaluate(run: Run, live: Live, state: TrainState) -> TrainState:
    """Validates, records, and keeps the best; leaves the evaluation due if interrupted."""
    at, train = live.at, run.train
    lr = float(run.schedule(at.step - 1)) * at.plateau.scale
    epoch = -(-at.step // run.steps_per_epoch)
    record: dict[str, Any] = {"epoch": epoch, "step": at.step, "lr": lr}
    found = {TRAIN: live.meter.sums}
    if VAL in run.loaders:
        found[VAL] = split_sums(run, live, state.eval_params, VAL)
        if found[VAL] is None:
            return state
    of_each: dict[str, list[float]] = {}
    for name, sums in found.items():
        values, each = means_of_each(sums, run.loss, train.members)
        record |= {f"{name}_{k}": v for k, v in values.items()}
        of_each |= {f"{name}_{k}": v for k, v in each.items()}
    record["seconds"] = live.meter.seconds
    if of_each:
        record[MEMBERS] = of_each

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


def _finish(run: Run, live: Live, state: TrainState) -> FitResult:
    """Evaluates the best parameters on the other splits, and says what has been done."""
    at = live.at
    params, best = state.eval_params, {}
    if at.best is not None:
        params, best = restore_params(run.directory, "best", state.params)
    metrics, of_each = {}, {}
    for kept, values in ((metrics, best), (of_each, best.get(MEMBERS, {}))):
        val = {k[4:]: v for k, v in values.items() if k[:4] == "val_"}
        kept |= {VAL: val} if val else {}
    others = [name for name in run.loaders if name not in (TRAIN, VAL)]
    for split in others if not live.stop.requested else ():
        sums = split_sums(run, live, params, split)
        if sums is not None:
            metrics[split], each = means_of_each(sums, run.loss, run.train.members)
            of_each |= {split: each} if each else {}
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
        member_metrics=of_each,
    )
    plain = {"step": at.step, "best_step": result.best_step, **metrics}
    count = count_parameters(params) // run.train.members
    plain |= {"parameters": count, "compilations": buckets}
    plain |= {"seconds_per_step": result.seconds_per_step, "finished": not interrupted}
    if run.train.members > 1:
        plain[MEMBERS] = {"seeds": run.train.member_seeds, **of_each}
    write_metrics(run.directory, plain)
    report(result, live.display)
    return result
