"""Exported models: their loader gives what the calculator gives; nothing half-written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ase
import ase.build
import jax
import numpy as np
import pytest
from ase.stress import voigt_6_to_full_3x3_stress
from commands import refuse, succeed
from structures import quick_compilation, transformed
from tiny import drawn, tiny

import ewald_jax
from ewald_jax.calculator import EwaldCalculator
from ewald_jax.data.statistics import Statistics
from ewald_jax.interop import exporting, load_exported
from ewald_jax.train.publish import publish_checkpoint
from ewald_jax.typing import InputError

__all__ = ["quick_compilation"]

STATISTICS = Statistics(
    tuple(-1000.0 * z for z in range(119)), mean=0.7, scale=1.7, species=(1, 6, 8, 11, 17)
)
# Only jax, numpy and what they need themselves: anything else is refused.
ALONE = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ewald_jax", "flax", "ase", "vesin", "jraph", "flatbuffers"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import json
import numpy as np
folder, given, output = sys.argv[1:]
sys.path.insert(0, folder)
import load_exported
predict = load_exported.load(f"{folder}/model.npz")
results = []
for structure in json.load(open(given)):
    found = predict(**structure)
    results.append({key: np.asarray(value).tolist() for key, value in found.items()})
for mistake in json.loads(sys.stdin.read()):
    try:
        predict(**mistake)
    except ValueError as error:
        results.append(str(error))
json.dump(results, open(output, "w"))
"""


def molecule():
    atoms = ase.build.molecule("CH3OH")
    atoms.rattle(0.05, seed=1)
    atoms.positions += 40.0
    return atoms


def skewed():
    """Rock salt in its primitive cell, sheared: images of the second shell are near."""
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.64)
    atoms = transformed(atoms, [[1.0, 0.3, -0.2], [0.0, 1.02, 0.4], [0.1, 0.0, 0.97]])
    atoms.rattle(0.05, seed=2)
    # Atoms may lie in any image of the cell.
    atoms.positions[1] += atoms.cell[0] - 2 * atoms.cell[2]
    return atoms


def slab():
    """Periodic along the first and the last lattice vector."""
    atoms = ase.build.surface(ase.build.bulk("NaCl", "rocksalt", a=5.64), (1, 0, 0), 2)
    atoms.center(vacuum=5.0, axis=2)
    atoms.rattle(0.05, seed=3)
    atoms.set_cell(atoms.cell[[0, 2, 1]])
    atoms.pbc = (True, False, True)
    return atoms


STRUCTURES = {"water": lambda: ase.build.molecule("H2O"), "methanol": molecule}
STRUCTURES |= {"crystal": skewed, "slab": slab}


def model_of(name):
    if name == "painn":
        return tiny("painn", cutoff=5.0, num_layers=1, max_neighbors=7)
    ewald = {"k_cutoff": 1.5, "num_k_rbf": 4, "bottleneck": 4}
    return tiny("schnet", cutoff=4.0, num_interactions=1, ewald=ewald)


def weights(model):
    return drawn(model, ewald_jax.batch_from_atoms([molecule()], model))


def plain(atoms):
    return {
        "species": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.tolist(),
        "pbc": atoms.pbc.tolist(),
    }


def alone(folder, structures, mistakes=(), **environment):
    """What the loader returns in a process that has jax and numpy alone."""
    given, output = folder.parent / "given.json", folder.parent / "found.json"
    given.write_text(json.dumps([plain(atoms) for atoms in structures]))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE, str(folder), str(given), str(output)],
        input=json.dumps([plain(atoms) for atoms in mistakes]),
        cwd=folder.parent,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())


def check(structures, found, calculator, tolerance):
    expected = calculator.calculate_many(structures)
    for atoms, ours, results in zip(structures, found, expected, strict=True):
        energy, forces = results["energy"], results["forces"]
        assert abs(ours["energy"] - energy) < tolerance * max(1.0, abs(energy))
        assert np.abs(forces).max() > 1e-3
        np.testing.assert_allclose(ours["forces"], forces, atol=10 * tolerance)
        stress = np.zeros((3, 3))
        if atoms.pbc.any():
            stress = voigt_6_to_full_3x3_stress(results["stress"])
            assert np.abs(stress).max() > 1e-5
        np.testing.assert_allclose(ours["stress"], stress, atol=10 * tolerance)


