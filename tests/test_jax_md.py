"""Models in jax-md: the calculator's energies, forces and stress, and simulations with them."""

import re
import sys
import textwrap

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import units
from ase.stress import voigt_6_to_full_3x3_stress
from jax_md import energy as jax_md_energy
from jax_md import quantity, simulate, space
from structures import generic_crystal, generic_molecule, quick_compilation
from tiny import drawn, tiny

import ewald_jax
from ewald_jax.calculator import EwaldCalculator
from ewald_jax.data.statistics import Statistics
from ewald_jax.graph import structure_from_atoms
from ewald_jax.interop import jax_md_neighbor_list

__all__ = ["quick_compilation"]

# jax-md's own: integers of its lists with x64, sums in float64 without.
pytestmark = [
    pytest.mark.filterwarnings("ignore:scatter inputs have incompatible:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Explicitly requested dtype:UserWarning"),
]

STATISTICS = Statistics(tuple(-0.1 * z for z in range(119)), mean=1.5, scale=0.3)


@pytest.fixture(autouse=True)
def as_jax_md_needs(quick_compilation):
    """It relies on implicit rank promotion, which the suite else refuses."""
    with jax.numpy_rank_promotion("allow"):
        yield


def crystal():
    """64 atoms of rock salt in a sheared cell, one atom far from the others' images."""
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.2, cubic=True).repeat(2)
    shear = [[1.0, 0.0, 0.0], [0.05, 1.02, 0.0], [-0.03, 0.04, 0.99]]
    atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
    atoms.rattle(0.05, seed=2)
    atoms.positions[5] += [2, -1, 1] @ atoms.cell.array
    return atoms


STRUCTURES = {
    "molecule": generic_molecule,
    "crystal": crystal,
    # 5.6 Å, needs more images than the nearest.
    "small": generic_crystal,
}


def network(name="schnet", **fields):
    model = tiny(name, **{"ewald": {"k_cutoff": 1.2}, "cutoff": 4.5} | fields)
    return model, drawn(model, ewald_jax.batch_from_atoms([generic_molecule()], model))


def in_float64(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("schnet", "molecule", {}),
        ("painn", "molecule", {"dr_threshold": 0.5}),
        ("schnet", "crystal", {}),
        ("painn", "crystal", {"dr_threshold": 0.4}),
    ],
)
def test_energies_and_forces_are_the_calculators(x64, name, kind, options):
    # Without the envelope of its bias, edges beyond the cutoff would count.
    fields = {"smooth_cutoff": False} if name == "painn" else {}
    model, params = network(name, **fields)
    params, atoms = in_float64(params), STRUCTURES[kind]()
    calc = EwaldCalculator(model, params, STATISTICS)
    neighbor_fn, energy_fn = jax_md_neighbor_list(
        model, params, atoms, STATISTICS, **options
    )
    neighbors = neighbor_fn.allocate(jnp.asarray(atoms.positions))

    @jax.jit
    def update_and_evaluate(position, neighbors):
        neighbors = neighbors.update(position)
        return jax.value_and_grad(energy_fn)(position, neighbor=neighbors), neighbors

    for seed in (1, 2):
        atoms.rattle(0.05, seed=seed)
        position = jnp.asarray(atoms.positions)
        (energy, slope), neighbors = update_and_evaluate(position, neighbors)
        assert not neighbors.did_buffer_overflow
        assert energy == pytest.approx(calc.get_potential_energy(atoms), abs=1e-6)
        np.testing.assert_allclose(-slope, calc.get_forces(atoms), atol=1e-6)
    assert update_and_evaluate._cache_size() == 1


@pytest.mark.parametrize("kind", ["crystal", "small"])
def test_boxes_and_fractional_coordinates(x64, kind):
    model, params = network(num_interactions=1, cutoff=4.9 if kind == "crystal" else 4.5)
    params, atoms = in_float64(params), STRUCTURES[kind]()
    # Lists of all images see that a box has changed.
    options = {"fractional_coordinates": True, "dr_threshold": 0.3 * (kind == "small")}
    neighbor_fn, energy_fn = jax_md_neighbor_list(
        model, params, atoms, STATISTICS, **options
    )

    @jax.jit
    def evaluate(position, neighbors, box):
        neighbors = neighbors.update(position, box=box)
        given = {"neighbor": neighbors, "box": box}
        slope = jax.grad(energy_fn)(position, **given)
        stress = quantity.stress(energy_fn, position, **given)
        return energy_fn(position, **given), -slope, stress, neighbors.did_buffer_overflow

    scaled = atoms.get_scaled_positions(wrap=False)
    neighbors = neighbor_fn.allocate(jnp.asarray(scaled))
    # A strained box, as npt has it.
    strain = [[1.01, 0.004, 0.0], [0.0, 0.995, 0.003], [0.0, 0.0, 1.02]]
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    atoms.calc = EwaldCalculator(model, params, STATISTICS)
    box = atoms.cell.array.T
    energy, forces, stress, overflow = evaluate(scaled, neighbors, box)
    assert not overflow
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-6)
    expected = voigt_6_to_full_3x3_stress(atoms.get_stress())
    np.testing.assert_allclose(-(stress + stress.T) / 2, expected, atol=1e-8)
    # Beyond the wave vectors; and, nearest images, below twice the cutoff.
    sizes = [1.1, 0.92] if kind == "crystal" else [1.1]
    for size in sizes:
        energy, forces, _, _ = evaluate(scaled, neighbors, size * box)
        assert np.isnan(energy)
        assert np.isnan(forces).any()


