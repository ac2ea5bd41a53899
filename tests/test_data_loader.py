"""The loader: every structure once, the same order again, and nothing left running."""

import threading
import time

import ase
import jax
import jraph
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from hypothesis import given, settings
from hypothesis import strategies as st

from ewald_jax.data import Loader, Statistics, dataset_from_atoms, dataset_statistics
from ewald_jax.graph import Budget, Neighborhood, batch_graphs, choose_budget
from ewald_jax.typing import InputError


def structures(sizes, seed=0, fixed=True):
    rng = np.random.default_rng(seed)
    out = []
    for number, size in enumerate(sizes):
        atoms = ase.Atoms(
            numbers=rng.integers(1, 9, size), cell=np.eye(3) * 30, pbc=number % 2
        )
        atoms.positions = np.arange(size)[:, None] * np.array([1.1, 0.4, 0.2])
        if fixed:
            atoms.set_constraint(FixAtoms([0]))
        results = {
            "energy": -1e5 - number / 7,
            "forces": rng.normal(size=(size, 3)),
            "stress": rng.normal(size=6),
        }
        atoms.calc = SinglePointCalculator(atoms, **results)
        out.append(atoms)
    return out


@pytest.fixture(scope="module")
def dataset():
    sizes = np.random.default_rng(1).integers(1, 9, 23)
    return dataset_from_atoms(structures(sizes), 2.5)


def numbers_of(batches):
    """Which structures batches hold, by their energies."""
    out = []
    for batch in batches:
        real = np.flatnonzero(batch.targets["energy"])
        out += np.rint((-1e5 - batch.targets["energy"][real]) * 7).astype(int).tolist()
    return out


def loader_of(dataset, **settings):
    return Loader(dataset, **{"dtype": np.float64, "batch_size": 5, **settings})


