"""What the `radial` scheme promises, on every model in float64.

Each case evaluates a family of structures in one batch: molecules, crystals, slabs and wires
are all rows of the same arrays.
"""

import functools
import types

import ase
import ase.build
import numpy as np
import pytest
from ase.build.tools import niggli_reduce_cell
from structures import (
    REFLECTION,
    assert_close,
    generic_crystal,
    generic_molecule,
    moved,
    quick_compilation,  # noqa: F401
    rotation,
    transformed,
)
from tiny import drawn, tiny

import ewald_jax
from ewald_jax import kspace
from ewald_jax.graph.build import completed_cell
from ewald_jax.models import MODELS
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.typing import InputError

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

CUTOFF = 3.3
NO_COULOMB, ALL = ("dispersion",), ("coulomb", "dispersion")
# A tuple, so that the cases run side by side (tests/conftest.py).
every_model = pytest.mark.parametrize("case", [(name,) for name in MODELS], ids="-".join)


@functools.cache
def model_and_params(name, channels=ALL, equivariant=False, max_pair_nodes=1024):
    ewald = EwaldConfig(
        k_cutoff=1.2,
        num_k_rbf=5,
        channels=channels,
        bottleneck=3,
        equivariant=equivariant,
        max_pair_nodes=max_pair_nodes,
    )
    model = tiny(name, cutoff=CUTOFF, ewald=ewald)
    return model, drawn(model, ewald_jax.batch_from_atoms([generic_molecule()], model))


def evaluate(name, structures, stress=False, forces=True, tails=1.0, **options):
    model, params = model_and_params(name, **options)
    if tails != 1:
        filters = params["ewald_filter"]
        params = params | {
            "ewald_filter": filters | {"channels": tails * filters["channels"]}
        }
    batch = ewald_jax.batch_from_atoms(structures, model)
    out = ewald_jax.predict(model, params, batch, forces=forces, stress=stress)
    energy = np.asarray(out.energy)[: len(structures)]
    assert np.isfinite(energy).all()
    split = None
    if forces:
        ends = np.cumsum([len(atoms) for atoms in structures])
        split = np.split(np.asarray(out.forces)[: ends[-1]], ends[:-1])
        assert all(np.isfinite(rows).all() for rows in split)
    if stress:
        assert np.isfinite(out.stress).all()
    return types.SimpleNamespace(energy=energy, forces=split, stress=out.stress)


# -- molecules -------------------------------------------------------------------------------

MOLECULES = {name: ase.build.molecule(name) for name in ("CH4", "C6H6", "CO", "C60")}
MOLECULES["SF6"] = ase.Atoms("SF6", [[0, 0, 0], *(1.56 * np.eye(3)), *(-1.56 * np.eye(3))])
MOLECULES["atom"] = ase.Atoms("Ne", [[0.3, -0.2, 0.1]])


@every_model
def test_symmetric_molecules(case):
    """Where the frame of the paper's scheme is undefined."""
    order = np.random.default_rng(0).permutation
    structures, expected = [], []
    for number, atoms in enumerate(MOLECULES.values()):
        turn, permuted = rotation(number), order(len(atoms))
        for matrix, index in (
            (np.eye(3), slice(None)),
            (turn, slice(None)),
            (REFLECTION @ turn, slice(None)),
            (np.eye(3), permuted),
        ):
            structures.append(moved(transformed(atoms, matrix), [0.0, 9.0, -4.0])[index])
            expected.append((matrix, index))
    result = evaluate(case[0], structures)
    for n, (matrix, index) in enumerate(expected):
        first = n - n % 4
        assert_close(result.energy[n], result.energy[first], 1e-10, "energy")
        forces = result.forces[first][index] @ matrix
        # By symmetry some of these are zero.
        np.testing.assert_allclose(result.forces[n], forces, atol=1e-9)


