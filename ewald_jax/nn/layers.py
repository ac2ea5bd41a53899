"""Dense layers, activations and initialisers shared by the models.

Kernels are stored as flax does, [in, out]: the transpose of PyTorch's.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import orthogonal

from ewald_jax.nn.products import matmul
from ewald_jax.typing import Array, Float, Int


def silu(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """``x sigmoid(x)``."""
    return _silu(1.0, x)


def scaled_silu(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """SiLU / 0.6, which keeps the variance of a standard normal input.

    Source: Gasteiger, Becker, Günnemann, "GemNet" (NeurIPS 2021), appendix.
    """
    return _silu(1 / 0.6, x)


# Training on forces differentiates twice. The chain rule through the parts of a sigmoid keeps
# many arrays like x for that; with the derivatives written out fewer are kept.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _silu(scale: float, x: Array) -> Array:
    return x * jax.nn.sigmoid(x) * scale


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _silu_slope(scale: float, x: Array) -> Array:
    s = jax.nn.sigmoid(x)
    return s * (1 + x * (1 - s)) * scale


def _silu_curvature(scale: float, x: Array) -> Array:
    s = jax.nn.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s)) * scale


@_silu.defjvp
def _silu_jvp(scale, primals, tangents):
    return _silu(scale, *primals), _silu_slope(scale, *primals) * tangents[0]


@_silu_slope.defjvp
def _silu_slope_jvp(scale, primals, tangents):
    return _silu_slope(scale, *primals), _silu_curvature(scale, *primals) * tangents[0]


def shifted_softplus(x: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """``log(1 + e^x) - log 2``: SchNet's activation, zero at zero."""
    return jax.nn.softplus(x) - math.log(2.0)


def he_orthogonal(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Orthogonal matrix, each output standardised, times 1/sqrt(fan_in).

    Semi-orthogonal rows decorrelate the outputs, standardising them keeps the variance of the
    features (GemNet, appendix; the initialiser of the Ewald blocks).

    Args:
        key: Random key.
        shape: (..., in, out); all axes but the last are inputs.
        dtype: Of the result.

    Returns:
        Kernel [..., in, out].
    """
    fan_in = math.prod(shape[:-1])
    if len(shape) == 2:
        weight = orthogonal()(key, (shape[1], fan_in), dtype).T
    else:  # as the reference does it: orthogonal over the first axis
        weight = orthogonal()(key, (shape[0], math.prod(shape[1:])), dtype).reshape(shape)
    if fan_in == 1:  # one number has no variance: standardised over the outputs instead
        return (weight * jnp.sqrt(shape[-1])).astype(dtype)
    inputs = tuple(range(len(shape) - 1))
    centred = weight - jnp.mean(weight, axis=inputs, keepdims=True)
    variance = jnp.var(weight, axis=inputs, keepdims=True, ddof=1)
    return (centred / jnp.sqrt(variance + 1e-6) / jnp.sqrt(fan_in)).astype(dtype)


def glorot_orthogonal(
    key: jax.Array, shape: tuple[int, int], dtype=jnp.float32
) -> jax.Array:
    """Orthogonal matrix with the variance 2 / (fan_in + fan_out) (DimeNet's initialiser).

    Args:
        key: Random key.
        shape: (in, out).
        dtype: Of the result.

    Returns:
        Kernel [in, out].
    """
    weight = orthogonal()(key, (shape[1], shape[0]), dtype).T
    variance = jnp.var(weight, ddof=1) if weight.size > 1 else 1.0
    return weight * jnp.sqrt(2.0 / (sum(shape) * variance)).astype(dtype)


def fan_in_uniform(fan_in: int) -> jax.nn.initializers.Initializer:
    """Uniform within 1/sqrt(fan_in): PyTorch's default for weights and biases."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def unit_uniform(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """Uniform within sqrt(3), of variance 1: initialiser of element embeddings."""
    bound = math.sqrt(3.0)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


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
        return scaled_silu(matmul(x, kernel))


class LinearMap(nn.Module):
    """Bias-free dense layer without activation, with He-orthogonal weights.

    Attributes:
        features: Output channels.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch in_feat"]) -> Float[Array, "*batch feat"]:
        """Applies the layer."""
        kernel = self.param("kernel", he_orthogonal, (x.shape[-1], self.features))
        return matmul(x, kernel)


class ResidualLayer(nn.Module):
    """``(x + D2(D1(x))) / sqrt 2`` with two `ScaledDense` layers."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch feat"]) -> Float[Array, "*batch feat"]:
        """Applies the layer."""
        y = ScaledDense(x.shape[-1], name="dense_0")(x)
        y = ScaledDense(x.shape[-1], name="dense_1")(y)
        return (x + y) / jnp.sqrt(jnp.asarray(2.0, x.dtype))


class ElementEmbedding(nn.Module):
    """A learned vector for each element; row 0 is hydrogen's.

    Attributes:
        num_elements: Rows, the largest atomic number.
        features: Length of the vectors.
    """

    num_elements: int
    features: int

    @nn.compact
    def __call__(self, species: Int[Array, " nodes"]) -> Float[Array, "nodes feat"]:
        """Looks up the vectors; padding gets hydrogen's."""
        shape = (self.num_elements, self.features)
        table = self.param("embedding", unit_uniform, shape)
        return table[jnp.maximum(species - 1, 0)]
