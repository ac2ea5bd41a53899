"""The ASE calculator: what predict says, the derivatives, one compilation, plain refusals."""

import copy
import json
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import ase
import ase.build
import jax
import numpy as np
import pytest
from ase.calculators.calculator import (
    CalculatorSetupError,
    PropertyNotImplementedError,
)
from ase.calculators.calculator import InputError as AseInputError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.mep import NEB
from ase.optimize import FIRE
from structures import generic_crystal, generic_molecule, quick_compilation
from tiny import drawn, tiny

import ewald_jax
from ewald_jax.calculator import EwaldCalculator
from ewald_jax.data.statistics import Statistics
from ewald_jax.typing import InputError

__all__ = ["quick_compilation"]

STATISTICS = Statistics(
    tuple(-13.6 * z for z in range(119)), mean=0.7, scale=1.7, species=(1, 6, 8, 11, 17, 29)
)
RADIAL = {"k_cutoff": 1.5}


def slab():
    atoms = ase.build.fcc111("Cu", size=(2, 2, 2), vacuum=6.0)
    atoms.rattle(0.05, seed=3)
    return atoms


STRUCTURES = {"crystal": generic_crystal, "slab": slab, "molecule": generic_molecule}


def calculator(name="schnet", ewald=RADIAL, dtype=np.float64, **options):
    model = tiny(name, ewald=ewald, cutoff=4.0)
    params = drawn(model, ewald_jax.batch_from_atoms([generic_molecule()], model))
    params = jax.tree.map(lambda x: np.asarray(x, dtype), params)
    return EwaldCalculator(model, params, STATISTICS, **options)


@pytest.fixture(scope="module")
def schnet():
    """One calculator, so that one shape is compiled once for all tests."""
    with pytest.MonkeyPatch.context():
        before = jax.config.jax_enable_x64
        jax.config.update("jax_enable_x64", True)
        yield calculator()
        jax.config.update("jax_enable_x64", before)


@pytest.fixture(autouse=True)
def settings(x64, quick_compilation):
    """Of every test here."""


@pytest.mark.parametrize("kind", STRUCTURES)
def test_equals_predict(schnet, kind):
    atoms = STRUCTURES[kind]()
    atoms.calc = schnet
    batch = ewald_jax.batch_from_atoms([atoms], schnet.model)
    expected = ewald_jax.predict(
        schnet.model, schnet._evaluator._params, batch, STATISTICS, stress=True
    )
    energy = atoms.get_potential_energy()
    assert abs(energy - expected.energy[0]) < 1e-10 * abs(energy)
    assert atoms.get_potential_energy(force_consistent=True) == energy
    assert abs(atoms.get_potential_energies().sum() - energy) < 1e-10 * abs(energy)
    np.testing.assert_allclose(
        atoms.get_forces(), expected.forces[: len(atoms)], rtol=0, atol=1e-9
    )
    if kind == "molecule":
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_stress()
        return
    stress, whole = atoms.get_stress(voigt=False), expected.stress[0]
    plane = slice(0, 3 if kind == "crystal" else 2)
    np.testing.assert_allclose(stress[plane, plane], whole[plane, plane], atol=1e-10)
    if kind == "slab":  # normal to z
        assert not stress[2].any() and not stress[:, 2].any()
        assert np.abs(whole[2, 2]) > 1e-6


@pytest.mark.parametrize("kind", STRUCTURES)
def test_derivatives_are_finite_differences(schnet, kind):
    atoms = STRUCTURES[kind]()
    atoms.calc = schnet
    chosen = [0, len(atoms) - 1]
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=chosen)
    np.testing.assert_allclose(atoms.get_forces()[chosen], numerical, rtol=0, atol=1e-6)
    if kind == "crystal":
        stress = calculate_numerical_stress(atoms, eps=1e-4)
        np.testing.assert_allclose(atoms.get_stress(), stress, rtol=0, atol=1e-7)
    if kind == "slab":
        stress = calculate_numerical_stress(atoms, eps=1e-4)
        np.testing.assert_allclose(
            atoms.get_stress()[[0, 1, 5]], stress[[0, 1, 5]], atol=1e-7
        )
    assert schnet.compilations <= 3


