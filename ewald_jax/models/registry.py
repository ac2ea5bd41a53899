"""Models by name: build one from plain values, and write one down as plain values."""

import dataclasses
import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from ewald_jax.models.schnet import SchNet
from ewald_jax.nn.ewald import EwaldConfig
from ewald_jax.typing import InputError

MODELS: Mapping[str, type[nn.Module]] = {"schnet": SchNet}


def build_model(name: str, **config: Any) -> nn.Module:
    """Builds a model.

    Args:
        name: A key of `MODELS`, or the dotted path of a model class elsewhere.
        **config: Fields of the model; ``ewald`` may be an `EwaldConfig`, a mapping of its
            fields, or None.

    Returns:
        The module, without parameters.

    Raises:
        InputError: If the name or a field is unknown; the nearest valid one is named.
    """
    cls = model_class(name)
    fields = dict(config)
    _check_names(fields, model_fields(cls), f"model {name!r}")
    ewald = fields.get("ewald")
    if isinstance(ewald, Mapping):
        _check_names(ewald, [f.name for f in dataclasses.fields(EwaldConfig)], "ewald")
        fields["ewald"] = EwaldConfig(**ewald)
    elif not (ewald is None or isinstance(ewald, EwaldConfig)):
        raise InputError(
            f"ewald must be an EwaldConfig, a mapping of its fields or None, not {ewald!r}"
        )
    return cls(**fields)


def model_class(name: str) -> type[nn.Module]:
    """The class behind a name of `MODELS` or a dotted path.

    Raises:
        InputError: If there is none.
    """
    if name in MODELS:
        return MODELS[name]
    module, _, attribute = name.rpartition(".")
    if module:
        try:
            cls = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise InputError(f"cannot import the model {name!r}: {error}") from error
        if isinstance(cls, type) and issubclass(cls, nn.Module):
            return cls
        raise InputError(f"{name!r} is not a flax module class")
    raise InputError(f"unknown model {name!r}{_nearest(name, MODELS)}")


def model_fields(cls: type[nn.Module]) -> list[str]:
    """Names of the settings of a model class, flax's own fields left out."""
    return [f.name for f in dataclasses.fields(cls) if f.name not in ("parent", "name")]


def model_to_config(model: nn.Module) -> dict[str, Any]:
    """Plain values from which ``build_model(**values)`` makes the same model."""
    by_class = {cls: name for name, cls in MODELS.items()}
    cls = type(model)
    name = by_class.get(cls, f"{cls.__module__}.{cls.__qualname__}")
    values = {field: getattr(model, field) for field in model_fields(cls)}
    if values.get("ewald") is not None:
        values["ewald"] = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(values["ewald"]).items()
        }
    return {"name": name, **values}


def _check_names(given, valid, what: str) -> None:
    for key in given:
        if key not in valid:
            raise InputError(f"{what} has no field {key!r}{_nearest(key, valid)}")


def _nearest(name: str, valid) -> str:
    near = difflib.get_close_matches(name, list(valid), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; it is one of {sorted(valid)}"
