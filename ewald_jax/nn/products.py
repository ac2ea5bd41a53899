"""How precisely networks multiply matrices: the setting `precision` of a model.

``float32`` is float32 on every device. By itself JAX multiplies float32 matrices with fewer
digits where that is faster (`jax.lax.Precision`): TF32 on NVIDIA GPUs from Ampere on, bfloat16
on TPUs. ``tf32`` allows for the former; ``bfloat16`` rounds what layers multiply and what comes
out, with sums in float32 between, as flax's layers do; ``float64`` insists on float64.
Parameters stay as they are stored; activations, distances, bases, sums over neighbors by index,
the last layer and everything in k-space keep the type of the structures.

The setting is a local context of JAX's around one application of a network (`multiplying`),
and the layers of all networks, which multiply by `matmul`, `einsum` and `Dense`, look at that.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ewald_jax.typing import Array, InputError

Precision = Literal["float32", "tf32", "bfloat16", "float64"]

_BFLOAT16 = "bfloat16"
_NAMES_OF_JAX = {
    "float32": "float32",
    "tf32": "tensorfloat32",
    "bfloat16": _BFLOAT16,
    "float64": "float32",  # of float64 arrays there is but one product
}


def precision_of(model: nn.Module) -> str:
    """The setting of a model; ``float32`` for one without the field."""
    return getattr(model, "precision", "float32")


def with_precision(model: nn.Module, precision: str | None) -> nn.Module:
    """The model with another setting; parameters are the same.

    Args:
        model: From `build_model` or `load_checkpoint`.
        precision: One of `Precision`; None for the model's own.

    Raises:
        InputError: If there is no such setting, the model has none, or it needs another type
            of floats than JAX is set to.
    """
    if precision is not None and precision != precision_of(model):
        check_name(precision)
        if not hasattr(model, "precision"):
            raise InputError(
                f"{type(model).__name__} has no field 'precision', expected one to compute in "
                f"{precision}"
            )
        model = model.clone(precision=precision)
    check_type(precision_of(model), jax.dtypes.canonicalize_dtype(np.float64))
    return model


def check_name(precision: Any) -> None:
    """Refuses what is no setting.

    Raises:
        InputError: With the settings there are.
    """
    if precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise InputError(f"precision must be one of {known}, not {precision!r}")


def check_type(precision: str, dtype: Any) -> None:
    """Refuses a setting for structures in another type of floats.

    Args:
        precision: One of `Precision`.
        dtype: Of positions.

    Raises:
        InputError: With what to set, or that there is no such setting.
    """
    check_name(precision)
    if precision == "float64" and dtype != np.float64:
        raise InputError(
            f"precision is float64, but JAX computes in {np.dtype(dtype).name}; expected "
            "JAX_ENABLE_X64=1 in the environment, or another precision"
        )
    if precision in ("tf32", "bfloat16") and dtype == np.float64:
        raise InputError(
            f"precision is {precision}, but JAX computes in float64; expected no "
            "JAX_ENABLE_X64=1 in the environment, or another precision"
        )


def multiplying(precision: str) -> contextlib.AbstractContextManager:
    """The context in which layers multiply so; around whatever traces or runs a network."""
    return jax.default_matmul_precision(_NAMES_OF_JAX[precision])


def matmul(a: Array, b: Array) -> Array:
    """``a @ b`` in the precision of the network."""
    return _product(jnp.matmul, a, b)


def einsum(subscripts: str, a: Array, b: Array) -> Array:
    """Einstein sum of two arrays in the precision of the network."""
    return _product(functools.partial(jnp.einsum, subscripts), a, b)


def _dot_general(
    a: Array, b: Array, dimension_numbers: Any, precision: Any = None
) -> Array:
    """As flax calls it."""
    dims = {"dimension_numbers": dimension_numbers, "precision": precision}
    return _product(functools.partial(lax.dot_general, **dims), a, b)


Dense = functools.partial(nn.Dense, dot_general=_dot_general)
"""`flax.linen.Dense` in the precision of the network."""

Readout = functools.partial(nn.Dense, 1, precision=lax.Precision.HIGHEST)
"""The last layer, whose outputs are energies: one channel, at full precision always."""


def _product(multiply: Callable, a: Array, b: Array) -> Array:
    if jax.default_matmul_precision.value != _BFLOAT16:
        return multiply(a, b)
    # Rounded results too: of casts alone, derivatives of any order multiply bfloat16.
    dtype = jnp.result_type(a, b)
    return multiply(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)).astype(dtype)
