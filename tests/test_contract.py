"""What every model must satisfy with every long-range block, in float64.

A model listed in `MODELS` and a scheme listed in `nn.ewald.SCHEMES` are tested without a change
here. Each case (model, scheme, boundary) evaluates one batch of transformed structures, once;
the tests compare its members.
"""

import dataclasses
import functools

import ase
import ase.build
import jax
import jax.numpy as jnp
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

import ewald_jax
from ewald_jax import potential
from ewald_jax.graph import single_budget
from ewald_jax.models import MODELS
from ewald_jax.nn.atom_to_atom import AtomToAtomConfig
from ewald_jax.nn.ewald_config import SCHEMES, EwaldConfig, check_boundary
from ewald_jax.nn.scaling import SCALE_FACTOR
from ewald_jax.typing import InputError

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

CUTOFF = 4.0
FAR_CUTOFF = 6.5
EWALD = {
    scheme: EwaldConfig(
        scheme=scheme,
        num_k=(1, 1, 2),
        k_cutoff=1.2 if scheme == "radial" else 0.4,
        num_k_rbf=6 if scheme == "radial" else 16,
        bottleneck=4,
        num_hidden=1,
        prefactor=1.0 if scheme == "radial" else 0.1,
    )
    for scheme in SCHEMES
}
ATOMIC = AtomToAtomConfig(cutoff=FAR_CUTOFF, num_gaussians=8, num_filters=8)
# What stands beside the short-range messages.
VARIANTS = {"none": {}, "atomic": {"atomic": ATOMIC}} | {
    scheme: {"ewald": config} for scheme, config in EWALD.items()
}
PBC = {"open": [False] * 3, "periodic": [True] * 3}


def accepts(scheme, pbc):
    try:
        check_boundary(EWALD.get(scheme), np.array(pbc))
    except InputError:
        return False
    return True


CASES = [
    (model, scheme, boundary)
    for model in MODELS
    for scheme in VARIANTS
    for boundary, pbc in PBC.items()
    if accepts(scheme, pbc)
]
every_case = pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join(case) if isinstance(case, tuple) else None
)


# -- tiny models with random weights ---------------------------------------------------------


@functools.cache
def tiny(name, scheme):
    """The model with every width at most 8 and at most two blocks, and its weights."""
    cls, config = MODELS[name], {}
    for field in dataclasses.fields(cls):
        is_size = isinstance(field.default, int) and not isinstance(field.default, bool)
        if is_size and field.name not in ("num_elements", "max_neighbors"):
            blocks = field.default <= 4 or any(
                word in field.name
                for word in ("num_interactions", "num_blocks", "num_layers")
            )
            config[field.name] = min(field.default, 2 if blocks else 8)
    model = ewald_jax.build_model(name, **config | {"cutoff": CUTOFF} | VARIANTS[scheme])
    atoms = generic_molecule() if accepts(scheme, [False] * 3) else generic_crystal()
    batch = ewald_jax.batch_from_atoms([atoms], model)
    shapes = jax.eval_shape(
        functools.partial(ewald_jax.init_params, model), jax.random.key(0), batch
    )
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        if leaf.ndim < 2:  # biases start at zero, where they would test nothing
            centre = 0.0 if "bias" in jax.tree_util.keystr(path) else 1.0
            drawn = centre + (0.1 if centre else 0.3) * rng.normal(size=leaf.shape)
            return np.asarray(drawn, leaf.dtype)
        fan_in = 1 if path[-1].key == "embedding" else np.prod(leaf.shape[:-1])
        return np.asarray(rng.normal(size=leaf.shape) / np.sqrt(fan_in), leaf.dtype)

    return model, jax.tree_util.tree_map_with_path(draw, shapes)


class Result:
    """A prediction taken apart into structures."""

    def __init__(self, prediction, sizes):
        ends = np.cumsum(sizes)
        n, nodes = len(sizes), int(ends[-1])
        self.energy = np.asarray(prediction.energy)[:n]
        self.padding = [np.asarray(prediction.energy)[n:]]
        if prediction.forces is not None:
            forces = np.asarray(prediction.forces)
            self.forces = np.split(forces[:nodes], ends[:-1])
            self.padding.append(forces[nodes:])
        if prediction.stress is not None:
            self.stress = np.asarray(prediction.stress)[:n]
            self.padding.append(np.asarray(prediction.stress)[n:])


def evaluate(name, scheme, structures, pad=True, cast=None, **what):
    model, params = tiny(name, scheme)
    batch = ewald_jax.batch_from_atoms(structures, model, pad=pad)
    if cast is not None:
        batch = as_type(batch, cast)
    prediction = ewald_jax.predict(model, params, batch, **what)
    return Result(prediction, [len(atoms) for atoms in structures])


