"""What a training gives, and the lines that say so."""

import dataclasses
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from ewald_jax.train.display import Display
from ewald_jax.train.position import Position
from ewald_jax.train.prepare import Run
from ewald_jax.train.state import TrainState, count_parameters
from ewald_jax.typing import PyTree


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What a training gives.

    Attributes:
        params: Of the best checkpoint, averaged ones where averaging is on; those of the last
            step if nothing has been evaluated yet.
        metrics: By split: `val` at the best checkpoint, then every other split (`test`),
            evaluated with `params`; without the latter if interrupted.
        history: One record per evaluation, as in metrics.jsonl.
        step: Steps taken.
        best_step: Step of `params`.
        compilations: Compilations of the training step.
        compilations_per_bucket: The same by shape of the batch.
        seconds_per_step: Median, compilations and evaluations left out; None if unknown.
        interrupted: Whether Ctrl-C or SIGTERM ended it early.
        directory: Where everything is.
        member_metrics: Of an ensemble, whose `params` have a leading axis of members and
            whose `metrics` are means over them: by split and name, the value of each.
    """

    params: PyTree
    metrics: dict[str, dict[str, float]]
    history: list[dict[str, Any]]
    step: int
    best_step: int
    compilations: int
    compilations_per_bucket: dict[str, int]
    seconds_per_step: float | None
    interrupted: bool
    directory: Path
    member_metrics: dict[str, dict[str, list[float]]] = dataclasses.field(
        default_factory=dict
    )


def summary(run: Run, state: TrainState, at: Position) -> str:
    """What a training that starts or continues is about."""
    sizes = ", ".join(f"{len(x.indices)} {name}" for name, x in run.loaders.items())
    start, *notes = run.origin.split("\n")
    start = f"resumed at step {at.step}" if at.step else start
    members, seeds = run.train.members, run.train.member_seeds
    count = f"{count_parameters(state.params) // members:,} parameters"
    if members > 1:
        count += f", an ensemble of {members} (seeds {seeds[0]} to {seeds[-1]})"
    line = (
        f"{type(run.model).__name__} with {count}; "
        f"{sizes} structures; {run.num_steps} steps, {start}; {run.directory}"
    )
    line = "\n".join([line, *notes])
    unseen = set()
    for loader in run.loaders.values():
        unseen.update(run.statistics.unseen(run.dataset.elements(loader.indices)))
    if unseen:
        symbols = ", ".join(chemical_symbols[z] for z in sorted(unseen))
        line += f"\nnote: no training structure has {symbols}, which other splits do"
    return line


def report(result: FitResult, display: Display) -> None:
    """Shows the results: metrics, compilations, time per step."""
    for split, values in result.metrics.items():
        numbers = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
        mean = ", mean over the members" if result.member_metrics else ""
        display.print(f"{split} (step {result.best_step}{mean}): {numbers}")
    shapes = "; ".join(
        f"{shape}: {count}" for shape, count in result.compilations_per_bucket.items()
    )
    display.print(f"compilations of the training step: {result.compilations} ({shapes})")
    if result.seconds_per_step is not None:
        display.print(f"median step: {result.seconds_per_step * 1e3:.3g} ms")
    if result.interrupted:
        display.print(
            f"interrupted after step {result.step}; {result.directory} continues with --resume"
        )