def leaves_equal(a, b):
    leaves_a, tree_a = jax.tree.flatten(a)
    leaves_b, tree_b = jax.tree.flatten(b)
    return tree_a == tree_b and all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in zip(leaves_a, leaves_b, strict=True)
    )


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=20),
    batch_size=st.integers(1, 25),
    seed=st.one_of(st.none(), st.integers(0, 99)),
    prefetch=st.integers(0, 3),
    data=st.data(),
)
def test_every_structure_once_and_resume(sizes, batch_size, seed, prefetch, data):
    dataset = dataset_from_atoms(structures(sizes), 2.0)
    loader = loader_of(dataset, batch_size=batch_size, shuffle_seed=seed, prefetch=prefetch)
    batches = list(loader.epoch(3))
    assert len(batches) == loader.num_batches == -(-len(sizes) // batch_size)
    assert sorted(numbers_of(batches)) == list(range(len(sizes)))
    assert numbers_of(batches) == loader.order(3).tolist()
    start = data.draw(st.integers(0, loader.num_batches))
    tail = list(loader.epoch(3, start))
    assert len(tail) == loader.num_batches - start
    for a, b in zip(batches[start:], tail, strict=True):
        assert leaves_equal(a, b)


def test_epochs_differ_and_repeat(dataset):
    loader = loader_of(dataset, shuffle_seed=7)
    orders = [numbers_of(loader.epoch(epoch)) for epoch in (0, 1, 0)]
    assert orders[0] == orders[2] != orders[1]
    assert orders[0] != numbers_of(loader_of(dataset, shuffle_seed=8).epoch(0))
    plain = loader_of(dataset)
    assert numbers_of(plain.epoch(0)) == numbers_of(plain.epoch(1)) == list(range(23))


def test_only_the_structures_asked_for(dataset):
    loader = loader_of(dataset, indices=[4, 2, 9], batch_size=2)
    assert numbers_of(loader.epoch()) == [4, 2, 9]
    assert loader.num_batches == 2


def test_a_batch_is_batch_graphs_of_the_samples(dataset):
    loader = loader_of(dataset, indices=np.arange(6), batch_size=3)
    for number, batch in enumerate(loader.epoch()):
        samples = [dataset[3 * number + i] for i in range(3)]
        structures = [sample.structure for sample in samples]
        targets = [sample.targets for sample in samples]
        budget = next(
            b for b in loader.budgets if len(batch.graph.nodes["species"]) == b.n_node
        )
        assert leaves_equal(batch, batch_graphs(structures, targets, budget))
        assert set(batch.targets) == {"energy", "forces", "stress", "free"}


def test_shapes_are_those_of_the_budgets(dataset):
    loader = Loader(dataset, batch_size=4, shuffle_seed=0, max_buckets=3)
    shapes = set()
    for epoch in range(20):
        for batch in loader.epoch(epoch):
            shapes.add(
                (
                    len(batch.graph.nodes["species"]),
                    len(batch.graph.senders),
                    len(batch.graph.n_node),
                    batch.dense_index.shape[1],
                )
            )
    assert shapes <= {budget[:4] for budget in loader.budgets}
    assert len(loader.budgets) <= 3


def test_energies_are_subtracted_before_the_cast(dataset):
    statistics = dataset_statistics(dataset, np.arange(len(dataset)))
    statistics = Statistics(
        statistics.reference_energies, mean=-3.25, scale=17.0, species=statistics.species
    )
    loader = Loader(dataset, statistics=statistics, batch_size=5, shuffle_seed=1)
    for number, batch in enumerate(loader.epoch()):
        assert batch.targets["energy"].dtype == np.float32
        indices = loader.order(0)[5 * number : 5 * number + 5]
        expected = [
            dataset.energies[i] + 3.25 - statistics.reference(dataset.species(i))
            for i in indices
        ]
        got = batch.targets["energy"]
        # Energies of 1e5 eV in float32 would be off by 8e-3.
        np.testing.assert_allclose(got[: len(indices)], expected, rtol=1e-6, atol=1e-6)
        assert not got[len(indices) :].any()
        raw = dataset[indices[0]].targets["forces"]
        np.testing.assert_allclose(batch.targets["forces"][: len(raw)], raw, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_of_all_floats(dataset, dtype):
    batch = next(Loader(dataset, dtype=dtype).epoch())
    leaves = jax.tree.leaves(batch)
    assert all(isinstance(leaf, np.ndarray) for leaf in leaves)
    floats = {leaf.dtype for leaf in leaves if leaf.dtype.kind == "f"}
    assert floats == {np.dtype(dtype)}
    integers = {leaf.dtype for leaf in leaves if leaf.dtype.kind == "i"}
    assert integers == {np.dtype(np.int32)}


def test_too_large_a_structure_is_named(dataset):
    largest = int(np.argmax(dataset.n_node))
    atoms, edges = int(dataset.n_node.max()), int(dataset.n_edge.max())
    small = Budget(4 * atoms, 8 * edges, 6, atoms - 1)
    with pytest.raises(InputError, match=f"structures: structure {largest} is larger than"):
        Loader(dataset, batch_size=5, budgets=[small])
    with pytest.raises(InputError, match=f": {edges} edges, expected at most 3"):
        Loader(dataset, [largest], budgets=[Budget(99, 3, 6, 99)])
    Loader(dataset, batch_size=1, budgets=[Budget(atoms + 1, edges, 2, atoms)])
    # Each fits, but not five at once.
    tight = Loader(dataset, batch_size=5, budgets=[Budget(atoms + 1, edges, 6, atoms)])
    with pytest.raises(InputError, match="a batch of 5 structures with .* is larger than"):
        list(tight.epoch())


@pytest.fixture(scope="module")
def everything():
    """With far edges and triplets."""
    sizes = np.random.default_rng(2).integers(1, 9, 14)
    wide = Neighborhood(2.5, 4, True, triplets=True, far_cutoff=5.0)
    return dataset_from_atoms(structures(sizes), wide)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_far_edges_and_triplets_are_passed_on(everything, batch_size):
    loader = loader_of(everything, batch_size=batch_size, shuffle_seed=3)
    for number, batch in enumerate(loader.epoch()):
        indices = loader.order(0)[batch_size * number : batch_size * (number + 1)]
        samples = [everything[index] for index in indices]
        budget = choose_budget(loader.budgets, everything.sizes.take(indices))
        direct = batch_graphs(
            [s.structure for s in samples],
            [s.targets for s in samples],
            budget,
            everything.neighborhood,
        )
        assert leaves_equal(batch, direct)
        assert batch.far_edges.senders.shape == (budget.n_far,)
        assert batch.triplets.in_edges.shape == (budget.n_node, budget.in_slots)
        assert batch.triplets.out_edges.shape == (budget.n_node, budget.out_slots)


def test_all_that_a_structure_needs_is_checked(everything):
    fits = Loader(everything, batch_size=1).budgets[-1]
    sizes = everything.sizes
    for field, counts, words in (
        ("n_far", sizes.n_far, "far edges"),
        ("in_slots", sizes.in_slots, "edges into one atom"),
        ("out_slots", sizes.out_slots, "edges out of one atom"),
    ):
        most, first = counts.max(), int(np.argmax(counts))
        budget = fits._replace(**{field: int(most) - 1})
        sentence = f"structure {first} is larger than .*: {most} {words}, expected at most"
        with pytest.raises(InputError, match=sentence):
            Loader(everything, batch_size=1, budgets=[budget])


def test_a_data_set_for_another_model_is_refused(dataset, everything):
    with_triplets = dataset.suited_to(Neighborhood(2.5, triplets=True))
    assert next(Loader(with_triplets).epoch()).triplets is not None
    assert next(Loader(dataset).epoch()).triplets is None
    for given_set, needed, sentence in (
        (dataset, Neighborhood(3.0), "cutoff = 2.5, but the model needs 3.0"),
        (dataset, Neighborhood(2.5, 4), "max_neighbors = None, but the model needs 4"),
        (
            dataset,
            Neighborhood(2.5, None, far_cutoff=5.0),
            "far_cutoff = None, but the .* 5",
        ),
        (everything, Neighborhood(2.5, 4), "symmetric = True, but the model needs False"),
        (everything, Neighborhood(2.5, 4, True), "far_cutoff = 5.0, but the .* needs None"),
    ):
        with pytest.raises(InputError, match=sentence):
            given_set.suited_to(needed)


def test_nothing_to_load(dataset):
    with pytest.raises(InputError, match="at least one structure, the split is empty"):
        Loader(dataset, indices=[])
    with pytest.raises(InputError, match="batch_size is 0, expected at least 1"):
        Loader(dataset, batch_size=0)


def threads():
    return [t for t in threading.enumerate() if t.name == "ewald_jax-loader"]


def test_the_thread_ends_with_its_consumer(dataset):
    loader = loader_of(dataset, batch_size=1)
    assert not threads()
    batches = loader.epoch()
    assert not threads(), "nothing was asked for yet"
    next(batches)
    assert len(threads()) == 1
    batches.close()
    assert not threads()
    for _ in loader.epoch():
        break
    assert not threads()
    with pytest.raises(KeyError):
        for _ in loader.epoch():
            raise KeyError
    # The traceback held the iterator until here.
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()
    list(loader.epoch())
    assert not threads()
    del batches


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_an_error_in_the_thread_reaches_the_consumer(dataset, monkeypatch, prefetch):
    loader = loader_of(dataset, prefetch=prefetch)
    good = loader._batch
    calls = []

    def bad(indices):
        calls.append(indices)
        if len(calls) == 3:
            raise InputError("the disk is gone")
        return good(indices)

    monkeypatch.setattr(loader, "_batch", bad)
    seen = []
    with pytest.raises(InputError, match="the disk is gone"):
        for batch in loader.epoch():
            seen.append(batch)
    assert len(seen) == 2 and not threads()


def test_no_more_is_made_than_asked_for(dataset, monkeypatch):
    loader = loader_of(dataset, batch_size=1, prefetch=2)
    good, made = loader._batch, []

    def counted(indices):
        made.append(indices)
        return good(indices)

    monkeypatch.setattr(loader, "_batch", counted)
    batches = loader.epoch()
    next(batches)
    time.sleep(0.3)
    # One taken, two waiting, one in the thread's hands.
    assert len(made) <= 4
    batches.close()


def test_two_epochs_at_once(dataset):
    loader = loader_of(dataset, shuffle_seed=0)
    pairs = list(zip(loader.epoch(0), loader.epoch(1), strict=True))
    assert numbers_of(a for a, _ in pairs) == loader.order(0).tolist()
    assert numbers_of(b for _, b in pairs) == loader.order(1).tolist()


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_each_batch(count):
    """Every structure of a batch in one of them, and all of the same shape."""
    dataset = dataset_from_atoms(structures(range(2, 22)), 3.0)
    options = {"batch_size": 6, "shuffle_seed": 1, "max_buckets": 3, "prefetch": 0}
    alone = Loader(dataset, **options)
    parts = [Loader(dataset, process=(i, count), **options) for i in range(count)]
    batches = [list(part.epoch(2)) for part in parts]
    # 20 structures: three batches of 6, and two more, too few for three processes.
    assert {len(found) for found in batches} == {4 if count == 2 else 3}
    order = alone.order(2)
    for number, group in enumerate(zip(*batches, strict=True)):
        assert len({str(jax.tree.map(np.shape, batch)) for batch in group}) == 1
        masks = [jraph.get_graph_padding_mask(b.graph) for b in group]
        found = [n for b, m in zip(group, masks, strict=True) for n in b.graph.n_node[m]]
        wanted = dataset.n_node[order[6 * number : 6 * number + 6]]
        assert sorted(found) == sorted(wanted)
    with pytest.raises(InputError, match="at least 3, one for each of 3 processes"):
        Loader(dataset, batch_size=2, process=(0, 3))
