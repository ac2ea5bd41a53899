"""Configs: YAML files composed from left to right, typed by each room's own dataclass.

A config has the sections `data`, `model`, `loss`, `optim` and `train`. Each section is the
frozen dataclass that stands beside the code it configures, and `model` is the Flax module
itself, whose fields are its settings: no list of hyperparameters exists twice. Keys and
values are checked against the annotations, and every complaint names the file, the dotted
key, and the nearest valid one.
"""

import dataclasses
import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ewald_jax.checked import Sources, construct, fields_of, flatten, is_default, plain
from ewald_jax.data.base import DataConfig
from ewald_jax.models import MODELS, model_to_config
from ewald_jax.models.registry import model_class
from ewald_jax.train.loop import TrainConfig
from ewald_jax.train.losses import LossConfig
from ewald_jax.train.optim import OptimConfig
from ewald_jax.typing import InputError

__all__ = ["Config", "load_config", "load_section"]

COMMAND_LINE = "the command line"


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that defines a training run, except where its results go.

    Attributes:
        data: The data set, its labels and its splits.
        model: The network, not yet initialised; its fields are its hyperparameters.
        loss: What is minimised.
        optim: The optimiser and the learning-rate schedule.
        train: Epochs, batch size, evaluation, seed.
    """

    data: DataConfig
    model: nn.Module
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    def to_dict(self) -> dict[str, Any]:
        """The resolved config as plain JSON values; `from_dict` is the inverse."""
        sections = {key: plain(getattr(self, key)) for key in SECTIONS}
        return {"model": plain(model_to_config(self.model)), **sections}

    def changed(self) -> dict[str, str]:
        """Section -> `key=value` of the settings that are not the defaults, for a summary."""
        summary = {}
        for name in ("data", "model", "loss", "optim", "train"):
            section = getattr(self, name)
            fields = fields_of(type(section)).items()
            values = {
                key: getattr(section, key)
                for key, field in fields
                if not is_default(field, getattr(section, key))
            }
            words = [f"{key}={_short(value)}" for key, value in plain(values).items()]
            words = [model_to_config(section)["name"], *words] if name == "model" else words
            summary[name] = " ".join(words) or "the defaults"
        return summary

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config") -> "Config":
        """Check plain values and build the config from them.

        Args:
            values: Section name to mapping, as in a YAML file.
            source: What to call the place of the values in an error.

        Raises:
            InputError: If a key is unknown or missing, or a value is ill-typed.
        """
        return _from_values(values, Sources({key: source for key in flatten(values)}))


SECTIONS = {
    "data": DataConfig,
    "loss": LossConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
}


def load_config(
    paths: Iterable[str | os.PathLike], overrides: Sequence[str] = ()
) -> Config:
    """Compose YAML files and dotted overrides into one checked config.

    Args:
        paths: YAML files; where two set the same key, the later one stands.
        overrides: `key=value` strings like `optim.lr=1e-4`; they stand over the files.

    Raises:
        InputError: If a file is missing or unreadable, a key is unknown or missing, or a
            value has the wrong type.
    """
    parts = [(str(path), _read(Path(path))) for path in paths]
    return _from_values(*_merge(parts + _read_overrides(overrides)))


def load_section(
    source: str | os.PathLike | Mapping[str, Any], name: str, overrides: Sequence[str] = ()
) -> Any:
    """One section, checked; other sections of the file are not looked at.

    Args:
        source: A YAML file with the section, or the section's plain values.
        name: `data`, `loss`, `optim` or `train`.
        overrides: As in `load_config`.

    Raises:
        InputError: As in `load_config`, and if the file has no such section.
    """
    if isinstance(source, Mapping):
        part = (COMMAND_LINE, OmegaConf.create({name: dict(source)}))
    else:
        part = (str(source), _read(Path(source)))
    values, sources = _merge([part, *_read_overrides(overrides)])
    if name not in values:
        raise InputError(f"{source}: has no section '{name}'")
    sources = sources.knowing({name: SECTIONS[name]})
    return construct(SECTIONS[name], _or_empty(values[name]), name, sources)


def _merge(parts: list[tuple[str, DictConfig]]) -> tuple[dict[str, Any], Sources]:
    """Merged plain values, and which file or override each key came from."""
    origin, merged = {}, {}
    for source, part in parts:
        values = OmegaConf.to_container(part)
        origin |= {key: source for key in flatten(values)}
        merged = _update(merged, values)
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(merged), resolve=True)
        return resolved, Sources(origin)
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        key = getattr(error, "full_key", None)
        place = f"{origin.get(key, 'config')}: '{key}': " if key else ""
        raise InputError(f"{place}{first}") from None


def _update(below: Any, above: Any) -> Any:
    """Mappings key by key; anything else takes the place of what is below it."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    shared = {key: _update(below[key], above[key]) for key in below if key in above}
    return {**below, **above, **shared}


