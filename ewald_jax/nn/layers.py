"""Dense layers, activations and initialisers shared by the models.

Kernels are stored as flax does, [in, out]: the transpose of PyTorch's.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import orthogonal

from ewald_jax.typing import Array, Float


def scaled_silu(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """SiLU / 0.6, which keeps the variance of a standard normal input.

    Source: Gasteiger, Becker, Günnemann, "GemNet" (NeurIPS 2021), appendix.
    """
    return jax.nn.silu(x) / 0.6


def shifted_softplus(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """``log(1 + e^x) - log 2``: SchNet's activation, zero at zero."""
    return jax.nn.softplus(x) - math.log(2.0)


def he_orthogonal(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Orthogonal matrix, each output row standardised, times 1/sqrt(fan_in).

    Semi-orthogonal rows decorrelate the outputs, standardising them keeps the variance of the
    features (GemNet, appendix; the initialiser of the Ewald blocks).

    Args:
        key: Random key.
        shape: (in, out).
        dtype: Of the result.

    Returns:
        Kernel [in, out].
    """
    fan_in = shape[0]
    weight = orthogonal()(key, (shape[1], fan_in), dtype)
    if fan_in == 1:  # one number has no variance: standardised over the outputs instead
        return (weight * jnp.sqrt(shape[1])).T.astype(dtype)
    centred = weight - jnp.mean(weight, axis=1, keepdims=True)
    variance = jnp.var(weight, axis=1, keepdims=True, ddof=1)
    return (centred / jnp.sqrt(variance + 1e-6) / jnp.sqrt(fan_in)).T.astype(dtype)


class ScaledDense(nn.Module):
    """Bias-free dense layer with scaled SiLU and He-orthogonal weights.

    Attributes:
        features: Output channels.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch in_feat"]) -> Float[Array, "*batch feat"]:
        """Applies the layer."""
        kernel = self.param("kernel", he_orthogonal, (x.shape[-1], self.features))
        return scaled_silu(x @ kernel)


class ResidualLayer(nn.Module):
    """``(x + D2(D1(x))) / sqrt 2`` with two `ScaledDense` layers."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch feat"]) -> Float[Array, "*batch feat"]:
        """Applies the layer."""
        y = ScaledDense(x.shape[-1], name="dense_0")(x)
        y = ScaledDense(x.shape[-1], name="dense_1")(y)
        return (x + y) / jnp.sqrt(jnp.asarray(2.0, x.dtype))
