"""What is open while a training runs, and how a split is evaluated and blamed within it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ewald_jax.ensemble import member
from ewald_jax.interrupt import Interruptible
from ewald_jax.train.board import Board
from ewald_jax.train.culprits import NonFiniteError, blame
from ewald_jax.train.display import Display
from ewald_jax.train.evaluate import run_evaluation
from ewald_jax.train.keeper import Keeper
from ewald_jax.train.meter import Meter
from ewald_jax.train.metrics import Sums
from ewald_jax.train.position import Position
from ewald_jax.train.prepare import TRAIN, Run
from ewald_jax.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Live:
    """What changes or is open while a training runs, the state on the device aside."""

    at: Position
    history: list[dict[str, Any]]
    meter: Meter
    keeper: Keeper
    stop: Interruptible
    display: Display
    board: Board


def split_sums(run: Run, live: Live, params: PyTree, split: str) -> Sums | None:
    """Evaluates a split; None if interrupted.

    Raises:
        NonFiniteError: If a result is not finite.
    """
    loader, shown = run.loaders[split], live.display.evaluating
    stop = lambda: live.stop.requested
    try:
        return run_evaluation(run.eval_step, params, loader, shown, stop)
    except NonFiniteError as error:
        what = f"after step {live.at.step}: {error} of the split '{split}'"
        raise blamed(run, live, params, what, error.structures, error.member) from None


def blamed(
    run: Run,
    live: Live,
    params: PyTree,
    what: str,
    indices: Sequence[int],
    index: int | None,
) -> NonFiniteError:
    """The error of numbers that are not finite, with the structures to blame.

    Args:
        run: The training.
        live: The same; a best checkpoint that waits is written first.
        params: Of all members.
        what: What is not finite.
        indices: The structures of the batch.
        index: The member to blame, None if there is one network.
    """
    live.keeper.flush()
    if index is not None:
        what = f"member {index} (seed {run.train.member_seeds[index]}), {what}"
        params = member(params, index)
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
        member=index,
    )
