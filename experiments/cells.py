"""One cell of a study: a model with one variant on one data set, from one seed.

Its config is composed of files of ``configs/``, MODEL_VARIANT.yaml in place of VARIANT.yaml
where there is one, and overrides. It is trained once: what came out is read the next time, a
training that was interrupted goes on, and one of other settings is refused.
"""

import contextlib
import dataclasses
import difflib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ewald_jax.cli.common import note
from ewald_jax.config import Config, load_config
from ewald_jax.train.directory import HISTORY
from ewald_jax.train.files import read_json, write_json
from ewald_jax.typing import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

HERE = Path(__file__).resolve().parent
CONFIGS = HERE / "configs"
RESULT = "result.json"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training of a study.

    Attributes:
        data: Name of a data config.
        model: Name of a model config.
        variant: Name of a variant config, or that of a study for `source` with `settings`.
        seed: Of parameters and order.
        source: Variant config to start from; "" is the one called as `variant`.
        settings: ``key=value`` of this cell.
    """

    data: str
    model: str
    variant: str
    seed: int
    source: str = ""
    settings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Folder of the cell."""
        return f"{self.data}-{self.model}-{self.variant}-seed{self.seed}"

    def config(self, overrides: Sequence[str] = ()) -> Config:
        """The composed config.

        Raises:
            InputError: For a name without a file, or settings that do not fit.
        """
        paths = [
            config_path("data", self.data),
            config_path("model", self.model),
            variant_path(self.model, self.source or self.variant),
        ]
        return load_config(paths, [*self.settings, *overrides, f"train.seed={self.seed}"])


def check_once(cells: Sequence[Cell]) -> None:
    """Refuses a cell that is there twice.

    Raises:
        InputError: With its name.
    """
    names = [cell.name for cell in cells]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"the cell {name} is there twice; give each name and seed once"
            )


def config_path(kind: str, name: str) -> Path:
    """The file of a data, model or variant config.

    Raises:
        InputError: If there is none, with the nearest name there is.
    """
    path = CONFIGS / kind / f"{name}.yaml"
    if not path.exists():
        known = sorted(other.stem for other in path.parent.glob("*.yaml"))
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"there is no {kind} {name!r}, expected one of {known}{guess}")
    return path


def variant_path(model: str, variant: str) -> Path:
    """The file of a variant: made for the model, for its published sizes, or for all.

    Raises:
        InputError: If there is none.
    """
    family, _, size = model.rpartition("_")
    for maker in (model, family) if size != "small" else (model,):
        own = CONFIGS / "variant" / f"{maker}_{variant}.yaml"
        if own.exists():
            return own
    return config_path("variant", variant)


def run_cell(
    cell: Cell,
    folder: Path,
    overrides: Sequence[str] = (),
    progress: bool = True,
    also: Sequence[str] = (),
    again: bool = False,
) -> dict[str, Any]:
    """Trains one cell, or reads what it gave before.

    Args:
        cell: What to train.
        folder: Of the study.
        overrides: ``key=value`` for every cell.
        progress: Show it.
        also: Names of more data configs whose test split is measured.
        again: Do not read what it gave before; a training that is finished is measured again.

    Returns:
        Plain values: the cell, test metrics, parameters, times, config, machine. Data without
        a test split have those of the validation split.

    Raises:
        InputError: For a config that does not fit, data that are not there, a folder with
            other settings, or one that another process trains in.
        KeyboardInterrupt: If the training was interrupted; run again to go on.
    """
    from ewald_jax.cli.train import run_training
    from ewald_jax.train.state import count_parameters

    config = cell.config(overrides)
    directory = folder / cell.name
    done = None if again else finished(directory / RESULT, config)
    if done is not None:
        return done
    check_data(cell.data, config)
    for name in also:
        check_data(name)
    note(f"--- {cell.name}")
    with _alone(folder / f"{cell.name}.lock"):
        _check_budget(directory, config)
        result = run_training(config, directory, resume=True, progress=progress)
        if result.interrupted:
            raise KeyboardInterrupt
        metrics = dict(result.metrics)
        for name in also:
            metrics[name] = tested_on(name, directory)
        # Of all sessions: a training may have been interrupted.
        lines = (directory / HISTORY).read_text().splitlines()
        seconds = sum(json.loads(line)["seconds"] for line in lines)
        values = {
            **{key: getattr(cell, key) for key in ("data", "model", "variant", "seed")},
            "metrics": metrics,
            "parameters": count_parameters(result.params),
            "steps": result.step,
            "seconds_per_step": result.seconds_per_step or seconds / result.step,
            "seconds": seconds,
            "compilations": result.compilations,
            "machine": machine(),
            "config": config.to_dict(),
        }
        write_json(directory / RESULT, values)
    return values


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Refuses a cell that another process is training, here or on the same file system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path.stem} is being trained by another process") from None
        except OSError:  # a file system without locks
            pass
        yield


