"""Make the sample sets: plan, compute in worker processes, compress, record provenance.

The work is cut into chunks that are kept in ``<output_dir>/.unfinished`` until the set is
complete, so an interrupted run goes on where it stopped. Every random number follows from
the seed and the index of the structure: the number of workers changes nothing.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import hashlib
import importlib
import importlib.metadata
import io
import json
import lzma
import multiprocessing
import os
import platform
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from ewald_jax.data.samples import SAMPLES

PACKAGES = ("tblite", "rdkit", "ase", "numpy", "scipy")
PROVENANCE = "provenance.json"


def make_samples(
    output_dir: str | os.PathLike,
    names: Sequence[str] = SAMPLES,
    seed: int = 0,
    workers: int = 2,
    limit: int | None = None,
    progress: bool = True,
) -> dict:
    """Compute sample sets with tblite and write them.

    Writes ``<name>.extxyz.xz`` per set and one ``provenance.json`` (entries of other sets
    already in it are kept). Files appear whole or not at all; after an interruption, the
    same call goes on from the finished chunks.

    Args:
        output_dir: Folder for the files; made if it is missing.
        names: Sets to make, of ``SAMPLES``.
        seed: Seed of everything random.
        workers: Worker processes; 1 computes in this process.
        limit: Try only the first ``limit`` structures of each set.
        progress: Show a progress bar.

    Returns:
        The provenance entry of each set made.

    Raises:
        ValueError: If a name, ``workers`` or ``limit`` makes no sense.
        ewald_jax.data.samples.xtb.XtbMissing: If tblite or rdkit is not installed.
    """
    unknown = [name for name in names if name not in SAMPLES]
    if unknown:
        raise ValueError(f"Unknown sample set {unknown[0]!r}; choose of {SAMPLES}.")
    if workers < 1 or (limit is not None and limit < 1):
        raise ValueError("workers and limit must be at least 1.")
    _check_installed()
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    return {name: _make(output, name, seed, workers, limit, progress) for name in names}


def _make(
    output: Path, name: str, seed: int, workers: int, limit: int | None, progress: bool
) -> dict:
    module = _module(name)
    plan = module.tasks()[:limit]
    chunks = [plan[i : i + module.CHUNK] for i in range(0, len(plan), module.CHUNK)]
    store = output / ".unfinished" / f"{name}-{_fingerprint(name, seed, plan)}"
    store.mkdir(parents=True, exist_ok=True)
    paths = [store / f"{number:05d}.json" for number in range(len(chunks))]
    jobs = [
        (name, seed, number, chunk)
        for number, chunk in enumerate(chunks)
        if not paths[number].exists()
    ]
    done = len(plan) - sum(len(chunk) for *_, chunk in jobs)
    with _progress_bar(name, len(plan), done, progress) as advance:
        for number, result in _results(jobs, workers):
            _replace(paths[number], json.dumps(result).encode())
            advance(len(chunks[number]))
    results = [json.loads(path.read_text()) for path in paths]
    texts = [text for result in results for text in result["texts"]]
    outcomes = [tuple(pair) for result in results for pair in result["outcomes"]]
    packed = lzma.compress("".join(texts).encode(), preset=9 | lzma.PRESET_EXTREME)
    target = output / f"{name}.extxyz.xz"
    entry = _provenance(name, seed, limit, outcomes, packed)
    _replace(target, packed)
    record_path = output / PROVENANCE
    record = json.loads(record_path.read_text()) if record_path.exists() else {}
    record[name] = entry
    _replace(record_path, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    shutil.rmtree(store)
    with contextlib.suppress(OSError):
        store.parent.rmdir()
    return entry


def _results(jobs: list, workers: int) -> Iterator[tuple[int, dict]]:
    if workers == 1 or len(jobs) <= 1:
        yield from map(_compute_chunk, jobs)
        return
    # fork would copy the threads' locks of a parent that has used jax
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(jobs)), _start_worker) as pool:
        yield from pool.imap_unordered(_compute_chunk, jobs)


def _start_worker() -> None:
    # the parent handles Ctrl-C and ends the pool; must come before tblite's OpenMP loads
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"


def _compute_chunk(job: tuple[str, int, int, list[dict]]) -> tuple[int, dict]:
    name, seed, number, chunk = job
    module = _module(name)
    texts, outcomes = [], []
    for task in chunk:
        atoms, outcome = module.compute(task, seed)
        outcomes.append((module.label(task), outcome))
        if atoms is not None:
            texts.append(frame_text(atoms))
    return number, {"texts": texts, "outcomes": outcomes}


def frame_text(atoms) -> str:
    """One extended XYZ frame without padding, as ase writes and reads it.

    Args:
        atoms: ``ase.Atoms`` with its labels in ``info``, ``arrays`` and a single-point
            calculator, all rounded to the decimals wanted in the file.

    Returns:
        The frame, ending in a newline.
    """
    from ase.io import write

    buffer = io.StringIO()
    write(buffer, atoms, format="extxyz")
    count, header, *rows = buffer.getvalue().splitlines()
    body = [" ".join(_short(word) for word in row.split()) for row in rows]
    return "\n".join([count, header, *body]) + "\n"


def _short(word: str) -> str:
    if "." not in word:
        return word
    word = word.rstrip("0")
    word = word + "0" if word.endswith(".") else word
    return "0.0" if word == "-0.0" else word


def _provenance(
    name: str, seed: int, limit: int | None, outcomes: list, packed: bytes
) -> dict:
    module = _module(name)
    counts = collections.Counter(outcome for _, outcome in outcomes)
    groups: dict[str, dict[str, int]] = {}
    for group, outcome in outcomes:
        row = groups.setdefault(group, {"tried": 0, "kept": 0})
        row["tried"] += 1
        row[outcome] = row.get(outcome, 0) + 1
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return {
        "file": f"{name}.extxyz.xz",
        "sha256": hashlib.sha256(packed).hexdigest(),
        "bytes": len(packed),
        "date_utc": now.isoformat(),
        "method": module.METHOD,
        "seed": seed,
        "limit": limit,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "counts": {"tried": len(outcomes), "kept": counts.pop("kept", 0)}
        | {"dropped": dict(sorted(counts.items()))},
        "groups": groups,
        **module.describe(),
    }


def _fingerprint(name: str, seed: int, plan: list[dict]) -> str:
    # chunks of older code or another plan must not be taken up
    digest = hashlib.sha256(json.dumps([name, seed, plan]).encode())
    for package in PACKAGES:
        digest.update(importlib.metadata.version(package).encode())
    for source in ("xtb.py", "monomers.py", "geometry.py", f"{name}.py"):
        digest.update((Path(__file__).parent / source).read_bytes())
    return digest.hexdigest()[:12]


def _module(name: str):
    return importlib.import_module(f"ewald_jax.data.samples.{name}")


def _check_installed() -> None:
    from ewald_jax.data.samples.xtb import missing

    for package in PACKAGES:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError as error:
            raise missing(package) from error


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _progress_bar(name: str, total: int, done: int, show: bool):
    if not show:
        yield lambda steps: None
        return
    from rich import progress as rich_progress

    columns = (
        *rich_progress.Progress.get_default_columns(),
        rich_progress.MofNCompleteColumn(),
    )
    with rich_progress.Progress(*columns) as bar:
        line = bar.add_task(name, total=total, completed=done)
        yield lambda steps: bar.advance(line, steps)
