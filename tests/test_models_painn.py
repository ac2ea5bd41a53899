"""PaiNN's cutoff; elements and sizes that the models take; DimeNet++'s own stream of atoms."""

import dataclasses

import ase
import jax
import numpy as np
import pytest
from structures import generic_molecule, quick_compilation  # noqa: F401
from tiny import drawn, tiny

import ewald_jax
from ewald_jax.models import MODELS
from ewald_jax.nn.atom_to_atom import AtomToAtomConfig
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.train.state import count_parameters
from ewald_jax.typing import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")

CUTOFF = 4.0


# -- PaiNN's cutoff --------------------------------------------------------------------------


def painn_energies(smooth_cutoff, bias, distances):
    """Of O and N at the distances, H beside the O."""
    model = tiny("painn", cutoff=CUTOFF, smooth_cutoff=smooth_cutoff)
    structures = [
        ase.Atoms("ONH", [[0, 0, 0], [d, 0, 0], [0.3, 0.9, 0.4]]) for d in distances
    ]
    batch = ewald_jax.batch_from_atoms(structures, model)
    params = drawn(model, batch)
    for name in ("message_0", "message_1"):
        filter_bias = bias * params[name]["filter_bias"]
        params[name] = {**params[name], "filter_bias": filter_bias}
    out = ewald_jax.predict(model, params, batch)
    return np.asarray(out.energy)[: len(distances)], np.asarray(out.forces)


NEAR = 1e-6
INSIDE_AND_OUTSIDE = (CUTOFF - NEAR, CUTOFF + NEAR)


@pytest.mark.parametrize(
    "smooth_cutoff, bias, jumps",
    [(False, 1.0, True), (False, 0.0, False), (True, 1.0, False)],
)
def test_energy_of_painn_at_the_cutoff(smooth_cutoff, bias, jumps, x64):
    """A bias outside the envelope acts on edges of any length: they come with a jump."""
    (inside, outside), forces = painn_energies(smooth_cutoff, bias, INSIDE_AND_OUTSIDE)
    # The N is in reach of the H, so that there is a slope.
    jump = outside - inside + 2 * NEAR * forces[1, 0]
    if jumps:
        assert abs(jump) > 1e-3
    else:
        assert abs(jump) < 1e-10
        np.testing.assert_allclose(forces[:3], forces[3:6], atol=1e-5)


def test_both_cutoffs_of_painn_differ_only_by_the_bias(x64):
    distances = (1.2, 2.5)
    energies = {
        (smooth, bias): painn_energies(smooth, bias, distances)[0]
        for smooth in (True, False)
        for bias in (0.0, 1.0)
    }
    np.testing.assert_allclose(energies[True, 0.0], energies[False, 0.0], rtol=1e-12)
    assert np.abs(energies[True, 1.0] - energies[False, 1.0]).max() > 1e-3


# -- elements --------------------------------------------------------------------------------

EWALD = EwaldConfig(scheme="voxel", k_cutoff=0.4, num_k_rbf=8, bottleneck=2)
ATOMIC = AtomToAtomConfig(cutoff=6.0, num_gaussians=5, num_filters=4)


@pytest.mark.parametrize(
    "name, fields, heaviest",
    [
        ("schnet", {}, 99),
        ("painn", {}, 83),
        ("gemnet_t", {}, 83),
        ("dimenetpp", {}, 94),
        ("dimenetpp", {"ewald": EWALD}, 83),
        ("dimenetpp", {"atomic": ATOMIC}, 83),
        ("painn", {"num_elements": 10}, 10),
        ("gemnet_t", {"num_elements": 10}, 10),
        ("dimenetpp", {"num_elements": 11}, 10),
        ("dimenetpp", {"num_elements": 11, "ewald": EWALD}, 10),
        ("schnet", {"num_elements": 11}, 10),
    ],
)
def test_the_heaviest_element(name, fields, heaviest):
    model = tiny(name, **fields)
    pair = lambda number: ase.Atoms([1, number], [[0, 0, 0], [0, 0, 2.0]])
    batch = ewald_jax.batch_from_atoms([pair(heaviest)], model)
    assert batch.graph.nodes["species"].max() == heaviest
    with pytest.raises(InputError) as error:
        ewald_jax.batch_from_atoms([pair(1), pair(heaviest + 1)], model)
    sentence = str(error.value)
    assert "structure 1 has atomic number" in sentence and "\n" not in sentence
    assert f"elements 1 to {heaviest} (num_elements = {model.num_elements})" in sentence


@pytest.mark.parametrize("name", MODELS)
def test_every_element_has_a_vector_of_its_own(name):
    """No row is shared or missing: the heaviest elements give energies of their own."""
    model = tiny(name)
    heaviest = getattr(model, "max_atomic_number", model.num_elements - 1)
    numbers = [1, 2, heaviest - 1, heaviest]
    structures = [ase.Atoms([n, n], [[0, 0, 0], [0, 0.3, 2.0]]) for n in numbers]
    batch = ewald_jax.batch_from_atoms(structures, model)
    params = drawn(model, batch)
    energy = np.asarray(ewald_jax.predict(model, params, batch, forces=False).energy)[:4]
    assert len(np.unique(energy)) == 4 and np.all(np.isfinite(energy))
    rows = [
        leaf.shape[0]
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if leaf.ndim == 2 and "embedding" in jax.tree_util.keystr(path[-1:])
    ]
    assert rows == [model.num_elements]


# -- sizes -----------------------------------------------------------------------------------

