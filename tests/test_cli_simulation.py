"""`relax` and `md`: what they write, what they report, how they stop and go on."""

import json

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from commands import refuse, run, succeed

from ewald_jax.analysis.drift import energy_drift
from ewald_jax.calculator import EwaldCalculator
from ewald_jax.interrupt import Interruptible


@pytest.fixture(scope="module")
def methane(workplace):
    atoms = ase.build.molecule("CH4")
    atoms.rattle(0.1, seed=1)
    path = workplace / "methane.extxyz"
    ase.io.write(path, [ase.Atoms("H"), atoms], format="extxyz")
    return path


def test_a_relaxation_ends_without_forces(workplace, methane, tmp_path):
    output = tmp_path / "relaxed.traj"
    start = (workplace / "run", methane, "--frame", 1, "-o", output)
    first = json.loads(succeed("relax", *start, "--steps", 3, "--json").stdout)
    assert not first["converged"] and first["steps"] == 3 and first["compilations"] == 1
    refusal = refuse("relax", *start)
    assert "relaxed.traj exists; use --resume or --overwrite" in refusal
    found = json.loads(succeed("relax", *start, "--resume", "--json").stdout)
    assert found["converged"] and found["largest_force"] < 0.02
    frames = ase.io.read(output, ":")
    assert [atoms.info["step"] for atoms in frames] == list(range(found["steps"] + 1))
    assert frames[-1].get_potential_energy() == found["energy"]
    assert found["energy"] < frames[0].get_potential_energy()
    calc = EwaldCalculator.from_checkpoint(workplace / "run")
    calc.calculate(frames[-1])
    assert calc.results["energy"] == pytest.approx(found["energy"], abs=1e-5)
    table = succeed("relax", *start, "--overwrite", "--steps", 1, "--no-progress")
    assert "largest force" in table.stdout and "1 compilations" in table.stderr
    assert len(ase.io.read(output, ":")) == 2


def test_dynamics_go_on_where_they_stopped(workplace, methane, tmp_path):
    start = (workplace / "run", methane, "--frame", 1, "--interval", 4, "--json")
    whole, parts = tmp_path / "whole.traj", tmp_path / "parts.traj"
    found = json.loads(succeed("md", *start, "-o", whole, "--steps", 20).stdout)
    assert found["finished"] and found["steps"] == 20 and found["compilations"] == 1
    assert found["picoseconds"] == pytest.approx(0.01)
    assert abs(found["energy_drift"]) < 1 and found["energy_fluctuation"] < 0.01
    succeed("md", *start, "-o", parts, "--steps", 10)
    succeed("md", *start, "-o", parts, "--steps", 20, "--resume")
    few = refuse("md", *start, "-o", parts, "--steps", 10, "--resume")
    assert "has 20 steps already" in few
    one, other = ase.io.read(whole, ":"), ase.io.read(parts, ":")
    assert [atoms.info["step"] for atoms in one] == [0, 4, 8, 12, 16, 20]
    assert [atoms.info["step"] for atoms in other] == [0, 4, 8, 10, 12, 16, 20]
    np.testing.assert_allclose(one[-1].positions, other[-1].positions, atol=1e-6)
    np.testing.assert_allclose(one[-1].get_momenta(), other[-1].get_momenta(), atol=1e-5)


def test_a_heat_bath_has_no_drift_to_report(workplace, methane, tmp_path):
    output = tmp_path / "nvt.traj"
    arguments = ("--ensemble", "nvt", "--steps", 5, "--frame", 1, "-o", output)
    result = succeed("md", workplace / "run", methane, *arguments, "--no-progress")
    assert "temperature" in result.stdout and "drift" not in result.stdout


def test_ctrl_c_keeps_the_trajectory(workplace, methane, tmp_path, monkeypatch):
    output = tmp_path / "stopped.traj"

    class Impatient(Interruptible):
        """Somebody presses Ctrl-C in the middle of step 5."""

        asked = 0

        @property
        def requested(self):
            self.asked += 1
            return self.asked > 5

        @requested.setter
        def requested(self, value):
            pass

    monkeypatch.setattr("ewald_jax.cli.simulation.Interruptible", Impatient)
    arguments = ("--steps", 50, "--frame", 1, "-o", output, "--json")
    result = run("md", workplace / "run", methane, *arguments)
    assert result.exit_code == 130
    found = json.loads(result.stdout)
    assert not found["finished"] and found["steps"] == 5
    assert [atoms.info["step"] for atoms in ase.io.read(output, ":")] == [0, 5]


def test_mistakes_are_one_sentence(workplace, methane, tmp_path):
    start = (workplace / "run", methane, "-o", tmp_path / "out.traj")
    for verb, arguments, sentence in (
        ("relax", ("--frame", 2), "has no structure 2"),
        ("relax", ("--cell",), "--cell needs a periodic structure"),
        ("relax", ("--fmax", 0), "--fmax must be a force above 0"),
        ("md", ("--ensemble", "npt"), "npt needs a periodic structure"),
        ("md", ("--timestep", -1), "--timestep must be above 0"),
        ("md", ("--ensemble", "nvt", "--temperature", 0), "must be above 0 K for nvt"),
    ):
        assert sentence in refuse(verb, *start, *arguments)
    assert not (tmp_path / "out.traj").exists()
    text = workplace / "run", methane, "-o", tmp_path / "out.xyz"
    assert "expected a name with .traj" in refuse("md", *text)
    gone = tmp_path / "gone", methane, "-o", tmp_path / "out.traj"
    assert "there is no checkpoint directory" in refuse("md", *gone)
    ase.io.write(tmp_path / "gold.extxyz", ase.Atoms("Au"))
    gold = workplace / "run", tmp_path / "gold.extxyz", "-o", tmp_path / "out.traj"
    assert "atomic number 79, but the model knows" in refuse("relax", *gold)
    assert not (tmp_path / "out.traj").exists()


def test_a_straight_line_through_an_oscillation():
    rng = np.random.default_rng(0)
    times = np.linspace(0, 2, 4001)
    swing = 1e-3 * np.sin(2 * np.pi * 30 * times)
    energies = 8 * (1e6 + 2e-4 * times + swing + 1e-4 * rng.normal(size=len(times)))
    drift = energy_drift(times, energies, 8)
    assert drift.slope == pytest.approx(2e-4, abs=3 * drift.uncertainty)
    assert drift.uncertainty < 5e-5
    assert drift.fluctuation == pytest.approx(1e-3 / np.sqrt(2), rel=0.05)
    assert energy_drift([0.0], [1.0], 8) == (0.0, 0.0, 0.0)
