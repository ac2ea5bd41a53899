"""Verlet lists: the edges of a fresh search, one by one, for as long as the list holds."""

import ase
import ase.build
import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from structures import generic_crystal, generic_molecule, random_cell, rotation, transformed

from ewald_jax.graph import (
    Neighborhood,
    still_holds,
    structure_from_atoms,
    structure_from_list,
    verlet_list,
)
from ewald_jax.kspace.waves import WaveRule
from ewald_jax.typing import InputError

KINDS = {
    "all": Neighborhood(3.0),
    "nearest": Neighborhood(3.5, max_neighbors=4),
    "symmetric": Neighborhood(3.5, max_neighbors=4, symmetric=True),
    "far": Neighborhood(2.5, far_cutoff=4.5, far_max_neighbors=9),
}


def assert_same_edges(one, other):
    """Bit by bit: the same batch for a model, and so the same energy."""
    jax.tree.map(
        np.testing.assert_array_equal,
        one._replace(waves=None),
        other._replace(waves=None),
    )


@hypothesis.given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(sorted(KINDS)),
    pbc=st.tuples(*[st.booleans()] * 3),
)
def test_edges_are_those_of_a_fresh_search(seed, kind, pbc):
    rng = np.random.default_rng(seed)
    cell = random_cell(rng)
    atoms = ase.Atoms("H6", rng.uniform(0, 1, (6, 3)) @ cell, cell=cell, pbc=pbc)
    listed = verlet_list(atoms, KINDS[kind], 0.8)
    held = 0
    for _ in range(6):
        atoms.positions += rng.normal(scale=0.05, size=(6, 3))
        strain = np.eye(3) + rng.normal(scale=0.005, size=(3, 3))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        if not still_holds(listed, atoms):
            break
        held += 1
        try:
            fresh = structure_from_atoms(atoms, KINDS[kind], np.float64)
        except InputError:  # two of the random atoms touch
            with pytest.raises(InputError, match="expected at least 0.3 Å"):
                structure_from_list(listed, atoms, np.float64)
        else:
            assert_same_edges(structure_from_list(listed, atoms, np.float64), fresh)
    assert held > 0


def test_a_list_holds_up_to_half_its_skin():
    atoms = generic_crystal()
    listed = verlet_list(atoms, Neighborhood(4.0), 1.0)
    # Against each other, so that the mean stays.
    for distance, holds in ((0.49, True), (0.51, False)):
        there = atoms.copy()
        there.positions[0] += [distance, 0, 0]
        there.positions[1] -= [distance, 0, 0]
        assert still_holds(listed, there) == holds
    whole = atoms.copy()
    whole.positions += 7.0
    assert still_holds(listed, whole)
    assert still_holds(listed, transformed(atoms, rotation()))
    assert still_holds(listed, transformed(atoms, 1.1 * np.eye(3)))
    assert not still_holds(listed, transformed(atoms, 0.79 * np.eye(3)))


def test_a_list_is_of_one_structure():
    atoms = generic_crystal()
    listed = verlet_list(atoms, Neighborhood(4.0), 1.0)
    other = atoms.copy()
    other.numbers[0] = 3
    open_ = atoms.copy()
    open_.pbc = [True, True, False]
    for changed in (other, open_, atoms[:-1], atoms.repeat((2, 1, 1))):
        assert not still_holds(listed, changed)
    without = verlet_list(atoms, Neighborhood(4.0), 0.0)
    assert not still_holds(without, atoms)


def test_wave_vectors_hold_for_small_strains_only():
    rule = Neighborhood(4.0, waves=WaveRule(2.0, 0.3))
    crystal = generic_crystal()
    listed = verlet_list(crystal, rule, 3.0)
    assert still_holds(listed, transformed(crystal, 1.04 * np.eye(3)))
    # A vector from beyond the margin may now be within the cutoff.
    assert not still_holds(listed, transformed(crystal, 1.06 * np.eye(3)))
    slab = ase.build.fcc111("Cu", size=(2, 2, 2), vacuum=6.0)
    listed = verlet_list(slab, rule, 1.0)
    assert still_holds(listed, transformed(slab, 1.004 * np.eye(3)))
    assert not still_holds(listed, transformed(slab, 1.01 * np.eye(3)))


def test_quadratures_leave_room_for_motion():
    rule = Neighborhood(4.0, waves=WaveRule(2.0, 0.3))
    molecule = generic_molecule()
    listed = verlet_list(molecule, rule, 1.0)
    longer = molecule.copy()
    longer.positions *= 1.2
    fresh = structure_from_atoms(longer, rule, np.float64)
    assert listed.waves.num_quad >= fresh.waves.num_quad


@pytest.mark.parametrize("skin", [-0.1, np.nan, np.inf])
def test_a_skin_is_a_length(skin):
    with pytest.raises(InputError, match="skin must be a length of at least 0 Å"):
        verlet_list(generic_molecule(), Neighborhood(4.0), skin)
