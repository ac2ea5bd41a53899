"""Training steps of several models, timed in turn on the same structures."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import ase
import flax.linen as nn
import jax

from ewald_jax.analysis.benchmark import (
    MATMUL_SIZE,
    interleaved,
    matrix_product,
    median_and_spread,
    resident_peak_mb,
)
from ewald_jax.analysis.step_counts import labelled_batch, operations_and_bytes
from ewald_jax.models import check_structure
from ewald_jax.potential import init_params, model_outputs
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
        inference_ms: Median time of a prediction for each structure of the batch, ms: energies,
            and forces if the loss has them; None if it was not asked for.
        inference_ms_spread: Interquartile range.
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
    inference_ms: float | None = None
    inference_ms_spread: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def time_steps(
    models: Mapping[str, nn.Module],
    structures: Sequence[ase.Atoms],
    loss: LossConfig,
    repeats: int = 5,
    inference: bool = False,
) -> list[StepTiming]:
    """Times training steps of several models, one after the other in each round.

    Args:
        models: By name; the first one is what the others are compared with.
        structures: The batch; labels are random numbers.
        loss: What the step minimises.
        repeats: Rounds, after one to warm up.
        inference: Also time predictions of the same batch, in the same rounds.

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
    predictions = [step.prediction() for step in prepared] if inference else []
    calls = (matrix_product(), *(step.run for step in prepared), *predictions)
    of_product, *seconds = interleaved(calls, repeats)
    timed = [median_and_spread(times) for times in seconds[: len(prepared)]]
    # Of one structure, in ms.
    predicted = [
        median_and_spread(1e3 * times / len(structures))
        for times in seconds[len(prepared) :]
    ] or [(None, None)] * len(prepared)
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
            inference_ms=each,
            inference_ms_spread=each_spread,
        )
        for name, step, (median, spread), (each, each_spread) in zip(
            models, prepared, timed, predicted, strict=True
        )
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
        self.batch = labelled_batch(model, structures)
        self._model, self._forces = model, loss.needs_forces
        optim = OptimConfig(lr=1e-5)
        tx = make_optimizer(optim, num_steps=1000)
        params = init_params(model, jax.random.key(0), self.batch)
        self.parameters = count_parameters(params)
        self._state = create_state(params, tx, jax.random.key(1))
        step = make_train_step(model, tx, loss, optim)
        started = time.perf_counter()
        self._step = step.lower(self._state, self.batch).compile()
        self.compile_seconds = time.perf_counter() - started
        self.gflop, self.gbytes = operations_and_bytes(self._step)
        self.compiled_mb = self._step.memory_analysis().temp_size_in_bytes / _MB
        self.resident_mb = resident_peak_mb(self.run)

    def run(self) -> Any:
        """One step, from where the last one ended."""
        self._state, sums = self._step(self._state, self.batch)
        return sums

    def prediction(self) -> Callable[[], Any]:
        """Compiles energies, and forces if the loss has them, of the same batch."""
        outputs = partial(model_outputs, self._model, forces=self._forces)
        compiled = jax.jit(outputs).lower(self._state.params, self.batch).compile()
        # A step donates its state: the parameters are those of the moment.
        return lambda: compiled(self._state.params, self.batch)