def as_type(batch, dtype):
    floating = lambda x: np.issubdtype(x.dtype, np.floating)
    return jax.tree.map(lambda x: x.astype(dtype) if floating(x) else x, batch)


# -- the structures of a case ----------------------------------------------------------------

STEP = 2e-5
NEAR = 1e-5  # on both sides of the cutoff


def base(boundary):
    return generic_molecule() if boundary == "open" else generic_crystal()


def boxed(atoms, boundary):
    """The same atoms, alone in a large cell if the case is periodic."""
    atoms = atoms.copy()
    if boundary == "periodic":
        atoms.set_cell([[11.0, 0.3, 0], [0, 12.0, 0.5], [0.2, 0, 10.5]])
        atoms.pbc = True
    return atoms


def three_atoms(distance, boundary):
    """O and N at a distance, H beside: no symmetry."""
    atoms = ase.Atoms("ONH", [[0, 0, 0], [distance, 0, 0], [0.3, 0.9, 0.4]])
    return boxed(transformed(atoms, rotation(2)), boundary)


@functools.cache
def directions(boundary):
    """Random displacements of all atoms, and symmetric strains."""
    rng, n = np.random.default_rng(5), len(base(boundary))
    strains = rng.normal(size=(3, 3, 3))
    return rng.normal(size=(3, n, 3)), (strains + np.swapaxes(strains, 1, 2)) / 2


ORDER = np.random.default_rng(2).permutation(9)


@functools.cache
def structures_of(boundary):
    atoms = base(boundary)
    order = ORDER[ORDER < len(atoms)]
    displacements, strains = directions(boundary)
    made = {
        "base": atoms,
        "rotation": transformed(atoms, rotation(1)),
        "reflection": transformed(atoms, REFLECTION),
        "translation": moved(atoms, [1.3, -20.0, 0.7]),
        "permutation": atoms[order],
        "inside": three_atoms(CUTOFF - NEAR, boundary),
        "outside": three_atoms(CUTOFF + NEAR, boundary),
        "far inside": three_atoms(FAR_CUTOFF - NEAR, boundary),
        "far outside": three_atoms(FAR_CUTOFF + NEAR, boundary),
        "atom": boxed(ase.Atoms("He", [[0.4, 0.5, 0.6]]), boundary),
        "apart": boxed(ase.Atoms("NeHe", [[0, 0, 0], [1.0, 4.9, 0.5]]), boundary),
    }
    for n, displacement in enumerate(displacements):
        for sign in (1, -1):
            made["displaced", n, sign] = moved(atoms, sign * STEP * displacement)
    if boundary == "periodic":
        shifts = np.random.default_rng(3).integers(-3, 4, size=(len(atoms), 3))
        made["lattice shifts"] = moved(atoms, shifts @ atoms.cell.array)
        for n, strain in enumerate(strains):
            for sign in (1, -1):
                deformation = np.eye(3) + sign * STEP * strain
                made["strained", n, sign] = transformed(atoms, deformation)
    return made


@functools.cache
def survey(case):
    """Energy, forces and stress of all structures of a case, from one padded batch."""
    name, scheme, boundary = case
    structures = structures_of(boundary)
    stress = boundary == "periodic"
    result = evaluate(name, scheme, list(structures.values()), stress=stress)
    return result, {key: n for n, key in enumerate(structures)}


# -- symmetries ------------------------------------------------------------------------------


@every_case
def test_predictions_depend_on_the_structure(case):
    """Otherwise every symmetry would hold."""
    result, at = survey(case)
    assert np.ptp([result.energy[at[k]] for k in ("base", "inside", "atom")]) > 1e-2
    assert np.abs(result.forces[at["base"]]).max() > 1e-3
    if case[2] == "periodic":
        assert np.abs(result.stress[at["base"]]).max() > 1e-6
    if case[1] != "none":  # and the Fourier part takes part
        alone, _ = survey((case[0], "none", case[2]))
        assert abs(alone.energy[at["base"]] - result.energy[at["base"]]) > 1e-3


@pytest.mark.parametrize(
    "change", ["rotation", "reflection", "translation", "permutation", "lattice shifts"]
)
@every_case
def test_symmetry(case, change):
    if change == "lattice shifts" and case[2] == "open":
        return
    result, at = survey(case)
    first, second = at["base"], at[change]
    matrix = {"rotation": rotation(1), "reflection": REFLECTION}.get(change, np.eye(3))
    forces = result.forces[first]
    order = ORDER[ORDER < len(forces)] if change == "permutation" else slice(None)
    assert_close(result.energy[second], result.energy[first], 1e-10, "energy")
    assert_close(result.forces[second], forces[order] @ matrix, 1e-8, "forces")
    if case[2] == "periodic":
        expected = matrix.T @ result.stress[first] @ matrix
        assert_close(result.stress[second], expected, 1e-8, "stress")


