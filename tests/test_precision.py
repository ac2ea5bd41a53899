"""The precision of networks: what is rounded, what is not, and what is refused."""

import functools
import json

import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import labelled as labels_of
from commands import refuse, succeed, write
from structures import generic_crystal, generic_molecule, quick_compilation  # noqa: F401
from test_nn import sub_jaxprs
from test_train_toy import toy_atoms, toy_dataset, toy_model
from tiny import drawn, tiny

import ewald_jax
from ewald_jax.calculator import EwaldCalculator, SetupError
from ewald_jax.data import Statistics
from ewald_jax.models import MODELS, SchNet, build_model, model_to_config
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.nn.ewald_geometry import kspace_geometry
from ewald_jax.nn.products import einsum, matmul, multiplying, with_precision
from ewald_jax.potential import apply_model
from ewald_jax.train import (
    LossConfig,
    OptimConfig,
    TrainConfig,
    create_state,
    fit,
    make_optimizer,
)
from ewald_jax.train.checkpoint import save_checkpoint
from ewald_jax.train.description import write_description
from ewald_jax.train.directory import check_same_run
from ewald_jax.train.initial import Initial
from ewald_jax.train.step import make_loss_fn
from ewald_jax.typing import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")

SCHEMES = {
    "voxel": EwaldConfig("voxel", k_cutoff=0.4, num_k_rbf=8, bottleneck=4, prefactor=0.1),
    "lattice": EwaldConfig("lattice", num_k=(1, 1, 1), bottleneck=4),
    "radial": EwaldConfig(k_cutoff=2.2, bottleneck=4),
    "mesh": EwaldConfig(k_cutoff=1.5, bottleneck=4, sum="mesh"),
}


def network(name, scheme="radial", **fields):
    return tiny(name, cutoff=4.0, ewald=SCHEMES[scheme], **fields)


def structures_for(scheme):
    if scheme == "radial":
        return [generic_molecule(), generic_crystal()]
    return [generic_molecule() if scheme == "voxel" else generic_crystal()]


def as_type(tree, dtype):
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: x.astype(dtype) if floating(x) else x, tree)


def labelled(batch):
    """With targets of the batch's own type."""
    positions, count = batch.graph.nodes["positions"], len(batch.graph.n_node)
    targets = {"energy": np.ones(count), "forces": np.ones(positions.shape)}
    return batch._replace(targets=as_type(targets, positions.dtype))


# -- products --------------------------------------------------------------------------------


@pytest.fixture
def operands(rng):
    return [rng.normal(size=size).astype(np.float32) for size in ((5, 7), (7, 3))]


def rounded(x):
    return np.asarray(x).astype(jnp.bfloat16).astype(np.float64)


def test_operands_are_rounded_and_results(operands):
    a, b = operands
    expected = rounded(rounded(a) @ rounded(b))
    with multiplying("bfloat16"):
        for found in (jax.jit(matmul)(a, b), einsum("ij,jk->ik", a, b)):
            assert found.dtype == np.float32
            # The last digit depends on the order of the sum; in a program it may be spared.
            np.testing.assert_allclose(found, expected, rtol=2**-7)
    assert np.abs(expected - a @ b).max() > 1e-3
    for precision in ("float32", "tf32"):
        with multiplying(precision):
            np.testing.assert_allclose(matmul(a, b), a @ b, rtol=1e-5, atol=1e-6)


def test_derivatives_of_any_order_multiply_bfloat16(operands):
    """Also by one operand alone, mapped, forward, and in a program for other devices."""
    # Far from where tanh is flat, and its slopes are differences of equal numbers.
    a, b = (0.2 * x for x in operands)

    def energy(a, b):
        with multiplying("bfloat16"):
            return jnp.sum(jnp.tanh(matmul(a, b)) ** 2)

    slopes = lambda b: jnp.sum(jax.grad(energy)(a, b) ** 2)
    exact = lambda b: jnp.sum(jax.grad(lambda a: jnp.sum(jnp.tanh(a @ b) ** 2))(a) ** 2)
    slope, wanted = jax.jit(jax.grad(slopes))(b), jax.grad(exact)(b)
    assert slope.dtype == np.float32
    assert 0 < np.abs(slope - wanted).max() < 0.05 * np.abs(wanted).max()
    kinds = {kinds_of(eqn) for eqn in products(jax.make_jaxpr(jax.grad(slopes))(b).jaxpr)}
    assert kinds == {("bfloat16", "bfloat16", "")}
    forward = jax.jvp(lambda b: energy(a, b), (b,), (b,))[1]
    backward = jnp.sum(jax.grad(energy, 1)(a, b) * b)
    np.testing.assert_allclose(forward, backward, rtol=2e-2)
    mapped = jax.vmap(energy, (None, 0))(a, jnp.stack([b, 2 * b]))
    alone = [energy(a, b), energy(a, 2 * b)]
    np.testing.assert_allclose(mapped, alone, rtol=1e-2)
    code = jax.export.export(jax.jit(energy), platforms=["cpu", "cuda", "tpu"])(a, b)
    np.testing.assert_allclose(code.call(a, b), jax.jit(energy)(a, b), rtol=1e-6)


