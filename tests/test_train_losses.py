"""Losses and metrics against numbers worked out by hand, and their exactness over batches."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_train_toy import toy_dataset

from ewald_jax.data import Loader
from ewald_jax.graph import Budget, batch_graphs, structure_from_atoms
from ewald_jax.potential import Prediction
from ewald_jax.train.losses import LossConfig, loss, loss_sums, total_loss
from ewald_jax.train.metrics import finalize, merge, metric_names, metric_sums
from ewald_jax.train.step import scale_prediction
from ewald_jax.typing import InputError

BUDGET = Budget(n_node=8, n_edge=16, n_graph=4, max_nodes=4)


jitted_loss = jax.jit(loss, static_argnums=(2, 3))


def tiny_batch(budget=BUDGET):
    """CO with a fixed O, and N2 in a box of 10 Å; labels in eV that are easy to add up."""
    import ase

    co = ase.Atoms("CO", [[0, 0, 0], [1.1, 0, 0]])
    n2 = ase.Atoms("N2", [[0, 0, 0], [1.1, 0, 0]], cell=[10, 10, 10], pbc=True)
    structures = [structure_from_atoms(atoms, 4.0) for atoms in (co, n2)]
    targets = [
        dict(
            energy=np.float32(1.0),
            forces=np.array([[3, 4, 0], [9, 9, 9]], np.float32),
            stress=np.full((3, 3), 7, np.float32),
            free=np.array([True, False]),
        ),
        dict(
            energy=np.float32(-2.0),
            forces=np.array([[0, 0, 1], [0, 0, 0]], np.float32),
            stress=np.zeros((3, 3), np.float32),
            free=np.array([True, True]),
        ),
    ]
    return batch_graphs(structures, targets, budget)


def prediction_for(batch, energy=(1.5, -3.0), forces=None, stress=1.0):
    """Wrong on purpose in the padding too: padding must not count."""
    n_node, n_graph = batch.graph.nodes["species"].shape[0], batch.graph.n_node.shape[0]
    e = np.full(n_graph, 100, np.float32)
    e[:2] = energy
    f = np.full((n_node, 3), 50, np.float32)
    f[:4] = 0 if forces is None else forces
    return Prediction(
        jnp.asarray(e), jnp.asarray(f), jnp.full((n_graph, 3, 3), stress, jnp.float32)
    )


# dE = 0.5, -1. Free atoms: C, N, N with dF = (-3, -4, 0), (0, 0, -1), 0. Stress: 1, nine times.
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 0.75),
        ({"energy": "mse"}, (0.25 + 1.0) / 2),
        ({"energy": "huber", "huber_delta": 0.8}, (0.125 + 0.8 * (1 - 0.4)) / 2),
        ({"forces": "l1"}, 0.75 + 8 / 9),
        ({"forces": "l2"}, 0.75 + 6 / 3),
        ({"forces": "mse", "forces_weight": 0.5}, 0.75 + 0.5 * 26 / 9),
        (
            {"forces": "huber", "huber_delta": 2.0, "energy_weight": 0.0},
            (2 * (3 - 1) + 2 * (4 - 1) + 0.5) / 9,
        ),
        (
            {"forces": "l2", "free_atoms_only": False, "energy_weight": 0.0},
            (5 + 9 * math.sqrt(3) + 1) / 4,
        ),
        ({"stress": "mae", "stress_weight": 3.0}, 0.75 + 3 * 1.0),
        ({"stress": "mse", "energy_weight": 2.0}, 1.5 + 1.0),
    ],
)
def test_loss_by_hand(fields, expected):
    batch = tiny_batch()
    value, sums = jitted_loss(prediction_for(batch), batch, LossConfig(**fields))
    assert value == pytest.approx(expected, rel=1e-6)
    assert total_loss(sums, LossConfig(**fields)) == pytest.approx(expected, rel=1e-6)
    assert sums["energy_loss"][1] == 2
    if "forces" in fields:
        components = 1 if fields["forces"] == "l2" else 3
        atoms = 3 if fields.get("free_atoms_only", True) else 4
        assert sums["forces_loss"][1] == components * atoms
    if "stress" in fields:
        assert sums["stress_loss"][1] == 9  # CO has no stress


def test_loss_is_in_model_units():
    batch = tiny_batch()
    prediction = prediction_for(batch)
    config = LossConfig(forces="l2", stress="mae")
    scaled = jax.tree.map(lambda x: x / 4, prediction)
    assert jitted_loss(scaled, batch, config, 4.0)[0] == pytest.approx(
        jitted_loss(prediction, batch, config, 1.0)[0] / 4
    )


def test_loss_gradient_is_finite_where_the_error_is_zero():
    batch = tiny_batch()
    forces = batch.targets["forces"][:4]
    prediction = prediction_for(batch, energy=(1.0, -2.0), forces=forces)

    def value(forces):
        exact = prediction._replace(forces=forces)
        return jitted_loss(exact, batch, LossConfig(forces="l2"))[0]

    assert value(prediction.forces) == 0
    assert not jax.grad(value)(prediction.forces).any()


def test_loss_without_free_atoms_is_zero():
    batch = tiny_batch()
    batch.targets["free"][:] = False
    config = LossConfig(forces="l2", energy_weight=0.0)
    assert loss(prediction_for(batch), batch, config)[0] == 0


def test_loss_names_a_missing_label():
    batch = tiny_batch()
    del batch.targets["forces"]
    with pytest.raises(InputError, match="'forces'"):
        loss(prediction_for(batch), batch, LossConfig(forces="l1"))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"energy": "rmse"}, "loss.energy is 'rmse'"),
        ({"forces_weight": -1.0}, "forces_weight"),
        ({"huber_delta": 0.0}, "huber_delta"),
        ({"energy_weight": 0.0}, "no term"),
    ],
)
def test_loss_config_refuses(fields, match):
    with pytest.raises(InputError, match=match):
        LossConfig(**fields)


def test_metrics_by_hand():
    batch = tiny_batch()
    forces = np.array([[3, 4.3, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]], np.float32)
    prediction = prediction_for(batch, energy=(1.01, -3.0), forces=forces)
    values = finalize(jax.jit(metric_sums)(prediction, batch))
    assert set(values) | {"loss"} == set(metric_names(True, True))
    assert values["energy_mae"] == pytest.approx((0.01 + 1) / 2, rel=1e-5)
    assert values["energy_per_atom_mae"] == pytest.approx((0.005 + 0.5) / 2, rel=1e-5)
    assert values["forces_mae"] == pytest.approx((0.3 + 2) / 9, rel=1e-5)
    # Parallel but for 0.3 of 4.3; orthogonal; two zeros, which count as 0.
    cosine = (3 * 3 + 4 * 4.3) / (5 * math.hypot(3, 4.3))
    assert values["forces_cosine"] == pytest.approx(cosine / 3, rel=1e-5)
    assert values["efwt"] == 0
    assert values["stress_mae"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("energy", "force", "fixed_force", "expected"),
    [
        (0.019, 0.029, 0.0, 1),
        (0.021, 0.0, 0.0, 0),
        (0.0, 0.031, 0.0, 0),
        (0.0, 0.0, 5.0, 1),
    ],
)
def test_energy_and_forces_within_threshold(energy, force, fixed_force, expected):
    """Both thresholds, each force component, free atoms only; the second structure is off."""
    batch = tiny_batch()
    forces = np.array(batch.targets["forces"][:4])
    forces[0, 1] -= force
    forces[1, 1] += fixed_force
    prediction = prediction_for(batch, energy=(1.0 + energy, -1.0), forces=forces)
    total, count = jax.jit(metric_sums)(prediction, batch)["efwt"]
    assert (total, count) == (expected, 2)


def test_metrics_leave_out_what_is_not_there():
    batch = tiny_batch()
    prediction = prediction_for(batch)._replace(stress=None)
    del batch.targets["energy"]
    assert set(metric_sums(prediction, batch)) == {"forces_mae", "forces_cosine"}
    batch.targets["free"][:] = False
    assert finalize(metric_sums(prediction, batch)) == {}


def test_scale_reaches_every_output():
    prediction = Prediction(jnp.ones(2), jnp.ones((3, 3)), None)
    scaled = scale_prediction(prediction, 2.0)
    assert (scaled.energy == 2).all() and (scaled.forces == 2).all()
    assert scaled.stress is None


def test_merge_keeps_every_name():
    first, second = {"a": (1.0, 2.0)}, {"a": (3.0, 1.0), "b": (5.0, 1.0)}
    assert merge(first, second) == {"a": (4.0, 3.0), "b": (5.0, 1.0)}
    assert finalize(merge(first, second)) == {"a": pytest.approx(4 / 3), "b": 5.0}


DATASET = toy_dataset(11)
CONFIG = LossConfig(forces="l2")


def _fake_prediction(batch):
    """Depends on each structure alone, so that it cannot depend on the batching."""
    positions = batch.graph.nodes["positions"]
    return Prediction(
        jax.ops.segment_sum(
            positions[:, 0],
            jnp.repeat(
                jnp.arange(batch.graph.n_node.shape[0]),
                batch.graph.n_node,
                total_repeat_length=positions.shape[0],
            ),
            batch.graph.n_node.shape[0],
        ),
        positions**2,
    )


# One shape for every batch size: what is tested is the sums, not the compiler.
BUDGETS = Loader(DATASET, None, 11, max_buckets=1).budgets


@jax.jit
def _sums(batch):
    prediction = _fake_prediction(batch)
    return loss_sums(prediction, batch, CONFIG) | metric_sums(prediction, batch)


def _values(batch_size):
    sums = {}
    for batch in Loader(DATASET, None, batch_size, BUDGETS, prefetch=0).epoch():
        sums = merge(sums, _sums(batch))
    return finalize(sums) | {"loss": float(total_loss(sums, CONFIG))}


@given(st.integers(1, 11))
def test_metrics_are_exact_over_unequal_batches(batch_size):
    """11 structures in batches of any size, the last one smaller: always the same means."""
    expected = _values(11)
    values = _values(batch_size)
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert value == pytest.approx(expected[name], rel=2e-6), name


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LossConfig().energy = "mse"
