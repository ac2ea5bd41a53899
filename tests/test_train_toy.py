"""The toy data and the toy model of the training tests, which the other files import."""

import ase.build
import numpy as np
from ase.calculators.emt import EMT

from ewald_jax.data import dataset_from_atoms
from ewald_jax.models import build_model

NAMES = ("CH4", "H2O", "NH3", "CO", "N2", "C2H2", "H2", "HCN")


def toy_atoms(count=24, seed=0):
    """Rattled small molecules with energies and forces of a real (if crude) potential."""
    rng = np.random.default_rng(seed)
    out = []
    for index in range(count):
        atoms = ase.build.molecule(NAMES[index % len(NAMES)])
        atoms.rattle(0.05, rng=rng)
        atoms.calc = EMT()
        atoms.get_forces()
        out.append(atoms)
    return out


def toy_dataset(count=24, seed=0):
    return dataset_from_atoms(toy_atoms(count, seed), cutoff=4.0)


def toy_model(**fields):
    sizes = dict(hidden_channels=8, num_filters=8, num_interactions=1, num_gaussians=8)
    return build_model("schnet", cutoff=4.0, num_elements=10, **{**sizes, **fields})


def toy_splits(count=24, val=6, test=0):
    order = np.random.default_rng(7).permutation(count)
    ends = np.cumsum([count - val - test, val, test])
    parts = np.split(order, ends[:-1])
    splits = dict(zip(("train", "val", "test"), parts, strict=True))
    return {name: part for name, part in splits.items() if len(part)}


def test_toy_data_are_physical():
    dataset = toy_dataset(8)
    assert set(dataset.labels) == {"energy", "forces"}
    for sample in dataset:
        np.testing.assert_allclose(sample.targets["forces"].sum(axis=0), 0, atol=1e-9)
    assert sorted(np.concatenate(list(toy_splits(24, 6, 4).values()))) == list(range(24))