@pytest.mark.parametrize("name", ["schnet", "dimenetpp"])
def test_a_skin_changes_nothing_but_the_number_of_searches(name):
    kept = calculator(name, skin=0.8)
    fresh = calculator(name, skin=0.0)
    rng = np.random.default_rng(0)
    atoms = slab()
    for _ in range(6):
        atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
        found = []
        for calc in (kept, fresh):
            calc.calculate(atoms)
            found.append(calc.results)
        assert abs(found[0]["energy"] - found[1]["energy"]) < 1e-10 * len(atoms)
        np.testing.assert_allclose(
            found[0]["forces"], found[1]["forces"], rtol=0, atol=1e-9
        )
    assert kept.neighbor_searches < fresh.neighbor_searches == 6
    assert kept.compilations == 1


def test_images_of_a_path_share_a_calculator(schnet):
    first = generic_molecule()
    last = first.copy()
    last.positions[-1] += [0.0, 0.3, 0.2]
    images = [first.copy() for _ in range(4)] + [last.copy()]
    path = NEB(images, method="improvedtangent", allow_shared_calculator=True)
    path.interpolate()
    searches = schnet.neighbor_searches
    for image in images:
        image.calc = schnet
    before = np.abs(path.get_forces()).max()
    FIRE(path, logfile=None).run(steps=5)
    assert np.abs(path.get_forces()).max() < before
    # Every image has its list.
    assert schnet.neighbor_searches - searches <= 2 * len(images)
    forces = [image.get_forces() for image in images]
    with ThreadPoolExecutor(len(images)) as pool:
        for _ in range(3):
            at_once = list(pool.map(lambda image: image.get_forces(), images))
            np.testing.assert_array_equal(at_once, forces)


def test_many_structures_in_batches(schnet):
    structures = [make() for make in STRUCTURES.values()] + [ase.Atoms("O")]
    many = schnet.calculate_many(structures, batch_size=2)
    assert len(many) == 4
    for atoms, results in zip(structures[:3], many, strict=False):
        atoms.calc = schnet
        atoms.get_forces()
        assert results.keys() == schnet.results.keys()
        for name, value in results.items():
            np.testing.assert_allclose(value, schnet.results[name], rtol=1e-9, atol=1e-8)
    assert schnet.calculate_many([]) == []


def test_copies_compile_for_themselves(schnet):
    atoms = generic_molecule()
    schnet.calculate(atoms)
    other = pickle.loads(pickle.dumps(schnet))
    assert other.compilations == 0
    assert other.get_property("energy", atoms) == schnet.results["energy"]


def test_float32_by_default():
    jax.config.update("jax_enable_x64", False)
    calc = calculator(dtype=np.float32)
    atoms = generic_molecule()
    calc.calculate(atoms)
    single = calc.results["energy"]
    jax.config.update("jax_enable_x64", True)
    calc.calculate(atoms)
    double = calc.results["energy"]
    assert single != double and abs(single - double) < 1e-4
    assert calc.compilations == 2


class TestElements:
    """What the model has not seen."""

    def test_a_warning_names_it_once(self, schnet):
        calc = copy.deepcopy(schnet)
        atoms = ase.Atoms("NFO", [[0, 0, 0], [1.2, 0, 0], [0, 1.2, 0]])
        with pytest.warns(UserWarning, match=r"did not have N, F \(they had H"):
            calc.calculate(atoms)
        atoms.rattle(0.01)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            calc.calculate(atoms)
        assert np.isfinite(calc.results["energy"])

    def test_strict_refuses(self):
        calc = calculator(strict=True)
        with pytest.raises(AseInputError, match=r"the structure has N, which the training"):
            calc.calculate(ase.Atoms("N"))
        with pytest.raises(CalculatorSetupError, match="elements of the training data"):
            EwaldCalculator(calc.model, {}, strict=True)

    def test_elements_without_weights(self):
        calc = EwaldCalculator(tiny("schnet", num_elements=10, cutoff=4.0), {})
        with pytest.raises(AseInputError, match="atomic number 29, but the model knows"):
            calc.calculate(slab())