def lennard_jones(displacement, box):
    """A repulsion that keeps atoms apart, from the same list of neighbors."""
    found = jax_md_energy.lennard_jones_neighbor_list(
        displacement, box, sigma=2.6, epsilon=0.4, r_onset=3.5, r_cutoff=4.5
    )
    return found[1]


def test_energy_is_kept(x64):
    model, params = network(num_interactions=1)
    params["ewald_filter"]["channels"] *= 0.1
    atoms = crystal()
    neighbor_fn, energy_fn = jax_md_neighbor_list(
        model, in_float64(params), atoms, STATISTICS, dr_threshold=0.5
    )
    box, start = jnp.asarray(atoms.cell.array.T), jnp.asarray(atoms.positions)
    displacement, shift = space.periodic_general(box, fractional_coordinates=False)
    repulsion = lennard_jones(displacement, box)

    def total(position, neighbor, **kwargs):
        return energy_fn(position, neighbor, **kwargs) + repulsion(position, neighbor)

    neighbors = neighbor_fn.allocate(start)
    init, apply = simulate.nve(total, shift, units.fs)

    @jax.jit
    def run(neighbors):
        mass = jnp.asarray(atoms.get_masses())
        state = init(jax.random.key(0), start, 300 * units.kB, mass, neighbor=neighbors)

        def step(carry, _):
            state, neighbors = carry
            neighbors = neighbors.update(state.position)
            state = apply(state, neighbor=neighbors)
            kinetic = quantity.kinetic_energy(momentum=state.momentum, mass=state.mass)
            return (state, neighbors), (total(state.position, neighbors), kinetic)

        return jax.lax.scan(step, (state, neighbors), length=50)

    (state, neighbors), (potential, kinetic) = run(neighbors)
    assert not neighbors.did_buffer_overflow
    assert np.ptp(kinetic) > 0.1
    assert np.ptp(potential + kinetic) < 0.01 * np.ptp(kinetic)


def test_the_example_runs(monkeypatch):
    model, params = network(num_interactions=1, cutoff=5.0)
    found = model, params, None, Statistics(scale=0.01)
    monkeypatch.setattr(ewald_jax, "load_checkpoint", lambda _: found, raising=False)
    text = sys.modules[jax_md_neighbor_list.__module__].__doc__
    code = textwrap.dedent(re.search(r"::\n\n(.*?)\n\n\S", text, re.S).group(1))
    names = {"ase": ase, "ewald_jax": ewald_jax, "jax": jax, "jnp": jnp, "units": units}
    names["jax_md_neighbor_list"] = jax_md_neighbor_list
    exec(code, names)
    assert np.isfinite(names["state"].position).all()
    assert np.abs(names["state"].position - names["start"]).max() > 0.01


@pytest.mark.slow
def test_constant_pressure(x64):
    model, params = network(num_interactions=1)
    atoms = crystal()
    neighbor_fn, energy_fn = jax_md_neighbor_list(
        model,
        in_float64(params),
        atoms,
        Statistics(scale=0.01),
        fractional_coordinates=True,
    )
    box = jnp.asarray(atoms.cell.array.T)
    _, shift = space.periodic_general(box)
    bath = units.fs, 1.0 * units.GPa, 300 * units.kB
    init, apply = simulate.npt_nose_hoover(energy_fn, shift, *bath)
    start = jnp.asarray(atoms.get_scaled_positions())
    neighbors = neighbor_fn.allocate(start)

    @jax.jit
    def run(neighbors):
        mass = jnp.asarray(atoms.get_masses())
        state = init(jax.random.key(0), start, box, mass=mass, neighbor=neighbors)

        def step(_, carry):
            state, neighbors = carry
            box = simulate.npt_box(state)
            neighbors = neighbors.update(state.position, box=box)
            return apply(state, neighbor=neighbors), neighbors

        return jax.lax.fori_loop(0, 10, step, (state, neighbors))

    state, neighbors = run(neighbors)
    assert not neighbors.did_buffer_overflow
    volume = np.linalg.det(simulate.npt_box(state))
    assert np.isfinite(volume)
    assert abs(volume / atoms.get_volume() - 1) > 1e-6


