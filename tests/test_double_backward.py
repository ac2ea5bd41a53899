"""Training on forces, which differentiates twice: it learns, and its gradients are right."""

import functools

import jax
import numpy as np
import pytest
from structures import generic_molecule, quick_compilation  # noqa: F401
from test_train_toy import toy_atoms
from tiny import drawn, tiny

import ewald_jax
from ewald_jax.models import MODELS
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.train import LossConfig, OptimConfig, create_state
from ewald_jax.train.optim import make_optimizer
from ewald_jax.train.step import make_loss_fn, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Fewer layers of a kind compile faster.
FEWER = {
    "dimenetpp": {"num_before_skip": 0, "num_after_skip": 1},
    "gemnet_t": {"num_before_skip": 0, "num_concat": 0},
}
LOSS = LossConfig(forces="l2")
STEPS = 50
EWALD = {
    "none": None,
    "voxel": EwaldConfig(
        scheme="voxel", k_cutoff=0.4, num_k_rbf=8, bottleneck=4, prefactor=0.1
    ),
}


@functools.cache
def molecules():
    """Eight small molecules, four of them linear, off their equilibria; with labels."""
    structures = toy_atoms(8)
    energies = np.array([atoms.get_potential_energy() for atoms in structures])
    forces = np.concatenate([atoms.get_forces() for atoms in structures])
    return structures, (energies - energies.mean()) / energies.std(), forces / forces.std()


def labelled(model, dtype=np.float32):
    structures, energies, forces = molecules()
    batch = ewald_jax.batch_from_atoms(structures, model)
    targets = {
        "energy": np.zeros(len(batch.graph.n_node), dtype),
        "forces": np.zeros((len(batch.graph.nodes["species"]), 3), dtype),
    }
    targets["energy"][: len(energies)] = energies
    targets["forces"][: len(forces)] = forces
    return batch._replace(targets=targets)


def starting_weights(model, batch):
    """Random ones; DimeNet++ starts with a last layer of zeros."""
    params = drawn(model, batch)
    for name, value in params.items():
        if name.startswith("output_") and "energy" in value:
            params[name] = {**value, "energy": {"kernel": 0 * value["energy"]["kernel"]}}
    return params


@pytest.mark.parametrize("kind", EWALD)
@pytest.mark.parametrize("name", MODELS)
def test_training_on_energy_and_forces_learns(name, kind):
    model = tiny(name, cutoff=4.0, ewald=EWALD[kind], **FEWER.get(name, {}))
    batch = labelled(model)
    optim = OptimConfig(lr=1e-2, weight_decay=0.0, clip_norm=10.0)
    tx = make_optimizer(optim, STEPS)
    step = make_train_step(model, tx, LOSS, optim)
    state = create_state(starting_weights(model, batch), tx, jax.random.key(1))
    losses, norms = [], []
    for _ in range(STEPS + 1):
        state, sums = step(state, batch)
        parts = [sums[term] for term in ("energy_loss", "forces_loss")]
        losses.append([float(total / count) for total, count in parts])
        norms.append(float(sums["grad_norm"][0]))
    assert state.healthy and np.all(np.isfinite(losses)) and np.all(np.isfinite(norms))
    _, energies, forces = molecules()
    of_zeros = np.abs(energies).mean(), np.linalg.norm(forces, axis=1).mean()
    if name == "dimenetpp":
        np.testing.assert_allclose(losses[0], of_zeros, rtol=1e-5)
    for term in (0, 1):
        start = min(losses[0][term], of_zeros[term])
        assert np.mean(losses[-5:], axis=0)[term] < 0.6 * start


@pytest.mark.parametrize("name", ["dimenetpp", "gemnet_t"])
def test_gradient_of_the_force_loss(name, x64):
    """Against finite differences, in a direction in which all parameters change."""
    model = tiny(name, cutoff=4.0, ewald=EWALD["voxel"])
    batch = labelled(model, np.float64)
    params = jax.tree.map(lambda x: x.astype(np.float64), drawn(model, batch))
    loss = LossConfig(energy_weight=0.0, forces="mse")
    loss_fn = make_loss_fn(model, loss, 1.0)
    run = jax.jit(jax.value_and_grad(lambda params: loss_fn(params, batch)[0]))
    rng = np.random.default_rng(3)

    def draw(path, x):  # scale factors are no parameters to the optimiser
        return rng.normal(size=x.shape) * (path[-1].key != "scale_factor")

    direction = jax.tree_util.tree_map_with_path(draw, params)
    dot = lambda a, b: sum(jax.tree.leaves(jax.tree.map(lambda x, y: np.sum(x * y), a, b)))
    step = 1e-4 / np.sqrt(dot(direction, direction))
    at = lambda t: run(jax.tree.map(lambda x, d: x + t * d, params, direction))
    actual, expected = dot(at(0.0)[1], direction), (at(step)[0] - at(-step)[0]) / (2 * step)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
