"""What XLA says of a compiled training step: operations, bytes and memory, without a run."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ase
import flax.linen as nn
import jax
import numpy as np

from ewald_jax.graph import batch_graphs, sizes_of, structure_from_atoms
from ewald_jax.graph.schema import Batch
from ewald_jax.models import neighborhood
from ewald_jax.potential import init_params
from ewald_jax.train.losses import LossConfig
from ewald_jax.train.optim import OptimConfig, make_optimizer
from ewald_jax.train.state import count_parameters, create_state
from ewald_jax.train.step import make_train_step

_GIGA = 1e9


@dataclass(frozen=True)
class StepCounts:
    """One training step of one model, as it was compiled.

    Attributes:
        parameters: Of the model.
        nodes: Atoms of the batch.
        edges: Edges of the batch.
        compile_seconds: Tracing and compilation.
        gflop: Operations as XLA counts them, 1e9.
        gbytes: Bytes that its parts read and write as XLA counts them, 1e9; more than memory
            sees, as much of it stays in cache.
        state_gb: Parameters, their averages, the optimiser's state and the batch, 1e9 bytes.
        buffers_gb: Temporary buffers besides, 1e9 bytes.
    """

    parameters: int
    nodes: int
    edges: int
    compile_seconds: float
    gflop: float
    gbytes: float
    state_gb: float
    buffers_gb: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def count_step(
    model: nn.Module,
    structures: Sequence[ase.Atoms],
    loss: LossConfig,
    optim: OptimConfig,
) -> StepCounts:
    """Compiles a training step for the present device, and asks what it takes.

    Nothing is computed, and no parameter exists: sizes that the machine could not train can
    be counted.

    Args:
        model: The network.
        structures: The batch; labels are random numbers.
        loss: What the step minimises.
        optim: The optimiser, whose state is memory too.

    Returns:
        The counts.
    """
    batch = labelled_batch(model, structures)
    tx = make_optimizer(optim, num_steps=1)

    def start(key):
        params = init_params(model, key, batch)
        return create_state(params, tx, key, ema=optim.ema_decay > 0)

    state = jax.eval_shape(start, jax.random.key(0))
    started = time.perf_counter()
    compiled = make_train_step(model, tx, loss, optim).lower(state, batch).compile()
    seconds = time.perf_counter() - started
    gflop, gbytes = operations_and_bytes(compiled)
    plan = compiled.memory_analysis()
    return StepCounts(
        parameters=count_parameters(state.params),
        nodes=sum(map(len, structures)),
        edges=int(batch.graph.n_edge.sum()),
        compile_seconds=seconds,
        gflop=gflop,
        gbytes=gbytes,
        # The new state takes the place of the old one.
        state_gb=plan.argument_size_in_bytes / _GIGA,
        buffers_gb=plan.temp_size_in_bytes / _GIGA,
    )


def operations_and_bytes(compiled: Any) -> tuple[float, float]:
    """Operations, and bytes read and written, of a compiled function, both 1e9."""
    cost = compiled.cost_analysis()
    return cost["flops"] / _GIGA, cost["bytes accessed"] / _GIGA


def labelled_batch(model: nn.Module, structures: Sequence[ase.Atoms]) -> Batch:
    """One unpadded batch of all structures, with random labels of every kind."""
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
