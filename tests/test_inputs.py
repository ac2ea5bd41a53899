"""Far edges and triplets reach a model that asks for them, from every entry point."""

import dataclasses
from typing import ClassVar

import ase
import ase.io
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import CONFIG, labelled, succeed, write
from structures import generic_crystal, generic_molecule
from test_train_toy import Toy, toy_atoms

from ewald_jax import batch_from_atoms, ops, predict
from ewald_jax.data import load_dataset
from ewald_jax.data.base import DataConfig
from ewald_jax.graph import Neighborhood
from ewald_jax.models import build_model, check_structure, neighborhood
from ewald_jax.train import evaluate, load_checkpoint
from ewald_jax.typing import InputError


@dataclasses.dataclass(frozen=True)
class FarConfig:
    """As the config of an atom-to-atom block."""

    cutoff: float = 6.0
    max_neighbors: int | None = 12


class Wide(nn.Module):
    """Sums over near edges, over triplets and over far edges, none of which may be missing."""

    cutoff: float = 3.0
    max_neighbors: int | None = 5
    num_elements: int = 10
    atomic: FarConfig | None = FarConfig()
    ewald: None = None

    needs_triplets: ClassVar[bool] = True
    symmetric_edges: ClassVar[bool] = True

    @property
    def max_atomic_number(self):
        return self.num_elements

    @nn.compact
    def __call__(self, batch, kspace=None):
        graph, t, far = batch.graph, batch.triplets, batch.far_edges
        x, nodes = graph.nodes["positions"], len(graph.nodes["species"])
        vectors = ops.edge_vectors(graph)
        into = jnp.concatenate([vectors, jnp.zeros((1, 3), vectors.dtype)])[t.in_edges]
        angles = jnp.sum(into[:, :, None] * into[:, None, :], axis=(1, 2, 3))
        away = x[far.senders] - x[far.receivers]  # right for molecules
        away = jnp.exp(-jnp.sum(away**2, axis=1)) * jnp.any(away != 0, axis=1)
        away = jax.ops.segment_sum(away, far.receivers, nodes)
        weight = nn.Embed(self.num_elements + 1, 1)(graph.nodes["species"])[:, 0]
        return nn.Dense(1)(jnp.stack([angles, away, weight], axis=1))[:, 0]


def test_neighborhood_of_a_model():
    assert neighborhood(Toy()) == Neighborhood(4.0)
    wide = Neighborhood(3.0, 5, symmetric=True, triplets=True, far_cutoff=6.0)
    assert neighborhood(Wide()) == dataclasses.replace(wide, far_max_neighbors=12)
    alone = neighborhood(Wide(atomic=None))
    assert alone.far_cutoff is None and not alone.pairs
    assert neighborhood(build_model("schnet")).near_pairs
    assert neighborhood(build_model("schnet", max_neighbors=7)) == Neighborhood(
        6.0, 7, pairs=True
    )


@pytest.mark.parametrize("pad", [False, True])
def test_a_batch_has_what_the_model_needs(pad):
    atoms = [generic_molecule(), ase.Atoms("He"), generic_crystal()]
    model = Wide(num_elements=20)
    batch = batch_from_atoms(atoms, model, pad)
    assert batch.triplets.in_edges.max(initial=0) <= len(batch.graph.senders)
    assert len(batch.far_edges.senders) > len(batch.graph.senders) / 2
    assert batch_from_atoms(atoms, Wide(num_elements=20, atomic=None)).far_edges is None
    plain = batch_from_atoms(atoms[:2], Toy())
    assert plain.triplets is None and plain.far_edges is None


def test_the_largest_element_is_the_models_own():
    check_structure(Wide(), np.array([10]), np.zeros(3, bool))
    with pytest.raises(InputError, match="atomic number 11, but .* elements 1 to 10 "):
        check_structure(Wide(), np.array([11]), np.zeros(3, bool))
    with pytest.raises(InputError, match="atomic number 10, but .* elements 1 to 9 "):
        check_structure(Toy(), np.array([10]), np.zeros(3, bool))


def test_command_line_and_python_agree(tmp_path):
    path = write(tmp_path / "all.extxyz", [labelled(atoms) for atoms in toy_atoms(24)])
    config = tmp_path / "wide.yaml"
    config.write_text(
        CONFIG.replace("PATH", str(path)).replace("test_train_toy.Toy", "test_inputs.Wide")
    )
    succeed("train", config, "train.epochs=1", "-o", tmp_path / "run")
    succeed("evaluate", tmp_path / "run", path, "--json")
    out = tmp_path / "out.extxyz"
    # Three in a batch: the budgets differ from those of the training.
    succeed("predict", tmp_path / "run", path, "-o", out, "--batch-size", 3)
    model, params, _, statistics = load_checkpoint(tmp_path / "run")
    frames = ase.io.read(out, ":")
    batch = batch_from_atoms(frames, model)
    energies = predict(model, params, batch, statistics).energy[: len(frames)]
    got = [atoms.get_potential_energy() for atoms in frames]
    np.testing.assert_allclose(got, energies, rtol=1e-6, atol=1e-5)

    data = DataConfig(path=str(path), cache_dir="none")
    dataset = load_dataset(data, neighborhood(model))
    metrics = evaluate(model, params, dataset, statistics=statistics, batch_size=5)
    error = np.mean(np.abs(dataset.energies - got))
    assert metrics["energy_mae"] == pytest.approx(error, rel=1e-4)
