"""The optimiser against numpy loops and schedules against hand-computed steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ewald_jax.train.optim import (
    OptimConfig,
    Plateau,
    learning_rate,
    make_optimizer,
    scale_by_amsgrad,
    update_ema,
    update_plateau,
)
from ewald_jax.typing import InputError


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.2), (50, 0.6), (99, 0.992), (100, 1.0), (299, 1.0), (300, 0.1), (500, 0.01)],
)
def test_warmup_and_milestones(step, factor):
    config = OptimConfig(lr=2.0, warmup_steps=100, milestones=(300, 500))
    schedule = learning_rate(config, 1000)
    assert schedule(step) == pytest.approx(2.0 * factor, rel=1e-6)
    assert jax.jit(schedule)(jnp.int32(step)) == pytest.approx(2.0 * factor, rel=1e-6)


def test_the_warmup_wins_over_milestones_within_it():
    config = OptimConfig(lr=1.0, warmup_steps=100, milestones=(50,))
    schedule = learning_rate(config, 1000)
    assert schedule(60) == pytest.approx(0.2 + 0.8 * 0.6)
    assert schedule(100) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.5), (9, 0.95), (10, 1), (60, 0.5), (110, 0), (200, 0)]
)
def test_cosine_after_warmup(step, factor):
    config = OptimConfig(lr=1.0, schedule="cosine", warmup_steps=10, warmup_factor=0.5)
    assert learning_rate(config, 110)(step) == pytest.approx(factor, abs=1e-6)


def test_constant_by_default():
    schedule = learning_rate(OptimConfig(lr=3e-4), 10)
    assert schedule(0) == schedule(10**6) == pytest.approx(3e-4)


def torch_adamw(params, grads, config, amsgrad):
    """PyTorch's AdamW, written down from its documentation, in float64."""
    m = v = v_max = np.zeros_like(params)
    for t, g in enumerate(grads, 1):
        params = params * (1 - config.lr * config.weight_decay)
        m = config.b1 * m + (1 - config.b1) * g
        v = config.b2 * v + (1 - config.b2) * g * g
        v_max = np.maximum(v_max, v)
        second = v_max if amsgrad else v
        denominator = np.sqrt(second) / np.sqrt(1 - config.b2**t) + config.eps
        params = params - config.lr / (1 - config.b1**t) * m / denominator
    return params


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adamw_is_pytorchs(amsgrad, rng, x64):
    config = OptimConfig(lr=0.01, weight_decay=0.1, amsgrad=amsgrad)
    # Large gradients first: then AMSGrad remembers and Adam forgets.
    grads = rng.normal(size=(30, 5)) * np.geomspace(10, 0.01, 30)[:, None]
    params = {"w": jnp.asarray(rng.normal(size=5))}
    expected = torch_adamw(np.asarray(params["w"]), grads, config, amsgrad)
    tx = make_optimizer(config, 100)
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update({"w": jnp.asarray(g)}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], expected, rtol=1e-6)


def test_amsgrad_by_hand_and_not_optax(x64):
    """Gradients 10, 1 with b2 = 0.9: v = 10, 9.1; v_max = 10; optax would divide by 100."""
    ours, theirs = scale_by_amsgrad(0.0, 0.9, 0.0), optax.scale_by_amsgrad(0.0, 0.9, 0.0)
    out = []
    for tx in (ours, theirs):
        state = tx.init(jnp.zeros(1))
        _, state = tx.update(jnp.array([10.0]), state)
        update, _ = tx.update(jnp.array([1.0]), state)
        out.append(float(update[0]))
    assert out[0] == pytest.approx(1 / np.sqrt(10 / (1 - 0.81)))
    assert out[1] == pytest.approx(1 / np.sqrt(100))


def test_clipping_is_by_the_norm_of_everything():
    """With eps far above the moments Adam is linear: the update shows the clipped gradient."""
    config = OptimConfig(lr=1.0, clip_norm=2.0, weight_decay=0.0, eps=1e6, b1=0.0)
    tx = make_optimizer(config, 10)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    large, small = (
        {"a": jnp.array([3.0 * s]), "b": jnp.array([4.0 * s])} for s in (1, 0.1)
    )
    update, _ = tx.update(large, tx.init(params), params)
    np.testing.assert_allclose([update["a"][0], update["b"][0]], [-1.2e-6, -1.6e-6], 1e-4)
    update, _ = tx.update(small, tx.init(params), params)
    np.testing.assert_allclose([update["a"][0], update["b"][0]], [-3e-7, -4e-7], 1e-4)


def test_ema():
    config = OptimConfig(ema_decay=0.75, ema_warmup=False)
    ema = update_ema({"w": jnp.array([8.0])}, {"w": jnp.array([4.0])}, jnp.int32(0), config)
    assert ema["w"] == 7.0


@pytest.mark.parametrize(("step", "decay"), [(0, 0.1), (10, 0.55), (10**5, 0.75)])
def test_ema_warmup(step, decay):
    config = OptimConfig(ema_decay=0.75)
    ema = update_ema(
        {"w": jnp.array([1.0])}, {"w": jnp.array([0.0])}, jnp.int32(step), config
    )
    assert float(ema["w"][0]) == pytest.approx(decay)


def test_plateau_is_pytorchs():
    """Values that improve, stall for `patience`, stall once more (decay), and start anew."""
    config = OptimConfig(schedule="plateau", plateau_patience=2, plateau_factor=0.5)
    values = [5.0, 4.0, 4.0, 3.9999, 4.1, 4.0, 4.0, 4.0, 1.0, 2.0]
    state, scales = Plateau(), []
    for value in values:
        state = update_plateau(state, value, config)
        scales.append(state.scale)
    # 3.9999 is no improvement by 1e-4 of 4; the third bad one decays; then three more.
    assert scales == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert state == Plateau(1.0, 1, 0.25)


def test_plateau_of_negative_values_improves_downwards():
    config = OptimConfig(schedule="plateau", plateau_patience=0)
    state = update_plateau(Plateau(-0.5, 0, 1.0), -0.6, config)
    assert state == Plateau(-0.6, 0, 1.0)
    assert update_plateau(state, -0.6, config) == Plateau(-0.6, 0, 0.5)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"lr": 0.0}, "optim.lr"),
        ({"lr": float("nan")}, "optim.lr"),
        ({"schedule": "linear"}, "schedule"),
        ({"milestones": (5, 3)}, "ascend"),
        ({"milestones": (3,), "schedule": "cosine"}, "belong"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"warmup_factor": 2.0}, "warmup_factor"),
        ({"optimizer": "sgd"}, "adamw"),
    ],
)
def test_optim_config_refuses(fields, match):
    with pytest.raises(InputError, match=match):
        OptimConfig(**fields)


def test_milestones_may_be_a_list():
    assert OptimConfig(milestones=[1, 2]).milestones == (1, 2)
