"""Every command and every line of Python in the README runs as written there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import ase.build
import pytest
import yaml
from conftest import REPOSITORY
from structures import reference
from torch_files import save

pytestmark = pytest.mark.configs

# Two steps, with enough structures that every element is among them.
SHORT = "data.limit=500 data.limit_eval=4 train.max_steps=2 train.batch_size=4"

LOADED = """
import sys
import numpy as np
sys.path.insert(0, "exported")
import load_exported
predict = load_exported.load("exported/model.npz")
water = np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
out = predict(np.array([8, 1, 1]), water, np.zeros((3, 3)), np.zeros(3, bool))
assert np.isfinite(out["energy"]) and out["forces"].shape == (3, 3)
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder that looks like a checkout, with the user's structures in it."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "experiments").symlink_to(REPOSITORY / "experiments")
    ase.build.molecule("CH3CH2OH").write(folder / "structures.xyz", format="extxyz")
    data = reference("model_painn_baseline_aperiodic")
    weights = {key[2:]: value for key, value in data.items() if key.startswith("w/")}
    save(folder / "painn.pt", {"state_dict": weights})
    settings = {"model": {"name": "painn", **json.loads(str(data["config"]))}}
    (folder / "painn.yml").write_text(yaml.safe_dump(settings))
    return folder


def blocks(language: str, heading: str) -> str:
    """The code of a section of the README."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", section, re.S))


def run(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_commands_then_python(workplace):
    shell = blocks("bash", "Train, evaluate, predict")
    assert shell.count("ewald-jax ") == 8
    shell = re.sub(r"(ewald-jax train [^\n]*)", rf"\1 {SHORT}", shell)
    shell = shell.replace("benchmark kspace", "benchmark kspace --nodes 50 --repeats 1")
    shell = shell.replace("200 --repeated 100000", "16 --repeated 200")
    run(["bash", "-euo", "pipefail", "-c", shell], workplace)
    assert (workplace / "predicted.extxyz").exists()
    assert (workplace / "runs/dimers.png").exists()

    program = blocks("python", "Train, evaluate, predict")
    # Elements and boundaries as in the training data, so nothing is refused.
    checked = f"{program}\nassert forces.shape[-1] == 3 and stress.shape[1:] == (3, 3)\n"
    run([sys.executable, "-c", checked], workplace)

    program = blocks("python", "Simulate")
    run([sys.executable, "-c", f"{program}\nassert forces.shape == (9, 3)\n"], workplace)
    # Two steps of training make no molecule that keeps together for long.
    shell = re.sub(r"(ewald-jax [^\n]*)", r"\1 --steps 1", blocks("bash", "Simulate"))
    shell = shell.replace("--steps 2000 ", "")
    assert shell.count("--steps 1") == 2
    run(["bash", "-euo", "pipefail", "-c", shell], workplace)
    assert (workplace / "relaxed.traj").exists() and (workplace / "md.traj").exists()

    run(["bash", "-euc", blocks("bash", "Use without this package")], workplace)
    run([sys.executable, "-c", LOADED], workplace)  # tests/test_export.py has the numbers


def test_first_prediction(workplace):
    said = run([sys.executable, "-c", blocks("python", "Try it")], workplace)
    # Eight atoms of GFN2-xTB, near the minimum.
    energy, unit, force, _ = said.split()
    assert unit == "eV" and -450 < float(energy) < -300 and float(force) < 5


def test_three_lines_in_a_network_of_ones_own(workplace):
    program = blocks("python", "Three lines in your own network") + (
        "\nimport ase.build"
        "\nimport ewald_jax"
        "\nlike = ewald_jax.build_model('schnet', ewald=config)"
        "\nbatch = ewald_jax.batch_from_atoms([ase.build.molecule('CH3CH2OH')], like)"
        "\nkspace = kspace_geometry(config, batch)"
        "\nenergies, _ = MyNetwork().init_with_output(jax.random.key(0), batch, kspace)"
        "\nassert energies.shape == batch.graph.nodes['species'].shape"
    )
    run([sys.executable, "-c", program], workplace)


def test_commands_of_the_models(workplace):
    shell = blocks("bash", "Models")
    assert shell.count("ewald-jax ") == 4
    run(["bash", "-euo", "pipefail", "-c", shell], workplace)
    assert (workplace / "imported.extxyz").exists() and (workplace / "scales.json").exists()


def test_a_study_is_listed(workplace):
    run(["bash", "-euo", "pipefail", "-c", blocks("bash", "Studies")], workplace)
