"""Checkpoints as the Open Catalyst Project writes them, with the reference's weights inside."""

import functools
import json

import jax
import numpy as np
import pytest
from structures import assert_close, quick_compilation  # noqa: F401
from test_reference_models import load, structures_of, weights_of
from torch_files import save

import ewald_jax
from ewald_jax.interop.torch_checkpoint import read_checkpoint
from ewald_jax.interop.torch_config import reference_model
from ewald_jax.interop.torch_import import import_checkpoint, write_imported
from ewald_jax.interop.torch_names import rules
from ewald_jax.interop.torch_reference import _shapes
from ewald_jax.interop.torch_settings import model_arguments
from ewald_jax.typing import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")

MEAN, STD = -0.75, 2.5


def file_content(name, prefix="module.", **more):
    """What OCP saves of a model, its config inside."""
    data = load(name)
    arguments = config_of(name)
    model = arguments.pop("arch")
    weights = {prefix + key: value for key, value in weights_of(data).items()}
    return {
        "epoch": 3.5,
        "step": 1200,
        "state_dict": weights,
        "normalizers": {"target": normalizer(MEAN, STD), "grad_target": normalizer(0, STD)},
        "config": {"task": "s2ef", "model": model, "model_attributes": arguments},
        "ema": None,
        **more,
    }


def normalizer(mean, std):
    return {"mean": np.array(mean, np.float32), "std": np.array(std, np.float32)}


def config_of(name):
    """The reference's arguments, without the name that the file has for their combination."""
    config = json.loads(str(load(name)["config"]))
    del config["variant"]
    return config


def check_energies(name, model, params, statistics, mean=MEAN, std=STD, factor=1.0):
    data = load(name)
    batch = ewald_jax.batch_from_atoms(
        list(structures_of(data, config_of(name)["use_pbc"])), model
    )
    out = ewald_jax.predict(model, params, batch, statistics)
    energy = (out.energy[: len(data["natoms"])] - mean) / std
    own = np.abs(data["energy_f32"] - data["energy"]).max() / np.abs(data["energy"]).max()
    assert_close(energy, factor * data["energy"], max(1e-5, 3 * own), "energy")
    forces = out.forces[: len(data["z"])] / std
    assert_close(forces, factor * data["forces"], 1e-3, "forces")


NAMES = [
    "schnet_baseline_pbc",
    "schnet_ewald_aperiodic",
    "schnet_atomic_pbc",
    "painn_baseline_aperiodic",
    "painn_ewald_pbc",
    "painn_atomic_aperiodic",
    "dimenetplusplus_baseline_aperiodic",
    "dimenetplusplus_ewald_pbc",
    "gemnet_t_baseline_aperiodic",
    "gemnet_t_ewald_pbc",
]


@pytest.mark.parametrize("name", [f"model_{name}" for name in NAMES])
def test_an_imported_directory_has_the_files_energies(name, tmp_path):
    file = save(tmp_path / "x.pt", file_content(name, "module.module."))
    imported = import_checkpoint(file)
    assert imported.notes == ()
    write_imported(imported, tmp_path / "out", str(file))
    model, params, config, statistics = ewald_jax.load_checkpoint(tmp_path / "out")
    assert model == imported.model and config["imported"] == {"from": str(file)}
    assert (statistics.mean, statistics.scale) == (MEAN, STD)
    check_energies(name, model, params, statistics)
    _, last, _, _ = ewald_jax.load_checkpoint(tmp_path / "out", "last")
    jax.tree.map(np.testing.assert_array_equal, params, last)