def test_one_file_for_molecules_slabs_and_crystals(tmp_path, quick_compilation):
    model = model_of("schnet")
    params = weights(model)
    # The command and the function write the same: a checkpoint is what comes between.
    run = tmp_path / "run"
    config = {"model": ewald_jax.models.model_to_config(model)}
    publish_checkpoint(run, params, STATISTICS, config)
    printed = json.loads(
        succeed("export", run, "-o", tmp_path / "exported", "--json").stdout
    )
    folder = Path(printed["output"])
    about = json.loads((folder / "model.json").read_text())
    assert {"output": str(folder), **about} == printed
    assert about["boundaries"] == {"open": "open", "slab": "slab", "crystal": "crystal"}
    assert about["k_cutoff"] == 1.5 and about["cutoff"] == 4.0
    assert about["elements"] == ["H", "C", "O", "Na", "Cl"]
    assert about["reference_energies"]["C"] == -6000.0
    assert len((folder / "load_exported.py").read_text().splitlines()) <= 30
    wire = ase.Atoms("OO", [[0, 0, 0], [0, 0, 1.3]], cell=[9, 9, 4], pbc=(0, 0, 1))
    structures = [make() for make in STRUCTURES.values()]
    nowhere = molecule()
    nowhere.positions[0, 0] = np.nan
    mistakes = [wire, ase.Atoms("Fe"), nowhere]
    *found, of_wire, of_iron, of_nowhere = alone(folder, structures, mistakes)
    assert "the energy is not finite; check positions and cell" in of_nowhere
    assert "not for pbc [False, False, True]" in of_wire
    assert "elements [26]" in of_iron
    check(structures, found, EwaldCalculator(model, params, STATISTICS), 1e-6)
    # Nothing is written where something is.
    again = ("export", run, "-o", folder)
    assert "exists and is not empty; use --overwrite" in refuse(*again)
    (folder / "thesis.txt").write_text("precious")
    assert "it holds thesis.txt" in refuse(*again, "--overwrite")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] == ".") == []


def test_without_the_coulomb_channel(tmp_path, quick_compilation):
    """Another way to the phases, whose number is a symbol."""
    ewald = {"k_cutoff": 1.5, "num_k_rbf": 4, "bottleneck": 4, "channels": ["dispersion"]}
    model = tiny("schnet", cutoff=4.0, num_interactions=1, ewald=ewald)
    params = weights(model)
    ewald_jax.interop.export(model, params, STATISTICS, tmp_path / "exported")
    found = alone(tmp_path / "exported", [slab()])
    check([slab()], found, EwaldCalculator(model, params, STATISTICS), 1e-6)


def test_float64_and_nearest_neighbors(tmp_path, quick_compilation, x64):
    model = model_of("painn")
    params = jax.tree.map(lambda x: x.astype(np.float32), weights(model))
    folder = tmp_path / "exported"
    about = ewald_jax.interop.export(model, params, STATISTICS, folder, "float64")
    assert about["x64"] and about["boundaries"]["wire"] == "any"
    structures = [skewed(), slab()]
    (without,) = alone(folder, [], structures[:1], JAX_ENABLE_X64="0")
    assert without.endswith("or no x64")
    found = alone(folder, structures, JAX_ENABLE_X64="1")
    check(structures, found, EwaldCalculator(model, params, STATISTICS), 1e-9)


def test_what_cannot_be_exported_is_one_sentence(tmp_path, monkeypatch):
    params, folder = {"a": np.zeros(3, np.float32)}, tmp_path / "exported"
    for model, sentence in (
        (tiny("dimenetpp"), "has tables of angles"),
        (tiny("schnet", ewald={"scheme": "voxel"}), "'voxel' turns molecules"),
    ):
        with pytest.raises(InputError, match=sentence):
            ewald_jax.interop.export(model, params, STATISTICS, folder)
    schnet = tiny("schnet")
    with pytest.raises(InputError, match="dtype must be"):
        ewald_jax.interop.export(schnet, params, STATISTICS, folder, "bfloat16")
    nowhere = tmp_path / "no" / "exported"
    with pytest.raises(InputError, match="there is no folder"):
        ewald_jax.interop.export(schnet, params, STATISTICS, nowhere)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "model.npz").write_text("the one before")
    monkeypatch.setattr(exporting.shutil, "copyfile", full)
    with pytest.raises(InputError, match="the disk is full"):
        exporting.publish(folder, {"on": np.zeros(1)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    assert (folder / "model.npz").read_text() == "the one before"
    monkeypatch.undo()
    exporting.publish(folder, {"on": np.zeros(1)}, {"model": "new"})
    assert json.loads((folder / "model.json").read_text()) == {"model": "new"}
    assert (folder / "load_exported.py").read_text() == Path(
        load_exported.__file__
    ).read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
