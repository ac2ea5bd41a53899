"""What `benchmark_peers` compares: implementations of the same sum, block and step."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ewald_jax.analysis.benchmark import block_gradient, one_block
from ewald_jax.analysis.benchmark_step import PreparedStep
from ewald_jax.analysis.made_up import ionic_crystal
from ewald_jax.analysis.peers_torch import (
    BlockProblem,
    Calls,
    SumProblem,
    from_potentials,
    plain_block,
    torch_pme_sum,
)
from ewald_jax.calculator.evaluator import device_memory
from ewald_jax.kspace import ewald_message, half_box, reciprocal_cell
from ewald_jax.models import build_model
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.train.losses import LossConfig

_SMEARING = 1.0
_CUTOFF = 5.0


@dataclass(frozen=True)
class Contender:
    """An implementation.

    Attributes:
        name: For people.
        package: On PyPI; empty for this one.
        modules: To import before it is set up.
        prepare: Sets it up.
        note: What it does otherwise.
    """

    name: str
    package: str
    modules: tuple[str, ...]
    prepare: Callable[[], Calls]
    note: str = ""


def sum_contenders(
    number: int, num_k: tuple[int, int, int], features: int
) -> list[Contender]:
    """The sum of this package and of those that have one like it."""
    crystal = ionic_crystal(number)
    h = np.random.default_rng(1).normal(size=(number, features))
    cell = np.asarray(crystal.cell[:])
    kvecs = half_box(*num_k) @ np.asarray(reciprocal_cell(cell))
    arrays = (x.astype(np.float32) for x in (h, crystal.positions, cell, kvecs))
    problem = SumProblem(*arrays, _SMEARING)
    torch = ("torch", "torchpme")
    half = "given half of the wave vectors, where it would take all"
    return [
        Contender("ewald_jax", "", (), lambda: _our_sum(problem)),
        Contender("jax-pme", "jax-pme", ("jaxpme",), lambda: _jax_pme_sum(problem)),
        Contender("torch-pme", "torch-pme", torch, lambda: torch_pme_sum(problem), half),
    ]


def _our_sum(problem: SumProblem) -> Calls:
    h, positions, cell, kvecs = map(jnp.asarray, problem[:4])
    volume = jnp.abs(jnp.linalg.det(cell))

    def message(h, positions):
        square = jnp.sum(kvecs**2, axis=-1)
        filter = 4 * jnp.pi * jnp.exp(-(problem.smearing**2) * square / 2) / square
        # Each stands for two.
        return ewald_message(h, positions, kvecs, 2 * filter / volume)

    return _jax_calls(message, (h, positions), np.asarray)


def _jax_pme_sum(problem: SumProblem) -> Calls:
    """jax-pme's k-space solver, mapped over the channels, on the same half of the vectors."""
    from jaxpme.potentials import potential
    from jaxpme.solvers import ewald

    h, positions, cell, kvecs = map(jnp.asarray, problem[:4])
    volume = jnp.abs(jnp.linalg.det(cell))
    solver, smearing = ewald(potential(exponent=1), halfspace=True), problem.smearing

    def potentials(h, positions):
        def of_channel(charges):
            return solver.kspace(smearing, charges, kvecs, positions, volume, cell, None)

        return jax.vmap(of_channel, in_axes=1, out_axes=1)(h)

    return _jax_calls(
        potentials, (h, positions), lambda v: from_potentials(problem, v, 1.0)
    )


def _jax_calls(function: Callable, inputs: tuple, message: Callable) -> Calls:
    """Compiled forms of a function; derivatives by all inputs."""

    def half_square(*inputs):
        return jnp.sum(function(*inputs) ** 2) / 2

    by_all = tuple(range(len(inputs)))
    forward = jax.jit(function).lower(*inputs).compile()
    gradient = jax.jit(jax.value_and_grad(half_square, by_all)).lower(*inputs).compile()
    return Calls(lambda: forward(*inputs), lambda: gradient(*inputs), message)


def block_contenders(
    number: int, num_k: tuple[int, int, int], features: int
) -> list[Contender]:
    """The Ewald block of this package and in plain PyTorch, with the same weights."""
    config = EwaldConfig(scheme="lattice", num_k=num_k)
    inputs = one_block(config, number, features)
    module, params, h, batch = inputs
    weights = jax.tree.map(np.asarray, params["params"])
    block, shared = weights["EwaldBlock_0"], weights["EwaldFilter_0"]
    before = block["pre_residual"]
    kernels = {
        "pre_0": before["dense_0"]["kernel"],
        "pre_1": before["dense_1"]["kernel"],
        "update": block["update"]["kernel"],
        "filter": shared["down"] @ block["up"],
    }
    nodes, cell = batch.graph.nodes, batch.graph.globals["cell"][0]
    kvecs = half_box(*num_k) @ np.asarray(reciprocal_cell(cell))
    problem = BlockProblem(
        np.asarray(h), nodes["positions"], kvecs, kernels, config.prefactor
    )

    def ours():
        forward = jax.jit(module.apply).lower(*inputs[1:]).compile()
        gradient = (
            jax.jit(lambda *x: block_gradient(module, *x)).lower(*inputs[1:]).compile()
        )
        given = (params, h, batch)
        return Calls(lambda: forward(*given), lambda: gradient(*given), np.asarray)

    def in_torch(materialised):
        return lambda: plain_block(problem, materialised, device_memory())

    return [
        Contender("ewald_jax", "", (), ours),
        Contender("plain PyTorch", "torch", ("torch",), in_torch(True)),
        Contender("PyTorch, matrix products", "torch", ("torch",), in_torch(False)),
    ]


def step_contenders(step_atoms: int, batch_size: int, features: int) -> list[Contender]:
    """Training steps, energies and forces, each network with its own long-range settings."""
    crystals = [ionic_crystal(step_atoms, seed=seed) for seed in range(batch_size)]
    sizes = {"hidden_channels": features, "cutoff": _CUTOFF, "ewald": EwaldConfig()}

    def ours(name, **more):
        def prepare():
            model = build_model(name, **sizes, **more)
            return Calls(PreparedStep(model, crystals, LossConfig(forces="l2")).run)

        return prepare

    def lorem():
        from ewald_jax.analysis.peers_lorem import lorem_step

        return Calls(lorem_step(crystals, features, _CUTOFF))

    return [
        Contender("ewald_jax: PaiNN + radial", "", (), ours("painn")),
        Contender(
            "ewald_jax: SchNet + radial", "", (), ours("schnet", num_filters=features)
        ),
        Contender(
            "lorem-jax: Lorem",
            "lorem-jax",
            ("lorem", "marathon"),
            lorem,
            "sizes by default",
        ),
    ]
