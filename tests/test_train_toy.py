"""The toy data and the toy model of the training tests, which the other files import."""

import contextlib
from typing import ClassVar

import ase.build
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ase.calculators.emt import EMT
from jax.experimental.compilation_cache import compilation_cache as compilation_cache_module

from ewald_jax import ops
from ewald_jax.data import dataset_from_atoms
from ewald_jax.models import build_model

NAMES = ("CH4", "H2O", "NH3", "CO", "N2", "C2H2", "H2", "HCN")


class Toy(nn.Module):
    """The smallest network that learns something and compiles in no time."""

    hidden_channels: int = 8
    num_layers: int = 1
    cutoff: float = 4.0
    max_neighbors: int | None = None
    num_elements: int = 10
    ewald: None = None

    needs_triplets: ClassVar[bool] = False

    @nn.compact
    def __call__(self, batch, kspace=None):
        graph, width = batch.graph, self.hidden_channels
        h = nn.Embed(self.num_elements, width)(graph.nodes["species"])
        distance = ops.safe_norm(ops.edge_vectors(graph))
        # Padding edges join a node with itself, at distance 0.
        inverse = jnp.where(distance > 0, 1 / jnp.maximum(distance, 0.3), 0)
        filters = nn.Dense(width)(jnp.stack([inverse, inverse**2, inverse**4], axis=-1))
        messages = h[graph.senders] * filters * (inverse > 0)[:, None]
        h = h + jax.ops.segment_sum(messages, graph.receivers, h.shape[0])
        for i in range(self.num_layers):
            h = jnp.tanh(nn.Dense(width, name=f"layer_{i}")(h))
        return nn.Dense(1, name="out")(h)[:, 0]


def toy_atoms(count=24, seed=0, names=NAMES):
    """Rattled small molecules with energies and forces of a real (if crude) potential."""
    rng = np.random.default_rng(seed)
    out = []
    for index in range(count):
        atoms = ase.build.molecule(names[index % len(names)])
        atoms.rattle(0.05, rng=rng)
        atoms.calc = EMT()
        atoms.get_forces()
        out.append(atoms)
    return out


def toy_dataset(count=24, seed=0):
    return dataset_from_atoms(toy_atoms(count, seed), 4.0)


def toy_model(**fields):
    # By its dotted path, as a user's own model.
    return build_model("test_train_toy.Toy", **fields)


@contextlib.contextmanager
def compilation_cache(directory):
    """Trainings of one shape compile once per test file, not once per training."""
    names = {
        "jax_compilation_cache_dir": str(directory),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    compilation_cache_module.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache_module.reset_cache()


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