@pytest.mark.parametrize("kind", ["molecule", "crystal", "large"])
def test_lists_have_the_pairs_of_a_fresh_search(kind):
    # For 512 atoms, jax-md's cells, six to a side.
    model = tiny("schnet", cutoff=3.0 if kind == "large" else 4.5)
    atoms = STRUCTURES["crystal" if kind == "large" else kind]()
    if kind == "large":
        atoms = atoms.repeat(2)
        atoms.positions[::7] -= [1, 1, -2] @ atoms.cell.array
    neighbor_fn, _ = jax_md_neighbor_list(model, {}, atoms)
    neighbors = neighbor_fn.allocate(jnp.asarray(atoms.positions))
    assert (neighbors.cell_list_fn is not None) == (kind == "large")
    senders, receivers = np.asarray(neighbors.idx)
    graph = structure_from_atoms(atoms, model.cutoff).graph
    found = receivers < len(atoms)
    assert found.sum() == len(graph.senders)
    np.testing.assert_array_equal(receivers[found], graph.receivers)
    pairs = np.stack([receivers[found], senders[found]], 1).tolist()
    expected = np.stack([graph.receivers, graph.senders], 1).tolist()
    assert sorted(pairs) == sorted(expected)


@pytest.mark.parametrize("kind", ["molecule", "crystal", "small"])
def test_overflow_is_reported(kind):
    atoms = STRUCTURES[kind]()
    model, full = tiny("schnet", cutoff=3.0), {"capacity_multiplier": 1.0}
    neighbor_fn, _ = jax_md_neighbor_list(model, {}, atoms, **full)
    position = jnp.asarray(atoms.positions)
    neighbors = neighbor_fn.allocate(position)
    assert not neighbors.update(position).did_buffer_overflow
    # All atoms next to each other: every pair is within the cutoff.
    crowded = 0.1 * position
    assert neighbors.update(crowded).did_buffer_overflow
    assert not neighbor_fn.allocate(crowded).did_buffer_overflow


def slab():
    return ase.build.fcc111("Cu", size=(2, 2, 2), vacuum=6.0)


REFUSED = {
    "partly periodic": ("schnet", {}, slab, {}, "no partly periodic space"),
    "nearest": ("schnet", {}, generic_crystal, {"multi_image": False}, "at least 9 Å"),
    "angles": ("dimenetpp", {}, generic_molecule, {}, "tables of angles"),
    "angles too": ("gemnet_t", {}, generic_molecule, {}, "GemNetT needs tables of angles"),
    "atomic": ("schnet", {"atomic": {}}, generic_molecule, {}, "expected atomic: null"),
    "limit": ("painn", {"max_neighbors": 9}, generic_molecule, {}, "max_neighbors: 9"),
    "direct": ("painn", {"direct_forces": True}, generic_molecule, {}, "direct_forces"),
    "skin": ("schnet", {}, generic_molecule, {"dr_threshold": -1}, "dr_threshold must"),
    "stretch": (
        "schnet",
        {},
        crystal,
        {"max_stretch": 0.9},
        "max_stretch must be at least",
    ),
    "empty": ("schnet", {}, ase.Atoms, {}, "has no atoms"),
    "lattice": (
        "schnet",
        {"ewald": {"scheme": "lattice"}},
        generic_molecule,
        {},
        "scheme 'lattice' needs",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case):
    name, fields, atoms, options, message = REFUSED[case]
    model = tiny(name, **{"cutoff": 4.5, "ewald": {"k_cutoff": 1.2}} | fields)
    with pytest.raises(ewald_jax.InputError, match=message):
        jax_md_neighbor_list(model, {}, atoms(), **options)


def test_unseen_elements_are_refused():
    statistics = Statistics(species=(1, 6))
    with pytest.raises(
        ewald_jax.InputError, match="has the element O, which the training data"
    ):
        jax_md_neighbor_list(tiny("schnet"), {}, generic_molecule(), statistics)


def test_a_box_with_a_skin_is_refused():
    model = tiny("schnet", cutoff=4.5)
    neighbor_fn, _ = jax_md_neighbor_list(model, {}, crystal(), dr_threshold=0.1)
    position, box = jnp.asarray(crystal().positions), crystal().cell.array.T
    with pytest.raises(ewald_jax.InputError, match="needs dr_threshold: 0"):
        neighbor_fn.allocate(position, box=box)


def test_without_jax_md(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax_md", None)
    with pytest.raises(ewald_jax.InputError, match=r"pip install 'ewald_jax\[jax-md\]'"):
        jax_md_neighbor_list(tiny("schnet"), {}, generic_molecule())
