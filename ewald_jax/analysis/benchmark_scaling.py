"""Energy and forces of one crystal of ever more atoms, by the direct sum and by the mesh."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ewald_jax.analysis.benchmark import (
    CLOCKS,
    interleaved,
    median_and_spread,
    reserved_bytes,
    resident_peak_mb,
)
from ewald_jax.analysis.made_up import ionic_crystal
from ewald_jax.calculator.capacity import check_size
from ewald_jax.calculator.evaluator import check_memory, device_memory, needed_bytes
from ewald_jax.graph import batch_graphs, structure_from_atoms
from ewald_jax.graph.schema import Batch, Structure
from ewald_jax.graph.waves import with_waves
from ewald_jax.models import batch_from_atoms, build_model, check_structure, neighborhood
from ewald_jax.nn.ewald_config import SUMS, EwaldConfig
from ewald_jax.potential import init_params, site_outputs
from ewald_jax.typing import InputError, PyTree

_GB = 1e9

_SLOW = 20.0
"""Seconds of a call above which it is not repeated as often."""

_HELP = {
    "direct": "model.ewald.sum=mesh needs no table of atoms x wave vectors",
    "mesh": "a lower model.ewald.k_cutoff needs fewer points, fewer channels smaller arrays",
}


@dataclass(frozen=True)
class ScalingTiming:
    """One crystal, one way to sum.

    Attributes:
        atoms: In the cell.
        edges: Of its graph.
        sum: "direct" or "mesh".
        kvecs: Wave vectors of the direct sum; 0 for the mesh.
        mesh: Points of the mesh along each axis; zeros for the direct sum.
        chosen: Whether it is what "auto" takes.
        compile_seconds: Tracing and compilation.
        seconds: Median time of energy and forces.
        seconds_spread: Interquartile range.
        microseconds_per_atom: Of `seconds`.
        compiled_gb: Temporary and output buffers that XLA reserves, GB; not what transforms
            and loops over atoms allocate themselves.
        resident_gb: Measured peak of the process above its state before the first call, GB;
            None where the system cannot tell, or memory was left from a case before.
    """

    atoms: int
    edges: int
    sum: str
    kvecs: int
    mesh: tuple[int, int, int]
    chosen: bool
    compile_seconds: float
    seconds: float
    seconds_spread: float
    microseconds_per_atom: float
    compiled_gb: float
    resident_gb: float | None


@dataclass(frozen=True)
class Scaling:
    """All crystals and sums of one run.

    Attributes:
        timings: In the order in which they were measured.
        left_out: A sentence for each combination that did not fit the memory.
        crossover: Atoms from which the mesh is faster, None if that is not between the
            numbers that were measured with both.
        flatness: Largest over smallest time of an atom, of the mesh; None without one.
    """

    timings: tuple[ScalingTiming, ...]
    left_out: tuple[str, ...]
    crossover: float | None
    flatness: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def small_model() -> nn.Module:
    """SchNet with the `radial` scheme at the size of the packaged models."""
    sizes = {"hidden_channels": 64, "num_filters": 64, "num_gaussians": 32, "cutoff": 5.0}
    return build_model("schnet", **sizes, ewald=EwaldConfig())


def time_scaling(
    model: nn.Module,
    atoms: Sequence[int],
    sums: Sequence[str] = SUMS,
    repeats: int = 5,
    memory_limit: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
    clock: str = "wall",
) -> Scaling:
    """Times energy and forces of one periodic cell, its sums in turn for each number of atoms.

    What does not fit the memory is left out before anything is allocated for it.

    Args:
        model: With the `radial` scheme.
        atoms: Numbers of atoms of `ionic_crystal`.
        sums: Of "direct", "mesh" and "auto", which stands for one of the others.
        repeats: Timed calls of each, after one; calls of more than 20 s are timed twice, the
            first one too.
        memory_limit: Bytes; None for what the device has.
        tell: Called with a line for each step of the work.
        clock: Of `benchmark.CLOCKS`.

    Returns:
        The timings and what was left out.

    Raises:
        InputError: If the model has no `radial` scheme, a sum is unknown, or nothing fits.
    """
    scheme = None if model.ewald is None else model.ewald.scheme
    if scheme != "radial":
        raise InputError(
            f"the model has the ewald scheme {scheme!r}, expected 'radial', which can be "
            "summed directly and on a mesh"
        )
    for name in sums:
        if name not in SUMS:
            raise InputError(f"the sum {name!r} is unknown, expected some of {SUMS}")
    params = init_params(
        model, jax.random.key(0), batch_from_atoms([ionic_crystal(8)], model)
    )
    timings: list[ScalingTiming] = []
    left_out: list[str] = []
    for number in atoms:
        limit = device_memory() if memory_limit is None else memory_limit
        cases = []
        for case in _prepared(model, params, number, sums, limit, tell):
            if isinstance(case, str):
                left_out.append(case)
            else:
                cases.append(case)
        found = _timed(cases, repeats, clock)
        timings += found
        for timing in found:
            tell(
                f"{number} atoms, {timing.sum}: {timing.seconds:.4g} s, "
                f"{timing.microseconds_per_atom:.4g} us per atom"
            )
    if not timings:
        raise InputError(left_out[0] if left_out else "no sums to time, expected one")
    per_atom = [t.microseconds_per_atom for t in timings if t.sum == "mesh"]
    flatness = max(per_atom) / min(per_atom) if per_atom else None
    return Scaling(tuple(timings), tuple(left_out), crossover(timings), flatness)


def crossover(timings: Sequence[ScalingTiming]) -> float | None:
    """Atoms from which the mesh is faster, by a straight line between logarithms.

    Returns:
        None if that is not between two numbers of atoms that were measured with both sums.
    """
    seconds = {(t.sum, t.atoms): t.seconds for t in timings}
    both = sorted(n for s, n in seconds if s == "mesh" and ("direct", n) in seconds)
    gains = [math.log(seconds["direct", n] / seconds["mesh", n]) for n in both]
    for i in range(1, len(both)):
        low, high = gains[i - 1 : i + 1]
        if low < 0 <= high:
            share = low / (low - high)
            return both[i - 1] ** (1 - share) * both[i] ** share
    return None


@dataclass(frozen=True)
class _Case:
    """A compiled evaluation and what is known of it without running it."""

    structure: Structure
    sum: str
    chosen: bool
    compile_seconds: float
    compiled_bytes: int
    run: Callable[[], Any]


def _prepared(
    model: nn.Module,
    params: PyTree,
    number: int,
    sums: Sequence[str],
    limit: int,
    tell: Callable[[str], None],
) -> Iterator[_Case | str]:
    """Compiled evaluations, or sentences why there are none."""
    crystal = ionic_crystal(number)
    models = {name: model.clone(ewald=replace(model.ewald, sum=name)) for name in SUMS}
    needed = replace(neighborhood(model), waves=None)
    try:
        check_structure(model, crystal.numbers, crystal.pbc)
        check_size(crystal, needed, 0.0, limit)
        bare = structure_from_atoms(crystal, needed, _dtype())
    except InputError as error:
        yield f"{number} atoms are left out: the crystal {error}"
        return
    chosen = _sum_of(models["auto"], bare)
    wanted = dict.fromkeys(chosen if name == "auto" else name for name in sums)
    for name in wanted:
        tell(f"{number} atoms, {name}: compiling")
        try:
            structure = with_waves(bare, neighborhood(models[name], alone=True))
            batch = batch_graphs([structure], neighborhood=needed)
            started = time.perf_counter()
            compiled = _compiled(models[name], params, batch)
            took = time.perf_counter() - started
            check_memory(needed_bytes(compiled), limit, batch)
        except InputError as error:
            yield (
                f"{number} atoms with the {name} sum are left out: the crystal {error}; "
                f"{_HELP[name]}"
            )
            continue
        # To the device now: each call would copy it again.
        run = partial(compiled, params, jax.device_put(batch))
        reserved = reserved_bytes(compiled)
        yield _Case(structure, name, name == chosen, took, reserved, run)


def _dtype() -> np.dtype:
    return jax.dtypes.canonicalize_dtype(np.float64)


def _sum_of(model: nn.Module, structure: Structure) -> str:
    """What "auto" takes for a structure alone in its batch."""
    try:
        waves = with_waves(structure, neighborhood(model, alone=True)).waves
    except InputError:  # more wave vectors than are allowed
        return "direct"
    return "mesh" if any(waves.mesh) else "direct"


def _compiled(model: nn.Module, params: PyTree, batch: Batch) -> Any:
    function = partial(site_outputs, model, forces=True)
    return jax.jit(function).lower(params, batch).compile()


def _timed(cases: Sequence[_Case], repeats: int, clock: str) -> list[ScalingTiming]:
    """Cases in turn; the first call of each measures the memory and warms up."""
    resident, first, now = [], [], CLOCKS[clock]
    for case in cases:
        started = now()
        resident.append(resident_peak_mb(case.run))
        first.append(now() - started)
    runs = tuple(case.run for case in cases)
    slow = max(first, default=0) > _SLOW
    timed = interleaved(runs, 1 if slow else repeats, warm_up=False, clock=clock)
    if slow:
        timed = np.concatenate([np.array(first)[:, None], timed], axis=1)
    out = []
    for case, peak, seconds in zip(cases, resident, timed, strict=True):
        median, spread = median_and_spread(seconds)
        if peak is not None and 1e6 * peak < case.compiled_bytes / 2:
            peak = None
        graph, waves = case.structure.graph, case.structure.waves
        number = int(graph.n_node[0])
        out.append(
            ScalingTiming(
                atoms=number,
                edges=int(graph.n_edge[0]),
                sum=case.sum,
                kvecs=len(waves.nodes),
                mesh=tuple(int(n) for n in waves.mesh),
                chosen=case.chosen,
                compile_seconds=case.compile_seconds,
                seconds=median,
                seconds_spread=spread,
                microseconds_per_atom=1e6 * median / number,
                compiled_gb=case.compiled_bytes / _GB,
                resident_gb=None if peak is None else peak / 1e3,
            )
        )
    return out