def products(jaxpr):
    """All products of matrices, within other functions too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in equation.params.values():
            for inner in sub_jaxprs(value):
                yield from products(inner)


def kinds_of(equation):
    """Types of both operands, and whether float32 stays float32 on every device."""
    types = tuple(str(v.aval.dtype) for v in equation.invars)
    highest = "HIGHEST" in str(equation.params["precision"])
    return (*types, "full" if highest and "bfloat16" not in types else "")


# -- networks --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_networks_are_near_float64(name, x64):
    model, atoms = network(name, "lattice"), structures_for("lattice")
    exact = ewald_jax.batch_from_atoms(atoms, model)
    params = as_type(drawn(model, exact), np.float32)
    outputs = functools.partial(ewald_jax.model_outputs, forces=True)

    @jax.jit
    def run(params, exact, batch):
        wanted = outputs(model.clone(precision="float64"), params, exact)
        return wanted, outputs(model.clone(precision="bfloat16"), params, batch)

    for expected, actual in zip(
        *run(params, exact, as_type(exact, np.float32)), strict=True
    ):
        if expected is not None:
            assert expected.dtype == np.float64 and actual.dtype == np.float32
            error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
            assert 1e-4 < error < 3e-2


def test_a_training_step_in_bfloat16():
    """Parameters stay float32, and go where float32 would take them."""
    model = network("schnet", "lattice")
    batch = labelled(ewald_jax.batch_from_atoms(structures_for("lattice"), model))
    params = drawn(model, batch)

    @jax.jit
    def slopes(params):
        found = []
        for precision in ("float32", "bfloat16"):
            loss_fn = make_loss_fn(
                model.clone(precision=precision), LossConfig(forces="l2"), 1.0
            )
            found.append(jax.grad(lambda p, f=loss_fn: f(p, batch)[0])(params))
        return found

    wanted, found = (jax.tree.leaves(x) for x in slopes(params))
    assert all(x.dtype == np.float32 and np.isfinite(x).all() for x in found)
    a, b = (np.concatenate([np.ravel(x) for x in leaves]) for leaves in (wanted, found))
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert 0.99 < cosine < 1 - 1e-7


CASES = [(name, "lattice") for name in MODELS]
CASES += [("schnet", "voxel"), ("schnet", "radial"), ("painn", "mesh")]


@pytest.mark.parametrize("name, scheme", CASES)
def test_only_layers_are_rounded(name, scheme):
    """Read from the program of a training step: no other product, and none of two types."""
    model = network(name, scheme)
    batch = labelled(ewald_jax.batch_from_atoms(structures_for(scheme), model))
    shapes = jax.eval_shape(
        functools.partial(ewald_jax.init_params, model), jax.random.key(0), batch
    )
    kspace = jax.eval_shape(functools.partial(kspace_geometry, model.ewald), batch)
    # Cosines and sines, of a size that nothing else has; none of what is on a mesh.
    waves = kspace.phases.shape[-1]
    assert waves > 16 or (scheme == "mesh" and waves == 0)
    for precision, kinds in {
        "float32": {("float32", "float32", "full")},
        "bfloat16": {("float32", "float32", "full"), ("bfloat16", "bfloat16", "")},
    }.items():
        loss_fn = make_loss_fn(
            model.clone(precision=precision), LossConfig(forces="l2"), 1.0
        )
        program = jax.make_jaxpr(jax.grad(lambda p, f=loss_fn: f(p, batch)[0]))(shapes)
        found = list(products(program.jaxpr))
        assert {kinds_of(equation) for equation in found} == kinds
        sums = [e for e in found if any(waves in v.aval.shape for v in e.invars)]
        assert waves == 0 or {kinds_of(e)[2] for e in sums} == {"full"}


def test_float32_is_what_jax_computes_on_a_cpu():
    model = network("schnet")
    batch = ewald_jax.batch_from_atoms(structures_for("radial"), model)
    params = drawn(model, batch)

    @jax.jit
    def plain(params, batch):
        return model.apply({"params": params}, batch, kspace_geometry(model.ewald, batch))

    ours = jax.jit(functools.partial(apply_model, model))
    np.testing.assert_array_equal(ours(params, batch), plain(params, batch))


# -- where it is asked for -------------------------------------------------------------------


def test_the_calculator_and_the_command_line(tmp_path):
    atoms = generic_molecule()
    path, output = write(tmp_path / "ethanol.extxyz", [atoms]), tmp_path / "out.extxyz"
    energies = [
        EwaldCalculator.from_pretrained("dimers", precision=p).get_potential_energy(atoms)
        for p in (None, "bfloat16")
    ]
    assert 1e-5 < abs(energies[1] - energies[0]) < 1e-2 * len(atoms)
    words = ("predict", "pretrained:dimers", path, "-o", output, "--precision")
    succeed(*words, "bfloat16")
    found = ase.io.read(output).get_potential_energy()
    assert found == pytest.approx(energies[1], abs=1e-4)
    assert "expected JAX_ENABLE_X64=1" in refuse(*words, "float64", "--overwrite")
    assert "float32, tf32, bfloat16, float64" in refuse(*words, "half", "--overwrite")
    assert ase.io.read(output).get_potential_energy() == found
    with pytest.raises(SetupError, match="JAX_ENABLE_X64=1"):
        EwaldCalculator.from_pretrained("dimers", precision="float64")


def test_the_benchmark_compares_with_float64(tmp_path):
    """On a checkpoint and data of a moment; energies alone, whose steps compile soon."""
    frames = toy_atoms(3)
    path = write(
        tmp_path / "toy.extxyz", [labels_of(atoms, forces=None) for atoms in frames]
    )
    model = tiny("schnet", cutoff=4.0, num_interactions=1)
    params = drawn(model, ewald_jax.batch_from_atoms(frames, model))
    statistics = Statistics(scale=2.0, species=(1, 6, 7, 8))
    write_description(tmp_path, {"model": model_to_config(model)}, statistics)
    state = create_state(params, make_optimizer(OptimConfig(), 1), jax.random.key(0))
    save_checkpoint(tmp_path, "best", state, {})
    words = ("benchmark", "precision", tmp_path, path, "--repeats", 1, "--batch-size", 2)
    found = json.loads(succeed(*words, "--no-progress", "--json").stdout)
    assert found["structures"] == 3 and found["atoms"] == sum(map(len, frames))
    float32, bfloat16, float64 = found["precisions"]
    assert [x["precision"] for x in (float32, float64)] == ["float32", "float64"]
    assert float64["energy_error"] == float64["forces_error_max"] == 0
    for kind in ("energy_error", "forces_error"):
        assert 0 < 100 * float32[kind] < bfloat16[kind] < bfloat16[f"{kind}_max"]
    assert float32["step_ratio"] == 1 and float64["step_ratio"] > 0
    predicted = ewald_jax.predict(
        model, params, ewald_jax.batch_from_atoms(frames, model), statistics
    )
    errors = [
        abs(energy - atoms.get_potential_energy()) / len(atoms)
        for energy, atoms in zip(predicted.energy, frames, strict=False)
    ]
    assert float64["energy_mae"] == pytest.approx(1e3 * np.mean(errors), rel=1e-4)
    assert float64["forces_mae"] is None
    table = succeed(*words, "--no-progress").stdout
    assert "bfloat16" in table and "meV/atom" in table


def test_what_does_not_fit_is_one_sentence(x64):
    with pytest.raises(InputError, match="must be one of float32, tf32, bfloat16, float64"):
        SchNet(precision="half")
    with pytest.raises(InputError, match="'model.precision': expected one of 'float32'"):
        ewald_jax.build_model("schnet", precision="half")
    with pytest.raises(InputError, match="Toy has no field 'precision'"):
        with_precision(toy_model(), "bfloat16")
    model = network("schnet")
    assert with_precision(model, "float64").precision == "float64"
    assert with_precision(model, None) is model
    for precision in ("tf32", "bfloat16"):
        with pytest.raises(
            InputError, match="JAX computes in float64; expected no JAX_ENA"
        ):
            with_precision(model, precision)
    # Also of structures that were built in another type than JAX's own.
    batch = as_type(ewald_jax.batch_from_atoms([generic_molecule()], model), np.float32)
    with pytest.raises(InputError, match="is float64, but JAX computes in float32"):
        apply_model(with_precision(model, "float64"), {}, batch)


def test_a_training_in_float64_needs_it(tmp_path):
    data, splits = toy_dataset(2), {"train": [0, 1]}
    settings = {"train": TrainConfig(), "loss": LossConfig(), "optim": OptimConfig()}
    model = tiny("schnet", cutoff=4.0, precision="float64")
    with pytest.raises(
        InputError, match="float64, but JAX computes in float32; expected JAX_E"
    ):
        fit(model, data, splits, output_dir=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_trainings_are_of_one_precision(tmp_path):
    before, now = (
        {
            "model": model_to_config(network("schnet", precision=p)),
            "optim": {"schedule": "none"},
        }
        for p in ("float32", "bfloat16")
    )
    empty = {"loss": {}, "train": {}}
    write_description(tmp_path, before | empty, Statistics())
    check_same_run(tmp_path, before | empty)
    with pytest.raises(
        InputError, match="model.precision is 'float32' there and 'bfloat16'"
    ):
        check_same_run(tmp_path, now | empty)
    # Checkpoints of before there was a choice.
    del before["model"]["precision"]
    write_description(tmp_path, before | empty, Statistics())
    check_same_run(
        tmp_path, before | empty | {"model": now["model"] | {"precision": "float32"}}
    )
    assert build_model(**before["model"]).precision == "float32"
    start = Initial("there", model=before["model"])
    assert start.differences(network("schnet")) == []
    assert start.differences(network("schnet", precision="bfloat16")) == [
        "note: model.precision is 'float32' in there and 'bfloat16' here"
    ]
