"""The check of sizes that all models share."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ewald_jax.nn.products import check_name, precision_of
from ewald_jax.typing import InputError

_MAY_BE_ZERO = ("num_before_skip", "num_after_skip", "num_concat", "num_atom")

_INTERACTIONS = ("num_interactions", "num_layers", "num_blocks")
"""What models call the number of their interactions."""


def check_sizes(model: Any, at_least: Mapping[str, int] | None = None) -> None:
    """Refuses fields that make no network: sizes, a cutoff that is no length, a precision.

    Args:
        model: A model with the field ``cutoff``.
        at_least: Smallest value of fields for which it is not 1.

    Raises:
        InputError: Naming the first field that is out of range.
    """
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        least = (at_least or {}).get(field.name, 0 if field.name in _MAY_BE_ZERO else 1)
        if type(value) is int and field.type in ("int", int) and value < least:
            raise InputError(f"model.{field.name} must be at least {least}, not {value}")
    check_name(precision_of(model))
    ewald = getattr(model, "ewald", None)
    if ewald is not None and ewald.equivariant and not getattr(model, "has_vectors", False):
        raise InputError(
            f"model.ewald.equivariant needs vector features, which {type(model).__name__} does "
            "not have; expected painn, or equivariant: false"
        )
    if ewald is not None and ewald.blocks is not None:
        numbers = [getattr(model, name) for name in _INTERACTIONS if hasattr(model, name)]
        if numbers and max(ewald.blocks) >= numbers[0]:
            raise InputError(
                f"model.ewald.blocks has {max(ewald.blocks)}, but the model has "
                f"{numbers[0]} interactions, expected numbers from 0 to {numbers[0] - 1}"
            )
    if not 0 < model.cutoff < float("inf"):
        raise InputError(f"model.cutoff must be a length above 0 Å, not {model.cutoff}")