@every_case
def test_forces_sum_to_zero(case):
    result, at = survey(case)
    forces = result.forces[at["base"]]
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-10 * np.abs(forces).max())


# -- derivatives -----------------------------------------------------------------------------


def assert_slope(result, at, kind, n, expected):
    difference = result.energy[at[kind, n, 1]] - result.energy[at[kind, n, -1]]
    np.testing.assert_allclose(difference / (2 * STEP), expected, rtol=1e-5)


@every_case
def test_forces_are_the_slope_of_the_energy(case):
    result, at = survey(case)
    for n, displacement in enumerate(directions(case[2])[0]):
        expected = -np.sum(result.forces[at["base"]] * displacement)
        assert_slope(result, at, "displaced", n, expected)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case[2] == "periodic"], ids="-".join
)
def test_stress_is_the_slope_with_strain(case):
    result, at = survey(case)
    stress, volume = result.stress[at["base"]], base("periodic").get_volume()
    np.testing.assert_allclose(stress, stress.T, atol=1e-12)
    for n, strain in enumerate(directions("periodic")[1]):
        assert_slope(result, at, "strained", n, volume * np.sum(stress * strain))


SLAB = np.array([True, True, False])


@pytest.mark.parametrize("scheme", [s for s in VARIANTS if accepts(s, SLAB)])
@pytest.mark.parametrize("name", MODELS)
def test_stress_of_a_slab(name, scheme, slab):
    """The vacuum's vector is strained too; V is the volume of the whole cell."""
    _, strains = directions("periodic")
    strained = [
        transformed(slab, np.eye(3) + sign * STEP * strain)
        for strain in strains
        for sign in (1, -1)
    ]
    result = evaluate(name, scheme, [slab, *strained], stress=True)
    for n, strain in enumerate(strains):
        slope = (result.energy[1 + 2 * n] - result.energy[2 + 2 * n]) / (2 * STEP)
        expected = slab.get_volume() * np.sum(result.stress[0] * strain)
        np.testing.assert_allclose(slope, expected, rtol=1e-5)


def assert_smooth(case, inside, outside, count_edges):
    result, at = survey(case)
    structures = structures_of(case[2])
    model, _ = tiny(*case[:2])
    edges = [
        count_edges(ewald_jax.batch_from_atoms([structures[key]], model, pad=False))
        for key in (inside, outside)
    ]
    assert edges[0] == edges[1] + 2  # the pair does cross the cutoff
    step = structures[outside].positions - structures[inside].positions
    forces = [result.forces[at[key]] for key in (inside, outside)]
    energies = [result.energy[at[key]] for key in (inside, outside)]
    jump = energies[1] - energies[0] + np.sum((forces[0] + forces[1]) / 2 * step)
    assert abs(jump) < 1e-9
    np.testing.assert_allclose(forces[1], forces[0], atol=1e-3)


@every_case
def test_energy_is_smooth_at_the_distance_cutoff(case):
    assert_smooth(case, "inside", "outside", lambda batch: len(batch.graph.senders))


@pytest.mark.parametrize(
    "case", [case for case in CASES if case[1] == "atomic"], ids="-".join
)
def test_energy_is_smooth_at_the_far_cutoff(case):
    count = lambda batch: len(batch.far_edges.senders)
    assert_smooth(case, "far inside", "far outside", count)


# -- batches and padding ---------------------------------------------------------------------


@every_case
def test_padding_is_zero(case):
    result, _ = survey(case)
    for rows in result.padding:
        assert rows.size and not rows.any()


@every_case
def test_batch_is_its_structures(case):
    """One structure, without padding, against the same one among others."""
    result, at = survey(case)
    name, scheme, boundary = case
    alone = evaluate(name, scheme, [base(boundary)], pad=False, stress=True)
    assert_close(alone.energy[0], result.energy[at["base"]], 1e-12, "energy")
    assert_close(alone.forces[0], result.forces[at["base"]], 1e-10, "forces")
    if boundary == "periodic":
        assert_close(alone.stress[0], result.stress[at["base"]], 1e-10, "stress")
    else:
        assert not alone.stress.any()


def roomy(structures, triplets=False):
    """Several padding graphs, more of everything than `single_budget` leaves."""
    fits = single_budget(structures, triplets)
    return fits._replace(
        n_node=fits.n_node + 21,
        n_edge=fits.n_edge + 64,
        n_graph=fits.n_graph + 3,
        max_nodes=13,
        n_far=fits.n_far and fits.n_far + 64,
        in_slots=fits.in_slots and fits.in_slots + 4,
        out_slots=fits.out_slots and fits.out_slots + 8,
    )


