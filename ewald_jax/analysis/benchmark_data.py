"""How fast structures are converted, opened and read, against what a training consumes."""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ase
import ase.build
import ase.io
import flax.linen as nn
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from ewald_jax.analysis.benchmark import resident_peak_mb
from ewald_jax.analysis.benchmark_step import time_steps
from ewald_jax.analysis.made_up import slabs
from ewald_jax.data.base import DataConfig, GraphDataset, load_dataset
from ewald_jax.data.fitting import dataset_statistics
from ewald_jax.data.loader import Loader
from ewald_jax.data.packed import Column, OpenMaps, read_header, write_packed
from ewald_jax.data.splits import split_dataset
from ewald_jax.data.store import LAYOUT
from ewald_jax.models import neighborhood
from ewald_jax.train.losses import LossConfig

_SLAB = (5, 5, 3)
_FILES = 4


@dataclass(frozen=True)
class DataTiming:
    """Rates of one run on one machine.

    Attributes:
        atoms: Of each structure that is converted, read and trained on.
        edges: Of each, on average.
        convert_rate: Structures/s from extxyz.xz to graphs on disk.
        workers: Processes that did it.
        read_rate: Structures/s from the cache, in random order.
        batch_rate: Structures/s of the loader's padded batches.
        step_rate: Structures/s that the training step consumes.
        read_ratio: `read_rate` / `step_rate`.
        batch_ratio: `batch_rate` / `step_rate`.
        open_structures: Structures, small molecules repeated, of the next two.
        open_seconds: From the config to data set, splits, sizes and statistics in memory.
        open_mb: Measured peak of the process meanwhile above its state before, MB; None
            where the system cannot tell.
    """

    atoms: int
    edges: float
    convert_rate: float
    workers: int
    read_rate: float
    batch_rate: float
    step_rate: float
    read_ratio: float
    batch_ratio: float
    open_structures: int
    open_seconds: float
    open_mb: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def time_data(
    model: nn.Module,
    loss: LossConfig,
    structures: int = 1000,
    repeated: int = 1_000_000,
    batch_size: int = 8,
    workers: int = 1,
    repeats: int = 5,
) -> DataTiming:
    """Times conversion, opening and reading, in a temporary folder.

    Args:
        model: Whose neighbors are found, and whose training step consumes.
        loss: What the step minimises.
        structures: Slabs that are converted and read.
        repeated: Molecules in the cache that is opened.
        batch_size: Structures per batch.
        workers: Processes that convert.
        repeats: Timed steps.

    Returns:
        The rates.
    """
    made = slabs(structures, _SLAB)
    with tempfile.TemporaryDirectory(prefix="ewald-jax-") as folder:
        config = DataConfig(path=folder, cache_dir=str(Path(folder) / "cache"))
        for number in range(_FILES):
            path = Path(folder) / f"{number}.extxyz.xz"
            _write(path, made[number::_FILES])
        seconds, dataset = _timed(
            lambda: load_dataset(config, neighborhood(model), workers=workers)
        )
        convert_rate = len(dataset) / seconds
        order = np.random.default_rng(0).permutation(len(dataset))
        reading, _ = _timed(lambda: [len(dataset[i].targets) for i in order])
        loader = Loader(dataset, batch_size=batch_size, shuffle_seed=0, prefetch=0)
        batching, _ = _timed(lambda: sum(1 for _ in loader.epoch()))
        edges = float(dataset.n_edge.mean())
        atoms = len(made[0])
    (step,) = time_steps({"model": model}, made[:batch_size], loss, repeats)
    step_rate = batch_size / step.seconds
    opened, opened_mb = time_open(repeated)
    return DataTiming(
        atoms=atoms,
        edges=edges,
        convert_rate=convert_rate,
        workers=workers,
        read_rate=structures / reading,
        batch_rate=structures / batching,
        step_rate=step_rate,
        read_ratio=structures / reading / step_rate,
        batch_ratio=structures / batching / step_rate,
        open_structures=repeated,
        open_seconds=opened,
        open_mb=opened_mb,
    )


def time_open(structures: int) -> tuple[float, float | None]:
    """Opens a cache of small molecules as a training does.

    Args:
        structures: How many, rounded up to hundreds.

    Returns:
        Seconds, and peak of the memory in use, MB, or None.
    """
    with tempfile.TemporaryDirectory(prefix="ewald-jax-") as folder:
        path = Path(folder) / "molecules.extxyz"
        _write(path, [_molecule(number) for number in range(100)])
        config = DataConfig(
            path=str(path),
            cache_dir=str(Path(folder) / "cache"),
            split="key",
            split_key="system",
        )
        load_dataset(config, 5.0)
        (entry,) = Path(config.cache_dir).glob("*.graphs")
        _repeat(entry, -(-structures // 100))
        _open(config)  # `data convert` fits the statistics
        seconds, dataset = _timed(lambda: _open(config))
        if len(dataset) < structures:
            raise RuntimeError("the repeated cache was not opened")
        return seconds, resident_peak_mb(lambda: _open(config))


def _open(config: DataConfig) -> GraphDataset:
    dataset = load_dataset(config, 5.0)
    splits = split_dataset(config, dataset)
    dataset_statistics(dataset, splits["train"], config.statistics)
    dataset.kinds(np.concatenate(list(splits.values())))
    dataset.sizes.take(splits["train"])
    return dataset


def _repeat(entry: Path, times: int) -> None:
    """Makes the structures of an entry of the cache so many times more."""
    header = read_header(entry)
    tables = {name for name, (per, _, _) in LAYOUT.items() if per == "formula"}
    columns = {}
    with tempfile.TemporaryDirectory(dir=entry.parent) as folder:
        for name, array in OpenMaps(1).arrays(header).items():
            count = 1 if name in tables or name.endswith("_table") else times
            content = Path(folder) / name
            with open(content, "wb") as file:
                for _ in range(count):
                    file.write(array.tobytes())
            shape = (count * array.shape[0], *array.shape[1:])
            columns[name] = Column(array.dtype, shape, content)
        write_packed(Path(folder) / entry.name, columns, header.facts)
        shutil.move(Path(folder) / entry.name, entry)


def _molecule(number: int) -> ase.Atoms:
    atoms = ase.build.molecule(("H2O", "CH4", "NH3", "CO2")[number % 4])
    atoms.rattle(0.02, seed=number)
    atoms.info = {"system": f"random{number // 4}", "frame": number, "reference": 0.5}
    return atoms


def _write(path: Path, structures: list[ase.Atoms]) -> None:
    """With random labels."""
    rng = np.random.default_rng(0)
    for atoms in structures:
        atoms.info.pop("adsorbate_info", None)  # which the format cannot hold
        forces = rng.normal(size=(len(atoms), 3))
        energy = float(-3.0 * len(atoms) + rng.normal())
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    ase.io.write(path, structures, format="extxyz")


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found
