"""One device = two devices: the same loss, gradient and training, up to rounding."""

import jax
import numpy as np
import pytest
from test_train_toy import (
    compilation_cache,
    toy_atoms,
    toy_dataset,
    toy_model,
    toy_splits,
)
from tiny import drawn, tiny

from ewald_jax.data import Loader, dataset_from_atoms, dataset_statistics
from ewald_jax.graph import Neighborhood
from ewald_jax.models import build_model, neighborhood
from ewald_jax.potential import init_params
from ewald_jax.train import LossConfig, OptimConfig, TrainConfig, create_state, fit
from ewald_jax.train.display import Display
from ewald_jax.train.optim import make_optimizer
from ewald_jax.train.sharding import data_mesh, empty_like, replicate, spread_over, stacked
from ewald_jax.train.step import make_loss_fn, make_train_step
from ewald_jax.typing import InputError

DATASET = toy_dataset(24)
LOSS = LossConfig(forces="l2")


@pytest.fixture(scope="module", autouse=True)
def cached(tmp_path_factory):
    with compilation_cache(tmp_path_factory.mktemp("compilations")):
        yield


def batches_of(size, indices=None):
    statistics = dataset_statistics(DATASET, np.arange(24))
    loader = Loader(DATASET, indices, size, statistics=statistics, max_buckets=1)
    return loader.epoch()


def test_two_host_devices():
    assert jax.device_count() == 2  # see conftest


def whole_and_halves():
    """Seven structures at once, and four on one device with three on the other."""
    (whole,) = batches_of(7, range(7))
    (halves,) = stacked(batches_of(4, range(7)), 2)
    return whole, halves


def assert_close(first, second):
    for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_gradient_with_long_range_block():
    """Unequal counts on the devices: sums are added before anything is divided."""
    sizes = dict(hidden_channels=8, num_filters=8, num_interactions=1, num_gaussians=8)
    ewald = {"scheme": "voxel", "bottleneck": 2, "num_k_rbf": 4}
    model = build_model("schnet", cutoff=4.0, num_elements=10, ewald=ewald, **sizes)
    batches, mesh = whole_and_halves(), data_mesh(2)
    params = init_params(model, jax.random.key(0), batches[0])
    results = []
    for batch, on in zip(batches, (None, mesh), strict=True):
        loss_fn = make_loss_fn(model, LossConfig(), 1.0, stacked=on is not None)
        if on is not None:
            batch = jax.device_put(batch, spread_over(on))
        results.append(jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, batch))
    assert_close(*results)


@pytest.mark.parametrize("name, atomic", [("gemnet_t", None), ("schnet", {"cutoff": 6.0})])
def test_gradient_with_triplets_and_far_edges(name, atomic):
    """Unequal counts on the devices, down to a batch that is padding only."""
    model = tiny(name, cutoff=4.0, atomic=atomic)
    dataset = dataset_from_atoms(toy_atoms(5), neighborhood(model))

    def batches(size):
        return Loader(dataset, None, size, max_buckets=1, prefetch=0).epoch()

    (whole,) = batches(5)
    params = drawn(model, whole)
    results = [jax.jit(jax.grad(loss_of(model, False), has_aux=True))(params, whole)]
    for size in (3, 5):  # 3 and 2 structures; 5 and none
        (halves,) = stacked(batches(size), 2)
        halves = jax.device_put(halves, spread_over(data_mesh(2)))
        results.append(
            jax.jit(jax.grad(loss_of(model, True), has_aux=True))(params, halves)
        )
    assert_close(results[1], results[0])
    assert_close(results[2], results[0])


def loss_of(model, on_two):
    return make_loss_fn(model, LOSS, 1.0, stacked=on_two)


