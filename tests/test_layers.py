"""Activations with written-out derivatives, and the statistics of the initialisers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structures import assert_close, quick_compilation  # noqa: F401

from ewald_jax.nn.layers import (
    ElementEmbedding,
    fan_in_uniform,
    glorot_orthogonal,
    he_orthogonal,
    scaled_silu,
    silu,
    unit_uniform,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

# -- activations -----------------------------------------------------------------------------

PAIRS = {
    "silu": (silu, jax.nn.silu),
    "scaled_silu": (scaled_silu, lambda x: jax.nn.silu(x) / 0.6),
}
every_activation = pytest.mark.parametrize("ours, theirs", PAIRS.values(), ids=PAIRS)


def nested(function, transforms):
    for transform in transforms:
        function = transform(function)
    return function


def forward(function):
    return lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1]


def backward(function):
    return lambda x: jax.vjp(function, x)[1](jnp.ones_like(x))[0]


TRANSFORMS = (
    (),
    (forward,),
    (backward,),
    (backward, backward),
    (backward, forward),
    (forward, backward),
    (forward, forward),
    (backward, backward, backward),
    (forward, forward, forward),
)


def all_derivatives(function, x, chosen=TRANSFORMS):
    """Value and derivatives by all nestings, from one compilation."""
    functions = [nested(function, transforms) for transforms in chosen]
    return jax.jit(lambda x: [function(x) for function in functions])(x)


@every_activation
def test_derivatives_of_activations(ours, theirs, x64):
    x = np.concatenate([np.linspace(-30, 30, 241), [-1e-9, 1e-9, -700.0, 700.0]])
    results = [all_derivatives(function, x) for function in (ours, theirs)]
    for transforms, actual, expected in zip(TRANSFORMS, *results, strict=True):
        assert actual.dtype == np.float64
        assert_close(actual, expected, 1e-12, str(transforms))


@every_activation
def test_activations_under_vmap_and_grad(ours, theirs, x64):
    x = np.random.default_rng(0).normal(size=(3, 4))
    np.testing.assert_allclose(jax.vmap(ours)(x), theirs(x), rtol=1e-12)
    # Forces of a loss of forces: reverse over reverse, through a matrix product.
    weights = np.random.default_rng(1).normal(size=(4, 4))

    def loss(function, weights):
        energy = lambda x: jnp.sum(function(function(x @ weights) @ weights))
        return jnp.sum(jax.grad(energy)(x) ** 2)

    actual, expected = (
        jax.jit(jax.grad(functools.partial(loss, f)))(weights) for f in (ours, theirs)
    )
    assert_close(actual, expected, 1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@every_activation
def test_activations_keep_the_type(ours, theirs, dtype):
    x = np.linspace(-4, 4, 33).astype(jnp.dtype(dtype))
    chosen = TRANSFORMS[:4]
    results = all_derivatives(ours, x, chosen)
    expected = all_derivatives(theirs, x.astype("float32"), chosen)
    for transforms, actual, wanted in zip(chosen, results, expected, strict=True):
        assert actual.dtype == dtype
        tolerance = 4 * float(jnp.finfo(dtype).eps)
        assert_close(np.asarray(actual).astype("float32"), wanted, tolerance, transforms)


@every_activation
def test_activations_at_infinity(ours, theirs, debug_nans):
    x = np.array([-1e30, -1e4, -100.0, 100.0, 1e4, 1e30], np.float32)
    scale = float(theirs(1.0) / jax.nn.silu(1.0))
    expected = scale * np.array([0, 0, 0, 1, 1, 1])
    chosen = ((backward,), (backward, backward))
    slope, curvature = all_derivatives(ours, x, chosen)
    np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(curvature, 0, atol=1e-30)


# -- initialisers ----------------------------------------------------------------------------


# Of two axes: test_nn.py.
@pytest.mark.parametrize("shape", [(7, 16, 16), (16, 4, 32), (5, 6, 7)])
def test_he_orthogonal_of_three_axes_standardises_each_output(shape, key):
    kernel = np.asarray(he_orthogonal(key, shape))
    assert kernel.shape == shape and kernel.dtype == np.float32
    kernel = kernel.reshape(-1, shape[-1]).astype(np.float64)
    np.testing.assert_allclose(kernel.mean(axis=0), 0, atol=1e-7)
    # As the reference, it adds 1e-6 to the variances that it divides by.
    np.testing.assert_allclose(kernel.var(axis=0, ddof=1) * len(kernel), 1, rtol=1e-3)


def correlations(outputs):
    """Between different rows [outputs, inputs]."""
    matrix = np.corrcoef(outputs)
    return matrix[~np.eye(len(matrix), dtype=bool)]


@pytest.mark.parametrize("shape", [(256, 32), (64, 64)])
def test_he_orthogonal_decorrelates_the_outputs(shape, key):
    """Orthogonal before the mean is taken away; random outputs are like 1 / sqrt(fan_in)."""
    kernel = np.asarray(he_orthogonal(key, shape)).T
    assert np.std(correlations(kernel)) < 1.5 / shape[0]
    random = np.random.default_rng(0).normal(size=kernel.shape)
    assert np.std(correlations(random)) > 0.7 / np.sqrt(shape[0])


def test_he_orthogonal_in_three_axes_decorrelates_the_first(key):
    """As the reference's: it takes the first axis of its tensors for the outputs."""
    kernel = np.asarray(he_orthogonal(key, (8, 8, 32)))
    assert np.std(correlations(kernel.reshape(8, -1))) < 0.5 / np.sqrt(8 * 32)


