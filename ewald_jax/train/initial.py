"""Fine-tuning: a training that starts from the parameters of another one."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ewald_jax.data.statistics import Statistics, StatisticsConfig
from ewald_jax.models import model_to_config
from ewald_jax.pretrained import load_pretrained, pretrained_name
from ewald_jax.train.checkpoint import check_parameters, has_checkpoint, restore_params
from ewald_jax.train.checkpoint import parameter_shapes as shapes
from ewald_jax.train.description import CONFIG, members_of, read_description
from ewald_jax.train.directory import ADDED, flat_section
from ewald_jax.train.files import read_json
from ewald_jax.typing import InputError, PyTree

INIT = "init"
"""Key of config.json that says what a training started from."""

_GIVEN = "given parameters"


@dataclasses.dataclass(frozen=True)
class Initial:
    """What a training starts from.

    Attributes:
        name: What config.json calls it, a directory.
        given: Parameters; None if they are those of the directory.
        statistics: Of the training that made them, None if unknown.
        model: Config of their model, None if unknown.
        members: How many networks they are of, None if unknown.
    """

    name: str
    given: PyTree | None = None
    statistics: Statistics | None = None
    model: Mapping[str, Any] | None = None
    members: int | None = None

    def parameters(self, like: PyTree) -> PyTree:
        """The parameters, in the types of others; averaged ones where there are.

        Args:
            like: Parameters of the model to train.

        Raises:
            InputError: If there are none, or they are of another model, naming the first
                parameter that differs.
        """
        if self.given is None:
            directory = Path(self.name)
            best = has_checkpoint(directory, "best")
            params, _ = restore_params(directory, "best" if best else "last", like)
        else:
            params = self.given
            place = INIT if self.name == _GIVEN else self.name
            check_parameters(place, shapes(params), like)
        return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), params, like)

    def differences(self, model: nn.Module) -> list[str]:
        """Settings of the model that differ from those of another, though parameters fit."""
        if self.model is None:
            return []
        there = flat_section({"model": self.model}, "model")
        here = json.loads(json.dumps({"model": model_to_config(model)}))
        here = flat_section(here, "model")
        pairs = {
            key: [values.get(key, ADDED.get(f"model.{key}")) for values in (there, here)]
            for key in sorted(there.keys() | here.keys())
        }
        return [
            f"note: model.{key} is {before!r} in {self.name} and {now!r} here"
            for key, (before, now) in pairs.items()
            if before != now
        ]


def find_initial(
    init: "str | Path | Initial | PyTree | None",
    directory: Path,
    resume: bool,
    members: int = 1,
) -> Initial | None:
    """What a training that has no checkpoint yet starts from.

    Args:
        init: A checkpoint directory, ``pretrained:NAME``, parameters, or None for random
            ones.
        directory: The output directory. A training there that was killed before its first
            checkpoint, and is now resumed, starts from what it was to start from.
        resume: Whether it may be such a training.
        members: Networks to train, each of which starts from one of the checkpoint.

    Raises:
        InputError: If there is no such checkpoint, it is damaged, or holds another number of
            networks.
    """
    if init is None and resume and (directory / CONFIG).is_file():
        init = recorded(directory)
        init = None if init == _GIVEN else init
    if init is None or isinstance(init, Initial):
        return init
    if not isinstance(init, str | Path):
        return Initial(_GIVEN, given=init)
    packaged = pretrained_name(init)
    if packaged is not None:
        _, params, config, statistics = load_pretrained(packaged)
    else:
        config, statistics = read_description(Path(init))
        params = None
    found = members_of(config)
    if found != members:
        equal = "; members that start alike and see the same structures would stay equal"
        raise InputError(
            f"cannot start {_networks(members)} from {init}, which holds {_networks(found)}"
            f"{equal if found == 1 else ''}; expected a checkpoint of {_networks(members)}"
        )
    return Initial(str(init), params, statistics, config["model"], found)


def _networks(members: int) -> str:
    return "one network" if members == 1 else f"an ensemble of {members} members"


def recorded(directory: Path) -> str | None:
    """What the training in a directory started from, as its config.json says."""
    config = read_json(directory / CONFIG)
    name = config.get(INIT) if isinstance(config, dict) else None
    return name if isinstance(name, str) else None


def keep_scale(config: StatisticsConfig, initial: Initial | None) -> StatisticsConfig:
    """Settings of statistics for fine-tuning.

    Parameters mean something in units of the scale they were trained with, so that one
    stays, unless the settings name another. Reference energies and mean belong to the data,
    and are fitted to the new ones.
    """
    if initial is None or initial.statistics is None or config.scale is not None:
        return config
    return dataclasses.replace(config, scale=initial.statistics.scale)
