"""The models that come with the package: they load, they predict, their cards are true."""

import json

import ase.io
import jax
import numpy as np
import pytest
from ase.calculators.calculator import CalculatorSetupError
from commands import refuse, succeed

import ewald_jax
from ewald_jax import EwaldCalculator, InputError, load_checkpoint, load_pretrained
from ewald_jax.data.samples import read_sample, split_indices
from ewald_jax.pretrained import PRETRAINED, model_card
from ewald_jax.pretrained.files import HERE
from ewald_jax.train.state import count_parameters


def test_together_they_take_at_most_three_megabytes():
    """As many files as names, and nothing large."""
    files = [
        HERE / f"{name}{suffix}" for name in PRETRAINED for suffix in (".json", ".npz")
    ]
    assert sum(file.stat().st_size for file in files) < 3e6
    assert {path.name for path in HERE.iterdir() if path.suffix in (".json", ".npz")} == {
        file.name for file in files
    }


@pytest.mark.parametrize("name", PRETRAINED)
def test_card_and_parameters_belong_together(name):
    """Counted parameters, elements of the statistics, and the table of the README."""
    model, params, config, statistics = load_pretrained(name)
    card = model_card(name)
    assert count_parameters(params) == card["parameters"]
    assert card["elements"] == statistics.to_dict()["species"]
    assert model.ewald.scheme == "radial"
    assert config["model"]["name"] == ("painn" if name.endswith("painn") else "schnet")
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))
    row = f"| test | {1e3 * card['metrics']['test']['energy_mae']:.1f} |"
    assert row in (HERE / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["dimers-painn", "slabs"])
def test_errors_are_those_of_the_card(name):
    """On structures of the test split, within the spread of so few."""
    sample = name.partition("-")[0]
    structures = read_sample(sample)
    indices = split_indices(sample, "random", [x.info for x in structures], seed=0)["test"]
    chosen = [structures[i] for i in indices[:: max(1, len(indices) // 24)]][:24]
    calculator = EwaldCalculator.from_pretrained(name, slack=0.0)
    found = calculator.calculate_many(chosen, batch_size=24)
    error = np.array([x["energy"] for x in found]) - [
        x.get_potential_energy() for x in chosen
    ]
    force = np.concatenate([np.ravel(x["forces"]) for x in found])
    truth = np.concatenate([np.ravel(x.get_forces()) for x in chosen])
    test = model_card(name)["metrics"]["test"]
    assert 0.3 < np.abs(error).mean() / test["energy_mae"] < 3
    assert 0.5 < np.abs(force - truth).mean() / test["forces_mae"] < 2


def test_the_command_line_takes_them_as_checkpoints(tmp_path, molecule):
    """`predict pretrained:dimers`, and an unknown name in one sentence."""
    path, out = tmp_path / "ethanol.xyz", tmp_path / "out.extxyz"
    ase.io.write(path, molecule)
    succeed("predict", "pretrained:dimers", path, "-o", out)
    energy = EwaldCalculator.from_pretrained("dimers").get_potential_energy(molecule)
    assert ase.io.read(out).get_potential_energy() == pytest.approx(energy, abs=1e-4)
    words = refuse("predict", "pretrained:dimer", path, "-o", tmp_path / "x.extxyz")
    assert "there is no pretrained model 'dimer'; did you mean 'dimers'?" in words


def test_names_and_errors():
    """One sentence that names what there is, in the calculator's own kind of error."""
    assert load_checkpoint("pretrained:dimers")[2] == load_pretrained("dimers")[2]
    with pytest.raises(InputError, match="did you mean 'slabs'"):
        load_pretrained("slab")
    with pytest.raises(CalculatorSetupError, match="there are dimers, dimers-painn"):
        EwaldCalculator.from_pretrained("water")
    description = json.loads((HERE / "dimers.json").read_text(encoding="utf-8"))
    ewald_jax.build_model(**description["config"]["model"])
