"""The norm of a gradient, whatever the sizes of its leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ewald_jax.train.norms import tree_norm

SHAPES = ((), (1,), (7, 37), (256, 256), (65537,), (41, 3, 599))


def leaves(seed=0):
    rng = np.random.default_rng(seed)
    return {str(shape): rng.normal(size=shape).astype(np.float32) for shape in SHAPES}


def test_is_the_root_of_the_sum_of_squares():
    tree = leaves()
    exact = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in tree.values()))
    assert float(jax.jit(tree_norm)(tree)) == pytest.approx(exact, rel=1e-6)
    assert float(optax.tree.norm(tree)) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e30])
def test_no_number_that_is_not_finite_or_overflows_is_missed(shape, number):
    norm = jax.jit(tree_norm)
    places = {0, int(np.prod(shape)) // 2, int(np.prod(shape)) - 1}
    for place in places:
        tree = leaves()
        flat = tree[str(shape)].reshape(-1).copy()
        flat[place] = number
        assert not np.isfinite(norm(tree | {str(shape): flat.reshape(shape)}))
    assert np.isfinite(norm(leaves()))


def test_of_each_member_of_an_ensemble():
    trees = [leaves(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *trees)
    expected = [float(tree_norm(tree)) for tree in trees]
    np.testing.assert_allclose(jax.vmap(tree_norm)(stacked), expected, rtol=1e-6)
