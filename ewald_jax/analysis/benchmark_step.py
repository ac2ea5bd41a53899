"""Training steps of several models, timed in turn on the same structures."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ase
import flax.linen as nn
import jax
import numpy as np

from ewald_jax.analysis.benchmark import (
    MATMUL_SIZE,
    interleaved,
    matrix_product,
    median_and_spread,
    resident_peak_mb,
)
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
        gflop: Operations of the compiled step as XLA counts them, 1e9.
        gbytes: Bytes that its parts read and write as XLA counts them, 1e9; more than memory
            sees, as much of it stays in cache.
        limit_seconds: What the operations would take at the rate of a 2048^3 float32 matrix
            product, timed in turn with the steps.
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
    gflop: float
    gbytes: float
    limit_seconds: float
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
    prepared = [PreparedStep(model, structures, loss) for model in models.values()]
    product = matrix_product()
    *seconds, of_product = interleaved((*(step.run for step in prepared), product), repeats)
    timed = [median_and_spread(times) for times in seconds]
    rate = 2e-9 * MATMUL_SIZE**3 / median_and_spread(of_product)[0]
    return [
        StepTiming(
            name=name,
            parameters=step.parameters,
            nodes=sum(map(len, structures)),
            edges=int(step.batch.graph.n_edge.sum()),
            compile_seconds=step.compile_seconds,
            seconds=median,
            seconds_spread=spread,
            ratio=median / timed[0][0],
            gflop=step.gflop,
            gbytes=step.gbytes,
            limit_seconds=step.gflop / rate,
            compiled_mb=step.compiled_mb,
            resident_mb=step.resident_mb,
        )
        for name, step, (median, spread) in zip(models, prepared, timed, strict=True)
    ]


class PreparedStep:
    """A compiled step and its state.

    Attributes:
        batch: Of all structures, with random labels.
        parameters: Of the model.
        compile_seconds: Tracing and compilation.
        gflop: Operations, 1e9.
        gbytes: Bytes read and written, 1e9.
        compiled_mb: Temporary buffers that XLA reserves, MB.
        resident_mb: Measured peak of the first step, MB.
    """

    def __init__(self, model: nn.Module, structures: Sequence[ase.Atoms], loss: LossConfig):
        """Compiles the step and does it once.

        Args:
            model: The network.
            structures: The batch.
            loss: What the step minimises.
        """
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
        cost = self._step.cost_analysis()
        self.gflop, self.gbytes = cost["flops"] / 1e9, cost["bytes accessed"] / 1e9
        self.compiled_mb = self._step.memory_analysis().temp_size_in_bytes / _MB
        self.resident_mb = resident_peak_mb(self.run)

    def run(self) -> Any:
        """One step, from where the last one ended."""
        self._state, sums = self._step(self._state, self.batch)
        return sums


def _labelled_batch(model: nn.Module, structures: Sequence[ase.Atoms]) -> Batch:
    rng = np.random.default_rng(0)
    dtype = jax.dtypes.canonicalize_dtype(np.float64).type
    needed = neighborhood(model)
    targets = []
    for atoms in structures:
        forces = rng.normal(size=(len(atoms), 3)).astype(dtype)
        energy, stress = dtype(rng.normal()), np.zeros((3, 3), dtype)
        free = np.ones(len(atoms), bool)
        targets.append({"energy": energy, "forces": forces, "stress": stress, "free": free})
    made = [structure_from_atoms(atoms, needed, dtype) for atoms in structures]
    return batch_graphs(made, targets, neighborhood=needed.suited(sizes_of(made)))
