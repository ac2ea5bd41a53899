"""The two jitted functions, and what surrounds them: meter, culprits, display."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console
from test_train_toy import toy_dataset, toy_model

from ewald_jax.data import Loader, dataset_statistics
from ewald_jax.potential import init_params
from ewald_jax.train import LossConfig, OptimConfig, create_state
from ewald_jax.train.culprits import blame
from ewald_jax.train.display import Display
from ewald_jax.train.meter import Meter
from ewald_jax.train.optim import make_optimizer
from ewald_jax.train.state import count_parameters
from ewald_jax.train.step import make_eval_step, make_loss_fn, make_train_step

DATASET = toy_dataset(8)
STATISTICS = dataset_statistics(DATASET, np.arange(8))
LOADER = Loader(DATASET, None, 8, statistics=STATISTICS, prefetch=0)
BATCH = next(LOADER.epoch())
MODEL = toy_model()
LOSS = LossConfig(forces="l2")


@pytest.fixture(scope="module")
def params():
    return init_params(MODEL, jax.random.key(0), BATCH)


def poisoned(batch):
    energy = np.array(batch.targets["energy"])
    energy[2] = np.nan
    return batch._replace(targets={**batch.targets, "energy": energy})


@pytest.fixture(scope="module")
def stepped(params):
    """Two steps with EMA, and the same two steps taken apart."""
    optim = OptimConfig(lr=1e-2, ema_decay=0.9, ema_warmup=False)
    tx, traces = make_optimizer(optim, 10), []
    step = make_train_step(MODEL, tx, LOSS, optim, STATISTICS.scale, traces)
    start = create_state(params, tx, jax.random.key(1), ema=True)
    state, out = start, []
    for _ in range(2):
        state, sums = step(state, BATCH)
        out.append(sums)
    return step, state, out, traces, tx


def test_step_is_gradient_update_and_average(stepped, params):
    _, state, sums, _, tx = stepped
    loss_fn = make_loss_fn(MODEL, LOSS, STATISTICS.scale)
    gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    ema, opt_state = params, tx.init(params)
    for number in range(2):
        (_, expected), grads = gradient(params, BATCH)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, ema, params)
        total, count = sums[number]["grad_norm"]
        assert (
            total == pytest.approx(float(optax.tree.norm(grads)), rel=1e-4) and count == 1
        )
        assert sums[number]["energy_loss"][0] == pytest.approx(
            float(expected["energy_loss"][0]), rel=1e-5
        )
    assert state.step == 2 and state.healthy
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, state.params, params)
    jax.tree.map(close, state.ema_params, ema)
    assert state.eval_params is state.ema_params


def test_one_trace_for_two_batches_of_a_shape(stepped):
    step, _, _, traces, _ = stepped
    assert len(traces) == 1 == step._cache_size()
    assert str(traces[0]) == "{} nodes x {} edges x {} graphs".format(*traces[0][:3])


def test_an_unhealthy_step_changes_nothing_and_freezes(stepped):
    step, state, _, _, _ = stepped
    before = jax.tree.map(np.array, state)
    copy = jax.tree.map(jnp.copy, state)
    bad, _ = step(copy, poisoned(BATCH))
    later, _ = step(bad, BATCH)
    assert not later.healthy and later.step == before.step
    for name in ("params", "ema_params", "opt_state"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(later, name), getattr(before, name)
        )


def test_meter_tells_the_good_steps_and_drops_bad_sums(stepped):
    step, state, sums, _, _ = stepped
    meter = Meter()
    state, first = step(jax.tree.map(jnp.copy, state), BATCH)
    meter.add(first, compiled=True)
    window, healthy, good = meter.read(state)
    assert healthy and good == 3 and window == meter.sums
    assert meter.seconds_per_step is None
    state, second = step(state, poisoned(BATCH))
    meter.add(second)
    window, healthy, good = meter.read(state)
    assert not healthy and good == 3 and window == {}
    assert all(np.isfinite(total) for total, _ in meter.sums.values())
    assert meter.seconds_per_step > 0


def test_sums_do_not_depend_on_when_they_are_read(stepped):
    _, state, _, _, _ = stepped
    rng = np.random.default_rng(0)
    values = [{"a": (np.float32(x), np.float32(3))} for x in rng.normal(size=50)]
    often, seldom = Meter(), Meter()
    for value in values:
        often.add(value)
        often.read(state)
        seldom.add(value)
    seldom.read(state)
    assert often.sums == seldom.sums


def test_the_learning_rate_scale_scales_the_update(stepped, params):
    optim = OptimConfig(lr=1e-2)
    tx = make_optimizer(optim, 10)
    step = make_train_step(MODEL, tx, LOSS, optim, STATISTICS.scale)
    moved = []
    for scale in (1.0, 0.25):
        state = create_state(params, tx, jax.random.key(1))
        state = state.replace(lr_scale=jnp.float32(scale))
        new, _ = step(state, BATCH)
        moved.append(jax.tree.map(lambda a, b: a - b, new.params, params))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(0.25 * a, b, rtol=1e-3, atol=1e-7), *moved
    )


def test_no_nan_is_made_and_masked_afterwards(params, debug_nans):
    """Padding, zero errors and all: no operation of a step makes a NaN."""
    optim = OptimConfig(amsgrad=True, clip_norm=1.0)
    tx = make_optimizer(optim, 10)
    (batch,) = Loader(DATASET, [0, 6], 8, LOADER.budgets, prefetch=0).epoch()
    state = create_state(params, tx, jax.random.key(1))
    state, _ = make_train_step(MODEL, tx, LOSS, optim)(state, batch)
    assert state.healthy


def test_evaluation_needs_no_loss(params):
    sums = make_eval_step(MODEL, scale=STATISTICS.scale)(params, BATCH)
    assert set(sums) == {"energy_mae", "energy_per_atom_mae"}


def test_parameters_are_counted(params):
    assert count_parameters(params) == sum(p.size for p in jax.tree.leaves(params))


def accuse(params, dataset, **options):
    return blame(
        "something",
        MODEL,
        params,
        dataset,
        range(8),
        budgets=LOADER.budgets,
        statistics=STATISTICS,
        **options,
    )


def test_blame_predictions(params):
    """An element whose weights are broken: the structures that have it, and no others."""
    oxygen = [i for i in range(8) if 8 in DATASET.species(i)]
    embedding = params["Embed_0"]["embedding"].at[8].set(jnp.inf)
    broken = {**params, "Embed_0": {"embedding": embedding}}
    error = accuse(broken, DATASET)
    assert error.structures == tuple(oxygen)
    assert "the predicted energy is not finite" in str(error)


def test_blame_nobody(params):
    error = accuse(params, DATASET, loss=LOSS, kept="all is kept")
    assert error.structures == tuple(range(8))
    assert "no single structure of the batch is to blame" in str(error)
    assert str(error).endswith("; all is kept")


def test_terminal_gets_a_bar_and_plain_lines_elsewhere():
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120)
    with Display(True, 10, console) as display:
        display.step(5)
        display.note({"loss": 0.5, "grad_norm": 3.0})
        display.evaluating(1, 2)
        display._bar.refresh()
        display.record({"epoch": 1, "step": 5, "lr": 1e-3, "train_loss": 0.5})
        display.record({"epoch": 2, "step": 10, "lr": 1e-3, "train_loss": 0.25})
    text = shown.getvalue()
    for words in ("5/10", "left", "loss 0.5", "evaluating", "train loss", "0.25000"):
        assert words in text
    assert "grad_norm" not in text and text.count("train loss") == 1

    quiet = io.StringIO()
    with Display(False, 10, Console(file=quiet)) as display:
        display.step(5)
        display.print("nothing")
        display.record({"epoch": 1, "step": 5, "lr": 1e-3})
    assert quiet.getvalue() == ""
