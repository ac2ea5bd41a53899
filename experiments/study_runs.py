"""Trained runs of studies, and their errors one by one."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
from cells import RESULT

from ewald_jax.config import Config
from ewald_jax.data.base import GraphDataset, load_dataset, source_files
from ewald_jax.train.checkpoint import read_progress
from ewald_jax.train.directory import flat_section
from ewald_jax.train.files import read_json, write_json
from ewald_jax.typing import InputError

ERRORS = "errors.json"


class Run(NamedTuple):
    """One finished training of a study.

    Attributes:
        folder: Where it is.
        data: Name of its data config.
        model: Of its model config.
        variant: Of its variant config.
        seed: Of parameters and order.
        config: All of its settings.
    """

    folder: Path
    data: str
    model: str
    variant: str
    seed: int
    config: Config


def find_runs(folder: Path) -> list[Run]:
    """The finished runs of a study, variants in the order of their names.

    Raises:
        InputError: If there is no such folder, it holds no finished run, or one is damaged.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not there, expected the runs of a study: python "
            f"experiments/run.py {folder.name} or compare.py --name {folder.name} ..."
        )
    found = [_read_run(path) for path in sorted(folder.glob(f"*/{RESULT}"))]
    if not found:
        raise InputError(f"{folder} has no finished run, expected folders with {RESULT}")
    return found


def check_alike(runs: Sequence[Run]) -> None:
    """Refuses runs of several studies that are no comparison.

    Raises:
        InputError: If a run is there twice, or two of a model, of different studies, had
            another budget, loss or optimiser.
    """
    names: dict[tuple, Run] = {}
    seen: dict[str, Run] = {}
    for run in runs:
        key = (run.data, run.model, run.variant, run.seed)
        if key in names:
            raise InputError(f"{run.folder} and {names[key].folder} are the same run")
        names[key] = run
        first = seen.setdefault(run.model, run)
        ours, theirs = _training(run), _training(first)
        differs = [name for name in ours if ours[name] != theirs.get(name)]
        if differs and run.folder.parent != first.folder.parent:
            raise InputError(
                f"{run.folder} and {first.folder} were trained with different "
                f"{differs[0]}: {ours[differs[0]]} and {theirs.get(differs[0])}"
            )


def _training(run: Run) -> dict[str, Any]:
    """What decides how far a training gets."""
    config = run.config.to_dict()
    values = {
        f"{section}.{name}": value
        for section in ("loss", "optim")
        for name, value in flat_section(config, section).items()
    }
    for name in ("epochs", "max_steps", "batch_size"):
        values[f"train.{name}"] = config["train"][name]
    return values


def unfinished(folder: Path) -> list[str]:
    """Names of the runs that have a checkpoint but no result yet."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if (path / "checkpoints").is_dir() and not (path / RESULT).exists()
    )


def run_errors(run: Run, batch_size: int = 32) -> np.ndarray:
    """Errors of a run's energies on its test split, [structures], eV.

    They are kept in the run's folder as ``errors.json``, and computed again if the checkpoint
    or the data have changed.

    Raises:
        InputError: If the checkpoint or the data cannot be read, or an error is not finite.
    """
    path, of = run.folder / ERRORS, _identity(run)
    if path.exists():
        kept = read_json(path)
        if isinstance(kept, dict) and kept.get("of") == of:
            return np.asarray(kept["errors"], np.float64)
    errors = energy_errors(run, batch_size)
    write_json(path, {"of": of, "errors": errors.tolist()})
    return errors


def energy_errors(run: Run, batch_size: int = 32) -> np.ndarray:
    """Predicted less true energies of a run's test split, [structures], eV.

    Raises:
        InputError: As `run_errors`.
    """
    from ewald_jax import load_checkpoint, ops, predict
    from ewald_jax.data import Loader
    from ewald_jax.graph.schema import ENERGY

    model, params, _, statistics = load_checkpoint(run.folder)
    dataset, indices = tested(run)
    # The order of the indices, without a shuffle. Energies are less their reference energies.
    loader = Loader(dataset, indices, batch_size, statistics=statistics)
    parts = []
    for batch in loader.epoch(0):
        energy = np.asarray(predict(model, params, batch, forces=False).energy, np.float64)
        real = np.asarray(ops.graph_mask(batch.graph))
        parts.append((statistics.scale * energy - batch.targets[ENERGY])[real])
    errors = np.concatenate(parts)
    if not np.isfinite(errors).all():
        place = dataset.where(indices[np.argmin(np.isfinite(errors))])
        raise InputError(f"{run.folder}: the predicted energy of {place} is not finite")
    return errors


def tested(run: Run) -> tuple[GraphDataset, np.ndarray]:
    """The data set of a run and the indices of its test split.

    Raises:
        InputError: If the data cannot be read or have no test split.
    """
    from ewald_jax.cli.sources import structures_of
    from ewald_jax.models import neighborhood

    dataset = load_dataset(run.config.data, neighborhood(run.config.model))
    return dataset, structures_of(dataset, run.config.data, "test")


def structures_with_info(
    dataset: GraphDataset, indices: Sequence[int]
) -> tuple[list[ase.Atoms], list[str]]:
    """Structures of a data set with what stood beside them, and what messages call them."""
    structures = []
    for index in indices:
        graph = dataset[index].graph
        atoms = ase.Atoms(graph.nodes["species"], graph.nodes["positions"])
        pbc = np.asarray(graph.globals["pbc"]).reshape(3)
        if pbc.any():
            atoms.cell, atoms.pbc = np.asarray(graph.globals["cell"]).reshape(3, 3), pbc
        atoms.info = dict(dataset.info(index))
        structures.append(atoms)
    return structures, [dataset.where(index) for index in indices]


def _read_run(path: Path) -> Run:
    values = read_json(path)
    names = ("data", "model", "variant", "seed", "config")
    if not isinstance(values, Mapping) or any(name not in values for name in names):
        raise InputError(f"{path} lacks one of {', '.join(names)}; expected a finished run")
    config = Config.from_dict(values["config"], source=str(path))
    return Run(path.parent, *(values[name] for name in names[:4]), config)


def _identity(run: Run) -> str:
    """Hash of the checkpoint and of the data that errors are of."""
    files = [
        (role, str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
        for role, path in source_files(run.config.data)
    ]
    known = [read_progress(run.folder), run.config.to_dict()["data"], files]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
