"""Runs the cells of a study: as processes of this machine, or as jobs of a cluster.

Each cell is a process of its own, so that one that fails takes no other with it. Failures are
collected; Ctrl-C lets every training save and stop, and the same command goes on.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ewald_jax.cli.common import INTERRUPTED, note
from ewald_jax.typing import InputError

WAITING, RUNNING, DONE, FAILED, STOPPED = "waiting", "running", "done", "failed", "stopped"


@dataclasses.dataclass
class Job:
    """A cell on its way.

    Attributes:
        name: Of the cell.
        command: Program and arguments.
        log: File that takes what it prints.
        metrics: File of its training, a JSON object a line.
        state: `WAITING`, `RUNNING`, `DONE`, `FAILED` or `STOPPED`.
        seconds: That it has run.
        reason: Last line that a failed one printed.
        process: While it runs.
        started: When, of `time.perf_counter`.
    """

    name: str
    command: Sequence[str]
    log: Path
    metrics: Path
    state: str = WAITING
    seconds: float = 0.0
    reason: str = ""
    process: subprocess.Popen | None = None
    started: float = 0.0

    def progress(self) -> str:
        """What the last epoch said."""
        return self.reason if self.state == FAILED else progress_of(self.metrics)


def progress_of(metrics: Path) -> str:
    """What the last epoch of a training said; "" if there is none yet."""
    # Written by another process, and only to be looked at.
    with contextlib.suppress(OSError, IndexError, KeyError, TypeError, ValueError):
        last = json.loads(metrics.read_text().splitlines()[-1])
        return f"step {last['step']}, validation loss {last['val_loss']:.4g}"
    return ""


def run_local(
    jobs: Sequence[Job], workers: int, gpus: Sequence[str] = (), interval: float = 0.5
) -> None:
    """Runs all jobs, so many at a time, and shows a table of them.

    Args:
        jobs: What to run; states change.
        workers: Processes at a time. Each has its share of the cores.
        gpus: Devices, one for each worker.
        interval: Seconds between looks.

    Raises:
        KeyboardInterrupt: If interrupted, when every process has stopped.
    """
    places: list[Job | None] = [None] * workers
    cores = _shares(workers) if not gpus else [None] * workers
    waiting = list(jobs)
    with _shown(jobs) as show:
        try:
            while waiting or any(places):
                for place, job in enumerate(places):
                    if job is not None and _over(job):
                        show(job)
                        places[place] = job = None
                    if job is None and waiting:
                        places[place] = job = waiting.pop(0)
                        _start(job, cores[place], gpus[place] if gpus else None)
                        show(job)
                show(None)
                time.sleep(interval)
        except BaseException:
            _stop([job for job in jobs if job.state == RUNNING])
            raise


def submit(
    jobs: Sequence[Job], folder: Path, settings: Mapping[str, Any]
) -> list[tuple[str, Any]]:
    """Hands all jobs to a cluster through submitit.

    Args:
        jobs: What to run.
        folder: Where submitit keeps its files.
        settings: Of `submitit.AutoExecutor.update_parameters`, such as ``timeout_min`` and
            ``slurm_partition``; ``cluster`` chooses the kind (``slurm``; ``local`` to try).

    Returns:
        Names of the cells and submitit's jobs.

    Raises:
        InputError: If submitit is missing, there is no cluster, or it refuses a setting.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError(
            "--slurm needs submitit, which is not installed: pip install -e '.[cluster]' in a "
            "checkout, or pip install submitit"
        ) from error
    settings = dict(settings)
    try:
        executor = submitit.AutoExecutor(folder, cluster=settings.pop("cluster", "slurm"))
        executor.update_parameters(**settings)
    except (NameError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"--slurm: submitit says: {' '.join(str(error).split())}"
        ) from error

    class Command(submitit.helpers.CommandFunction):
        """Goes on in a new job where the time of one is up: trainings resume.

        Defined here, so that it is pickled whole: jobs do not find this module.
        """

        def checkpoint(self) -> Any:
            return submitit.helpers.DelayedSubmission(self)

    try:
        with executor.batch():
            found = [executor.submit(Command(list(job.command))) for job in jobs]
    except (OSError, RuntimeError, submitit.core.utils.FailedJobError) as error:
        raise InputError(
            f"--slurm: submitit says: {' '.join(str(error).split())}"
        ) from error
    return [(job.name, one) for job, one in zip(jobs, found, strict=True)]


def _start(job: Job, cores: set[int] | None, gpu: str | None) -> None:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    job.state, job.started = RUNNING, time.perf_counter()
    with job.log.open("w") as log, _on_cores(cores):
        job.process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            # Ctrl-C is for this process, which tells the others once.
            start_new_session=True,
        )


@contextlib.contextmanager
def _on_cores(cores: set[int] | None) -> Iterator[None]:
    """Processes started meanwhile have these cores: they inherit those of this thread."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _over(job: Job) -> bool:
    job.seconds = time.perf_counter() - job.started
    code = job.process.poll()
    if code is None:
        return False
    stopped = {INTERRUPTED: STOPPED, -signal.SIGINT: STOPPED}
    job.state = {0: DONE, **stopped}.get(code, FAILED)
    if job.state == FAILED:
        lines = [line for line in job.log.read_text().splitlines() if line.strip()]
        job.reason = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
        if code < 0:
            why = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
            job.reason = f"ended by {signal.Signals(-code).name}{why}"
    return True


def _stop(running: Sequence[Job]) -> None:
    """Tells processes to save and stop, and waits; when interrupted again, kills them."""
    running = [job for job in running if job.process is not None]
    try:
        for job in running:
            job.process.send_signal(signal.SIGINT)
        if running:
            note(f"{len(running)} trainings save and stop; the next Ctrl-C kills them")
        for job in running:
            job.process.wait()
            _over(job)
    except KeyboardInterrupt:
        for job in running:
            job.process.kill()
        raise


def _shares(workers: int) -> list[set[int] | None]:
    """The cores of each worker; None where all may have all."""
    if workers == 1 or not hasattr(os, "sched_getaffinity"):
        return [None] * workers
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[place % len(cores) :: workers]) or None for place in range(workers)]


@contextlib.contextmanager
def _shown(jobs: Sequence[Job]) -> Iterator[Callable[[Job | None], None]]:
    """Shows a table on a terminal, else a line for each change; called with a job or None."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    console = Console(stderr=True, soft_wrap=True, highlight=False)

    def table() -> Table:
        count = {state: sum(job.state == state for job in jobs) for state in (DONE, FAILED)}
        title = f"{count[DONE]} of {len(jobs)} done, {count[FAILED]} failed"
        shown = Table(
            "cell", "state", "seconds", "progress", title=title, title_justify="left"
        )
        for job in jobs:
            if job.state in (RUNNING, FAILED):
                shown.add_row(job.name, job.state, f"{job.seconds:.0f}", job.progress())
        return shown

    def line(job: Job | None) -> None:
        if job is not None:
            after = f" after {job.seconds:.0f} s" if job.state != RUNNING else ""
            console.print(
                f"{job.name}: {job.state}{after} {job.reason}".rstrip(), markup=False
            )

    if not console.is_terminal:
        yield line
        return
    with Live(table(), console=console, refresh_per_second=2) as live:
        yield lambda job: live.update(table())
