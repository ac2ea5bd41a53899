"""Train every cell of a study, and make its table and its picture.

    python experiments/run.py accuracy_sapt10k
    python experiments/run.py accuracy_sapt10k --only radial --seed 0 --workers 2
    python experiments/run.py paper_oe62 --slurm timeout_min=2880 --slurm gpus_per_node=1

Studies are files of ``experiments/configs/study``. A cell's training is in
``runs/STUDY/CELL``, its result in ``experiments/results/STUDY/CELL.json``; cells with a result
are not run again, without it they are computed from their run folder, interrupted ones go on. A
cell that fails does not stop the others. ``experiments/report.py`` puts the table into
``experiments/README.md``.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml
from accuracy import accuracy_table, plot_accuracy
from cells import HERE, RESULT, Cell, check_data, run_cell
from runner import DONE, FAILED, Job, run_local, submit
from studies import Study, chosen, load_study, result_of, result_path

from ewald_jax.cli.common import command, note, print_table
from ewald_jax.train.files import write_json, write_text
from ewald_jax.typing import InputError


@command
def main(
    study: Annotated[str, typer.Argument(help="Of configs/study, or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For every cell.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Cells with this in their name.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Cells of this seed.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes at a time.")] = 1,
    gpus: Annotated[
        str, typer.Option(help="Devices, one for each process, such as 0,1,2,3.")
    ] = "",
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Submit to SLURM with these of submitit."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where runs go.")] = Path("runs"),
    results: Annotated[Path, typer.Option(help="Where results go.")] = HERE / "results",
    show: Annotated[
        bool, typer.Option("--list", help="Show what there is, and train nothing.")
    ] = False,
    cell: Annotated[str, typer.Option(hidden=True, help="Train this one, here.")] = "",
) -> None:
    """Train every cell of a study, and make its table and its picture."""
    described, name = load_study(study), Path(study).stem
    cells = described.cells(overrides or ())
    for each in cells:
        each.config()  # everything that does not fit is said before anything runs
    if cell:
        train_cell(described, name, next(c for c in cells if c.name == cell), runs, results)
        return
    wanted = chosen(cells, only or (), seed or ())
    missing = [c for c in wanted if result_of(result_path(results, name, c), c) is None]
    note(f"{name}: {described.about}")
    note(f"{len(wanted) - len(missing)} of {len(wanted)} cells have a result")
    failed = []
    if missing and not show:
        for data in dict.fromkeys(c.data for c in missing):
            check_data(data, next(c for c in missing if c.data == data).config())
        jobs = [_job(c, study, name, overrides or (), runs, results) for c in missing]
        if slurm is not None:
            settings = _settings(slurm)
            for job, number in submit(jobs, runs / name / "cluster", settings):
                note(f"job {number}: {job}")
            return
        devices = [part for part in gpus.split(",") if part]
        run_local(jobs, len(devices) or min(workers, len(jobs)), devices)
        failed = [job for job in jobs if job.state == FAILED]
        stopped = [job for job in jobs if job.state not in (DONE, FAILED)]
        if stopped:
            raise KeyboardInterrupt(f"interrupted: {len(stopped)} cells are left")
    summarised(described, name, cells, results)
    for job in failed:
        note(f"failed: {job.name}: {job.reason} ({job.log})")
    if failed:
        raise typer.Exit(1)


def train_cell(study: Study, name: str, cell: Cell, runs: Path, results: Path) -> None:
    """Trains one cell in this process, and keeps its result."""
    # Without a result in `results` it is to be computed, whatever the run folder says.
    (runs / name / cell.name / RESULT).unlink(missing_ok=True)
    values = run_cell(cell, runs / name, also=study.also)
    path = result_path(results, name, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, values)


def summarised(study: Study, name: str, cells: list[Cell], results: Path) -> None:
    """Prints the table of what there is; writes it and the picture beside the results."""
    found = [result_of(result_path(results, name, cell), cell) for cell in cells]
    done = [values for values in found if values is not None]
    if not done:
        return
    columns, rows = accuracy_table(done, study.baseline)
    print_table(f"{name}, {len(done)} of {len(cells)} cells", columns, rows)
    lines = [
        "| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows)
    ]
    write_text(results / name / "table.md", "\n".join(lines) + "\n")
    plot_accuracy(done, study.baseline, results / name / "improvement.png")
    note(f"results, table.md and improvement.png are in {results / name}")


def _job(
    cell: Cell, study: str, name: str, overrides: list[str], runs: Path, results: Path
) -> Job:
    options = ["--runs", str(runs), "--results", str(results), "--cell", cell.name]
    return Job(
        cell.name,
        [sys.executable, str(Path(__file__).resolve()), study, *overrides, *options],
        runs / name / "logs" / f"{cell.name}.log",
        runs / name / cell.name / "metrics.jsonl",
    )


def _settings(slurm: list[str]) -> dict:
    settings = {}
    for text in slurm:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(
                f"--slurm {text!r}: expected KEY=VALUE, such as timeout_min=600"
            )
        settings[key] = yaml.safe_load(value)
    return settings


if __name__ == "__main__":
    typer.run(main)
