"""Models by name: build one from plain values, and write one down as plain values."""

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from ewald_jax.checked import Sources, construct, plain
from ewald_jax.models.dimenetpp import DimeNetPlusPlus
from ewald_jax.models.gemnet_t import GemNetT
from ewald_jax.models.painn import PaiNN
from ewald_jax.models.schnet import SchNet
from ewald_jax.typing import InputError

MODELS: Mapping[str, type[nn.Module]] = {
    "schnet": SchNet,
    "painn": PaiNN,
    "dimenetpp": DimeNetPlusPlus,
    "gemnet_t": GemNetT,
}


def build_model(name: str, **config: Any) -> nn.Module:
    """Builds a model.

    Args:
        name: A key of `MODELS`, or the dotted path of a model class elsewhere.
        **config: Fields of the model; ``ewald`` may be an `EwaldConfig`, a mapping of its
            fields, or None.

    Returns:
        The module, without parameters.

    Raises:
        InputError: If the name or a field is unknown, naming the nearest valid one, or a value
            has the wrong type or is out of range.
    """
    cls = model_class(name)
    return construct(cls, config, "model", Sources({}).knowing({"model": cls}))


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
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise InputError(f"cannot import the model {name!r}: {error}") from error
        if isinstance(cls, type) and issubclass(cls, nn.Module):
            return cls
        raise InputError(f"{name!r} is not a flax module class")
    raise InputError(f"unknown model {name!r}{_nearest(name, MODELS)}")


def model_to_config(model: nn.Module) -> dict[str, Any]:
    """Plain JSON values from which ``build_model(**values)`` makes the same model."""
    by_class = {cls: name for name, cls in MODELS.items()}
    cls = type(model)
    return {
        "name": by_class.get(cls, f"{cls.__module__}.{cls.__qualname__}"),
        **plain(model),
    }


def _nearest(name: str, valid) -> str:
    near = difflib.get_close_matches(name, list(valid), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; it is one of {sorted(valid)}"
