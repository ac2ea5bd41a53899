"""Graphs built by several processes: a file to each, or parts of one file."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from ewald_jax.interrupt import Interruptible
from ewald_jax.typing import InputError

_PATIENCE = 5.0
"""Seconds that a process has to remove its files."""

_GLANCE = 0.2
"""Seconds after which it is seen that somebody asked to stop."""


def for_each(
    work: Callable[..., int],
    jobs: Sequence[tuple[Any, ...]],
    workers: int,
    advance: Callable[[int, int], None] = lambda done, structures: None,
) -> None:
    """Calls `work` once for each job, in processes of its own.

    Args:
        work: An importable function; returns the number of structures.
        jobs: Its arguments; the first is the file, for messages.
        workers: Processes.
        advance: Called with the jobs done so far and their structures.

    Raises:
        InputError: The first one of a job; the jobs that had begun are stopped, and leave
            nothing behind. As for an interruption.
    """
    with _processes(min(workers, len(jobs))) as (pool, stop):
        # A few ahead of the workers: a folder may have thousands of files.
        waiting, running, structures, done = list(jobs)[::-1], {}, 0, 0
        while waiting or running:
            while waiting and len(running) < 2 * workers:
                job = waiting.pop()
                running[_submit(pool, work, job, job[0])] = job[0]
            for future in _finished(list(running), stop):
                structures += _result(future, running.pop(future), stop)
                done += 1
                advance(done, structures)


def in_order(
    work: Callable[..., Any], jobs: Iterator[tuple[Any, ...]], workers: int, what: Path
) -> Iterator[Any]:
    """The results of `work` for each job, in the order of the jobs, by several processes.

    Args:
        work: A function that can be pickled.
        jobs: Its arguments, made here a few ahead of the processes.
        workers: Processes.
        what: The file, for messages.

    Raises:
        InputError: The first one in the order of the jobs, of a job or of what makes them.
            Processes that are at work are stopped then, and when the iterator is closed.
    """
    with _processes(workers) as (pool, stop):
        running: deque[Future] = deque()
        failed = None
        while True:
            try:
                job = next(jobs)
            except StopIteration:
                break
            except InputError as error:
                # What came before may be broken, too.
                failed = error
                break
            running.append(_submit(pool, work, job, what))
            if len(running) > 2 * workers:
                yield _result(running.popleft(), what, stop)
        while running:
            yield _result(running.popleft(), what, stop)
        if failed is not None:
            raise failed


@contextlib.contextmanager
def _processes(count: int) -> Iterator[tuple[ProcessPoolExecutor, Interruptible]]:
    """Processes that end at once if the block does not end well, and whether it should end."""
    context = multiprocessing.get_context("spawn")  # a copy of JAX's threads would hang
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_stop_cleanly)
    try:
        with Interruptible([signal.SIGINT]) as stop:
            yield pool, stop
            _go_on(stop)
    except BaseException:
        processes = list((pool._processes or {}).values())
        for process in processes:
            with contextlib.suppress(OSError, ValueError):
                process.terminate()
        # An exception in a destructor is lost, and the process would wait for work for ever.
        until = time.monotonic() + _PATIENCE
        for process in processes:
            with contextlib.suppress(OSError, ValueError):
                left = max(0.0, until - time.monotonic())
                if not multiprocessing.connection.wait([process.sentinel], left):
                    process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(
    pool: ProcessPoolExecutor, work: Callable[..., Any], job: tuple[Any, ...], path: Path
) -> Future:
    with _errors(path), _deaf():
        return pool.submit(_work, work, *job)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """What starts here inherits that Ctrl-C, which a terminal sends to all, is not for it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it would listen again for whoever starts it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(work: Callable[..., Any], *job: Any) -> Any:
    """Runs in a process of the pool, which would go on after the end that `_end` asks for."""
    try:
        return work(*job)
    except SystemExit:
        os._exit(1)  # what was half-written has gone with the exception


def _go_on(stop: Interruptible) -> None:
    if stop.requested:
        raise KeyboardInterrupt


def _finished(futures: Sequence[Future], stop: Interruptible) -> set[Future]:
    """Waits for the first ones."""
    finished: set[Future] = set()
    while not finished:
        _go_on(stop)
        finished, _ = wait(futures, _GLANCE, FIRST_COMPLETED)
    return finished


def _result(future: Future, path: Path, stop: Interruptible) -> Any:
    _finished([future], stop)
    _go_on(stop)  # Ctrl-C in a terminal may have ended the process, too
    with _errors(path):
        return future.result()


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """What a process or its end raised, as a sentence."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be converted ({error})") from error
    except Exception as error:
        raise InputError(
            f"{path}: the process that converted it ended ({type(error).__name__}), perhaps "
            "for lack of memory; expected it to finish, try fewer workers"
        ) from error


def _stop_cleanly() -> None:
    """Lets what is under way remove its files when a worker is told to end, or left alone."""
    # Ctrl-C goes to all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """A process that is killed cannot tell its workers to end."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _end(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit  # which, unlike others, a process that waits for work ends by silently


@contextlib.contextmanager
def file_progress(files: int, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over files, on stderr; yields the `advance` of `for_each`."""
    if not shown:
        yield lambda done, structures: None
        return
    columns = (
        TextColumn("graphs of {task.total} files"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[structures]:,} structures"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=files, structures=0)
        yield lambda done, count: bar.update(task, completed=done, structures=count)


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