SCHNET, PAINN = "model_schnet_baseline_pbc", "model_painn_baseline_pbc"
GEMNET = "model_gemnet_t_ewald_pbc"


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_formats_and_prefixes(kind, prefix, tmp_path):
    file = save(tmp_path / "x.pt", file_content(PAINN, prefix), kind)
    weights, expected = read_checkpoint(file).weights, weights_of(load(PAINN))
    assert list(weights) == list(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(weights[key], value, strict=True)


def test_a_state_dict_alone_with_a_config_beside_it(tmp_path):
    weights = weights_of(load(SCHNET))
    file = save(tmp_path / "x.pt", weights)
    imported = import_checkpoint(file, config_of(SCHNET))
    check_energies(SCHNET, *imported[:3], mean=0, std=1)
    assert "no normalisation is known" in imported.notes[0]
    with pytest.raises(InputError, match="has no config in it"):
        import_checkpoint(file)


def test_every_element_with_an_embedding_is_known(tmp_path):
    for name, last in ((SCHNET, 99), (PAINN, 83)):
        statistics = import_checkpoint(save(tmp_path / "x.pt", file_content(name)))[2]
        assert statistics.species == tuple(range(1, last + 1))
        assert statistics.unseen([last, last + 1]) == (last + 1,)
        assert not any(statistics.reference_energies)


def test_arrays_that_other_versions_have_besides(tmp_path):
    content = file_content(SCHNET, "")
    state = content["state_dict"]
    for key in [key for key in state if ".mlp." in key]:
        state[key.replace(".mlp.", ".conv.nn.")] = state[key]
    state["atomic_mass"] = np.ones(119)
    check_energies(SCHNET, *import_checkpoint(save(tmp_path / "x.pt", content))[:3])


def test_half_precision_is_read_as_float32(tmp_path):
    content = file_content(SCHNET)
    state = content["state_dict"]
    content["state_dict"] = {k: v.astype(np.float16) for k, v in state.items()}
    imported = import_checkpoint(save(tmp_path / "x.pt", content))
    assert {x.dtype for x in jax.tree.leaves(imported.params)} == {np.dtype("f4")}


# -- running averages ------------------------------------------------------------------------


def is_trained(key):
    """Of the parity files: no buffers, scale factors or second names of shared layers."""
    shared = (".down.linear.weight", "scale_factor", ".offset")
    return not key.endswith(shared) and "seq_energy" not in key


def shadow_of(name):
    """Twice the weights, as a list in the order of PyTorch's `parameters()`."""
    weights = weights_of(load(name))
    return [2 * value for key, value in weights.items() if is_trained(key)]


@pytest.mark.parametrize("name", [SCHNET, GEMNET, "model_painn_ewald_pbc"])
def test_running_averages_go_to_their_arrays(name, tmp_path):
    ema = {"decay": 0.999, "num_updates": 5, "shadow_params": shadow_of(name)}
    file = save(tmp_path / "x.pt", file_content(name, ema=ema | {"collected_params": []}))
    plain, averaged = import_checkpoint(file), import_checkpoint(file, ema=True)
    assert "running averages" in plain.notes[0] and averaged.notes == ()
    for rule in rules(plain.model):
        find = lambda tree, rule=rule: functools.reduce(lambda x, k: x[k], rule.path, tree)
        factor = 1 if rule.path[-1] == "scale_factor" else 2
        before, after = find(plain.params), find(averaged.params)
        np.testing.assert_array_equal(after, factor * before, err_msg=rule.name)


def test_running_averages_that_do_not_fit_are_refused(tmp_path):
    def sentence(ema):
        file = save(tmp_path / "x.pt", file_content(SCHNET, ema=ema))
        with pytest.raises(InputError) as caught:
            import_checkpoint(file, ema=True)
        assert str(file) in str(caught.value)
        return str(caught.value)

    shadow = shadow_of(SCHNET)
    assert "has no running averages" in sentence(None)
    assert "no list 'shadow_params'" in sentence({"decay": 0.9})
    few = f"{len(shadow) - 1} running averages for {len(shadow)} trained arrays"
    assert few in sentence({"shadow_params": shadow[1:]})
    swapped = [shadow[1], shadow[0], *shadow[2:]]
    words = sentence({"shadow_params": swapped})
    assert "running average 0 has shape (32, 50)" in words and "(100, 32)" in words


# -- normalisation ---------------------------------------------------------------------------

TRAINING = {
    "normalize_labels": True,
    "target_mean": MEAN,
    "target_std": STD,
    "grad_target_mean": 0.0,
    "grad_target_std": STD,
}


@pytest.mark.parametrize(
    "section",
    [
        {"dataset": [{"src": "a", **TRAINING}, {"src": "b"}]},
        {"dataset": TRAINING},
        {"dataset": {"train": TRAINING, "val": {}}},
        {"normalizer": TRAINING, "dataset": {"src": "a"}},
        {"dataset_train": [TRAINING]},
        {"dataset": {**TRAINING, "target_std": "25e-1"}},
    ],
)
def test_normalisation_from_the_config(section, tmp_path):
    file = save(tmp_path / "x.pt", file_content(SCHNET, normalizers={}))
    config = {"name": "a run", "model": {**config_of(SCHNET), "name": "schnet"}, **section}
    for values in (config, {"seml": {}, "fixed": config}):
        imported = import_checkpoint(file, values)
        assert (imported.statistics.mean, imported.statistics.scale) == (MEAN, STD)
        assert imported.notes == ()
    inside = file_content(SCHNET, normalizers={})
    inside["config"] |= section
    statistics = import_checkpoint(save(tmp_path / "y.pt", inside)).statistics
    assert (statistics.mean, statistics.scale) == (MEAN, STD)


def test_labels_that_are_not_normalised(tmp_path):
    file = save(tmp_path / "x.pt", file_content(SCHNET, normalizers={}))
    off = {"dataset": {**TRAINING, "normalize_labels": False}}
    imported = import_checkpoint(file, {"model": config_of(SCHNET), **off})
    assert (imported.statistics.mean, imported.statistics.scale) == (0, 1)


def test_the_checkpoints_own_normalisation_wins(tmp_path):
    file = save(tmp_path / "x.pt", file_content(SCHNET))
    other = {"dataset": {**TRAINING, "target_mean": 7.0}}
    imported = import_checkpoint(file, {"model": config_of(SCHNET), **other})
    assert imported.statistics.mean == MEAN


def test_contradicting_scales_of_a_conservative_model_are_said(tmp_path):
    normalizers = {"target": normalizer(0, 2), "grad_target": normalizer(0, 3)}
    file = save(tmp_path / "x.pt", file_content(SCHNET, normalizers=normalizers))
    imported = import_checkpoint(file)
    assert "forces were normalised by 3 and energies by 2" in imported.notes[0]
    assert imported.statistics.scale == 2


@pytest.mark.parametrize("name", [PAINN, "model_gemnet_t_baseline_pbc"])
def test_direct_forces_have_their_own_scale(name, tmp_path):
    """No parity file has direct forces: random weights, under the reference's names."""
    blocks = {"num_layers" if name == PAINN else "num_blocks": 1}
    config = config_of(name) | blocks | {"direct_forces": True}
    model = reference_model(config, 83)
    batch = ewald_jax.batch_from_atoms(list(structures_of(load(name), True)), model)
    rng, weights, shapes = np.random.default_rng(0), {}, _shapes(model)
    for rule in rules(model):
        shape = shapes[rule.path]
        array = rng.normal(0, 0.3, shape[::-1] if rule.transpose else shape)
        weights[rule.name] = np.asarray(array if shape else 1.0, np.float32)
    _, params = ewald_jax.interop.from_reference(config, weights)
    normalizers = {"target": normalizer(1, 2), "grad_target": normalizer(0, 3)}
    content = {"state_dict": weights, "normalizers": normalizers}
    file = save(tmp_path / "x.pt", content)
    imported = import_checkpoint(file, config)
    assert imported.notes == () and imported.statistics.scale == 2
    raw = ewald_jax.predict(model, params, batch)
    out = ewald_jax.predict(*imported[:2], batch, imported.statistics)
    assert_close(out.forces, 3 * raw.forces, 1e-5, "forces")
    assert_close(out.energy[:2], 1 + 2 * raw.energy[:2], 1e-5, "energy")
    del content["normalizers"]["grad_target"]
    with pytest.raises(InputError, match="expected grad_target beside target"):
        import_checkpoint(save(tmp_path / "x.pt", content), config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"normalizers": {"energy": normalizer(0, 1)}}, "for 'energy', expected 'target'"),
        ({"normalizers": {"target": {"mean": 1.0}}}, "'target' has no mean and std"),
        ({"normalizers": {"target": normalizer(0, 0)}}, "expected finite numbers, the"),
        ({"normalizers": {"target": normalizer([0, 1], 1)}}, "is not one number"),
        (
            {"normalizers": {"target": normalizer(0, 1), "grad_target": normalizer(1, 1)}},
            "a constant force on every atom is not supported",
        ),
    ],
)
def test_normalisation_that_is_refused(changes, words, tmp_path):
    file = save(tmp_path / "x.pt", file_content(SCHNET, **changes))
    with pytest.raises(InputError) as caught:
        import_checkpoint(file)
    assert words in str(caught.value) and str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"dataset": {"normalize_labels": True}}, "has no target_mean and target_std"),
        ({"includes": ["base.yml"]}, "from other files ('includes')"),
        ({"dataset": {**TRAINING, "target_std": "wide"}}, "target_std: 'wide', expected"),
        (
            {"dataset": {"normalize_labels": True, "target_mean": 1}},
            "target_std: None, exp",
        ),
    ],
)
def test_configs_whose_normalisation_is_refused(section, words, tmp_path):
    file = save(tmp_path / "x.pt", file_content(SCHNET, normalizers={}))
    with pytest.raises(InputError) as caught:
        import_checkpoint(file, {"model": config_of(SCHNET), **section})
    assert words in str(caught.value)