@functools.cache
def roomy_step(case):
    """A force loss and its gradient on a batch with much padding; energies and forces too."""
    name, scheme, boundary = case
    model, params = tiny(name, scheme)
    linear = boxed(ase.Atoms("OCO", [[0, 0, -1.16], [0, 0, 0], [0, 0, 1.16]]), boundary)
    chosen = [*(structures_of(boundary)[key] for key in ROOMY), linear]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ewald_jax.models.inputs.single_budget", roomy)
        batch = ewald_jax.batch_from_atoms(chosen, model)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        out = ewald_jax.model_outputs(model, params, batch, forces=True)
        return jnp.sum(out.energy**2) + jnp.sum(out.forces**2), out

    (value, out), gradients = loss(params)
    return Result(out, [len(atoms) for atoms in chosen]), value, gradients


ROOMY = ("outside", "atom", "apart")


@every_case
def test_amount_of_padding_is_irrelevant(case):
    """As in the last batch of an epoch."""
    result, at = survey(case)
    padded, _, _ = roomy_step(case)
    assert sum(len(rows) for rows in padded.padding) > 4 + 21
    for n, key in enumerate(ROOMY):
        assert_close(padded.energy[n], result.energy[at[key]], 1e-12, f"energy {key}")
        np.testing.assert_allclose(padded.forces[n], result.forces[at[key]], atol=1e-12)
    assert not any(rows.any() for rows in padded.padding)


@every_case
def test_labels_and_shapes_cost_no_compilation(case):
    """Two batches of one shape compile once, and labels change nothing."""
    name, scheme, boundary = case
    model, params = tiny(name, scheme)

    def batch_of(atoms):
        return ewald_jax.batch_from_atoms([atoms], model, pad=False)

    structures = structures_of(boundary)
    first = ewald_jax.predict(model, params, batch_of(structures["base"]), stress=True)
    before = potential._jitted_outputs._cache_size()
    batch = batch_of(structures["rotation"])
    rotated = ewald_jax.predict(model, params, batch, stress=True)
    labelled = batch._replace(
        targets={"energy": np.array([17.0]), "forces": np.ones((len(first.forces), 3))}
    )
    again = ewald_jax.predict(model, params, labelled, stress=True)
    assert potential._jitted_outputs._cache_size() == before
    np.testing.assert_array_equal(rotated.forces, again.forces)
    np.testing.assert_array_equal(rotated.energy, again.energy)
    # A model built anew from the same settings is the same program.
    twin = ewald_jax.build_model(**ewald_jax.models.model_to_config(model))
    ewald_jax.predict(twin, params, batch, stress=True)
    assert potential._jitted_outputs._cache_size() == before


@every_case
def test_one_trace_in_a_loop_of_ones_own(case):
    """`model_outputs` under the user's own `jit`: two batches of one shape, one trace."""
    name, scheme, boundary = case
    model, params = tiny(name, scheme)
    traces = []

    def energy(params, batch):
        traces.append(batch)
        return ewald_jax.model_outputs(model, params, batch).energy

    # Traced, not compiled: only the number of traces is of interest.
    jitted = jax.jit(energy)
    for key in ("base", "rotation"):
        batch = ewald_jax.batch_from_atoms([structures_of(boundary)[key]], model)
        jitted.trace(params, batch)
    assert len(traces) == 1
    # A batch of numpy arrays that the function closes over is as good as an argument.
    jax.jit(lambda params: energy(params, batch)).trace(params)


# -- numbers ---------------------------------------------------------------------------------


@every_case
def test_force_loss_has_finite_derivatives(case):
    """Second derivatives on a padded batch with one atom, isolated atoms, a linear molecule."""
    _, value, gradients = roomy_step(case)
    assert np.isfinite(value)
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    for path, leaf in leaves:
        assert np.isfinite(leaf).all(), path
        fitted = SCALE_FACTOR in jax.tree_util.keystr(path)  # no optimiser moves these
        assert np.any(leaf) != fitted, f"{path} does not take part"


@every_case
def test_float32_agrees_and_stays_float32(case):
    result, at = survey(case)
    name, scheme, boundary = case
    keys = ["base", "rotation", "outside", "atom"]
    structures = [structures_of(boundary)[key] for key in keys]
    single = evaluate(name, scheme, structures, cast=np.float32, stress=True)
    assert (
        single.energy.dtype == single.forces[0].dtype == single.stress.dtype == np.float32
    )
    scale = np.abs(result.energy).max()
    for n, key in enumerate(keys):
        assert abs(single.energy[n] - result.energy[at[key]]) < 1e-5 * scale
        difference = np.abs(single.forces[n] - result.forces[at[key]]).max()
        assert difference < 3e-5 * np.abs(result.forces[at["base"]]).max()
