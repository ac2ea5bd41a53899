"""All four baselines and their variants against the PyTorch reference's numbers."""

import functools
import json

import ase
import jax
import numpy as np
import pytest
from structures import REFERENCE, assert_close, quick_compilation, reference  # noqa: F401

import ewald_jax
from ewald_jax.interop.torch_names import rules
from ewald_jax.typing import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")

FILES = sorted(path.stem for path in REFERENCE.glob("model_*.npz"))
EWALD = [name for name in FILES if "_ewald_" in name]


def test_all_files_are_here():
    assert len(FILES) == 22


@functools.cache
def load(name):
    return reference(name)


def weights_of(data):
    return {key[2:]: value for key, value in data.items() if key.startswith("w/")}


def structures_of(data, periodic):
    ends = np.cumsum(data["natoms"])
    for i, (end, n) in enumerate(zip(ends, data["natoms"], strict=True)):
        atoms = ase.Atoms(data["z"][end - n : end], data["pos"][end - n : end])
        if periodic:
            atoms.set_cell(data["cell"][i])
            atoms.pbc = True
        yield atoms


def build(name):
    """Arrays of a file, our model with its weights, and its structures."""
    data = load(name)
    config = json.loads(str(data["config"]))
    model, params = ewald_jax.interop.from_reference(config, weights_of(data))
    return data, model, params, list(structures_of(data, config["use_pbc"]))


def compare(name, dtype, energy_tolerance, forces_tolerance):
    data, model, params, structures = build(name)
    batch = ewald_jax.batch_from_atoms(structures, model)
    out = ewald_jax.predict(model, params, batch)
    assert out.energy.dtype == out.forces.dtype == dtype
    n, nodes = len(structures), len(data["z"])
    assert_close(out.energy[:n], data["energy"], energy_tolerance, "energy")
    assert_close(out.forces[:nodes], data["forces"], forces_tolerance, "forces")
    assert not np.any(out.energy[n:]) and not np.any(out.forces[nodes:])


@pytest.mark.parametrize("name", FILES)
def test_energy_and_forces(name, x64):
    compare(name, np.float64, 1e-10, 1e-10)


@pytest.mark.parametrize("name", FILES)
def test_energy_and_forces_in_float32(name):
    """As far from float64 as the reference's own float32 result, or less than 1e-5."""
    data = load(name)

    def error(key):
        scale = np.abs(data[key]).max()
        return np.abs(data[f"{key}_f32"] - data[key]).max() / scale

    tolerances = (max(3 * error(key), 1e-5) for key in ("energy", "forces"))
    compare(name, np.float32, *tolerances)


@pytest.mark.parametrize("name", FILES)
def test_edges(name, x64):
    data, model, _, structures = build(name)
    batch = ewald_jax.batch_from_atoms(structures, model, pad=False)
    graph, far = batch.graph, batch.far_edges
    kind = "edge_used" if "edge_used/src" in data else "edge"
    same_edges(data, kind, graph.senders, graph.receivers, graph.edges["shifts"])
    assert (far is None) == ("edge_at/src" not in data)
    if far is not None:
        same_edges(data, "edge_at", *far)


def same_edges(data, kind, senders, receivers, shifts):
    ours = np.column_stack([senders, receivers, shifts]).tolist()
    columns = [data[f"{kind}/{name}"] for name in ("src", "dst", "offset")]
    theirs = np.column_stack(columns).tolist()
    assert len(ours) == len(theirs)
    # Where the nearest neighbors cut through a shell of equal distances the choice is free.
    unlike = len(set(map(tuple, ours)) ^ set(map(tuple, theirs)))
    assert unlike <= 0.02 * len(ours) * ("cell" in data)
    assert np.all(np.diff(receivers) >= 0)


@pytest.mark.parametrize("name", EWALD)
def test_block_by_block(name, x64):
    data, model, params, structures = build(name)
    batch = ewald_jax.batch_from_atoms(structures, model, pad=False)

    @jax.jit
    def run(params, batch):
        geometry = ewald_jax.kspace_geometry(model.ewald, batch)
        _, state = model.apply(
            {"params": params}, batch, geometry, capture_intermediates=True
        )
        return state["intermediates"]

    inside = run(params, jax.tree.map(np.asarray, batch))
    blocks = sorted(key for key in inside if key.startswith("ewald_") and key[-1].isdigit())
    assert len(blocks) == 2
    for i, block in enumerate(blocks):
        assert_close(inside[block]["__call__"][0], data[f"ewald/{i}/h_update"], 1e-8, block)
    if "embedding" in inside:  # later inputs follow from the outputs
        h = inside["embedding"]["__call__"][0]
        assert_close(h, data["ewald/0/h_in"], 1e-12, "h_in")


# -- weights that do not fit -----------------------------------------------------------------


def config_and_weights(name="model_schnet_ewald_pbc"):
    data = load(name)
    return json.loads(str(data["config"])), weights_of(data)


def refused(config, weights):
    with pytest.raises(InputError) as caught:
        ewald_jax.interop.from_reference(config, weights)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_missing_and_left_over_arrays_are_named():
    config, weights = config_and_weights()
    left = {key: value for key, value in weights.items() if key != "lin1.weight"}
    assert "'lin1.weight'" in refused(config, left)
    sentence = refused({**config, "ewald_hyperparams": None}, weights)
    assert "down.linear.weight" in sentence and "ewald_hyperparams" in sentence


