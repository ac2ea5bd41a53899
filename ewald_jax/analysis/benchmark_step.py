"""Training steps of several models, timed in turn on the same structures."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ase
import ase.build
import flax.linen as nn
import jax
import numpy as np

from ewald_jax.analysis.benchmark import interleaved, resident_peak_mb
from ewald_jax.graph import batch_graphs, sizes_of, structure_from_atoms
from ewald_jax.graph.schema import Batch
from ewald_jax.models import check_structure, neighborhood
from ewald_jax.potential import init_params
from ewald_jax.train.losses import LossConfig
from ewald_jax.train.optim import OptimConfig, make_optimizer
from ewald_jax.train.state import count_parameters, create_state
from ewald_jax.train.step import make_train_step
from ewald_jax.typing import InputError

_MB = 1e6


@dataclass(frozen=True)
class StepTiming:
    """One training step of one model.

    Attributes:
        name: What the model was called.
        parameters: Of the model.
        nodes: Atoms of the batch.
        edges: Edges of the batch.
        compile_seconds: Tracing and compilation of the step.
        seconds: Median time of a step.
        seconds_spread: Interquartile range.
        ratio: `seconds` over that of the first model of the same run.
        compiled_mb: Temporary buffers that XLA reserves besides parameters and batch, MB.
        resident_mb: Measured peak of the process above its state before the first step, MB;
            None where the system cannot tell.
    """

    name: str
    parameters: int
    nodes: int
    edges: int
    compile_seconds: float
    seconds: float
    seconds_spread: float
    ratio: float
    compiled_mb: float
    resident_mb: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def time_steps(
    models: Mapping[str, nn.Module],
    structures: Sequence[ase.Atoms],
    loss: LossConfig,
    repeats: int = 5,
) -> list[StepTiming]:
    """Times training steps of several models, one after the other in each round.

    Args:
        models: By name; the first one is what the others are compared with.
        structures: The batch; labels are random numbers.
        loss: What the step minimises.
        repeats: Rounds, after one to warm up.

    Returns:
        One timing for each model.

    Raises:
        InputError: If a structure is not for one of the models.
    """
    for name, model in models.items():
        for index, atoms in enumerate(structures):
            try:
                check_structure(model, atoms.numbers, atoms.pbc)
            except InputError as error:
                raise InputError(f"{name}: structure {index} {error}") from None
    prepared = [_Step(model, structures, loss) for model in models.values()]
    seconds = interleaved(tuple(step.run for step in prepared), repeats)
    medians = np.median(seconds, axis=1)
    return [
        StepTiming(
            name=name,
            parameters=step.parameters,
            nodes=sum(map(len, structures)),
            edges=int(step.batch.graph.n_edge.sum()),
            compile_seconds=step.compile_seconds,
            seconds=float(median),
            seconds_spread=float(np.subtract(*np.percentile(times, [75, 25]))),
            ratio=float(median / medians[0]),
            compiled_mb=step.compiled_mb,
            resident_mb=step.resident_mb,
        )
        for name, step, median, times in zip(
            models, prepared, medians, seconds, strict=True
        )
    ]


class _Step:
    """A compiled step and its state."""

    def __init__(self, model: nn.Module, structures: Sequence[ase.Atoms], loss: LossConfig):
        self.batch = _labelled_batch(model, structures)
        optim = OptimConfig(lr=1e-5)
        tx = make_optimizer(optim, num_steps=1000)
        params = init_params(model, jax.random.key(0), self.batch)
        self.parameters = count_parameters(params)
        self._state = create_state(params, tx, jax.random.key(1))
        step = make_train_step(model, tx, loss, optim)
        started = time.perf_counter()
        self._step = step.lower(self._state, self.batch).compile()
        self.compile_seconds = time.perf_counter() - started
        self.compiled_mb = self._step.memory_analysis().temp_size_in_bytes / _MB
        self.resident_mb = resident_peak_mb(self.run)

    def run(self) -> Any:
        self._state, sums = self._step(self._state, self.batch)
        return sums


def _labelled_batch(model: nn.Module, structures: Sequence[ase.Atoms]) -> Batch:
    rng, dtype = np.random.default_rng(0), np.float32
    needed = neighborhood(model)
    targets = []
    for atoms in structures:
        forces = rng.normal(size=(len(atoms), 3)).astype(dtype)
        energy, stress = dtype(rng.normal()), np.zeros((3, 3), dtype)
        free = np.ones(len(atoms), bool)
        targets.append({"energy": energy, "forces": forces, "stress": stress, "free": free})
    made = [structure_from_atoms(atoms, needed, dtype) for atoms in structures]
    return batch_graphs(made, targets, neighborhood=needed.suited(sizes_of(made)))


def alkanes(count: int, carbons: int = 13) -> list[ase.Atoms]:
    """Chain molecules C_n H_2n+2, each a little different; 13 carbons make 41 atoms.

    Args:
        count: Molecules.
        carbons: Carbon atoms of each.
    """
    positions, species = [], []
    for i in range(carbons):
        side = 1 if i % 2 else -1
        carbon = np.array([1.27 * i, 0.43 * side, 0.0])
        positions += [
            carbon,
            carbon + [0, 0.63 * side, 0.88],
            carbon + [0, 0.63 * side, -0.88],
        ]
        species += [6, 1, 1]
    for end, step in ((positions[0], -1.0), (positions[-3], 1.0)):
        positions.append(end + [step, -0.5 * np.sign(end[1]), 0.0])
        species.append(1)
    return _rattled(ase.Atoms(species, positions), count)


def slabs(count: int, size: tuple[int, int, int] = (4, 4, 4)) -> list[ase.Atoms]:
    """CO on Pt(111), periodic along all axes, each a little different.

    Args:
        count: Slabs.
        size: Atoms along each axis; the default makes 66 with CO.
    """
    atoms = ase.build.fcc111("Pt", size, vacuum=8.0, periodic=True)
    ase.build.add_adsorbate(atoms, ase.build.molecule("CO"), 1.9, "ontop", mol_index=1)
    return _rattled(atoms, count)


def _rattled(atoms: ase.Atoms, count: int) -> list[ase.Atoms]:
    copies = [atoms.copy() for _ in range(count)]
    for seed, copy in enumerate(copies):
        copy.rattle(0.02, seed=seed)
    return copies
