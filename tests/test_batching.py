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
    Neighborhood,
    Sizes,
    batch_graphs,
    budgets_from_sizes,
    choose_budget,
    neighbor_list,
    single_budget,
    sizes_of,
    structure_from_atoms,
)
from ewald_jax.typing import InputError

# -- batches ---------------------------------------------------------------------------------


def three_structures(neighborhood=4.0):
    atoms = [generic_molecule(), ase.Atoms("He"), generic_crystal()]
    return [structure_from_atoms(a, neighborhood) for a in atoms]


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
    structures, targets = three_structures(), three_targets()
    batch = batch_graphs(structures, targets)
    graphs = [structure.graph for structure in structures]
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
    structures, targets = three_structures(), three_targets()
    plain = batch_graphs(structures, targets)
    n_edge = int(plain.graph.n_edge.sum())
    budget = Budget(n_node=25, n_edge=n_edge + 7, n_graph=6, max_nodes=11)
    batch = batch_graphs(structures, targets, budget)
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
    structures = three_structures()
    budget = Budget(64, 1024, 5, 12)
    for one, many in (
        (batch_graphs(structures[:1]), batch_graphs(structures)),
        (
            batch_graphs(structures[:1], budget=budget),
            batch_graphs(structures, budget=budget),
        ),
    ):
        types = [{k: v.dtype for k, v in all_arrays(b.graph).items()} for b in (one, many)]
        assert types[0] == types[1]
        assert types[0]["senders"] == types[0]["n_node"] == np.int32
        assert one.dense_index.dtype == many.dense_index.dtype == np.int32


def test_padding_leaves_the_given_graph_alone():
    structure = three_structures()[0]
    graph = structure.graph
    before = {key: value.copy() for key, value in all_arrays(graph).items()}
    batch = batch_graphs([structure], budget=Budget(16, 256, 2, 12))
    batch.graph.nodes["positions"][:] = 5.0
    batch.graph.globals["cell"][:] = 5.0
    for key, value in all_arrays(graph).items():
        np.testing.assert_array_equal(value, before[key])


def test_labels_that_some_structures_lack_are_absent():
    targets = three_targets()
    del targets[1]["stress"]
    batch = batch_graphs(three_structures(), targets)
    assert set(batch.targets) == {"energy", "forces", "free"}
    assert batch_graphs(three_structures()).targets == {}


def test_labels_of_other_structures_are_refused():
    structures, targets = three_structures(), three_targets()
    with pytest.raises(InputError, match="labels of 2 structures for 3"):
        batch_graphs(structures, targets[:2])
    swapped = [targets[1], targets[0], targets[2]]
    with pytest.raises(
        InputError, match=r"structure 0 has 'forces' of shape \(1, 3\), exp"
    ):
        batch_graphs(structures, swapped)
    column = [{"energy": np.ones(1)} for _ in structures]
    with pytest.raises(InputError, match=r"structure 0 has 'energy' of shape \(1,\), exp"):
        batch_graphs(structures, column)


def test_batches_that_do_not_fit_are_refused():
    structures = three_structures()
    fits = single_budget(structures)
    batch_graphs(structures, budget=fits)
    n_edge = sum(len(s.graph.senders) for s in structures)
    for small in (
        fits._replace(n_node=18),
        fits._replace(n_edge=n_edge - 1),
        fits._replace(n_graph=3),
        fits._replace(max_nodes=8),
    ):
        with pytest.raises(InputError, match="3 structures with 18 atoms.*larger than the"):
            batch_graphs(structures, budget=small)
    with pytest.raises(InputError, match="at least one structure"):
        batch_graphs([])


def test_padded_batch_without_edges():
    lone = structure_from_atoms(ase.Atoms("He"), 4.0)
    batch = batch_graphs([lone], budget=single_budget([lone]))
    assert batch.graph.n_edge.tolist() == [0, 64]
    assert batch_graphs([lone]).graph.senders.shape == (0,)


# -- budgets ---------------------------------------------------------------------------------


NO_WAVES = {"n_kvecs": 0, "n_pairs": 0, "n_quad": 0}
WAVES = st.sampled_from([(0, 0, 0), (700, 0, 0), (0, 4000, 30), (700, 4000, 30)])


@st.composite
def sizes_of_sets(draw):
    """Sizes of up to 40 structures; far edges, wave vectors or none."""
    count, far = draw(st.integers(1, 40)), draw(st.sampled_from([0, 2000]))
    waves = dict(zip(("n_kvecs", "n_pairs", "n_quad"), draw(WAVES), strict=True))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    limits = Sizes(n_node=90, n_edge=900, n_far=far, in_slots=30, out_slots=50, **waves)
    lowest = Sizes(n_node=1, n_edge=0, n_far=0, in_slots=1, out_slots=1, **NO_WAVES)
    return Sizes(
        *(rng.integers(a, b + 1, count) for a, b in zip(lowest, limits, strict=True))
    )