NOT_A_NUMBER = ase.Atoms("H2", [[0, 0, 0], [0, 0, np.nan]])
FLAT = ase.Atoms("H", cell=[3, 3, 0], pbc=True)
CLOSE = ase.Atoms("H2", [[0, 0, 0], [0, 0, 0.1]])
# Neighbor lists of this extent once ended the process.
FAR = ase.Atoms("OH2", [[0, 0, 0], [0, 0, 1], [1e6, 0, 0]])
LONG = ase.Atoms("OH2", [[0, 0, 0], [0, 0, 1], [1, 0, 0]], cell=[1e6, 10, 10], pbc=True)


@pytest.mark.parametrize(
    ("atoms", "sentence"),
    [
        (ase.Atoms(), "has no atoms, expected at least one"),
        (FLAT, "is periodic along lattice vector 3, which is zero"),
        (NOT_A_NUMBER, "has a NaN or infinite position at atom 1"),
        (CLOSE, "has atoms H0 and H1 at 0.100 Å"),
        (FAR, "is 1e+06 Å across, expected at most"),
        (LONG, "is 1e+06 Å across, expected at most"),
    ],
)
def test_broken_structures_are_one_sentence(schnet, atoms, sentence):
    for run, where in (
        (lambda: schnet.get_property("forces", atoms), "the structure"),
        (lambda: schnet.calculate_many([ase.Atoms("H"), atoms]), "structure 1"),
    ):
        with pytest.raises(AseInputError) as caught:
            run()
        assert str(caught.value).startswith(f"{where} {sentence}")
        assert isinstance(caught.value, InputError)
    assert schnet.get_property("energy", atoms, allow_calculation=False) is None


def test_results_are_never_nan(schnet):
    broken = jax.tree.map(lambda x: x * np.nan, schnet._evaluator._params)
    calc = EwaldCalculator(schnet.model, broken, STATISTICS)
    with pytest.raises(AseInputError, match="has a predicted energy that is not finite"):
        calc.calculate(generic_molecule())
    assert calc.results == {}


def test_memory_is_looked_at_before_it_is_taken(schnet):
    small = EwaldCalculator(
        schnet.model, schnet._evaluator._params, STATISTICS, memory_limit=100_000
    )
    with pytest.raises(AseInputError, match=r"of 9 atoms with .* expected at most 0.0001"):
        small.calculate(generic_molecule())
    crystal = ase.build.bulk("Cu", cubic=True).repeat(20)
    with pytest.raises(AseInputError, match=r"has 32000 atoms with about .* neighbors"):
        small.calculate(crystal)
    assert small.compilations == 0 and small.neighbor_searches == 1


def test_lists_that_are_none(schnet):
    for given, sentence in (
        (ase.Atoms("H"), "one structure was given"),
        (["water"], "structure 0 is a str"),
    ):
        with pytest.raises(AseInputError, match=sentence):
            schnet.calculate_many(given)
    with pytest.raises(
        AseInputError, match=r"batch_size must be a whole number .* not 2.5"
    ):
        schnet.calculate_many([ase.Atoms("H")], batch_size=2.5)


def test_options_that_nobody_knows():
    with pytest.raises(CalculatorSetupError, match="no option 'skn'; did you mean 'skin'?"):
        EwaldCalculator(tiny("schnet"), {}, skn=1.0)
    with pytest.raises(
        CalculatorSetupError, match="members must be a whole number from 1 on"
    ):
        EwaldCalculator(tiny("schnet"), {}, members=0)


@pytest.mark.parametrize("setting", [{"skin": -1.0}, {"slack": np.nan}, {"skin": "a"}])
def test_settings_out_of_range(setting):
    with pytest.raises(CalculatorSetupError, match="must be at least 0 and finite"):
        EwaldCalculator(tiny("schnet"), {}, **setting)


def test_checkpoints_that_cannot_be_read(tmp_path):
    with pytest.raises(CalculatorSetupError, match="there is no checkpoint directory"):
        ewald_jax.EwaldCalculator.from_checkpoint(tmp_path / "none")
    (tmp_path / "versions.json").write_text(json.dumps({"format": 99, "ewald_jax": "9.9"}))
    with pytest.raises(CalculatorSetupError, match="has format 99, from ewald_jax 9.9"):
        ewald_jax.EwaldCalculator.from_checkpoint(tmp_path)
