"""Direct force heads: forces that turn with the structure and are no derivative; training."""

import dataclasses
import functools

import ase
import jax
import numpy as np
import pytest
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
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.train import LossConfig, OptimConfig, create_state
from ewald_jax.train.optim import make_optimizer
from ewald_jax.train.step import make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

EWALD = EwaldConfig(scheme="voxel", k_cutoff=0.4, num_k_rbf=8, bottleneck=3, prefactor=1.0)
MODELS = ("painn", "gemnet_t")
CASES = [(name, kind) for name in MODELS for kind in ("voxel", "periodic")]
every_case = pytest.mark.parametrize("case", CASES, ids="-".join)
every_model = pytest.mark.parametrize("name", MODELS)

STEP = 3e-5
ORDER = np.random.default_rng(1).permutation(9)
STRAIN = np.array([[0.5, 0.2, -0.1], [0.2, -0.4, 0.3], [-0.1, 0.3, 0.8]])


def direct(name, kind):
    ewald = EWALD if kind == "voxel" else None
    return tiny(name, cutoff=3.5, ewald=ewald, direct_forces=True)


def order_of(atoms):
    return ORDER[ORDER < len(atoms)]


@functools.cache
def structures_of(periodic):
    atoms = generic_crystal() if periodic else generic_molecule()
    return {
        "base": atoms,
        "rotation": transformed(atoms, rotation(1)),
        "reflection": transformed(atoms, REFLECTION),
        "translation": moved(atoms, [1.3, -20.0, 0.7]),
        "permutation": atoms[order_of(atoms)],
        "stretched": transformed(atoms, np.eye(3) + STEP * STRAIN),
        "squeezed": transformed(atoms, np.eye(3) - STEP * STRAIN),
        "atom": ase.Atoms("H", cell=atoms.cell * 3, pbc=atoms.pbc),
    }


@functools.cache
def survey(case):
    """One prediction of everything, its forces by structure, and those of padding."""
    name, kind = case
    model, structures = direct(*case), structures_of(kind == "periodic")
    batch = ewald_jax.batch_from_atoms(list(structures.values()), model)
    params = drawn(model, batch)
    out = ewald_jax.predict(model, params, batch, stress=kind == "periodic")
    ends = np.cumsum([len(atoms) for atoms in structures.values()])
    *forces, padding = np.split(np.asarray(out.forces), ends)
    energy = dict(zip(structures, np.asarray(out.energy), strict=False))
    forces = dict(zip(structures, forces, strict=True))
    return model, params, batch, out, energy, forces, padding


@pytest.mark.parametrize("change", ["rotation", "reflection", "translation", "permutation"])
@every_case
def test_direct_forces_turn_with_the_structure(case, change, x64):
    _, _, _, _, energy, forces, _ = survey(case)
    atoms = structures_of(case[1] == "periodic")["base"]
    matrix = {"rotation": rotation(1), "reflection": REFLECTION}.get(change, np.eye(3))
    order = order_of(atoms) if change == "permutation" else slice(None)
    assert np.abs(forces["base"]).max() > 1e-3
    assert_close(forces[change], (forces["base"] @ matrix)[order], 1e-10, "forces")
    assert_close(energy[change], energy["base"], 1e-10, "energy")


@every_case
def test_padding_and_lone_atoms_have_no_direct_force(case, x64):
    _, _, _, out, _, forces, padding = survey(case)
    assert len(padding) > 0 and not np.any(padding)
    if case[1] != "periodic":
        assert not np.any(forces["atom"])
    assert np.all(np.isfinite(out.forces)) and np.all(np.isfinite(out.energy))


@every_model
def test_direct_forces_are_not_the_derivative(name, x64):
    model, params, batch, out, *_ = survey((name, "voxel"))
    conservative = dataclasses.replace(model, direct_forces=False)
    other = ewald_jax.predict(conservative, params, batch)
    np.testing.assert_allclose(other.energy, out.energy, rtol=1e-12, atol=1e-12)
    difference = np.abs(other.forces - out.forces).max()
    assert difference > 0.1 * max(np.abs(other.forces).max(), np.abs(out.forces).max())


@every_model
def test_stress_is_still_the_derivative(name, x64):
    _, _, _, out, energy, _, _ = survey((name, "periodic"))
    atoms = structures_of(True)["base"]
    slope = (energy["stretched"] - energy["squeezed"]) / (2 * STEP)
    stress = np.asarray(out.stress)
    np.testing.assert_allclose(np.sum(stress[0] * STRAIN) * atoms.get_volume(), slope, 1e-6)
    assert np.abs(slope) > 1e-4
    np.testing.assert_allclose(stress[0], stress[0].T, atol=1e-12)


@every_model
def test_forces_are_left_out_where_nobody_asks(name, x64):
    model, params, batch, out, *_ = survey((name, "voxel"))
    without = ewald_jax.predict(model, params, batch, forces=False)
    assert without.forces is None and without.stress is None
    np.testing.assert_allclose(without.energy, out.energy, rtol=1e-12, atol=1e-12)


@every_model
def test_outputs_are_the_same_with_padding_and_without(name, x64):
    model, params, _, _, energy, forces, _ = survey((name, "voxel"))
    atoms = structures_of(False)["base"]
    batch = ewald_jax.batch_from_atoms([atoms], model, pad=False)
    out = ewald_jax.predict(model, params, batch)
    assert_close(out.forces, forces["base"], 1e-12, "forces")
    assert_close(out.energy[0], energy["base"], 1e-12, "energy")


def test_the_head_of_painn_makes_forces_without_symmetry(x64):
    """Forces are no sum of pair forces: on a molecule alone they do not add up to zero."""
    *_, forces, _ = survey(("painn", "voxel"))
    assert np.abs(forces["base"].sum(axis=0)).max() > 1e-3


# -- training --------------------------------------------------------------------------------


@every_model
def test_a_training_step_moves_the_force_head(name):
    model = direct(name, "open")
    rng = np.random.default_rng(0)
    batch = ewald_jax.batch_from_atoms([generic_molecule(), ase.Atoms("H")], model)
    nodes, graphs = len(batch.graph.nodes["species"]), len(batch.graph.n_node)
    targets = {
        "energy": rng.normal(size=graphs).astype(np.float32),
        "forces": rng.normal(size=(nodes, 3)).astype(np.float32),
    }
    batch = batch._replace(targets=targets)
    params = drawn(model, batch)
    # The energy does not count: whatever moves follows the forces.
    loss = LossConfig(energy_weight=0.0, forces="l2")
    optim = OptimConfig(lr=3e-3, weight_decay=0.0)
    tx = make_optimizer(optim, 10)
    step = make_train_step(model, tx, loss, optim)
    state, losses = create_state(params, tx, jax.random.key(1)), []
    for _ in range(8):
        state, sums = step(state, batch)
        losses.append(float(sums["forces_loss"][0] / sums["forces_loss"][1]))
    assert state.healthy and losses[-1] < losses[0]

    def moved(path, before, after):
        return jax.tree_util.keystr(path), bool(np.any(before != after))

    changes = jax.tree_util.tree_map_with_path(moved, params, state.params)
    changes = jax.tree.leaves(changes, is_leaf=lambda x: isinstance(x, tuple))
    assert any(key.startswith("['force") for key, _ in changes)
    energy_only = "['output" if name == "painn" else "['energy"
    for key, value in changes:
        if "scale_factor" in key or key.startswith(energy_only):
            assert not value, f"{key} moved"
        elif key.startswith("['force"):
            assert value, f"{key} stays"
