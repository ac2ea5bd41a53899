"""Configs of the reference and of OCP that are odd: one sentence each, or a note."""

import numpy as np
import pytest
from commands import refuse
from structures import quick_compilation  # noqa: F401
from test_interop_checkpoint import (
    GEMNET,
    PAINN,
    SCHNET,
    check_energies,
    config_of,
    file_content,
)
from torch_files import save

from ewald_jax.interop.torch_config import config_notes, reference_model
from ewald_jax.interop.torch_import import import_checkpoint

pytestmark = pytest.mark.usefixtures("quick_compilation")

DIMENET = "model_dimenetplusplus_baseline_pbc"
HUGE = 10**5000


def sentence(path, content):
    """The error of the command line; a traceback would be none."""
    text = refuse("import-torch", save(path / "x.pt", content), "-o", path / "out")
    assert "\n" not in text.strip() and len(text) < 600
    return text


# -- DimeNet++ and atom-to-atom edges --------------------------------------------------------


def far_arrays(rng, blocks=2):
    """What the reference's block has, by its names."""
    shapes = {"mlp.0.weight": (256, 200), "mlp.0.bias": (256,), "mlp.2.weight": (256, 256)}
    shapes |= {"mlp.2.bias": (256,), "conv.lin1.weight": (256, 32), "lin.bias": (32,)}
    shapes |= {
        "conv.lin2.weight": (32, 256),
        "conv.lin2.bias": (32,),
        "lin.weight": (32, 32),
    }
    names = {
        f"interactions_at.{i}.{k}": v for i in range(blocks) for k, v in shapes.items()
    }
    names |= {"distance_expansion_at.offset": (200,)}
    return {k: rng.normal(size=v).astype(np.float32) for k, v in names.items()}


def test_far_edges_of_dimenet_change_nothing(tmp_path):
    content, rng = file_content(DIMENET), np.random.default_rng(0)
    far = far_arrays(rng) | {"atom_emb.embeddings.weight": rng.normal(size=(83, 32))}
    content["state_dict"] |= {f"module.{key}": value for key, value in far.items()}
    assert "'interactions_at" in sentence(tmp_path, content)
    content["config"]["model_attributes"]["atom_to_atom_cutoff"] = 12.0
    imported = import_checkpoint(save(tmp_path / "x.pt", content))
    assert imported.model.atomic is None
    assert imported.notes == (
        "atom_to_atom_cutoff is left out: in the reference, no output of dimenetplusplus "
        "depends on its atom-to-atom block",
    )
    check_energies(DIMENET, *imported[:3])


def test_far_edges_of_dimenet_beside_ewald(tmp_path):
    name = "model_dimenetplusplus_ewald_pbc"
    content = file_content(name, "")
    content["state_dict"] |= far_arrays(np.random.default_rng(0))
    content["config"]["model_attributes"]["atom_to_atom_cutoff"] = 12.0
    imported = import_checkpoint(save(tmp_path / "x.pt", content))
    assert "not checked for both blocks" in imported.notes[1]
    check_energies(name, *imported[:3])
    del content["state_dict"]["atom_emb.embeddings.weight"]
    assert "no array 'atom_emb.embeddings.weight'" in sentence(tmp_path, content)


# -- values that are none --------------------------------------------------------------------

EWALD = "model_schnet_ewald_aperiodic"
HYPER = config_of(EWALD)["ewald_hyperparams"]
KEY = "ewald_hyperparams"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({KEY: 3}, "ewald_hyperparams: 3, expected settings by name"),
        ({KEY: {**HYPER, "k_cutoff": "one"}}, "hyperparams.k_cutoff': expected a number"),
        ({KEY: {**HYPER, "k_cutoff": [1]}}, "k_cutoff: [1], expected a number"),
        ({KEY: {**HYPER, "k_cutoff": 1000.0}}, "wave vectors, expected fewer than"),
        ({KEY: {**HYPER, "delta_k": 0.0}}, "expected them above 0"),
        ({KEY: {**HYPER, "num_hidden": 1.5}}, "hyperparams.num_hidden': expected an int"),
        ({KEY: {**HYPER, "downprojection_size": "8"}}, "downprojection_size': expected an"),
        ({KEY: {**HYPER, "downprojection_size": 0}}, "downprojection_size must be >= 1"),
        ({KEY: {**HYPER, "num_k_rbf": HUGE}}, "num_k_rbf: an integer of 16610 bits, exp"),
        ({KEY: {}}, "ewald_hyperparams without 'k_cutoff'"),
        ({KEY: HYPER, "use_pbc": "no"}, "use_pbc: 'no', expected true or false"),
        ({KEY: HYPER, "use_pbc": True}, "without 'num_k_x', expected it beside use_pbc"),
        ({"atom_to_atom_cutoff": "far"}, "'atom_to_atom_cutoff': expected a number"),
        ({"atom_to_atom_cutoff": -1.0}, "atom_to_atom_cutoff must be a length above 0"),
        ({"atom_to_atom_cutoff": np.ones(9)}, "an array of shape (9,), expected a number"),
        ({"max_neighbors_at": "many", "atom_to_atom_cutoff": 7}, "max_neighbors_at"),
        ({"cutoff": HUGE}, "cutoff: an integer of 16610 bits, expected a number up to"),
        ({"num_filters": "wide"}, "num_filters': expected an integer, got 'wide'"),
        ({"num_filters": np.ones(2)}, "num_filters: [1.0, 1.0], expected a number"),
        ({"readout": np.ones(3)}, "readout: [1.0, 1.0, 1.0], expected 'add'"),
        ({"num_targets": HUGE}, "num_targets: an integer of 16610 bits, expected 1"),
    ],
)
def test_settings_of_the_wrong_kind(changes, words, tmp_path):
    content = file_content(SCHNET)
    content["config"]["model_attributes"] |= {"use_pbc": False} | changes
    assert words in sentence(tmp_path, content)


