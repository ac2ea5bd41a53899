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

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml
from accuracy import accuracy_table, plot_accuracy
from cells import HERE, Cell, check_data, run_cell
from runner import DONE, FAILED, Job, progress_of, run_local, submit
from studies import Study, chosen, load_study, result_of, result_path
from tables import markdown

from ewald_jax.cli.common import command, note, print_table
from ewald_jax.memory import keep_memory
from ewald_jax.train.directory import HISTORY
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
        bool, typer.Option("--list", help="Show what there is, and why not; train nothing.")
    ] = False,
    cell: Annotated[str, typer.Option(hidden=True, help="Train this one, here.")] = "",
) -> None:
    """Train every cell of a study, and make its table and its picture."""
    described, name = load_study(study), Path(study).stem
    cells = described.cells(overrides or ())
    for each in cells:
        each.config()  # everything that does not fit is said before anything runs
    if cell:
        train_cell(described, name, _named(cells, cell), runs, results)
        return
    wanted = chosen(cells, only or (), seed or ())
    found = {c: result_of(result_path(results, name, c), c, described.also) for c in cells}
    missing = [c for c in wanted if found[c] is None]
    note(f"{name}: {described.about}")
    if show:
        states = [(c.name, _state(c, found[c], runs / name)) for c in wanted]
        print_table("", ("cell", "state"), states)
    note(f"{len(wanted) - len(missing)} of {len(wanted)} cells have a result")
    if show:
        return
    if missing:
        for data in dict.fromkeys(c.data for c in missing):
            check_data(data, next(c for c in missing if c.data == data).config())
        for data in described.also:
            check_data(data)
        _check_writable(results / name)
        jobs = [_job(c, study, name, overrides or (), runs, results) for c in missing]
        if slurm is not None:
            settings = _settings(slurm)
            for job, submitted in submit(jobs, runs / name / "cluster", settings):
                note(f"job {submitted.job_id}: {job}")
            note("--list shows what has become of them")
            return
        devices = _devices(gpus, workers)
        try:
            run_local(jobs, len(devices) or min(workers, len(jobs)), devices)
        except KeyboardInterrupt:
            _note_failures(jobs)
            left = sum(job.state != DONE for job in jobs)
            raise KeyboardInterrupt(f"interrupted: {left} cells are left") from None
        failed = _note_failures(jobs)
    summarised(described, name, cells, results)
    if missing and failed:
        raise typer.Exit(1)


def train_cell(study: Study, name: str, cell: Cell, runs: Path, results: Path) -> None:
    """Trains one cell in this process, and keeps its result, or why there is none."""
    failure = _failure_path(runs / name, cell)
    failure.unlink(missing_ok=True)
    try:
        # Without a result in `results` it is to be computed, whatever the run folder says.
        values = run_cell(cell, runs / name, also=study.also, again=True)
    except Exception as error:
        # Nobody may be looking, as with a job of a cluster: `--list` reads it.
        failure.parent.mkdir(parents=True, exist_ok=True)
        write_text(failure, " ".join(str(error).split()) or type(error).__name__)
        raise
    path = result_path(results, name, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, values)


def summarised(study: Study, name: str, cells: list[Cell], results: Path) -> None:
    """Prints the table of what there is; writes it and the picture beside the results."""
    found = [
        result_of(result_path(results, name, cell), cell, study.also) for cell in cells
    ]
    done = [study.shown(values) for values in found if values is not None]
    if not done:
        return
    columns, rows = accuracy_table(done, study.baseline)
    title = f"{name}, {study.errors}, {len(done)} of {len(cells)} cells"
    print_table(title, columns, rows)
    write_text(results / name / "table.md", markdown(columns, rows, title) + "\n")
    drawn = plot_accuracy(done, study.baseline, results / name / "improvement.png")
    note(
        f"results, table.md{' and improvement.png' if drawn else ''} are in {results / name}"
    )


def _failure_path(folder: Path, cell: Cell) -> Path:
    return folder / "logs" / f"{cell.name}.failed"


def _state(cell: Cell, result: dict | None, folder: Path) -> str:
    """Of a cell: done, failed and why, begun and how far, or missing."""
    if result is not None:
        return "done"
    failure = _failure_path(folder, cell)
    if failure.exists():
        return f"failed: {failure.read_text().strip()}"
    progress = progress_of(folder / cell.name / HISTORY)
    return f"begun: {progress}" if progress else "missing"


def _named(cells: list[Cell], name: str) -> Cell:
    for cell in cells:
        if cell.name == name:
            return cell
    raise InputError(f"the study has no cell {name!r} any more")


def _note_failures(jobs: list[Job]) -> int:
    failed = [job for job in jobs if job.state == FAILED]
    for job in failed:
        note(f"failed: {job.name}: {job.reason} ({job.log})")
    return len(failed)


def _check_writable(folder: Path) -> None:
    """Before hours of training, not after them."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} cannot be written to")


def _devices(gpus: str, workers: int) -> list[str]:
    devices = [part.strip() for part in gpus.split(",")] if gpus else []
    if "" in devices or len(set(devices)) < len(devices):
        raise InputError(f"--gpus {gpus!r}: expected different devices, such as 0,1")
    if devices and workers not in (1, len(devices)):
        raise InputError(
            f"--gpus {gpus} and --workers {workers}: expected one process each"
        )
    return devices


def _job(
    cell: Cell, study: str, name: str, overrides: list[str], runs: Path, results: Path
) -> Job:
    options = ["--runs", str(runs), "--results", str(results), "--cell", cell.name]
    return Job(
        cell.name,
        [sys.executable, str(Path(__file__).resolve()), study, *overrides, *options],
        runs / name / "logs" / f"{cell.name}.log",
        runs / name / cell.name / HISTORY,
    )


def _settings(slurm: list[str]) -> dict:
    settings = {}
    for text in slurm:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(
                f"--slurm {text!r}: expected KEY=VALUE, such as timeout_min=600"
            )
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--slurm {text!r}: the value is not YAML") from None
    return settings


if __name__ == "__main__":
    keep_memory()
    typer.run(main)
