"""Timings as ratios taken within one run: machines are noisy, ratios are less so."""

import contextlib
import ctypes
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ewald_jax import ops
from ewald_jax.analysis.made_up import ionic_crystal
from ewald_jax.graph import batch_graphs, structure_from_atoms
from ewald_jax.graph.schema import Batch
from ewald_jax.kspace import half_box
from ewald_jax.nn.ewald import EwaldBlock, EwaldFilter
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.nn.ewald_geometry import kspace_geometry
from ewald_jax.typing import Array, Float, PyTree

MATMUL_SIZE = 2048
_MB = 1e6

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
"""What times are measured with: the clock on the wall, or the time that the CPU has spent on
this process, all threads together, of which work beside it takes nothing."""


@dataclass(frozen=True)
class BlockTiming:
    """One Ewald block in one periodic cell, against a matrix product of the same run.

    Attributes:
        nodes: Atoms.
        kvecs: Wave vectors.
        features: Channels.
        seconds: Median time of one forward pass, geometry included.
        seconds_spread: Interquartile range of the repetitions.
        gflops: Rate, counting the 8 nodes kvecs features operations of the two sums only.
        matmul_gflops: Rate of a 2048^3 float32 matrix product, interleaved with the block.
        fraction: `gflops` / `matmul_gflops`.
        compiled_mb: Temporary and output buffers that XLA reserves, MB.
        resident_mb: Measured peak of the process above its state before the call, MB; None
            where the system cannot tell.
        gradient_seconds: As `seconds`, of the block and the derivatives of half its squared
            length by features, positions and parameters.
        gradient_spread: Interquartile range.
        gradient_gflops: Rate, counting 24 nodes kvecs features operations: each of the two
            products has two more of its size as derivatives.
        gradient_fraction: `gradient_gflops` / `matmul_gflops`.
        gradient_mb: As `compiled_mb`.
    """

    nodes: int
    kvecs: int
    features: int
    seconds: float
    seconds_spread: float
    gflops: float
    matmul_gflops: float
    fraction: float
    compiled_mb: float
    resident_mb: float | None
    gradient_seconds: float
    gradient_spread: float
    gradient_gflops: float
    gradient_fraction: float
    gradient_mb: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class _OneBlock(nn.Module):
    config: EwaldConfig

    @nn.compact
    def __call__(self, h, batch):
        kspace = kspace_geometry(self.config, batch)
        return EwaldBlock(self.config)(h, kspace, EwaldFilter(self.config)(kspace))


def time_block(
    nodes: int = 4000,
    num_k: tuple[int, int, int] = (5, 4, 5),
    features: int = 128,
    num_hidden: int = 0,
    repeats: int = 20,
    clock: str = "wall",
) -> BlockTiming:
    """Times an `EwaldBlock`, forward and with its gradient, on random atoms in one cell.

    Args:
        nodes: Atoms.
        num_k: Index box of the wave vectors; (5, 4, 5) has 544.
        features: Channels.
        num_hidden: Residual layers of the update network.
        repeats: Timed calls of block, gradient and matrix product, in turn.
        clock: Of `CLOCKS`.

    Returns:
        The timing.
    """
    config = EwaldConfig(scheme="lattice", num_k=num_k, num_hidden=num_hidden)
    module, params, h, batch = one_block(config, nodes, features)
    forward, gradient = (
        jax.jit(call).lower(params, h, batch).compile()
        for call in (module.apply, partial(block_gradient, module))
    )
    calls = (
        lambda: forward(params, h, batch),
        lambda: gradient(params, h, batch),
        matrix_product(),
    )
    jax.block_until_ready((params, h))
    # The very first call: later ones find memory that the process has kept.
    resident = resident_peak_mb(calls[0])
    (block, spread), (both, both_spread), (matmul, _) = map(
        median_and_spread, interleaved(calls, repeats, clock=clock)
    )
    kvecs = len(half_box(*num_k))
    sums = 8e-9 * nodes * kvecs * features
    matmul_rate = 2e-9 * MATMUL_SIZE**3 / matmul
    return BlockTiming(
        nodes=nodes,
        kvecs=kvecs,
        features=features,
        seconds=block,
        seconds_spread=spread,
        gflops=sums / block,
        matmul_gflops=matmul_rate,
        fraction=sums / block / matmul_rate,
        compiled_mb=reserved_bytes(forward) / _MB,
        resident_mb=resident,
        gradient_seconds=both,
        gradient_spread=both_spread,
        gradient_gflops=3 * sums / both,
        gradient_fraction=3 * sums / both / matmul_rate,
        gradient_mb=reserved_bytes(gradient) / _MB,
    )