def test_a_step():
    model, batches, mesh = toy_model(), whole_and_halves(), data_mesh(2)
    params = init_params(model, jax.random.key(0), batches[0])
    # Linear in the gradient, as Adam is where eps is large.
    optim = OptimConfig(lr=1.0, eps=1e3, weight_decay=0.0)
    tx, results = make_optimizer(optim, 10), []
    for batch, on in zip(batches, (None, mesh), strict=True):
        step = make_train_step(model, tx, LOSS, optim, 1.0, mesh=on)
        state = replicate(create_state(params, tx, jax.random.key(1)), on)
        state, sums = step(state, batch)
        change = jax.tree.map(lambda a, b: 1e3 * (a - b), state.params, params)
        results.append((change, sums))
        devices = jax.tree.leaves(state.params)[0].sharding.device_set
        assert len(devices) == (1 if on is None else 2)
    assert_close(*results)


def test_groups_are_filled_with_empty_batches():
    groups = list(stacked(batches_of(4, range(20)), 2))
    assert len(groups) == 3
    n_atoms = [int((group.graph.nodes["species"] > 0).sum()) for group in groups]
    assert sum(n_atoms) == DATASET.n_node[:20].sum()
    last = groups[-1]
    assert (last.graph.nodes["species"][1] == 0).all()
    assert (last.dense_index[1] == last.graph.nodes["species"].shape[1]).all()
    shapes = [[x.shape for x in jax.tree.leaves(group)] for group in groups]
    assert shapes[0] == shapes[1] == shapes[2]


def test_an_empty_batch_is_padding_throughout():
    (batch,) = batches_of(4, range(4))
    empty = empty_like(batch)
    assert empty.graph.n_node.sum() == batch.graph.n_node.sum()
    assert empty.graph.n_edge.sum() == batch.graph.n_edge.sum()
    assert not any(np.any(values) for values in empty.targets.values())
    assert batch.graph.n_node[0] != empty.graph.n_node[0], "the original must not change"


def test_an_empty_batch_has_no_triplets():
    dataset = DATASET.suited_to(Neighborhood(4.0, triplets=True))
    batch = next(Loader(dataset, range(4), 4, max_buckets=1, prefetch=0).epoch())
    empty, edges = empty_like(batch).triplets, len(batch.graph.senders)
    for table, slot in (
        (empty.in_edges, empty.in_slot),
        (empty.out_edges, empty.out_slot),
    ):
        assert (table == edges).all() and (slot == table.size).all()
    assert (empty.reverse == edges).all()
    assert (batch.triplets.in_edges < edges).any(), "the original must not change"


def run(directory, devices, **options):
    return fit(
        toy_model(),
        DATASET,
        toy_splits(24, 6),
        train=TrainConfig(epochs=2, batch_size=8, devices=devices, tensorboard=False),
        loss=LOSS,
        optim=OptimConfig(lr=3e-3, ema_decay=0.9, schedule="plateau", plateau_patience=0),
        output_dir=directory,
        progress=False,
        **options,
    )


@pytest.mark.slow
def test_training_on_two_devices(tmp_path):
    """18 structures in steps of 8, 8 and 2."""
    one, two = run(tmp_path / "one", 1), run(tmp_path / "two", 2)
    assert one.step == two.step == 6 and two.compilations == 1
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    for first, second in zip(one.history, two.history, strict=True):
        for key in first.keys() - {"seconds"}:
            assert first[key] == pytest.approx(second[key], rel=1e-3, abs=1e-5), key


@pytest.mark.slow
def test_stopped_and_continued_on_two_devices(tmp_path, monkeypatch):
    two = run(tmp_path / "two", 2)

    def stopping(self, step):
        if step == 5:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(Display, "step", stopping)
        with pytest.raises(InterruptedError):
            run(tmp_path / "again", 2)
    again = run(tmp_path / "again", 2, resume=True)
    jax.tree.map(np.testing.assert_array_equal, again.params, two.params)


def test_refusals():
    with pytest.raises(InputError, match="train.devices is 3, but JAX sees 2"):
        data_mesh(3)
    with pytest.raises(InputError, match="multiple of train.devices"):
        TrainConfig(batch_size=9, devices=2)
