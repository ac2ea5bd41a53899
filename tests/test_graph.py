"""Graphs, neighbor lists, batches and budgets on the host, and the masks on the device."""

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from structures import generic_crystal, generic_molecule, heights, random_cell

from ewald_jax import batch_from_atoms, build_model, ops
from ewald_jax.graph import (
    Budget,
    batch_graphs,
    budgets_from_sizes,
    choose_budget,
    graph_from_atoms,
    neighbor_list,
    single_budget,
)
from ewald_jax.graph.neighbors import nearest
from ewald_jax.typing import InputError

# -- neighbor lists --------------------------------------------------------------------------


def brute_force(positions, cell, pbc, cutoff):
    """Every image within reach, tried one by one: {(sender, receiver, shift): vector}."""
    fractional = positions @ np.linalg.inv(cell)
    spread = fractional.max(axis=0) - fractional.min(axis=0)
    reach = np.where(pbc, np.ceil(cutoff / heights(cell) + spread), 0).astype(int)
    images = np.stack(
        np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), -1
    ).reshape(-1, 3)
    found = {}
    for i in range(len(positions)):
        for j in range(len(positions)):
            vectors = positions[j] + images @ cell - positions[i]
            distances = np.linalg.norm(vectors, axis=1)
            for n in np.flatnonzero(distances < cutoff):
                if i != j or images[n].any():
                    found[j, i, *images[n].tolist()] = vectors[n]
    return found


def as_dict(edges, positions, cell):
    keys = np.column_stack([edges.senders, edges.receivers, edges.shifts]).tolist()
    vectors = positions[edges.senders] + edges.shifts @ cell - positions[edges.receivers]
    assert len({tuple(key) for key in keys}) == len(keys)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), edges.distances, atol=1e-9)
    return {tuple(key): vector for key, vector in zip(keys, vectors, strict=True)}