def _from_values(values: Mapping[str, Any], sources: Sources) -> Config:
    model = values.get("model") or {}
    name = model.get("name") if isinstance(model, Mapping) else None
    schema = dict(SECTIONS)
    if name is not None:
        schema["model"] = _model_class(name, sources)
    sources = sources.knowing(schema)
    for key in values:
        if key not in SECTIONS and key != "model":
            sources.unknown(key)
    if not isinstance(model, Mapping):
        sources.fail("model", f"expected a mapping of keys, got {model!r}")
    if name is None:
        choices = ", ".join(MODELS)
        raise InputError(f"the configs name no model: set 'model.name' to one of {choices}")
    settings = {key: value for key, value in model.items() if key != "name"}
    module = construct(schema["model"], settings, "model", sources)
    sections = {
        key: construct(section, _or_empty(values.get(key)), key, sources)
        for key, section in SECTIONS.items()
    }
    return Config(model=module, **sections)


def _model_class(name: Any, sources: Sources) -> type[nn.Module]:
    """The class of a model's name or dotted path."""
    try:
        return model_class(str(name))
    except InputError as error:
        sources.fail("model.name", str(error))


def _read(path: Path) -> DictConfig:
    """One YAML file, not yet checked."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(_missing(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"{path}: cannot be read as a config ({reason})") from None
    try:
        config = OmegaConf.create(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{place}: not valid YAML ({error.problem})") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{path}: not valid YAML ({first})") from None
    if not isinstance(config, DictConfig):
        raise InputError(f"{path}: expected a mapping of sections, found a list")
    return config


def _short(value: Any) -> str:
    """A value on one line, without the quotes of JSON."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_short(v)}" for k, v in value.items()) + "}"
    return str(value).replace(" ", "")


def _missing(path: Path) -> str:
    """A sentence for a config that does not exist, with the names of near ones."""
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    nearby = {file.stem: file for file in _yaml_files(folder)}
    names = difflib.get_close_matches(path.stem, nearby, n=3, cutoff=0.5)
    hint = ", ".join(str(nearby[name]) for name in names)
    return f"there is no config file {path}" + (f"; near it: {hint}" if hint else "")


def _yaml_files(folder: Path, depth: int = 3) -> Iterator[Path]:
    """YAML files of a folder and of its folders, not too deep and none that is hidden."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.suffix in (".yaml", ".yml"):
            yield entry
        elif depth and entry.is_dir() and not entry.is_symlink():
            yield from _yaml_files(entry, depth - 1)


def _read_overrides(overrides: Sequence[str]) -> list[tuple[str, DictConfig]]:
    """`key=value` strings of the command line; the values are read as YAML."""
    parts = []
    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals or not all(key.split(".")):
            raise InputError(f"override {item!r}: expected key=value, like optim.lr=1e-4")
        try:
            parts.append((COMMAND_LINE, OmegaConf.from_dotlist([item])))
        except (yaml.YAMLError, OmegaConfBaseException):
            raise InputError(f"override {item!r}: the value is not valid YAML") from None
    return parts


def _or_empty(section: Any) -> Any:
    """A section that is not there, or has nothing in it, is all defaults."""
    return {} if section is None else section