OUT_OF_RANGE = {
    "schnet": [
        ("num_interactions", 0, 1),
        ("hidden_channels", 1, 2),
        ("num_filters", 0, 1),
        ("num_elements", 0, 1),
    ],
    "painn": [
        ("num_layers", 0, 1),
        ("hidden_channels", 0, 2),
        ("num_rbf", 1, 2),
        ("num_elements", -1, 1),
    ],
    "dimenetpp": [
        ("num_blocks", 0, 1),
        ("hidden_channels", 0, 1),
        ("num_spherical", 0, 1),
        ("num_radial", 0, 1),
        ("int_emb_size", 0, 1),
        ("basis_emb_size", -3, 1),
        ("out_emb_channels", 0, 1),
        ("num_before_skip", -1, 0),
        ("num_after_skip", -1, 0),
    ],
    "gemnet_t": [
        ("num_blocks", 0, 1),
        ("emb_size_atom", 0, 1),
        ("emb_size_edge", 0, 1),
        ("emb_size_trip", 0, 1),
        ("num_radial", 1, 2),
        ("num_spherical", 0, 1),
        ("num_concat", -1, 0),
        ("num_atom", -1, 0),
    ],
}


@pytest.mark.parametrize(
    "name, field, value, least",
    [(name, *entry) for name, entries in OUT_OF_RANGE.items() for entry in entries],
)
def test_sizes_out_of_range_are_refused(name, field, value, least):
    with pytest.raises(InputError) as error:
        tiny(name, **{field: value})
    assert str(error.value) == f"model.{field} must be at least {least}, not {value}"


@pytest.mark.parametrize("cutoff", [0.0, -1, float("inf"), float("nan")])
@pytest.mark.parametrize("name", MODELS)
def test_cutoffs_that_are_no_length_are_refused(name, cutoff):
    with pytest.raises(InputError, match="^model.cutoff must be a length above 0 Å, not"):
        MODELS[name](cutoff=cutoff)
    with pytest.raises(InputError, match="model.cutoff"):
        tiny(name, cutoff=cutoff)


@pytest.mark.parametrize("name", MODELS)
def test_max_neighbors_below_one_is_refused(name):
    with pytest.raises(InputError, match="max_neighbors must be at least 1"):
        model = tiny(name, max_neighbors=0)
        ewald_jax.batch_from_atoms([generic_molecule()], model)


@pytest.mark.parametrize(
    "field, value, sentence",
    [
        ("cutoff", -1.0, "atomic.cutoff must be a length above 0 Å, not -1"),
        ("cutoff", float("inf"), "atomic.cutoff must be a length above 0 Å, not inf"),
        ("max_neighbors", 0, "atomic.max_neighbors must be at least 1, not 0"),
        ("num_gaussians", 1, "atomic.num_gaussians must be at least 2, not 1"),
        ("num_filters", 0, "atomic.num_filters must be at least 1, not 0"),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_atom_to_atom_settings_out_of_range_are_refused(name, field, value, sentence):
    with pytest.raises(InputError, match=sentence):
        tiny(name, atomic={field: value})


@pytest.mark.parametrize(
    "name, field, value",
    [
        ("painn", "direct_forces", "yes"),
        ("painn", "smooth_cutoff", 2),
        ("gemnet_t", "num_blocks", 1.5),
        ("dimenetpp", "num_radial", "six"),
        ("gemnet_t", "atomic", "far"),
    ],
)
def test_values_of_the_wrong_type_are_refused(name, field, value):
    with pytest.raises(InputError, match=f"model.{field}"):
        ewald_jax.build_model(name, **{field: value})


# -- DimeNet++'s own stream of atoms ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["atomic", "ewald"])
def test_the_stream_of_dimenetpp_reaches_the_output(kind):
    """In the paper's code the atom-to-atom block's result is thrown away."""
    block = {"atomic": ATOMIC, "ewald": dataclasses.replace(EWALD, prefactor=1.0)}[kind]
    model = tiny("dimenetpp", cutoff=2.0, **{kind: block})
    batch = ewald_jax.batch_from_atoms([generic_molecule()], model)
    params = drawn(model, batch)

    def energy(params):
        out = ewald_jax.predict(model, params, batch, forces=False)
        return np.asarray(out.energy)[0]

    def changed(*starts):
        return {
            name: jax.tree.map(lambda x: 1.1 * x, value)
            if name.startswith(starts)
            else value
            for name, value in params.items()
        }

    names = [name for name in params if name.startswith(f"{kind}_")]
    assert {f"{kind}_0", f"{kind}_1"} <= set(names)
    for name in (*names, "embedding"):
        assert abs(energy(changed(name)) - energy(params)) > 1e-4, name


@pytest.mark.parametrize(
    "fields, count",
    [
        ({}, 2_755_462),
        ({"atomic": AtomToAtomConfig(cutoff=12.0, max_neighbors=100)}, 3_719_814),
        (
            {
                "ewald": EwaldConfig(
                    scheme="voxel", k_cutoff=0.8, num_k_rbf=128, num_hidden=3
                )
            },
            4_749_958,
        ),
    ],
    ids=["baseline", "atomic", "ewald"],
)
def test_dimenetpp_has_the_parameters_of_the_paper(fields, count):
    """The stream of the atom-to-atom variant is added, and so needs no more weights."""
    model = ewald_jax.build_model("dimenetpp", hidden_channels=256, **fields)
    batch = ewald_jax.batch_from_atoms([ase.Atoms("H2", [[0, 0, 0], [0, 0, 1]])], model)
    init = lambda key: ewald_jax.init_params(model, key, batch)
    assert count_parameters(jax.eval_shape(init, jax.random.key(0))) == count
