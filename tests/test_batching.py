"""Batches and budgets on the host, masks and layouts on the device."""

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structures import as_dict, generic_crystal, generic_molecule

from ewald_jax import ops
from ewald_jax.graph import (
    Budget,
    batch_graphs,
    budgets_from_sizes,
    choose_budget,
    graph_from_atoms,
    neighbor_list,
    single_budget,
)
from ewald_jax.typing import InputError

# -- batches ---------------------------------------------------------------------------------


def three_graphs():
    atoms = [generic_molecule(), ase.Atoms("He"), generic_crystal()]
    return [graph_from_atoms(a, 4.0) for a in atoms]


def three_targets():
    rng = np.random.default_rng(0)
    return [
        {
            "energy": float(n),
            "forces": rng.normal(size=(n, 3)),
            "stress": np.eye(3) * n,
            "free": rng.random(n) > 0.5,
        }
        for n in (9, 1, 8)
    ]


def all_arrays(graph):
    names = ("senders", "receivers", "n_node", "n_edge")
    named = {name: getattr(graph, name) for name in names}
    return {**named, **graph.nodes, **graph.edges, **graph.globals}


def test_unpadded_batch_joins_the_structures():
    graphs, targets = three_graphs(), three_targets()
    batch = batch_graphs(graphs, targets)
    graph, first = batch.graph, 0
    assert graph.n_node.tolist() == [9, 1, 8] and batch.triplets is None
    assert graph.n_edge.tolist() == [len(g.senders) for g in graphs]
    edge_ends = np.cumsum(graph.n_edge)
    for row, g in enumerate(graphs):
        nodes = slice(first, first + int(g.n_node[0]))
        edges = slice(edge_ends[row] - graph.n_edge[row], edge_ends[row])
        for key in ("positions", "species"):
            np.testing.assert_array_equal(graph.nodes[key][nodes], g.nodes[key])
        np.testing.assert_array_equal(graph.senders[edges], g.senders + first)
        np.testing.assert_array_equal(graph.receivers[edges], g.receivers + first)
        np.testing.assert_array_equal(graph.edges["shifts"][edges], g.edges["shifts"])
        for key in ("cell", "pbc"):
            np.testing.assert_array_equal(graph.globals[key][row], g.globals[key][0])
        np.testing.assert_array_equal(
            batch.targets["forces"][nodes], targets[row]["forces"]
        )
        np.testing.assert_array_equal(batch.targets["free"][nodes], targets[row]["free"])
        np.testing.assert_array_equal(batch.targets["stress"][row], targets[row]["stress"])
        filled = batch.dense_index[row][batch.dense_index[row] < 18]
        np.testing.assert_array_equal(filled, np.arange(nodes.start, nodes.stop))
        first = nodes.stop
    assert batch.dense_index.shape == (3, 9)
    np.testing.assert_array_equal(batch.targets["energy"], [9.0, 1.0, 8.0])


def test_padding_is_as_the_schema_says():
    graphs, targets = three_graphs(), three_targets()
    plain = batch_graphs(graphs, targets)
    n_edge = int(plain.graph.n_edge.sum())
    budget = Budget(n_node=25, n_edge=n_edge + 7, n_graph=6, max_nodes=11)
    batch = batch_graphs(graphs, targets, budget)
    graph = batch.graph
    assert graph.n_node.tolist() == [9, 1, 8, 7, 0, 0]
    assert graph.n_edge.tolist() == [*plain.graph.n_edge.tolist(), 7, 0, 0]
    real = {"positions": 18, "species": 18, "shifts": n_edge, "cell": 3, "pbc": 3}
    real |= {"senders": n_edge, "receivers": n_edge, "n_node": 3, "n_edge": 3}
    padded, unpadded = all_arrays(graph), all_arrays(plain.graph)
    for key, length in real.items():
        assert padded[key].dtype == unpadded[key].dtype
        np.testing.assert_array_equal(padded[key][:length], unpadded[key])
    assert (graph.senders[n_edge:] == 18).all() and (graph.receivers[n_edge:] == 18).all()
    for key in ("positions", "species", "shifts", "pbc"):
        assert not padded[key][real[key] :].any()
    np.testing.assert_array_equal(graph.globals["cell"][3:], np.stack(3 * [np.eye(3)]))
    assert batch.dense_index.shape == (5, 11)
    assert (batch.dense_index == 25).sum() == 55 - 18
    kept = batch.dense_index[batch.dense_index < 25]
    np.testing.assert_array_equal(kept, np.arange(18))
    shapes = {"energy": (6,), "stress": (6, 3, 3), "forces": (25, 3), "free": (25,)}
    for key, shape in shapes.items():
        value = batch.targets[key]
        assert value.shape == shape
        length = 3 if key in ("energy", "stress") else 18
        np.testing.assert_array_equal(value[:length], plain.targets[key])
        assert not value[length:].any()