@given(
    sizes_of_sets(),
    st.integers(1, 12),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_budgets_hold_every_batch(sizes, batch_size, max_buckets, triplets, seed):
    budgets = budgets_from_sizes(sizes, batch_size, max_buckets, triplets=triplets)
    assert 1 <= len(budgets) <= max_buckets
    for small, large in zip(budgets, budgets[1:], strict=False):
        assert small != large and all(a <= b for a, b in zip(small, large, strict=True))
    for budget in budgets:
        assert (budget.n_far > 0) == sizes.n_far.any() or budget != budgets[-1]
        assert budget.n_far % 64 == budget.in_slots % 4 == budget.out_slots % 4 == 0
        assert (budget.in_slots > 0) == (budget.out_slots > 0) == triplets
        assert (budget.pair_rows > 0) == sizes.n_quad.any()
    rng = np.random.default_rng(seed)
    size = min(batch_size, len(sizes.n_node))
    draws = [
        rng.choice(len(sizes.n_node), rng.integers(1, size + 1), False) for _ in range(5)
    ]
    # The worst batches there are, by atoms, by edges, by slots.
    draws += [np.argsort(counts)[-size:] for counts in sizes]
    for indices in draws:
        batch = sizes.take(indices)
        chosen = choose_budget(budgets, batch)
        for budget in budgets:
            if budget == chosen:
                break
            with pytest.raises(InputError):  # no smaller one holds it
                choose_budget([budget], batch)
    assert budgets == budgets_from_sizes(sizes, batch_size, max_buckets, triplets=triplets)


def test_typical_batches_take_smaller_budgets():
    n_node, few = np.array([10] * 99 + [500]), np.ones(100, int)
    sizes = Sizes(n_node, 10 * n_node, 0 * few, few, few, 0 * few, 0 * few, 0 * few)
    budgets = budgets_from_sizes(sizes, batch_size=8)
    assert len(budgets) > 1
    assert choose_budget(budgets, sizes.take(np.arange(8))).n_node < 100
    assert choose_budget(budgets, sizes.take(np.arange(92, 100))) == budgets[-1]
    # Equal numbers of atoms and edges, but one structure with many far edges.
    far = sizes._replace(n_node=few, n_edge=few, n_far=np.array([64] * 99 + [6400]))
    assert len(budgets_from_sizes(far, batch_size=8)) > 1


def test_budgets_refuse_nonsense():
    nothing = Sizes(*8 * [np.array([])])
    with pytest.raises(InputError, match="the data set is empty"):
        budgets_from_sizes(nothing, 4)
    for batch_size, buckets in ((0, 4), (4, 0)):
        with pytest.raises(InputError, match="must be at least 1"):
            budgets_from_sizes(Sizes(*8 * [np.array([3])]), batch_size, buckets)


# -- far edges and triplets ------------------------------------------------------------------

ANGLES = Neighborhood(4.0, triplets=True)
EVERYTHING = Neighborhood(4.0, triplets=True, far_cutoff=6.0, far_max_neighbors=20)


def test_sizes_are_counted():
    structures = three_structures(EVERYTHING)
    sizes = sizes_of(structures)
    assert sizes.n_node.tolist() == [9, 1, 8]
    for row, (graph, far, _) in enumerate(structures):
        assert sizes.n_edge[row] == len(graph.senders) and sizes.n_far[row] == len(far[0])
        into, out = np.zeros((2, 9), int)
        for sender, receiver in zip(graph.senders, graph.receivers, strict=True):
            into[receiver] += 1
            out[sender] += 1
        assert sizes.in_slots[row] == max(1, into.max())
        assert sizes.out_slots[row] == max(1, out.max())
    assert not sizes_of(three_structures()).n_far.any()


def test_far_edges_are_joined_and_padded():
    structures = three_structures(EVERYTHING)
    plain = batch_graphs(structures).far_edges
    firsts, total = [0, 9, 10], sum(len(s.far_edges.senders) for s in structures)
    start = 0
    for first, (_, far, _) in zip(firsts, structures, strict=True):
        part = slice(start, start + len(far.senders))
        np.testing.assert_array_equal(plain.senders[part], far.senders + first)
        np.testing.assert_array_equal(plain.receivers[part], far.receivers + first)
        np.testing.assert_array_equal(plain.shifts[part], far.shifts)
        start = part.stop
    assert start == total == len(plain.senders)
    budget = single_budget(structures)
    assert budget.n_far % 64 == 0 and total <= budget.n_far < total + 64
    padded = batch_graphs(structures, budget=budget).far_edges
    for key, fill in (("senders", 18), ("receivers", 18), ("shifts", 0)):
        value = getattr(padded, key)
        assert value.dtype == getattr(plain, key).dtype == np.int32
        np.testing.assert_array_equal(value[:total], getattr(plain, key))
        assert len(value) == budget.n_far and (value[total:] == fill).all()
    assert (np.diff(padded.receivers) >= 0).all()
    alone = batch_graphs(structures[1:2], budget=single_budget(structures[1:2])).far_edges
    assert alone.senders.shape == (0,) and alone.shifts.shape == (0, 3)


def test_far_edges_in_some_structures_only_are_refused():
    mixed = [*three_structures(EVERYTHING)[:2], *three_structures()[2:]]
    with pytest.raises(InputError, match="structure 2 has no far edges, but others"):
        batch_graphs(mixed)


def check_triplets(batch, n_edge):
    """The tables against a loop over edges."""
    graph, t = batch.graph, batch.triplets
    nodes, edges = len(graph.nodes["species"]), len(graph.senders)
    ends = [
        (int(graph.senders[e]), int(graph.receivers[e]), *graph.edges["shifts"][e].tolist())
        for e in range(n_edge)
    ]
    for table, slot, side in (
        (t.in_edges, t.in_slot, 1),
        (t.out_edges, t.out_slot, 0),
    ):
        assert table.dtype == slot.dtype == t.reverse.dtype == np.int32
        assert table.shape[0] == nodes and slot.shape == t.reverse.shape == (edges,)
        for node in range(nodes):
            meeting = [e for e, end in enumerate(ends) if end[side] == node]
            assert sorted(table[node].tolist()) == sorted(
                meeting + (table.shape[1] - len(meeting)) * [edges]
            )
        flat = table.reshape(-1)
        np.testing.assert_array_equal(flat[slot[:n_edge]], np.arange(n_edge))
        assert (slot[n_edge:] == flat.size).all()
    number = {end: e for e, end in enumerate(ends)}
    assert len(number) == n_edge
    for e, (j, i, *shift) in enumerate(ends):
        assert t.reverse[e] == number.get((i, j, *(-x for x in shift)), edges)
    assert (t.reverse[n_edge:] == edges).all()


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize(
    "neighborhood",
    [Neighborhood(3.0), Neighborhood(5.0, 4), Neighborhood(5.0, 4, symmetric=True)],
)
def test_triplets_against_a_loop(neighborhood, pad):
    structures = three_structures(neighborhood)
    budget = single_budget(structures, triplets=True) if pad else None
    batch = batch_graphs(structures, budget=budget, neighborhood=ANGLES)
    check_triplets(batch, sum(len(s.graph.senders) for s in structures))
    slots = batch.triplets.in_edges.shape[1], batch.triplets.out_edges.shape[1]
    sizes = sizes_of(structures)
    if pad:
        assert slots == (budget.in_slots, budget.out_slots)
    else:
        assert slots == (sizes.in_slots.max(), sizes.out_slots.max())
    missing = (batch.triplets.reverse == len(batch.graph.senders)).sum()
    cut_in_one_direction = neighborhood.max_neighbors and not neighborhood.symmetric
    assert (missing > batch.graph.n_edge[3:].sum()) == bool(cut_in_one_direction)


def test_triplets_of_an_atom_and_its_images():
    copper = ase.build.bulk("Cu")
    structure = structure_from_atoms(copper, 3.0)
    batch = batch_graphs([structure], neighborhood=ANGLES)
    assert batch.triplets.in_edges.shape == batch.triplets.out_edges.shape == (1, 12)
    check_triplets(batch, 12)
    # No edge is its own reverse.
    assert (batch.triplets.reverse != np.arange(12)).all()


def test_triplets_without_edges():
    lone = [structure_from_atoms(ase.Atoms("He"), 3.0)]
    for budget in (None, single_budget(lone, triplets=True)):
        check_triplets(batch_graphs(lone, budget=budget, neighborhood=ANGLES), 0)


def test_budgets_too_small_for_far_edges_or_slots():
    structures = three_structures(EVERYTHING)
    fits, sizes = single_budget(structures, triplets=True), sizes_of(structures)
    assert batch_graphs(structures, budget=fits).triplets is None
    far = int(sizes.n_far.sum())
    for small, sentence in (
        ({"n_far": far - 1}, f"{far} far edges"),
        ({"in_slots": int(sizes.in_slots.max()) - 1}, f"{sizes.in_slots.max()} edges into"),
        ({"out_slots": int(sizes.out_slots.max()) - 1}, f"{sizes.out_slots.max()} out of"),
    ):
        with pytest.raises(InputError, match=f"{sentence}.* is larger than the largest"):
            batch_graphs(structures, budget=fits._replace(**small), neighborhood=ANGLES)
    with pytest.raises(InputError, match="triplets need slots, but the budget has none"):
        batch_graphs(structures, budget=single_budget(structures), neighborhood=ANGLES)


# -- masks, norms and layouts on the device --------------------------------------------------


def padded_batch():
    structures = three_structures()
    return batch_graphs(structures, budget=Budget(25, 1024, 6, 11)), 18


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
    graph = structure_from_atoms(atoms, 4.0, np.float64).graph
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
