"""Neighbor lists and graphs of single structures."""

import tracemalloc

import ase
import ase.build
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from structures import as_dict, generic_molecule, heights, random_cell

from ewald_jax import batch_from_atoms, build_model
from ewald_jax.graph import (
    Neighborhood,
    graph_from_atoms,
    neighbor_list,
    structure_from_atoms,
)
from ewald_jax.graph.neighbors import nearest, symmetrised
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


@given(structures(), st.integers(1, 12))
def test_symmetrised_keeps_whole_pairs(structure, max_neighbors):
    positions, cell, pbc, cutoff = structure
    every = neighbor_list(positions, cell, pbc, cutoff)
    for a, b in zip(symmetrised(every), every, strict=True):  # nothing was cut
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    cut = neighbor_list(positions, cell, pbc, cutoff, max_neighbors)
    whole = symmetrised(cut)
    chosen = set(as_dict(whole, positions, cell))
    assert {(i, j, -a, -b, -c) for j, i, a, b, c in chosen} == chosen
    # One direction of each pair decides, that from the lower index or the earlier image.
    first = {key for key in as_dict(cut, positions, cell) if key[0] < key[1]}
    first |= {
        (j, i, *shift)
        for j, i, *shift in as_dict(cut, positions, cell)
        if j == i and shift < [0, 0, 0]
    }
    assert chosen == first | {(i, j, -a, -b, -c) for j, i, a, b, c in first}
    keys = np.column_stack([whole.shifts[:, ::-1], whole.senders, whole.receivers])
    np.testing.assert_array_equal(np.lexsort(keys.T), np.arange(len(keys)))


def test_symmetrised_atom_with_its_own_images():
    cut = neighbor_list(np.zeros((1, 3)), np.eye(3), [False, False, True], 3.5, 3)
    assert sorted(cut.shifts[:, 2].tolist()) == [-2, -1, 1]  # 2 is as near, but later
    assert symmetrised(cut).shifts[:, 2].tolist() == [-2, -1, 1, 2]


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


def test_structure_has_the_edges_of_its_neighborhood(crystal):
    wide = Neighborhood(5.0, 8, symmetric=True, far_cutoff=9.0, far_max_neighbors=40)
    graph, far, _ = structure_from_atoms(crystal, wide)
    cell, pbc = crystal.cell.array, crystal.pbc
    expected = symmetrised(neighbor_list(crystal.positions, cell, pbc, 5.0, 8))
    np.testing.assert_array_equal(graph.senders, expected.senders)
    np.testing.assert_array_equal(graph.edges["shifts"], expected.shifts)
    expected = neighbor_list(crystal.positions, cell, pbc, 9.0, 40)
    for got, values in zip(far, expected[:3], strict=True):
        np.testing.assert_array_equal(got, values)
    assert structure_from_atoms(crystal, 4.0).far_edges is None
    one_way = structure_from_atoms(crystal, Neighborhood(5.0, 8)).graph
    assert one_way.n_edge[0] == 64 != graph.n_edge[0]


def test_neighborhoods_with_equal_edges():
    same = Neighborhood(4.0).edge_fields()
    for other in (
        Neighborhood.of(4),
        Neighborhood.of(Neighborhood(4.0, triplets=True)),
        Neighborhood(4.0, symmetric=True),
        Neighborhood(4.0, far_max_neighbors=3),
    ):
        assert other.edge_fields() == same
    for other in (
        Neighborhood.of(4.5),
        Neighborhood(4.0, 3),
        Neighborhood(4.0, far_cutoff=6.0),
    ):
        assert other.edge_fields() != same
    assert Neighborhood(4.0, 3).edge_fields() != Neighborhood(4.0, 3, True).edge_fields()
    for wrong, sentence in (
        ({"cutoff": 0.0}, "cutoff must be finite and larger than 0 Å, not 0.0"),
        ({"cutoff": 4.0, "far_cutoff": np.inf}, "cutoff must be .*, not inf"),
        ({"cutoff": 4.0, "far_max_neighbors": 0}, "max_neighbors must be at least 1"),
    ):
        with pytest.raises(InputError, match=sentence):
            Neighborhood(**wrong)


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


def lattice(count, spacing, **settings):
    places = np.stack(np.meshgrid(*[np.arange(count)] * 3), -1).reshape(-1, 3)
    return ase.Atoms(np.ones(len(places), int), places * spacing, **settings)


CROWDED = {
    "in one place": (
        ase.Atoms(np.ones(50_000, int), np.full((50_000, 3), 0.05)),
        "atoms 0 and 1 at 0.000 Å and 49999 atoms in all as close to others, expected at",
    ),
    "in images of one place": (
        ase.Atoms(
            np.ones(20_000, int),
            5.0 * np.arange(60_000).reshape(-1, 3) + 1.0,
            cell=[5] * 3,
            pbc=True,
        ),
        "at 0.000 Å and 19999 atoms in all",
    ),
    "too dense": (
        lattice(25, 0.35),
        "neighbors per atom within 4 Å .15625 atoms., expected at most 332",
    ),
    "in a tiny cell": (
        ase.Atoms("H", cell=[2e-3] * 3, pbc=True),
        r"some 3.35e\+10 neighbors per atom",
    ),
}


@pytest.mark.parametrize("name", CROWDED)
def test_crowds_are_refused_before_their_neighbors_are_listed(name):
    atoms, expected = CROWDED[name]
    tracemalloc.start()
    with pytest.raises(InputError, match=expected):
        graph_from_atoms(atoms, 4.0)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    with pytest.raises(InputError, match="within 4 Å|as close to others"):
        structure_from_atoms(atoms, Neighborhood(1e-3, far_cutoff=4.0))


@pytest.mark.parametrize("pbc", [False, True, (True, False, True)])
def test_the_densest_matter_is_no_crowd(pbc):
    """Diamond pressed to twice its density, its estimate compared with its neighbors."""
    atoms = ase.build.bulk("C", "diamond", a=2.83, cubic=True) * (5, 5, 5)
    atoms.pbc = pbc
    graph = graph_from_atoms(atoms, 6.5)
    assert graph.n_edge[0] > 2e5
    if pbc is True:
        expected = 1000 * 8 / 2.83**3 * 4 / 3 * np.pi * 6.5**3
        assert abs(graph.n_edge[0] / expected - 1) < 0.05
    single = ase.build.bulk("C", "diamond", a=2.83)
    assert graph_from_atoms(single, 16.0).n_edge[0] > 10_000
