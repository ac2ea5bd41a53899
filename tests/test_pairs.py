"""Filters computed once for the two edges of each pair of atoms."""

import dataclasses

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structures import generic_crystal, generic_molecule, quick_compilation  # noqa: F401
from tiny import tiny

from ewald_jax import ops
from ewald_jax.graph import (
    Neighborhood,
    batch_graphs,
    single_budget,
    sizes_of,
    structure_from_atoms,
)
from ewald_jax.graph.pairs import build_pairs
from ewald_jax.models import neighborhood
from ewald_jax.nn.atom_to_atom import AtomToAtomConfig
from ewald_jax.potential import init_params, model_outputs
from ewald_jax.typing import InputError

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

BOTH = Neighborhood(3.5, far_cutoff=5.0, pairs=True)


def structures_for(needed, dtype=np.float64):
    copper = ase.build.bulk("Cu")  # its only atom is paired with its own images
    atoms = [generic_molecule(), ase.Atoms("He"), generic_crystal(), copper]
    return [structure_from_atoms(a, needed, dtype) for a in atoms]


@pytest.mark.parametrize("pad", [0, 64, 65])
def test_the_two_edges_of_each_pair(pad):
    structures = structures_for(BOTH)
    budget = single_budget(structures)
    budget = budget._replace(n_edge=budget.n_edge + pad, n_far=budget.n_far + pad)
    batch = batch_graphs(structures, budget=budget if pad else None, neighborhood=BOTH)
    near = batch.graph.senders, batch.graph.receivers, batch.graph.edges["shifts"]
    vectors = np.asarray(ops.edge_vectors(batch.graph))
    of_both = (near, batch.pairs, None), (batch.far_edges, batch.far_pairs, batch.far_edges)
    for edges, pairs, far in of_both:
        senders, receivers, shifts = map(np.asarray, edges)
        first, second, pair = pairs
        assert len(first) == len(second) == -(-len(senders) // 2)
        assert all(x.dtype == np.int32 for x in pairs)
        np.testing.assert_array_equal(senders[first], receivers[second])
        np.testing.assert_array_equal(receivers[first], senders[second])
        np.testing.assert_array_equal(shifts[first], -shifts[second])
        np.testing.assert_array_equal(pair[first], np.arange(len(first)))
        np.testing.assert_array_equal(pair[second], np.arange(len(first)))
        assert (np.bincount(pair)[: len(senders) // 2] == 2).all()
        lengths = ops.pair_lengths(batch.graph, pairs, far)
        np.testing.assert_allclose(
            np.asarray(lengths)[pair], ops.pair_lengths(batch.graph, None, far), rtol=1e-12
        )
        if far is None:
            np.testing.assert_allclose(vectors[first], -vectors[second], atol=1e-12)


def test_pairs_are_listed_where_both_edges_are_there_by_construction():
    assert BOTH.near_pairs and BOTH.far_pairs
    cut = dataclasses.replace(BOTH, max_neighbors=4, far_max_neighbors=4)
    assert not cut.near_pairs and not cut.far_pairs
    assert dataclasses.replace(cut, symmetric=True).near_pairs
    assert not Neighborhood(3.0, pairs=True).far_pairs
    assert BOTH.edge_fields() == dataclasses.replace(BOTH, pairs=False).edge_fields()
    structures = structures_for(cut)
    sizes = sizes_of(structures_for(BOTH))
    most = int(sizes.in_slots.max())
    for limit, complete in ((most, False), (most + 1, True)):
        limited = dataclasses.replace(BOTH, max_neighbors=limit)
        assert limited.suited(sizes).near_pairs == complete and not limited.near_pairs
    batch = batch_graphs(structures, neighborhood=cut)
    assert batch.pairs is None and batch.far_pairs is None
    # One that claims to have all, and has not.
    with pytest.raises(InputError, match=r"from node \d+ to node \d+ has no reverse"):
        batch_graphs(structures, neighborhood=BOTH)


def test_no_edges_no_pairs():
    none, shifts = np.zeros(0, np.int32), np.zeros((0, 3), np.int32)
    assert [len(x) for x in build_pairs(none, none, shifts, 0)] == [0, 0, 0]
    lone = [structure_from_atoms(ase.Atoms("He"), 3.0)]
    batch = batch_graphs(lone, neighborhood=Neighborhood(3.0, pairs=True))
    assert ops.pair_lengths(batch.graph, batch.pairs).shape == (0,)


@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_a_network_is_the_same_with_and_without(name):
    """Energy, forces, stress, and the gradient of a loss of them."""
    model = tiny(name, atomic=AtomToAtomConfig(cutoff=5.0, num_gaussians=6, num_filters=8))
    needed = neighborhood(model)
    batch = batch_graphs(structures_for(needed), neighborhood=needed)
    without = batch._replace(pairs=None, far_pairs=None)
    assert batch.far_pairs is not None and (batch.pairs is None) == (name == "painn")
    params = init_params(model, jax.random.key(0), batch)

    def loss(params, batch):
        out = model_outputs(model, params, batch, forces=True, stress=True)
        return sum(jnp.sum(jnp.sin(x)) for x in (out.energy, out.forces, out.stress)), out

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, shared), gradient = step(params, batch)
    (_, alone), expected = step(params, without)
    for a, b in zip(jax.tree.leaves(shared), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)