@every_model
def test_far_apart_molecules_add_up(case):
    """To 1e-6 without the Coulomb channel, as 1 / distance with it."""
    one, two = generic_molecule(), ase.build.molecule("HCl")
    pairs = [one + moved(two, [distance, 0.0, 0.0]) for distance in (100.0, 200.0)]
    near = one + moved(two, [6.0, 0.0, 0.0])
    plain = evaluate(case[0], [one, two, near, *pairs], forces=False, channels=()).energy
    assert abs(plain[2] - plain[0] - plain[1]) > 1e-4
    np.testing.assert_allclose(plain[4], plain[0] + plain[1], rtol=1e-6)
    # A network that is not linear adds terms of higher order, which weak tails do not have.
    pairs += [one + moved(two, [distance, 0.0, 0.0]) for distance in (800.0, 1600.0)]
    for tails, place in ((0.1, 0), (1.0, 2)):
        energy = evaluate(case[0], [one, two, *pairs], forces=False, tails=tails).energy
        interaction = energy[2:] - energy[0] - energy[1]
        assert abs(interaction[0]) > 1e-5
        np.testing.assert_allclose(interaction[place] / interaction[place + 1], 2, rtol=0.1)


@every_model
def test_a_molecule_in_a_growing_box_becomes_an_open_one(case):
    """Up to cos(k_cutoff r) / r^5, the tail of where the filter ends."""
    structures = [generic_molecule()]
    for size in (100.0, 20.0, 40.0, 60.0):
        boxed = generic_molecule()
        boxed.set_cell(size * np.eye(3))
        boxed.pbc = True
        structures.append(boxed)
    energy = evaluate(case[0], structures, forces=False, channels=()).energy
    largest, *errors = np.abs(energy[1:] / energy[0] - 1)
    assert errors[0] > 5 * errors[1] > 50 * errors[2] and largest < 1e-5
    slab, wire = (boxed.copy() for _ in range(2))
    slab.pbc, wire.pbc = [True, False, True], [False, False, True]
    found = evaluate(case[0], [generic_molecule(), slab, wire], channels=()).energy
    np.testing.assert_allclose(found[1:], found[0], rtol=1e-5)


def test_large_molecules_take_the_sphere():
    atoms = generic_molecule()
    by_pairs = evaluate("schnet", [atoms])
    sphere = evaluate("schnet", [atoms, transformed(atoms, rotation(1))], max_pair_nodes=0)
    np.testing.assert_allclose(sphere.energy, by_pairs.energy[0], rtol=1e-9)
    assert_close(sphere.forces[0], by_pairs.forces[0], 1e-8)


# -- crystals --------------------------------------------------------------------------------


