"""Arrays of molecules in a .npz file."""

import ase.build
import numpy as np
import pytest

from ewald_jax.data import DataConfig, load_dataset
from ewald_jax.typing import InputError

MOLECULES = [ase.build.molecule(name) for name in ("H2O", "CH4", "NH3")]
RNG = np.random.default_rng(0)
ENERGIES = RNG.normal(size=(3, 1))
FORCES = RNG.normal(size=(3, 5, 3))


def padded():
    """Three molecules of 3, 5 and 4 atoms."""
    positions, numbers = np.zeros((3, 5, 3)), np.zeros((3, 5), int)
    for i, atoms in enumerate(MOLECULES):
        positions[i, : len(atoms)], numbers[i, : len(atoms)] = (
            atoms.positions,
            atoms.numbers,
        )
    return {"R": positions, "z": numbers, "E": ENERGIES, "F": FORCES}


def load(tmp_path, arrays, **settings):
    path = tmp_path / "x.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    settings = {"energy_key": "E", "forces_key": "F"} | settings
    return load_dataset(DataConfig(path=str(path), cache_dir="none", **settings), 3.0)


def test_padded_molecules(tmp_path):
    charges = np.array([0, 1, -1])
    dataset = load(tmp_path, padded() | {"charge": charges, "note": np.zeros(7)})
    assert dataset.labels == ("energy", "forces")
    for i, (atoms, sample) in enumerate(zip(MOLECULES, dataset, strict=True)):
        assert dataset.species(i).tolist() == atoms.numbers.tolist()
        np.testing.assert_array_equal(sample.graph.nodes["positions"], atoms.positions)
        assert sample.targets["energy"] == ENERGIES[i, 0]
        np.testing.assert_array_equal(sample.targets["forces"], FORCES[i, : len(atoms)])
        assert dataset.info(i) == {"charge": charges[i]}
        assert not sample.graph.globals["pbc"].any()


def test_a_trajectory_has_its_elements_once(tmp_path):
    arrays = padded() | {"z": np.array([6, 1, 1, 1, 1]), "R": None, "E": ENERGIES}
    steps = MOLECULES[1].positions + 0.01 * RNG.normal(size=(3, 5, 3))
    dataset = load(tmp_path, arrays | {"coords": steps})
    assert [dataset.species(i).tolist() for i in range(3)] == [[6, 1, 1, 1, 1]] * 3
    np.testing.assert_array_equal(dataset[2].graph.nodes["positions"], steps[2])


@pytest.mark.parametrize("per_structure", [True, False])
def test_cells_and_stress(tmp_path, per_structure):
    cell = np.diag([5.0, 6.0, 7.0])
    stress = RNG.normal(size=(3, 6))
    cells = {"cell": np.stack([cell] * 3) if per_structure else cell}
    more = cells | {"stress": stress, "pbc": np.array([True, True, False])}
    dataset = load(tmp_path, padded() | more)
    assert dataset.labels == ("energy", "forces", "stress")
    np.testing.assert_array_equal(dataset[1].graph.globals["cell"][0], cell)
    assert dataset[1].graph.globals["pbc"].tolist() == [[True, True, False]]
    np.testing.assert_array_equal(np.diag(dataset[1].targets["stress"]), stress[1, :3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"R": None}, r"has no positions, but 'E', 'F', 'z'; expected one of R, pos"),
        ({"z": None}, "has no atomic numbers, but"),
        ({"R": np.zeros((3, 5))}, r"positions have the shape \(3, 5\)"),
        ({"z": np.zeros((2, 5))}, r"atomic numbers have the shape \(2, 5\)"),
        ({"z": np.full((3, 5), 200)}, "structure 0 has atomic numbers out of range"),
        ({"E": np.array([object()] * 3)}, "cannot be read .*, expected arrays of numbers"),
        ({"E": np.array([1.0, np.nan, 2.0])}, "structure 1: energy 'E' is NaN"),
    ],
)
def test_broken_arrays(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load(tmp_path, padded() | change)


def test_torn_files(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, **padded())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="structure 0 cannot be read"):
        load_dataset(DataConfig(path=str(path), energy_key="E", cache_dir="none"), 3.0)


def test_real_molecules_off_equilibrium(real_data):
    path = real_data("qm7x_2500.npz")
    config = DataConfig(path=str(path), energy_key="E", forces_key="F", cache_dir="none")
    dataset = load_dataset(config, 3.0)
    assert len(dataset) == 2500 and dataset.labels == ("energy", "forces")
    with np.load(path) as arrays:
        np.testing.assert_array_equal(dataset.energies, arrays["E"][:, 0])
        assert dataset.n_node.tolist() == (arrays["z"] > 0).sum(axis=1).tolist()