def matrix_product() -> Callable[[], Array]:
    """The float32 matrix product whose rate others are compared with."""
    shape = (MATMUL_SIZE, MATMUL_SIZE)
    matrix = jax.random.normal(jax.random.key(2), shape, jnp.float32)
    product = jax.jit(ops.full_matmul)
    return lambda: product(matrix, matrix)


def one_block(
    config: EwaldConfig, nodes: int, features: int
) -> tuple[nn.Module, PyTree, Float[Array, "nodes feat"], Batch]:
    """An Ewald block on its own, with random parameters, for one cell of random features.

    Returns:
        The module, called with features and batch; its parameters; features; the batch.
    """
    # The block looks at no edges: the shortest cutoff keeps the list small.
    structure = structure_from_atoms(ionic_crystal(nodes), 1.0)
    # To the device now: each call would copy it again.
    batch = jax.device_put(batch_graphs([structure]))
    h = jax.random.normal(jax.random.key(0), (nodes, features), jnp.float32)
    module = _OneBlock(config)
    params = jax.jit(module.init)(jax.random.key(1), h, batch)
    return module, params, h, batch


def block_gradient(
    module: nn.Module, params: PyTree, h: Float[Array, "nodes feat"], batch: Batch
) -> PyTree:
    """Half the squared length of what a block of `one_block` adds, and its derivatives."""

    def half_square(params, h, positions):
        nodes = {**batch.graph.nodes, "positions": positions}
        moved = batch._replace(graph=batch.graph._replace(nodes=nodes))
        return jnp.sum(module.apply(params, h, moved) ** 2) / 2

    positions = batch.graph.nodes["positions"]
    return jax.value_and_grad(half_square, argnums=(0, 1, 2))(params, h, positions)


def median_and_spread(seconds: np.ndarray) -> tuple[float, float]:
    """Median and interquartile range of repetitions."""
    low, middle, high = np.percentile(seconds, [25, 50, 75])
    return float(middle), float(high - low)


def reserved_bytes(compiled: Any) -> int:
    """Temporary and output buffers that XLA has planned for a compiled function."""
    plan = compiled.memory_analysis()
    return int(plan.temp_size_in_bytes + plan.output_size_in_bytes)


def interleaved(
    calls: tuple[Callable[[], Any], ...],
    repeats: int,
    warm_up: bool = True,
    clock: str = "wall",
) -> np.ndarray:
    """Seconds [calls, repeats] of functions called in turn, after one call to warm up."""
    now = CLOCKS[clock]
    for call in calls if warm_up else ():
        jax.block_until_ready(call())
    seconds = np.empty((len(calls), repeats))
    for repeat in range(repeats):
        for which, call in enumerate(calls):
            started = now()
            jax.block_until_ready(call())
            seconds[which, repeat] = now() - started
    return seconds


def resident_peak_mb(call: Callable[[], Any]) -> float | None:
    """Peak resident memory of the process during a call, above that before it, MB.

    Linux only: the kernel's high-water mark is reset before the call. None elsewhere. Memory
    that the process has kept from before counts as nothing; glibc gives back what it can.
    """
    status = Path("/proc/self/status")
    try:
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_kb(status, "VmRSS")
        jax.block_until_ready(call())
        return max(_status_kb(status, "VmHWM") - before, 0) / 1e3
    except (OSError, LookupError):
        return None


def _status_kb(status: Path, key: str) -> int:
    for line in status.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise LookupError(key)