@st.composite
def structures(draw):
    """Random triclinic cells of either hand, any pbc, atoms far outside the cell."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cell = random_cell(rng, size=draw(st.floats(1.5, 5.0)), skew=draw(st.floats(0.0, 1.0)))
    fractional = rng.uniform(-2, 3, (draw(st.integers(1, 4)), 3))
    pbc = np.array([draw(st.booleans()) for _ in range(3)])
    return fractional @ cell, cell, pbc, draw(st.floats(0.5, 4.0))


@given(structures())
def test_neighbor_list_finds_every_image(structure):
    positions, cell, pbc, cutoff = structure
    expected = brute_force(positions, cell, pbc, cutoff + 1e-6)
    lengths = np.array([np.linalg.norm(v) for v in expected.values()])
    assume(np.all(np.abs(lengths - cutoff) > 1e-6) and np.all(lengths > 1e-3))
    edges = neighbor_list(positions, cell, pbc, cutoff)
    found = as_dict(edges, positions, cell)
    assert found.keys() == expected.keys()
    for key, vector in found.items():
        np.testing.assert_allclose(vector, expected[key], atol=1e-9)
    # Both directions of every pair, sorted by receiver.
    assert {(i, j, -a, -b, -c) for j, i, a, b, c in found} == set(found)
    assert (np.diff(edges.receivers) >= 0).all()
    assert not edges.shifts[:, ~pbc].any()
    assert edges.senders.dtype == edges.receivers.dtype == edges.shifts.dtype == np.int32


@given(structures(), st.integers(0, 2**32 - 1))
def test_moving_atoms_by_lattice_vectors_changes_only_shifts(structure, seed):
    positions, cell, pbc, cutoff = structure
    rng = np.random.default_rng(seed)
    steps = np.where(pbc, rng.integers(-3, 4, size=positions.shape), 0)
    before = neighbor_list(positions, cell, pbc, cutoff)
    assume(np.all(np.abs(before.distances - cutoff) > 1e-6))
    moved = positions + steps @ cell
    after = neighbor_list(moved, cell, pbc, cutoff)
    back = after.shifts + steps[after.senders] - steps[after.receivers]
    after = as_dict(after._replace(shifts=back), positions, cell)
    assert after.keys() == as_dict(before, positions, cell).keys()


def test_more_images_than_atoms():
    """One atom in a small cell: all neighbors are its own images."""
    edges = neighbor_list(np.zeros((1, 3)), np.eye(3), [True] * 3, 2.1)
    assert len(edges.senders) == 32  # 6 + 12 + 8 + 6
    one_way = neighbor_list(np.zeros((1, 3)), np.eye(3), [False, True, False], 2.1)
    assert sorted(one_way.shifts[:, 1].tolist()) == [-2, -1, 1, 2]


def test_nothing_within_the_cutoff():
    for positions in (np.zeros((1, 3)), np.array([[0.0, 0, 0], [9, 0, 0]])):
        edges = neighbor_list(positions, np.eye(3), [False] * 3, 4.0)
        assert edges.senders.shape == edges.receivers.shape == edges.distances.shape == (0,)
        assert edges.shifts.shape == (0, 3)


@given(structures(), st.integers(1, 12))
def test_max_neighbors_keeps_the_nearest(structure, max_neighbors):
    positions, cell, pbc, cutoff = structure
    every = neighbor_list(positions, cell, pbc, cutoff)
    kept = neighbor_list(positions, cell, pbc, cutoff, max_neighbors)
    chosen = as_dict(kept, positions, cell).keys()
    assert chosen <= as_dict(every, positions, cell).keys()
    for i in range(len(positions)):
        expected = np.sort(every.distances[every.receivers == i])[:max_neighbors]
        np.testing.assert_allclose(
            np.sort(kept.distances[kept.receivers == i]), expected, atol=1e-12
        )
    assert (np.diff(kept.receivers) >= 0).all()


def test_nearest_keeps_the_first_of_equals():
    receivers = np.array([0, 0, 0, 1, 1])
    distances = np.array([2.0, 1.0, 2.0, 3.0, 3.0])
    np.testing.assert_array_equal(nearest(receivers, distances, 2), [0, 1, 3, 4])
    np.testing.assert_array_equal(nearest(receivers, distances, 1), [1, 3])


@pytest.mark.parametrize("cutoff", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_cutoffs_are_refused(cutoff):
    with pytest.raises(InputError, match="cutoff must be finite and larger than 0"):
        neighbor_list(np.zeros((1, 3)), np.eye(3), [False] * 3, cutoff)


def test_bad_max_neighbors_is_refused():
    with pytest.raises(InputError, match="max_neighbors must be at least 1 or None, not 0"):
        neighbor_list(np.zeros((1, 3)), np.eye(3), [False] * 3, 4.0, 0)


# -- one structure ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_graph_holds_the_structure(dtype, crystal):
    graph = graph_from_atoms(crystal, 4.0, dtype=dtype)
    np.testing.assert_array_equal(graph.nodes["positions"], crystal.positions.astype(dtype))
    np.testing.assert_array_equal(graph.nodes["species"], crystal.numbers)
    np.testing.assert_array_equal(
        graph.globals["cell"][0], crystal.cell.array.astype(dtype)
    )
    assert graph.globals["pbc"].tolist() == [[True] * 3]
    assert graph.nodes["positions"].dtype == graph.globals["cell"].dtype == dtype
    assert graph.nodes["species"].dtype == graph.n_node.dtype == np.int32
    assert graph.n_node.tolist() == [8] and graph.n_edge.tolist() == [len(graph.senders)]


@pytest.mark.parametrize(
    "pbc, cell",
    [
        ([0, 0, 0], np.zeros((3, 3))),
        ([1, 0, 0], [[3.0, 0.5, 0], [0, 0, 0], [0, 0, 0]]),
        ([1, 1, 0], [[3.0, 0, 0], [1.0, 4.0, 0], [0, 0, 0]]),
        ([0, 0, 1], [[0, 0, 0], [0, 0, 0], [0.3, 0, 5.0]]),
        ([0, 0, 0], [[3.0, 0, 0], [6.0, 0, 0], [0, 0, 0]]),
    ],
)
def test_missing_lattice_vectors_are_completed(pbc, cell):
    atoms = ase.Atoms("HF", [[0, 0, 0], [0, 0, 0.9]], cell=cell, pbc=pbc)
    completed = graph_from_atoms(atoms, 4.0).globals["cell"][0]
    assert abs(np.linalg.det(completed)) > 0.99
    for given_row, row in zip(np.asarray(cell), completed, strict=True):
        if given_row.any() and any(pbc):
            np.testing.assert_allclose(row, given_row, rtol=1e-6)
    if not any(pbc):
        np.testing.assert_array_equal(completed, np.eye(3))


def atoms_with(**changes):
    fields = {"symbols": "HF", "positions": [[0, 0, 0], [0, 0, 0.9]]}
    return ase.Atoms(**fields | changes)


PARALLEL = [[3.0, 0, 0], [6.0, 0, 0], [0, 0, 5.0]]
BROKEN = {
    "no atoms": (ase.Atoms(), "has no atoms, expected at least one"),
    "NaN": (
        atoms_with(positions=[[0, 0, 0], [0, np.nan, 1]]),
        "NaN or infinite position at atom 1, expected numbers",
    ),
    "infinite": (
        atoms_with(positions=[[0, -np.inf, 0], [0, 0, 1]]),
        "NaN or infinite position at atom 0, expected numbers",
    ),
    "unknown element": (
        ase.Atoms(numbers=[1, 0], positions=[[0, 0, 0], [0, 0, 1]]),
        r"unknown element at atom 1 \(atomic number 0\), expected 1 to 118",
    ),
    "element 119": (
        ase.Atoms(numbers=[119], positions=[[0, 0, 0]]),
        r"unknown element at atom 0 \(atomic number 119\), expected 1 to 118",
    ),
    "infinite cell": (
        atoms_with(cell=[4, 4, np.inf]),
        "NaN or infinite number in its cell, expected numbers",
    ),
    "no cell": (
        atoms_with(pbc=True),
        "periodic along lattice vector 1, which is zero; expected a cell, or pbc off",
    ),
    "half a cell": (
        atoms_with(pbc=True, cell=[[3, 0, 0], [0, 3, 0], [0, 0, 0]]),
        "periodic along lattice vector 3, which is zero; expected a cell, or pbc off",
    ),
    "parallel": (
        atoms_with(pbc=True, cell=PARALLEL),
        "singular .*expected three independent ones",
    ),
    "parallel, one missing": (
        atoms_with(pbc=[1, 1, 0], cell=[*PARALLEL[:2], [0, 0, 0]]),
        "singular .*expected three independent ones",
    ),
    "flat": (
        atoms_with(pbc=True, cell=[[3, 0, 0], [0, 3, 0], [3, 3, 1e-4]]),
        "singular .*expected three independent ones",
    ),
    "on top": (
        atoms_with(positions=[[0, 0, 0], [0, 0, 0.1]]),
        "atoms H0 and F1 at 0.100 Å, expected at least 0.3 Å",
    ),
    "coinciding": (
        atoms_with(positions=[[1, 2, 3], [1, 2, 3]]),
        "atoms H0 and F1 at 0.000 Å, expected at least 0.3 Å",
    ),
    "on top of an image": (
        atoms_with(positions=[[0, 0, 0], [0, 0, 5.9]], cell=[6, 6, 6], pbc=True),
        "atoms H0 and F1 at 0.100 Å, expected at least 0.3 Å",
    ),
    "own image": (
        ase.Atoms("Ne", cell=[4, 4, 0.2], pbc=True),
        "atoms Ne0 and Ne0 at 0.200 Å, expected at least 0.3 Å",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_structures_are_refused(name):
    atoms, expected = BROKEN[name]
    with pytest.raises(InputError, match=expected):
        graph_from_atoms(atoms, 4.0)
    # One line each, after the place that the caller knows.
    model = build_model("schnet", num_elements=200)
    with pytest.raises(InputError, match=f"structure 1 .*{expected}") as error:
        batch_from_atoms([generic_molecule(), atoms], model)
    assert "\n" not in str(error.value)


def test_unknown_element_of_the_model_is_refused():
    atoms = ase.Atoms("U")
    batch_from_atoms([atoms], build_model("schnet", num_elements=93))
    with pytest.raises(InputError, match="atomic number 92, .* elements 1 to 91"):
        batch_from_atoms([atoms], build_model("schnet", num_elements=92))


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
