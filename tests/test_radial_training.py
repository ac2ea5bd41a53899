"""Wave vectors on the way from a data set to a training step."""

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from structures import generic_crystal, generic_molecule, moved, quick_compilation  # noqa: F401
from tiny import drawn, tiny

import ewald_jax
from ewald_jax.data import Loader, dataset_from_atoms
from ewald_jax.graph import batch_graphs, structure_from_atoms
from ewald_jax.graph.waves import packed, packed_rows
from ewald_jax.models import neighborhood
from ewald_jax.potential import model_outputs
from ewald_jax.train import LossConfig
from ewald_jax.train.sharding import data_mesh, empty_like, spread_over, stacked
from ewald_jax.train.step import make_loss_fn
from ewald_jax.typing import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODEL = tiny("schnet", cutoff=4.0, ewald={"k_cutoff": 1.2, "num_k_rbf": 5, "bottleneck": 3})


def mixed_structures(count):
    """Molecules of several sizes, crystals and slabs, with energies and forces."""
    slab = ase.build.fcc111("Al", (1, 1, 2), a=4.05, vacuum=4.0)
    kinds = [
        ase.build.molecule("H2O"),
        generic_molecule(),
        generic_crystal(),
        ase.build.molecule("CH4"),
        slab,
    ]
    rng, made = np.random.default_rng(0), []
    for number in range(count):
        atoms = kinds[number % len(kinds)].copy()
        atoms.rattle(0.05, seed=number)
        forces = rng.normal(size=(len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=forces)
        made.append(atoms)
    return made


def test_loader_gives_wave_vectors_in_its_type():
    dataset = dataset_from_atoms(mixed_structures(15), neighborhood(MODEL))
    assert (dataset.sizes.n_quad[[0, 1, 3]] > 0).all()
    assert (dataset.sizes.n_kvecs[[2, 4]] > 0).all()
    assert dataset.sizes.n_pairs[:3].tolist() == [3, 36, 0]
    loader = Loader(dataset, batch_size=4, dtype=np.float32, shuffle_seed=1)
    batches = list(loader.epoch())
    assert len(batches) == 4
    for batch in batches:
        for name, array in batch.waves._asdict().items():
            integers = name in ("indices", "pair_index", "senders", "receivers")
            assert array.dtype == (np.int32 if integers else np.float32), name
    # A data set of edges alone, given to the model later, is the same.
    edges = dataset_from_atoms(mixed_structures(15), 4.0)
    assert not edges.sizes.n_kvecs.any()
    suited = edges.suited_to(neighborhood(MODEL))
    for one, two in zip(suited.sizes, dataset.sizes, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_structure_that_needs_too_many_is_named():
    model = tiny("schnet", cutoff=4.0, ewald={"k_cutoff": 9.0, "max_kvecs": 100})
    dataset = dataset_from_atoms(mixed_structures(5), neighborhood(model), source="my.xyz")
    with pytest.raises(InputError, match=r"my.xyz: structure 2 needs \d+ wave vectors"):
        Loader(dataset, batch_size=2)


def test_batches_need_wave_vectors_for_all_or_none():
    needed = neighborhood(MODEL)
    with_waves = structure_from_atoms(generic_molecule(), needed)
    with pytest.raises(InputError, match="structure 1 has no wave vectors, but others"):
        batch_graphs([with_waves, structure_from_atoms(generic_molecule(), 4.0)])


def test_float32_is_float64_but_for_rounding(x64):
    """Also for atoms far from the origin and outside their cells."""
    structures = mixed_structures(5)
    shifts = np.random.default_rng(2).integers(-9, 10, (8, 3)) @ structures[2].cell.array
    structures[2] = moved(structures[2], shifts)
    batch = ewald_jax.batch_from_atoms(structures, MODEL)
    params = drawn(MODEL, batch)

    def as_type(tree, dtype):
        cast = lambda x: jnp.asarray(
            x, dtype if jnp.issubdtype(x.dtype, jnp.floating) else None
        )
        return jax.tree.map(cast, tree)

    run = jax.jit(lambda p, b: model_outputs(MODEL, p, b, forces=True, stress=True))
    exact = run(params, as_type(batch, jnp.float64))
    single = run(as_type(params, jnp.float32), as_type(batch, jnp.float32))
    assert single.energy.dtype == jnp.float32
    for one, two in zip(single, exact, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-4 * np.abs(two).max())


def test_no_nan_where_a_wave_vector_lies_on_the_sphere(debug_nans):
    """In float32 the cutoff over its length may round to one."""
    model = tiny("schnet", cutoff=3.5, ewald={"k_cutoff": 0.9, "num_k_rbf": 4})
    cubic = ase.Atoms("LiF", [[0, 0, 0], [2, 2, 2]], cell=3 * [6.98131752], pbc=True)
    slab = cubic.copy()
    slab.pbc = [True, True, False]
    batch = ewald_jax.batch_from_atoms([cubic, slab], model)
    out = ewald_jax.predict(model, drawn(model, batch), batch, stress=True)
    assert np.isfinite(out.stress).all() and np.isfinite(out.forces).all()


def test_one_device_is_two():
    """Down to a batch that is padding only."""
    dataset = dataset_from_atoms(mixed_structures(5), neighborhood(MODEL))
    (whole,) = Loader(dataset, batch_size=5, max_buckets=1).epoch()
    budgets = Loader(dataset, batch_size=5, max_buckets=1).budgets
    (halves,) = stacked(Loader(dataset, batch_size=5, budgets=budgets).epoch(), 2)
    mesh = data_mesh(2)
    params, results = drawn(MODEL, whole), []
    for batch, on in ((whole, None), (halves, mesh)):
        loss_fn = make_loss_fn(MODEL, LossConfig(), 1.0, stacked=on is not None)
        if on is not None:
            batch = jax.device_put(batch, spread_over(on))
        results.append(jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, batch))
    for one, two in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-5)
    empty = empty_like(whole).waves
    assert not empty.weights.any()
    assert (empty.pair_index == len(whole.graph.nodes["species"])).all()


def test_packing():
    sizes = [5, 9, 3, 3, 8, 1]
    places = packed(sizes, 10)
    taken = np.zeros((packed_rows(sizes, 10), 10), int)
    for n, (row, slot) in zip(sizes, places, strict=True):
        taken[row, slot : slot + n] += 1
    assert taken.max() == 1 and len(taken) == 4 and taken.sum() == sum(sizes)
    assert packed_rows([], 10) == 0 and packed_rows([40], 10) == 1