# -- configs ---------------------------------------------------------------------------------


def test_where_the_model_stands_in_a_config():
    arguments = {"name": "painn", "num_layers": 3}
    apart = {"model": "painn", "model_attributes": {"num_layers": 3}}
    for config in ({"model": arguments, "name": "a run"}, apart, arguments):
        assert model_arguments(config) == arguments
        assert model_arguments({"fixed": config}) == arguments
    for config in ({}, {"model": {"num_layers": 3}}, {"model": None, "task": {}}):
        with pytest.raises(InputError, match="the config names no model"):
            model_arguments(config)


# -- files that are no checkpoints -----------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a list, expected a checkpoint of the Open Catalyst"),
        ({"epoch": 3, "model": {}}, "has no state_dict but 'epoch', 'model', expected"),
        ({}, "has no state_dict but nothing"),
        ({"state_dict": {}}, "its state_dict is empty"),
        ({"state_dict": [1.0]}, "its state_dict is [1.0], expected arrays by name"),
        ({"state_dict": {"a": 1.0}}, "the array 'a' is a float, expected an array"),
        ({"state_dict": {1: np.ones(2)}}, "has the name 1, expected text"),
        ({"state_dict": {"a": np.arange(2)}}, "the array 'a' holds int64, expected"),
        ({"state_dict": {"a": np.array([np.nan])}}, "the array 'a' has NaN or infinite"),
        (
            {"state_dict": {"a": np.ones(1), "module.a": np.ones(1)}},
            "'a' twice, with and without 'module.'",
        ),
    ],
)
def test_what_is_no_checkpoint(content, words, tmp_path):
    file = save(tmp_path / "x.pt", content)
    with pytest.raises(InputError) as caught:
        read_checkpoint(file)
    sentence = str(caught.value)
    assert sentence.startswith(f"{file}: ") and words in sentence and "\n" not in sentence