def _check_budget(directory: Path, config: Config) -> None:
    """Refuses a folder of another budget, which a training alone could be extended to."""
    path = directory / "config.json"
    if not path.exists():
        return
    theirs, ours = read_json(path)["train"], config.to_dict()["train"]
    for key in ("epochs", "max_steps"):
        if theirs[key] != ours[key]:
            raise InputError(
                f"{directory} is of another budget: train.{key} is {theirs[key]} there and "
                f"{ours[key]} here; name another folder"
            )


def measured(result: Mapping[str, Any]) -> Mapping[str, float]:
    """Metrics of the test split of a result; of the validation split if there is no other."""
    metrics = result["metrics"]
    return metrics["test"] if "test" in metrics else metrics["val"]


def check_data(name: str, config: Config | None = None) -> None:
    """Refuses data whose files are missing, and says where they are to be had.

    Args:
        name: Of the data config.
        config: Composed, where overrides may have changed the paths.

    Raises:
        InputError: If a file is not there.
    """
    from ewald_jax.config import load_section

    data = config.data if config else load_section(config_path("data", name), "data")
    sources = yaml.safe_load((CONFIGS / "sources.yaml").read_text())
    for value in (data.path, data.train, data.val, data.test):
        path = Path(value).expanduser()
        there = any(path.parent.glob(path.name)) if "*" in path.name else path.exists()
        if value and not there:
            needs = f"; it needs {sources[name].strip()}" if name in sources else ""
            raise InputError(f"{value}, of the data config {name!r}, is not there{needs}")


def tested_on(name: str, directory: Path) -> dict[str, float]:
    """Metrics of a trained cell on the test split of another data config."""
    from ewald_jax.cli.sources import structures_of
    from ewald_jax.config import load_section
    from ewald_jax.data import load_dataset
    from ewald_jax.models import neighborhood
    from ewald_jax.train import evaluate, load_checkpoint

    model, params, _, statistics = load_checkpoint(directory)
    config = load_section(config_path("data", name), "data")
    dataset = load_dataset(config, neighborhood(model), progress=False)
    indices = structures_of(dataset, config, "test")
    return evaluate(model, params, dataset, indices, statistics=statistics)


def finished(path: Path, config: Config) -> dict[str, Any] | None:
    """What a file has of a cell, None if it is not there or has that of other settings.

    Raises:
        InputError: If the file is damaged.
    """
    if not path.exists():
        return None
    values, then = read_result(path)
    return values if then == config.to_dict() else None


def read_result(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The result of a cell, and its config as this version would write it.

    Raises:
        InputError: If the file is damaged.
    """
    values = read_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("config"), dict):
        raise InputError(f"{path} is no result of a cell; delete it to compute it again")
    # Settings that are younger than the result had their default values.
    return values, Config.from_dict(values["config"], source=str(path)).to_dict()


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import jax

    name = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return {
        "device": jax.devices()[0].device_kind,
        "processor": name,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