@pytest.mark.parametrize("shape", [(64, 64), (8, 96), (96, 8), (1, 12), (12, 1)])
def test_glorot_orthogonal(shape, key):
    kernel = np.asarray(glorot_orthogonal(key, shape)).astype(np.float64)
    assert kernel.shape == shape
    np.testing.assert_allclose(np.var(kernel, ddof=1), 2 / sum(shape), rtol=1e-5)
    short = kernel if shape[0] <= shape[1] else kernel.T
    gram = short @ short.T
    np.testing.assert_allclose(gram, gram[0, 0] * np.eye(len(gram)), atol=1e-5 * gram[0, 0])


def test_glorot_orthogonal_of_one_number_is_finite(key):
    assert np.abs(glorot_orthogonal(key, (1, 1))) == pytest.approx(1)


def test_uniform_initialisers(key):
    for init, bound in ((fan_in_uniform(100), 0.1), (unit_uniform, np.sqrt(3))):
        values = np.asarray(init(key, (100, 200)))
        assert values.dtype == np.float32
        assert 0.999 * bound < values.max() <= bound
        assert -bound <= values.min() < -0.999 * bound
        np.testing.assert_allclose(np.var(values), bound**2 / 3, rtol=0.02)
        assert abs(np.mean(values)) < 0.02 * bound


@pytest.mark.parametrize("init", [he_orthogonal, glorot_orthogonal, unit_uniform])
def test_initialisers_follow_type_and_key(init, key, x64):
    assert init(key, (6, 5), jnp.float32).dtype == np.float32
    kernel = init(key, (6, 5), jnp.float64)
    assert kernel.dtype == np.float64
    np.testing.assert_array_equal(kernel, init(key, (6, 5), jnp.float64))
    assert np.abs(kernel - init(jax.random.key(1), (6, 5), jnp.float64)).max() > 0.1


# -- elements --------------------------------------------------------------------------------


def test_row_0_of_the_element_embedding_is_hydrogen(key):
    module = ElementEmbedding(num_elements=4, features=3)
    species = jnp.array([1, 4, 2, 0, 0])
    out, params = module.init_with_output(key, species)
    table = np.asarray(params["params"]["embedding"])
    assert table.shape == (4, 3) and np.abs(table).max() <= np.sqrt(3)
    np.testing.assert_array_equal(out, table[[0, 3, 1, 0, 0]])
    assert len(np.unique(table)) == table.size
