"""What the paper's two schemes do not do, so that a better one can be told apart."""

import ase
import ase.build
import numpy as np
import pytest
from structures import (
    generic_molecule,
    moved,
    quick_compilation,  # noqa: F401
    rotation,
    transformed,
)
from test_contract import PBC, VARIANTS, accepts, evaluate

from ewald_jax.models import MODELS

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

# What a scheme does not do, by its nature (PAPER.md, section 4). Everything else holds.
BREAKS = {
    "lattice": {"supercell", "lattice basis"},
    "voxel": {"size consistency", "rotation of spherical tops"},
    # The Coulomb channel is felt 54 Å away; without it: tests/test_radial_models.py.
    "radial": {"size consistency"},
}


def assert_promise(scheme, promise, first, second):
    difference = abs(first - second) / max(abs(first), abs(second))
    if promise in BREAKS.get(scheme, ()):
        assert difference > 1e-7, f"{scheme} keeps {promise!r}: update BREAKS"
    else:
        assert difference < 1e-10, f"{scheme} breaks {promise!r} by {difference:.1e}"


@pytest.mark.parametrize("scheme", [s for s in VARIANTS if accepts(s, PBC["periodic"])])
@pytest.mark.parametrize("name", MODELS)
def test_supercell_and_lattice_basis(name, scheme):
    cell = ase.build.bulk("NaCl", "rocksalt", a=5.64).repeat((1, 1, 2))
    cell.rattle(0.1, seed=4)
    other = cell.copy()
    other.set_cell([[1, 0, 0], [1, 1, 0], [0, -1, 1]] @ cell.cell.array)
    result = evaluate(name, scheme, [cell, cell.repeat((2, 1, 1)), other], forces=False)
    assert_promise(scheme, "supercell", 2 * result.energy[0], result.energy[1])
    assert_promise(scheme, "lattice basis", result.energy[0], result.energy[2])


@pytest.mark.parametrize("scheme", [s for s in VARIANTS if accepts(s, PBC["open"])])
@pytest.mark.parametrize("name", MODELS)
def test_size_consistency_and_spherical_tops(name, scheme):
    one, two = generic_molecule(), moved(ase.build.molecule("CH3Cl"), [40.0, 30.0, 20.0])
    axes = 1.56 * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])
    top = ase.Atoms("SF6", axes)
    turned = transformed(top, rotation(6))
    result = evaluate(name, scheme, [one, two, one + two, top, turned], forces=False)
    total = result.energy[0] + result.energy[1]
    assert_promise(scheme, "size consistency", total, result.energy[2])
    assert_promise(scheme, "rotation of spherical tops", result.energy[3], result.energy[4])