def test_types_do_not_depend_on_the_number_of_structures():
    graphs = three_graphs()
    budget = Budget(64, 1024, 5, 12)
    for one, many in (
        (batch_graphs(graphs[:1]), batch_graphs(graphs)),
        (batch_graphs(graphs[:1], budget=budget), batch_graphs(graphs, budget=budget)),
    ):
        types = [{k: v.dtype for k, v in all_arrays(b.graph).items()} for b in (one, many)]
        assert types[0] == types[1]
        assert types[0]["senders"] == types[0]["n_node"] == np.int32
        assert one.dense_index.dtype == many.dense_index.dtype == np.int32


def test_padding_leaves_the_given_graph_alone():
    graph = three_graphs()[0]
    before = {key: value.copy() for key, value in all_arrays(graph).items()}
    batch = batch_graphs([graph], budget=Budget(16, 256, 2, 12))
    batch.graph.nodes["positions"][:] = 5.0
    batch.graph.globals["cell"][:] = 5.0
    for key, value in all_arrays(graph).items():
        np.testing.assert_array_equal(value, before[key])


def test_labels_that_some_structures_lack_are_absent():
    targets = three_targets()
    del targets[1]["stress"]
    batch = batch_graphs(three_graphs(), targets)
    assert set(batch.targets) == {"energy", "forces", "free"}
    assert batch_graphs(three_graphs()).targets == {}


def test_labels_of_other_structures_are_refused():
    graphs, targets = three_graphs(), three_targets()
    with pytest.raises(InputError, match="labels of 2 structures for 3"):
        batch_graphs(graphs, targets[:2])
    swapped = [targets[1], targets[0], targets[2]]
    with pytest.raises(
        InputError, match=r"structure 0 has 'forces' of shape \(1, 3\), exp"
    ):
        batch_graphs(graphs, swapped)
    column = [{"energy": np.ones(1)} for _ in graphs]
    with pytest.raises(InputError, match=r"structure 0 has 'energy' of shape \(1,\), exp"):
        batch_graphs(graphs, column)


def test_batches_that_do_not_fit_are_refused():
    graphs = three_graphs()
    fits = single_budget(graphs)
    batch_graphs(graphs, budget=fits)
    n_edge = sum(len(g.senders) for g in graphs)
    for small in (
        fits._replace(n_node=18),
        fits._replace(n_edge=n_edge - 1),
        fits._replace(n_graph=3),
        fits._replace(max_nodes=8),
    ):
        with pytest.raises(InputError, match="3 structures with 18 atoms.*larger than the"):
            batch_graphs(graphs, budget=small)
    with pytest.raises(InputError, match="at least one structure"):
        batch_graphs([])


def test_padded_batch_without_edges():
    graph = graph_from_atoms(ase.Atoms("He"), 4.0)
    batch = batch_graphs([graph], budget=single_budget([graph]))
    assert batch.graph.n_edge.tolist() == [0, 64]
    assert batch_graphs([graph]).graph.senders.shape == (0,)


# -- budgets ---------------------------------------------------------------------------------

sizes = st.lists(
    st.tuples(st.integers(1, 90), st.integers(0, 900)), min_size=1, max_size=40
)