@every_model
def test_supercells_and_choices_of_the_cell(case):
    crystal = generic_crystal()
    shifts = np.random.default_rng(3).integers(-3, 4, size=(len(crystal), 3))
    cell = crystal.cell.array
    changes = {
        "a1 + a2": [[1, 1, 0], [0, 1, 0], [0, 0, 1]],
        "cyclic": [[0, 1, 0], [0, 0, 1], [1, 0, 0]],
        "-a1": [[-1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "skewed": [[1, 2, -1], [0, 1, 3], [0, 0, 1]],
    }
    same = [crystal, moved(crystal, shifts @ cell), moved(crystal, [0.3, -8.0, 5.0])]
    for change in changes.values():
        changed = crystal.copy()
        changed.set_cell(np.array(change) @ cell)
        same.append(changed)
    niggli = same[-1].copy()
    ase.build.niggli_reduce(niggli)  # turns the crystal too
    reduced, integers = niggli_reduce_cell(same[-1].cell)
    turn = np.linalg.solve(integers.T @ same[-1].cell, reduced)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
    supercells = [crystal.repeat(n) for n in ((2, 1, 1), (1, 1, 3))]
    matrix = rotation(7)
    structures = [*same, niggli, *supercells, transformed(crystal, matrix)]
    result = evaluate(case[0], structures, stress=True)
    energy, stress = result.energy, np.asarray(result.stress)
    for n in range(1, len(same)):
        assert_close(energy[n], energy[0], 1e-10, "energy")
        assert_close(result.forces[n], result.forces[0], 1e-9, "forces")
        assert_close(stress[n], stress[0], 1e-9, "stress")
    n = len(same)
    assert_close(energy[n], energy[0], 1e-9, "Niggli")
    assert_close(result.forces[n], result.forces[0] @ turn, 1e-9, "forces, Niggli")
    assert_close(stress[n], turn.T @ stress[0] @ turn, 1e-9, "stress, Niggli")
    for count, place in ((2, n + 1), (3, n + 2)):
        assert_close(energy[place], count * energy[0], 1e-9, "supercell")
        assert_close(stress[place], stress[0], 1e-9, "stress of the supercell")
        repeated = np.tile(result.forces[0], (count, 1))
        assert_close(result.forces[place], repeated, 1e-9, "forces of the supercell")
    assert_close(energy[-1], energy[0], 1e-10, "rotation")
    assert_close(result.forces[-1], result.forces[0] @ matrix, 1e-9, "rotated forces")
    turned = matrix.T @ stress[0] @ matrix
    assert_close(stress[len(structures) - 1], turned, 1e-9, "rotated stress")


@every_model
def test_energy_is_smooth_along_a_strain(case):
    """While wave vectors enter and leave, and are chosen anew for each cell."""
    atoms = ase.Atoms("LiF", [[0, 0, 0], [1.5, 1.6, 3.0]], cell=[3.1, 3.3, 10.4], pbc=True)
    strains = np.linspace(-0.03, 0.03, 201)
    structures = [transformed(atoms, np.diag([1 + s, 1.0, 1 - s / 3])) for s in strains]
    rule = model_and_params(case[0])[0].ewald.waves
    inside = set()
    for structure in structures:
        cell = structure.cell.array
        found = kspace.wave_set(structure.positions, cell, structure.pbc, rule)
        k = found.indices @ (2 * np.pi * np.linalg.inv(cell).T)
        inside.add(int(np.sum(np.linalg.norm(k, axis=1) < rule.k_cutoff)))
    assert len(inside) > 1
    step = strains[1] - strains[0]
    energy = evaluate(case[0], structures, forces=False).energy
    curvature = np.diff(energy, 2) / step**2
    # A step in the curvature would be as large in the difference of its differences.
    assert np.max(np.abs(np.diff(curvature, 2))) < 0.002 * np.max(np.abs(curvature))


# -- slabs, wires and mixtures ---------------------------------------------------------------


def slab_with_vacuum(vacuum):
    atoms = ase.build.fcc111("Al", (1, 2, 2), a=4.05, vacuum=vacuum / 2)
    ase.build.add_adsorbate(atoms, "O", 1.5, "ontop")
    atoms.rattle(0.05, seed=4)
    atoms.pbc = [True, True, False]
    return atoms


@every_model
def test_vacuum_of_a_slab_does_not_matter(case):
    slabs = [slab_with_vacuum(vacuum) for vacuum in (5.0, 20.0, 60.0)]
    tilted = slabs[1].copy()
    tilted.set_cell(tilted.cell.array + [[0, 0, 0], [0, 0, 0], [3.0, -2.0, 0]])
    repeated = slabs[0].repeat((2, 1, 1))
    structures = [*slabs, tilted, repeated]
    result = evaluate(case[0], structures, stress=True)
    # The work of a strain within the plane; the stress is it by a volume with the vacuum.
    virial = [result.stress[n][:2, :2] * structures[n].get_volume() for n in range(4)]
    for n in (1, 2, 3):
        assert_close(result.energy[n], result.energy[0], 1e-8, "energy")
        assert_close(result.forces[n], result.forces[0], 1e-7, "forces")
        assert_close(virial[n], virial[0], 1e-7, "virial")
    assert_close(result.energy[4], 2 * result.energy[0], 1e-9, "supercell")


def mixture():
    wire = ase.Atoms("HOH", [[0, 0, 0], [0.8, 0.5, 0.1], [1.6, 0.2, -0.3]])
    wire.set_cell([4.2, 0, 0])
    wire.pbc = [True, False, False]
    return [generic_molecule(), wire, slab_with_vacuum(10.0), generic_crystal()]


@every_model
def test_a_batch_may_mix_all_boundary_conditions(case):
    """Among others as alone; forces and stress are slopes."""
    structures, step = mixture(), 1e-4
    rng = np.random.default_rng(6)
    strain = rng.normal(size=(3, 3))
    strain = (strain + strain.T) / 2
    moves = [rng.normal(size=(len(atoms), 3)) for atoms in structures]
    changed = []
    for atoms, move in zip(structures, moves, strict=True):
        for n in (-2, -1, 1, 2):
            changed.append(moved(atoms, n * step * move))
            changed.append(transformed(atoms, np.eye(3) + n * step * strain))
    result = evaluate(case[0], [*structures, *changed], stress=True, channels=NO_COULOMB)
    # The slope of a polynomial of degree four through four points.
    energies = result.energy[4:].reshape(4, 4, 2)
    slopes = np.einsum("snk,n->sk", energies, np.array([1, -8, 8, -1]) / (12 * step))
    for n, (atoms, move) in enumerate(zip(structures, moves, strict=True)):
        work = -np.sum(result.forces[n] * move)
        np.testing.assert_allclose(slopes[n, 0], work, rtol=1e-6)
        if atoms.pbc.any():
            volume = abs(np.linalg.det(completed_cell(atoms)))
            virial = volume * np.sum(np.asarray(result.stress[n]) * strain)
            np.testing.assert_allclose(slopes[n, 1], virial, rtol=1e-6)
    alone = evaluate(case[0], structures[1:2], channels=NO_COULOMB)
    assert_close(alone.energy[0], result.energy[1], 1e-12, "energy")
    assert_close(alone.forces[0], result.forces[1], 1e-10, "forces")


# -- vector features -------------------------------------------------------------------------


def test_vector_features_are_equivariant():
    structures, matrix = [generic_molecule(), generic_crystal()], REFLECTION @ rotation(5)
    turned = [transformed(atoms, matrix) for atoms in structures]
    plain = evaluate("painn", structures)
    result = evaluate("painn", [*structures, *turned], equivariant=True)
    assert np.min(np.abs(result.energy[:2] - plain.energy)) > 1e-5
    for n in range(2):
        assert_close(result.energy[n + 2], result.energy[n], 1e-10, "energy")
        assert_close(result.forces[n + 2], result.forces[n] @ matrix, 1e-9, "forces")
    _, params = model_and_params("painn", equivariant=True)
    assert {"ewald_vectors_0", "ewald_vectors_1"} <= set(params)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "painn"])
