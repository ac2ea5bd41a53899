"""Timings as ratios taken within one run: machines are noisy, ratios are less so."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ewald_jax.graph.schema import Batch
from ewald_jax.kspace import half_box
from ewald_jax.nn.ewald import EwaldBlock, EwaldFilter
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.nn.ewald_geometry import kspace_geometry

MATMUL_SIZE = 2048
_MB = 1e6


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
) -> BlockTiming:
    """Times the forward pass of an `EwaldBlock` on random atoms in one cell.

    Args:
        nodes: Atoms.
        num_k: Index box of the wave vectors; (5, 4, 5) has 544.
        features: Channels.
        num_hidden: Residual layers of the update network.
        repeats: Timed calls of the block and of the matrix product, in turn.

    Returns:
        The timing.
    """
    config = EwaldConfig(scheme="lattice", num_k=num_k, num_hidden=num_hidden)
    batch = _one_cell(nodes)
    h = jax.random.normal(jax.random.key(0), (nodes, features))
    module = _OneBlock(config)
    params = jax.jit(module.init)(jax.random.key(1), h, batch)
    compiled = jax.jit(module.apply).lower(params, h, batch).compile()
    matrix = jax.random.normal(jax.random.key(2), (MATMUL_SIZE, MATMUL_SIZE))
    product = jax.jit(jnp.matmul)
    calls = (lambda: compiled(params, h, batch), lambda: product(matrix, matrix))
    jax.block_until_ready((params, h, matrix))
    # The very first call: later ones find memory that the process has kept.
    resident = resident_peak_mb(calls[0])
    block, matmul = interleaved(calls, repeats)
    kvecs = len(half_box(*num_k))
    memory = compiled.memory_analysis()
    rate = 8e-9 * nodes * kvecs * features / np.median(block)
    matmul_rate = 2e-9 * MATMUL_SIZE**3 / np.median(matmul)
    return BlockTiming(
        nodes=nodes,
        kvecs=kvecs,
        features=features,
        seconds=float(np.median(block)),
        seconds_spread=float(np.subtract(*np.percentile(block, [75, 25]))),
        gflops=float(rate),
        matmul_gflops=float(matmul_rate),
        fraction=float(rate / matmul_rate),
        compiled_mb=(memory.temp_size_in_bytes + memory.output_size_in_bytes) / _MB,
        resident_mb=resident,
    )


def interleaved(calls: tuple[Callable[[], Any], ...], repeats: int) -> np.ndarray:
    """Seconds [calls, repeats] of functions called in turn, after one call to warm up."""
    for call in calls:
        jax.block_until_ready(call())
    seconds = np.empty((len(calls), repeats))
    for repeat in range(repeats):
        for which, call in enumerate(calls):
            started = time.perf_counter()
            jax.block_until_ready(call())
            seconds[which, repeat] = time.perf_counter() - started
    return seconds


def resident_peak_mb(call: Callable[[], Any]) -> float | None:
    """Peak resident memory of the process during a call, above that before it, MB.

    Linux only: the kernel's high-water mark is reset before the call. None elsewhere. Memory
    that the process has kept from before counts as nothing.
    """
    status = Path("/proc/self/status")
    try:
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


def _one_cell(nodes: int) -> Batch:
    import ase

    from ewald_jax.graph import batch_graphs, structure_from_atoms

    rng = np.random.default_rng(0)
    # A cubic grid at about the density of water, jittered: no two atoms on top of each other.
    side = int(np.ceil(nodes ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    positions = 2.15 * (grid[:nodes] + rng.uniform(-0.2, 0.2, (nodes, 3)))
    atoms = ase.Atoms(
        numbers=np.full(nodes, 8), positions=positions, cell=[2.15 * side] * 3, pbc=True
    )
    # The block looks at no edges: the shortest cutoff keeps the list small.
    return batch_graphs([structure_from_atoms(atoms, 1.0)])
