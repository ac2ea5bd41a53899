"""Training: one visible loop around one jitted step.

Whatever happens (Ctrl-C, SIGKILL, a full disk, a NaN), the output directory holds complete
checkpoints, and continuing from the last one gives, to the bit, the parameters of a training
that nothing has happened to.
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
from ewald_jax.train.checkpoint import restore_params, save_checkpoint
from ewald_jax.train.culprits import NonFiniteError, blame
from ewald_jax.train.directory import TENSORBOARD, write_history, write_metrics
from ewald_jax.train.display import Board, Display
from ewald_jax.train.evaluate import means, run_evaluation
from ewald_jax.train.interrupt import Interruptible
from ewald_jax.train.losses import LossConfig
from ewald_jax.train.meter import Meter
from ewald_jax.train.metrics import LARGER_IS_BETTER, Sums
from ewald_jax.train.optim import OptimConfig, update_plateau
from ewald_jax.train.prepare import TRAIN, VAL, Position, Run, TrainConfig, set_up
from ewald_jax.train.report import FitResult, report, summary
from ewald_jax.train.state import TrainState, count_parameters
from ewald_jax.typing import PyTree

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
        statistics: Of the training data; None fits them with the defaults.
        config: The resolved config to keep with the checkpoint (plain values); the sections
            "model", "loss", "optim" and "train" are filled in from the arguments.
        resume: Continue the training in `output_dir`; start one if there is none.
        overwrite: Replace the training in `output_dir`.
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
    )
    board_dir = run.directory / TENSORBOARD if train.tensorboard else None
    with (
        Interruptible() as stop,
        Display(progress, run.num_steps, console) as display,
        Board(board_dir, at.step) as board,
    ):
        display.print(summary(run, state, at))
        meter = Meter(at.sums, at.seconds)
        while not stop.requested and (at.evaluation_due or at.step < run.num_steps):
            if at.evaluation_due:
                state = _evaluate(run, state, at, meter, history, stop, display, board)
                _save_last(run, state, at, meter)
                continue
            batches = run.loaders[TRAIN].epoch(*divmod(at.step, run.steps_per_epoch))
            with contextlib.closing(batches):
                meter.start()
                for batch in batches:
                    traced = len(run.train_traces)
                    state, sums = run.train_step(state, batch)
                    at.step += 1
                    meter.add(sums, compiled=len(run.train_traces) > traced)
                    display.step(at.step)

                    epoch_ends = at.step % run.steps_per_epoch == 0
                    at.evaluation_due = _evaluation_due(run, at.step)
                    pause = epoch_ends or at.evaluation_due or stop.requested
                    save = _every(train.checkpoint_every, at.step) or epoch_ends
                    if pause or save or _every(train.log_every, at.step):
                        _read(run, state, at, meter, display, board)
                    if save and not at.evaluation_due:
                        _save_last(run, state, at, meter)
                    if pause:
                        break
        if stop.requested:
            _save_last(run, state, at, meter)
        return _finish(run, state, at, meter, history, stop.requested, display)


def _every(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0


def _evaluation_due(run: Run, step: int) -> bool:
    interval = run.train.eval_every_steps or run.train.eval_every * run.steps_per_epoch
    return step == run.num_steps or step % interval == 0


def _read(
    run: Run, state: TrainState, at: Position, meter: Meter, display: Display, board: Board
) -> None:
    """Reads the running sums back; raises if a step since the last reading was not finite."""
    window, healthy, good_steps = meter.read(state)
    if not healthy:
        epoch, batch = divmod(good_steps, run.steps_per_epoch)
        size = run.train.batch_size
        indices = run.loaders[TRAIN].order(epoch)[batch * size : (batch + 1) * size]
        step = good_steps + 1
        raise _blame(run, state, f"step {step}: the loss is not finite", indices)
    values = means(window, run.loss)
    display.note(values)
    board.scalars({f"train/{name}": value for name, value in values.items()}, at.step)


def _evaluate(
    run: Run,
    state: TrainState,
    at: Position,
    meter: Meter,
    history: list[dict[str, Any]],
    stop: Interruptible,
    display: Display,
    board: Board,
) -> TrainState:
    """Validates, records, and keeps the best; leaves the evaluation due if interrupted."""
    epoch = -(-at.step // run.steps_per_epoch)
    lr = float(run.schedule(at.step - 1)) * at.plateau.scale
    record: dict[str, Any] = {"epoch": epoch, "step": at.step, "lr": lr}
    record |= {f"train_{k}": v for k, v in means(meter.sums, run.loss).items()}
    if VAL in run.loaders:
        sums = _sums(run, state, state.eval_params, VAL, display, stop)
        if sums is None:
            return state
        record |= {f"val_{k}": v for k, v in means(sums, run.loss).items()}
    record["seconds"] = meter.seconds

    value = record[f"{VAL if VAL in run.loaders else TRAIN}_{run.train.monitor}"]
    value = -value if run.train.monitor in LARGER_IS_BETTER else value
    if run.optim.schedule == "plateau":
        at.plateau = update_plateau(at.plateau, value, run.optim)
        state = state.replace(lr_scale=jnp.asarray(at.plateau.scale, jnp.float32))
    if at.best is None or value < at.best:
        at.best = value
        save_checkpoint(run.directory, "best", state, record)
    history.append(record)
    write_history(run.directory, history)
    display.record(record)
    tags = {"lr": lr} | {f"val/{k[4:]}": v for k, v in record.items() if k[:4] == "val_"}
    board.scalars(tags, at.step)
    board.flush()
    at.records, at.evaluation_due = len(history), False
    meter.reset()
    return state


def _sums(
    run: Run,
    state: TrainState,
    params: PyTree,
    split: str,
    display: Display,
    stop: Interruptible | None = None,
) -> Sums | None:
    loader = run.loaders[split]
    asked = None if stop is None else lambda: stop.requested
    try:
        return run_evaluation(run.eval_step, params, loader, display.evaluating, asked)
    except NonFiniteError as error:
        what = f"after step {int(state.step)}: {error} of the split '{split}'"
        raise _blame(run, state, what, error.structures) from None


def _blame(
    run: Run, state: TrainState, what: str, indices: Sequence[int]
) -> NonFiniteError:
    return blame(
        what,
        run.model,
        state.params,
        run.dataset,
        indices,
        budgets=run.loaders[TRAIN].budgets,
        statistics=run.statistics,
        loss=run.loss,
        dtype=run.dtype,
        kept=f"the checkpoints in {run.directory} are kept",
    )


def _save_last(run: Run, state: TrainState, at: Position, meter: Meter) -> None:
    """Saves everything that resuming needs; nothing pending may be left in the meter."""
    at.sums, at.seconds = meter.sums, meter.seconds
    save_checkpoint(run.directory, "last", state, {**at.to_dict(), "data": run.data_hash})


def _finish(
    run: Run,
    state: TrainState,
    at: Position,
    meter: Meter,
    history: list[dict[str, Any]],
    interrupted: bool,
    display: Display,
) -> FitResult:
    """Evaluates the best parameters on the other splits, and says what has been done."""
    params, best = state.eval_params, {}
    if at.best is not None:
        params, best = restore_params(run.directory, "best", state.params)
    val = {k[4:]: v for k, v in best.items() if k[:4] == "val_"}
    metrics = {VAL: val} if val else {}
    others = [name for name in run.loaders if name not in (TRAIN, VAL)]
    for split in others if not interrupted else ():
        metrics[split] = means(_sums(run, state, params, split, display), run.loss)
    buckets = dict(collections.Counter(map(str, run.train_traces)))
    result = FitResult(
        params=params,
        metrics=metrics,
        history=history,
        step=at.step,
        best_step=best.get("step", at.step),
        compilations=len(run.train_traces),
        compilations_per_bucket=buckets,
        seconds_per_step=meter.seconds_per_step,
        interrupted=interrupted,
        directory=run.directory,
    )
    plain = {"step": at.step, "best_step": result.best_step, **metrics}
    plain |= {"parameters": count_parameters(params), "compilations": buckets}
    plain |= {"seconds_per_step": result.seconds_per_step, "finished": not interrupted}
    write_metrics(run.directory, plain)
    report(result, display)
    return result