@pytest.mark.parametrize("name", ["model_painn_baseline_pbc", "model_gemnet_t_ewald_pbc"])
def test_missing_scale_factors_are_named(name):
    config, weights = config_and_weights(name)
    left = {k: v for k, v in weights.items() if not k.endswith("scale_factor")}
    assert "scale factor" in refused(config, left)
    unfitted = {k: v * 0 if k.endswith("scale_factor") else v for k, v in weights.items()}
    assert "never fitted" in refused(config, unfitted)


def test_unknown_and_wrong_architectures():
    config, weights = config_and_weights()
    assert "schnet" in refused({**config, "arch": "schnett"}, weights)
    painn, _ = config_and_weights("model_painn_baseline_pbc")
    sentence = refused(painn, weights)
    assert "those of schnet" in sentence and "one of painn" in sentence
    _, gemnet = config_and_weights("model_gemnet_t_baseline_pbc")  # embeds as PaiNN does
    assert "those of gemnet_t" in refused(painn, gemnet)
    left = {k: v for k, v in weights.items() if k != "embedding.weight"}
    assert "'embedding.weight'" in refused(config, left)


@pytest.mark.parametrize(
    "name, key, value, array",
    [
        ("model_schnet_baseline_pbc", "num_filters", 48, "interactions.0.mlp.0.weight"),
        ("model_painn_baseline_pbc", "num_rbf", 20, "message_layers.0.rbf_proj.weight"),
        (
            "model_dimenetplusplus_baseline_pbc",
            "int_emb_size",
            12,
            "interaction_blocks.0.lin_sbf2.weight",
        ),
        ("model_gemnet_t_baseline_pbc", "emb_size_cbf", 4, "mlp_cbf3.weight"),
    ],
)
def test_wrong_shapes_name_array_shapes_and_setting(name, key, value, array):
    config, weights = config_and_weights(name)
    sentence = refused({**config, key: value}, weights)
    assert repr(array) in sentence and key in sentence
    assert str(weights[array].shape) in sentence


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"rbf": {"name": "bernstein"}}, "rbf"),
        ({"num_targets": 3}, "num_targets"),
        ({"emb_size_trip": None}, "emb_size_trip"),
        ({"forces_coupled": True}, "forces_coupled: True, expected False"),
        ({"activation": "siqu"}, "activation"),
        ({"extensive": False}, "extensive"),
        ({"num_blocks": 10**9}, "num_blocks: 1000000000, expected a number up to 100"),
    ],
)
def test_settings_without_a_counterpart_are_refused(changes, word):
    config, weights = config_and_weights("model_gemnet_t_baseline_pbc")
    assert word in refused({**config, **changes}, weights)


@pytest.mark.parametrize(
    "name, changes, words",
    [
        ("schnet_baseline_pbc", {"num_interactions": 3}, "num_interactions"),
        ("schnet_baseline_pbc", {"num_interactions": 1}, "num_interactions"),
        ("painn_baseline_pbc", {"num_layers": 4}, "num_layers"),
        ("painn_ewald_aperiodic", {"num_layers": 1}, "num_layers"),
        ("dimenetplusplus_baseline_pbc", {"num_blocks": 3}, "num_blocks"),
        ("dimenetplusplus_baseline_pbc", {"num_blocks": 1}, "num_blocks"),
        ("dimenetplusplus_baseline_pbc", {"num_output_layers": 3}, "num_output_layers"),
        ("dimenetplusplus_baseline_pbc", {"num_output_layers": 1}, "num_output_layers"),
        ("dimenetplusplus_ewald_pbc", {"num_after_skip": 3}, "num_after_skip"),
        ("gemnet_t_baseline_pbc", {"num_blocks": 3}, "num_blocks"),
        ("gemnet_t_baseline_pbc", {"num_concat": 0}, "num_concat"),
        ("gemnet_t_ewald_pbc", {"num_atom": 3}, "num_atom"),
        (
            "gemnet_t_baseline_pbc",
            {"num_blocks": 3, "num_concat": 2},
            "num_blocks and num_concat",
        ),
    ],
)
def test_wrong_numbers_of_layers_are_named(name, changes, words):
    config, weights = config_and_weights(f"model_{name}")
    assert refused({**config, **changes}, weights).endswith(
        f"; look at {words} in the config"
    )


@pytest.mark.parametrize("arch", ["schnet", "painn", "dimenetplusplus", "gemnet_t"])
def test_wrong_ewald_settings_are_named(arch):
    config, weights = config_and_weights(f"model_{arch}_ewald_pbc")
    hyper = config["ewald_hyperparams"]
    larger = {**hyper, "num_k_x": hyper["num_k_x"] + 1}
    sentence = refused({**config, "ewald_hyperparams": larger}, weights)
    assert "'down.linear.weight'" in sentence
    assert sentence.endswith("; look at num_k_x and num_k_y and num_k_z in the config")
    larger = {**hyper, "downprojection_size": 4}
    sentence = refused({**config, "ewald_hyperparams": larger}, weights)
    assert sentence.endswith("; look at downprojection_size in the config")
    if arch != "gemnet_t":  # which takes num_atom
        larger = {**hyper, "num_hidden": hyper["num_hidden"] + 1}
        sentence = refused({**config, "ewald_hyperparams": larger}, weights)
        assert sentence.endswith("; look at num_hidden in the config")


@pytest.mark.parametrize("name", FILES)
def test_every_parameter_has_one_name(name):
    """No two parameters share an array, and none is made up."""
    _, model, params, _ = build(name)
    wanted = rules(model)
    assert len({rule.name for rule in wanted}) == len(wanted)
    assert len(jax.tree.leaves(params)) == len(wanted)