@given(sizes, st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_budgets_hold_every_batch(sizes, batch_size, max_buckets, seed):
    n_node, n_edge = (np.array(x) for x in zip(*sizes, strict=True))
    budgets = budgets_from_sizes(n_node, n_edge, batch_size, max_buckets)
    assert 1 <= len(budgets) <= max_buckets
    for small, large in zip(budgets, budgets[1:], strict=False):
        assert small != large and all(a <= b for a, b in zip(small, large, strict=True))
    rng = np.random.default_rng(seed)
    size = min(batch_size, len(n_node))
    draws = [rng.choice(len(n_node), rng.integers(1, size + 1), False) for _ in range(5)]
    # The worst batches there are, by atoms and by edges.
    draws += [np.argsort(n_node)[-size:], np.argsort(n_edge)[-size:]]
    for indices in draws:
        totals = (
            int(n_node[indices].sum()),
            int(n_edge[indices].sum()),
            len(indices),
            int(n_node[indices].max()),
        )
        chosen = choose_budget(budgets, *totals)
        for budget in budgets:
            if budget == chosen:
                break
            with pytest.raises(InputError):  # no smaller one holds it
                choose_budget([budget], *totals)
    assert budgets == budgets_from_sizes(n_node, n_edge, batch_size, max_buckets)


def test_typical_batches_take_smaller_budgets():
    n_node = np.array([10] * 99 + [500])
    budgets = budgets_from_sizes(n_node, 10 * n_node, batch_size=8)
    assert len(budgets) > 1
    assert choose_budget(budgets, 80, 800, 8, 10).n_node < 100
    assert choose_budget(budgets, 570, 5700, 8, 500) == budgets[-1]


def test_budgets_refuse_nonsense():
    with pytest.raises(InputError, match="the data set is empty"):
        budgets_from_sizes(np.array([]), np.array([]), 4)
    for batch_size, buckets in ((0, 4), (4, 0)):
        with pytest.raises(InputError, match="must be at least 1"):
            budgets_from_sizes(np.array([3]), np.array([6]), batch_size, buckets)


# -- masks, norms and layouts on the device --------------------------------------------------


def padded_batch():
    graphs = three_graphs()
    return batch_graphs(graphs, budget=Budget(25, 1024, 6, 11)), 18


def test_masks():
    batch, real = padded_batch()
    graph = batch.graph
    np.testing.assert_array_equal(ops.node_mask(graph), np.arange(25) < real)
    np.testing.assert_array_equal(ops.graph_mask(graph), np.arange(6) < 3)
    index = ops.node_graph_index(graph)
    np.testing.assert_array_equal(index, np.repeat(np.arange(6), [9, 1, 8, 7, 0, 0]))
    edges = ops.edge_graph_index(graph)
    np.testing.assert_array_equal(edges, np.repeat(np.arange(6), graph.n_edge))
    np.testing.assert_array_equal(
        ops.slot_mask(batch.dense_index, 25).sum(axis=1)[:3], [9, 1, 8]
    )
    np.testing.assert_array_equal(
        ops.sum_nodes(jnp.ones((25, 2)), graph), np.array([[9, 1, 8, 7, 0, 0]] * 2).T
    )


@pytest.mark.parametrize("slots", [9, 11])
def test_dense_layout_and_back(slots, x64):
    batch, _ = padded_batch()
    index = batch.dense_index[:, :slots]
    slot = ops.node_slots(batch.graph, *index.shape)
    values = np.random.default_rng(0).normal(size=(25, 2))
    dense = ops.to_dense(values, index)
    assert dense.shape == (5, slots, 2)
    np.testing.assert_array_equal(dense[0, :9], values[:9])
    np.testing.assert_array_equal(dense[2, :8], values[10:18])
    empty = np.asarray(index) == 25
    assert not np.any(np.asarray(dense)[empty])
    back = np.asarray(ops.from_dense(dense, slot))
    np.testing.assert_array_equal(back[:18], values[:18])
    assert not back[18:].any()

    def through(values):
        return ops.from_dense(ops.to_dense(values, index), slot)

    gradient = jax.grad(lambda v: jnp.sum(through(v) * values))(jnp.asarray(values))
    np.testing.assert_array_equal(
        gradient, np.where(np.arange(25)[:, None] < 18, values, 0)
    )


def test_edge_vectors(x64):
    atoms = generic_crystal()
    graph = graph_from_atoms(atoms, 4.0, dtype=np.float64)
    edges = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 4.0)
    vectors = ops.edge_vectors(graph)
    np.testing.assert_allclose(ops.safe_norm(vectors), edges.distances, rtol=1e-13)
    expected = as_dict(edges, atoms.positions, atoms.cell.array).values()
    np.testing.assert_allclose(vectors, list(expected), atol=1e-12)


def test_safe_norm(x64):
    x = jnp.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(ops.safe_norm(x), [5.0, 0.0])
    slope = jax.grad(ops.safe_norm)
    np.testing.assert_allclose(jax.jit(jax.vmap(slope))(x), [[0.6, 0.8, 0], [0, 0, 0]])
    assert np.isfinite(jax.jit(jax.vmap(jax.jacrev(slope)))(x)).all()
    assert ops.safe_norm(x.astype(jnp.float32)).dtype == jnp.float32
    assert ops.safe_norm(x, axis=0).shape == (3,)
