"""The k-space sums, the block and a training step beside other packages, in one run.

What is not installed has a row that says how it would be. Nothing of this is imported before
it is asked for: neither PyTorch nor the others are needed by `ewald_jax`.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ewald_jax.analysis.benchmark import interleaved, median_and_spread
from ewald_jax.analysis.peers import (
    Contender,
    block_contenders,
    step_contenders,
    sum_contenders,
)
from ewald_jax.analysis.peers_torch import Calls
from ewald_jax.kspace import half_box
from ewald_jax.typing import InputError

PARTS = ("sum", "block", "step")
"""The k-space sum alone, the Ewald block around it, and a training step of whole networks."""


@dataclass(frozen=True)
class PeerTiming:
    """One implementation of one part.

    Attributes:
        part: Of `PARTS`.
        name: Of the implementation; those of this package come first.
        version: Of its package.
        atoms: In all.
        kvecs: Wave vectors; 0 for training steps, where each has its own.
        features: Channels.
        seconds: Median time, of the forward pass or the step; None if it could not run.
        seconds_spread: Interquartile range.
        ratio: `seconds` over that of the first row of this part and size.
        gradient_seconds: Of the forward pass with derivatives by all inputs; None for steps.
        gradient_spread: Interquartile range.
        gradient_ratio: As `ratio`.
        difference: Largest difference from the numbers of the first row, over their root mean
            square; None where other things are computed.
        note: Why it could not run, or what it does otherwise.
    """

    part: str
    name: str
    version: str
    atoms: int
    kvecs: int
    features: int
    seconds: float | None = None
    seconds_spread: float | None = None
    ratio: float | None = None
    gradient_seconds: float | None = None
    gradient_spread: float | None = None
    gradient_ratio: float | None = None
    difference: float | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def time_peers(
    nodes: Sequence[int],
    num_k: tuple[int, int, int] = (5, 4, 5),
    features: int = 128,
    repeats: int = 5,
    parts: Sequence[str] = PARTS,
    step_atoms: int = 64,
    batch_size: int = 4,
    tell: Callable[[str], None] = lambda line: None,
    clock: str = "wall",
) -> list[PeerTiming]:
    """Times what is installed, in turn within each part and size.

    Args:
        nodes: Atoms of the cells of "sum" and "block".
        num_k: Index box of their wave vectors; (5, 4, 5) has 544.
        features: Channels, and width of the networks of "step".
        repeats: Timed calls of each, after one.
        parts: Of `PARTS`.
        step_atoms: Of each crystal of "step".
        batch_size: Crystals of "step".
        tell: Called with a line for each step of the work.
        clock: Of `benchmark.CLOCKS`.

    Returns:
        A row for each implementation.

    Raises:
        InputError: If a part is unknown.
    """
    for part in parts:
        if part not in PARTS:
            raise InputError(f"the part {part!r} is unknown, expected some of {PARTS}")
    rows: list[PeerTiming] = []

    def timed(calls: Iterable[Callable[[], Any]]) -> Iterator[tuple[float, float]]:
        return map(median_and_spread, interleaved(tuple(calls), repeats, clock=clock))

    kvecs = len(half_box(*num_k))
    for number in nodes:
        for part, contenders in (("sum", sum_contenders), ("block", block_contenders)):
            if part in parts:
                known = {
                    "part": part,
                    "atoms": number,
                    "kvecs": kvecs,
                    "features": features,
                }
                rows += _timed(known, contenders(number, num_k, features), timed, tell)
    if "step" in parts:
        atoms = step_atoms * batch_size
        known = {"part": "step", "atoms": atoms, "kvecs": 0, "features": features}
        contenders = step_contenders(step_atoms, batch_size, features)
        rows += _timed(known, contenders, timed, tell)
    return rows


def _timed(
    known: dict[str, Any],
    contenders: Sequence[Contender],
    timed: Callable[[Iterable[Callable[[], Any]]], Iterable[tuple[float, float]]],
    tell: Callable[[str], None],
) -> Iterator[PeerTiming]:
    """Rows of one part and size; the first contender is ours and always runs."""
    where = f"{known['part']}, {known['atoms']} atoms"
    notes, ready = {}, {}
    for contender in contenders:
        tell(f"{where}: preparing {contender.name}")
        notes[contender.name] = contender.note
        try:
            for module in contender.modules:
                importlib.import_module(module)
            ready[contender.name] = contender.prepare()
        except ImportError as error:
            notes[contender.name] = _why_not(contender, error)
        except InputError as error:
            notes[contender.name] = str(error)
    tell(f"{where}: timing {len(ready)} of {len(contenders)}")
    forward = [calls.forward for calls in ready.values()]
    found = dict(zip(ready, timed(forward), strict=True))
    with_gradient = {n: c.gradient for n, c in ready.items() if c.gradient is not None}
    gradients = dict(zip(with_gradient, timed(with_gradient.values()), strict=True))
    first = contenders[0].name
    for contender in contenders:
        name = contender.name
        row = known | {"name": name, "version": _version(contender), "note": notes[name]}
        if name in found:
            row |= _as_row(found[name], found[first])
            if name in gradients:
                slopes = _as_row(gradients[name], gradients[first])
                row["gradient_seconds"] = slopes["seconds"]
                row["gradient_spread"] = slopes["seconds_spread"]
                row["gradient_ratio"] = slopes["ratio"]
                row["difference"] = _difference(ready[name], ready[first])
        yield PeerTiming(**row)


def _as_row(timed: tuple[float, float], first: tuple[float, float]) -> dict[str, float]:
    return {
        "seconds": timed[0],
        "seconds_spread": timed[1],
        "ratio": timed[0] / first[0],
    }


def _difference(calls: Calls, first: Calls) -> float:
    message, expected = (np.asarray(c.message(c.forward())) for c in (calls, first))
    scale = np.sqrt(np.mean(expected**2))
    return float(np.max(np.abs(message - expected)) / scale)


def _why_not(contender: Contender, error: ImportError) -> str:
    missing = [m for m in contender.modules if importlib.util.find_spec(m) is None]
    if missing:
        return f"not installed: pip install {contender.package}"
    return f"cannot be imported: {' '.join(str(error).split())}"


def _version(contender: Contender) -> str:
    try:
        return importlib.metadata.version(contender.package) if contender.package else ""
    except importlib.metadata.PackageNotFoundError:
        return ""