def test_models_without_vectors_refuse_them(name):
    with pytest.raises(
        InputError, match=r"equivariant needs vector features, which \w+ does"
    ):
        ewald_jax.build_model(name, ewald={"equivariant": True})


# -- refusals --------------------------------------------------------------------------------


def test_wires_refuse_the_coulomb_channel():
    model, _ = model_and_params("schnet")
    with pytest.raises(
        InputError, match="structure 1 has pbc .* 'coulomb' diverges in a wire"
    ):
        ewald_jax.batch_from_atoms(mixture()[:2], model)


def test_too_many_wave_vectors_are_refused():
    model = ewald_jax.build_model("schnet", ewald={"k_cutoff": 20.0, "max_kvecs": 500})
    with pytest.raises(
        InputError, match=r"structure 0 needs \d+ wave vectors for ewald.k_cutoff = 20.0"
    ):
        ewald_jax.batch_from_atoms([generic_crystal()], model)


def test_batches_without_wave_vectors_are_refused():
    model, params = model_and_params("schnet")
    batch = ewald_jax.batch_from_atoms([generic_molecule()], model)._replace(waves=None)
    with pytest.raises(InputError, match="the batch has no wave vectors"):
        ewald_jax.predict(model, params, batch)


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"k_cutoff": -1.0}, "k_cutoff must be larger than 0"),
        ({"channels": ("coulomb", "coulomb")}, "has one twice"),
        ({"channels": ("gravity",)}, "ewald.channels must be of"),
        ({"max_kvecs": -1}, "max_kvecs must be >= 0"),
        ({"scheme": "voxel", "equivariant": True}, "needs ewald.scheme 'radial'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        EwaldConfig(**fields)


def test_defaults():
    config = EwaldConfig()
    assert (config.scheme, config.prefactor) == ("radial", 1.0)
    for scheme in ("voxel", "lattice"):
        assert EwaldConfig(scheme=scheme).prefactor == 0.01