def test_numbers_as_text(tmp_path):
    """As YAML makes them of 1.2e1."""
    model = reference_model({**config_of(SCHNET), "atom_to_atom_cutoff": "12"}, 100)
    assert model.atomic.cutoff == 12.0 and model.atomic.max_neighbors == 400


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": {"model": {"name": ["painn"]}}}, "for architecture ['painn']; it is"),
        ({"config": {"model": {"name": HUGE}}}, "an integer of 16610 bits; it is one of"),
        ({"config": {"model": "painn", "model_attributes": [1]}}, "model_attributes: [1]"),
        ({"state_dict": HUGE}, "its state_dict is an integer of 16610 bits, expected"),
        ({"state_dict": {"a" * 10**5: 1.0}}, "is a float, expected an array"),
        ({"state_dict": {"embedding.weight": np.float32(1)}}, "is a float, expected an ar"),
        ({"state_dict": {"embedding.weight": np.ones(())}}, "has shape (), expected a mat"),
        (
            {"normalizers": {"target": {"mean": HUGE, "std": 1}}},
            "one number but an integer",
        ),
        ({"normalizers": {"target": {"mean": [1, 2], "std": 1}}}, "one number but [1, 2]"),
        ({"normalizers": HUGE}, "normalizers are for an integer of 16610 bits, expected"),
        ({"normalizers": np.ones(3)}, "normalizers are for [1.0, 1.0, 1.0], expected"),
    ],
)
def test_contents_of_the_wrong_kind(changes, words, tmp_path):
    assert words in sentence(tmp_path, file_content(SCHNET) | changes)


def test_a_number_too_long_to_write_as_a_key(tmp_path):
    """Python refuses to write integers of more than 4300 digits."""
    key = "has an integer above 2**60 as a key, expected text"
    assert key in sentence(tmp_path, {HUGE: 1})
    assert key in sentence(tmp_path, {"state_dict": {HUGE: np.ones(1)}})


@pytest.mark.parametrize(
    "value", [[1], {}, np.ones(2), "x", None, HUGE], ids=lambda value: type(value).__name__
)
def test_normalisation_in_the_config_of_the_wrong_kind(value, tmp_path):
    content = file_content(SCHNET, normalizers={})
    labels = {"normalize_labels": np.ones(2), "target_mean": 1.0, "target_std": value}
    content["config"]["dataset"] = [labels]
    assert "target_std: " in sentence(tmp_path, content)
    content["config"]["dataset"] = np.ones(3)
    import_checkpoint(save(tmp_path / "x.pt", content))


# -- notes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SCHNET, PAINN, GEMNET, DIMENET])
def test_settings_that_nobody_looked_at_are_said(name):
    config = config_of(name)
    assert config_notes(config) == []
    more = {**config, "qint_tags": [0], "num_atoms": 1, "output_init": "zeros"}
    assert config_notes(more) == [
        "settings of the config that were not looked at: 'qint_tags'"
    ]
    many = {**config, **{f"a{i}": i for i in range(7)}}
    assert config_notes(many)[0].endswith("'a0', 'a1', 'a2', 'a3', 'a4' and 2 more")


def test_edges_that_came_with_the_data_are_said():
    config = {**config_of(SCHNET), "cutoff": 10.0}
    assert config_notes(config) == []
    for off in ({"otf_graph": False}, {"otf_graph": None}):
        assert "the edges came with the training data" in config_notes(config | off)[0]


def test_forces_that_are_coupled_are_refused(tmp_path):
    content = file_content(GEMNET)
    content["config"]["model_attributes"]["forces_coupled"] = True
    assert "forces_coupled: True, expected False or None" in sentence(tmp_path, content)
