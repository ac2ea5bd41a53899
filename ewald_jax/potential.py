"""Energies, forces and stress of any model: the only place with derivatives.

Forces are ``-dE/dx``. Stress is ``(1/V) dE/dstrain`` with ASE's sign: every position and
lattice vector r goes to ``r (1 + strain)``, strain symmetric. Both are exact derivatives of the
energy for every model and scheme, k-space included. Models with a direct force head
(``direct_forces``) give those forces instead, which are not the derivative of their energy;
their stress still is.
"""

from functools import partial
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ase.data import chemical_symbols
from flax.errors import ScopeParamShapeError

from ewald_jax import ops
from ewald_jax.graph.schema import Batch
from ewald_jax.kspace import cell_volume
from ewald_jax.nn.ewald_geometry import kspace_geometry
from ewald_jax.nn.products import check_type, multiplying, precision_of
from ewald_jax.typing import Array, Float, InputError, PyTree


class Prediction(NamedTuple):
    """What a model says about a batch; rows of padding are zero.

    Attributes:
        energy: [graphs], eV.
        forces: [nodes, 3], eV/Å, or None.
        stress: [graphs, 3, 3], eV/Å^3, or None; zero for structures without periodicity. For
            partly periodic ones V is the volume of the whole cell, vacuum included.
    """

    energy: Array
    forces: Array | None = None
    stress: Array | None = None


class EnergyScale(Protocol):
    """What `predict` needs of the data statistics (see `data.statistics.Statistics`)."""

    scale: float
    mean: float

    def reference(self, species: Any) -> Any:
        """Sum of the reference energies of atoms, eV."""

    def unseen(self, species: Any) -> tuple[int, ...]:
        """Elements among atoms that the training data did not have."""


class ParameterError(InputError):
    """Parameters of other shapes than those of the model."""


def init_params(model: nn.Module, key: jax.Array, batch: Batch) -> PyTree:
    """Random parameters; only shapes and types of `batch` matter."""
    return _jitted_init(model, key, _unlabelled(batch))["params"]


def model_outputs(
    model: nn.Module,
    params: PyTree,
    batch: Batch,
    forces: bool = False,
    stress: bool = False,
) -> Prediction:
    """Energy and its derivatives in model units (before scale and reference energies).

    A pure function for use inside `jax.jit`, `jax.grad` and training steps.

    Args:
        model: Module that returns node energies.
        params: Its parameters.
        batch: Structures; targets are not looked at.
        forces: Also compute forces.
        stress: Also compute stress.

    Returns:
        The prediction.
    """
    return site_outputs(model, params, batch, forces, stress)[1]


def site_outputs(
    model: nn.Module,
    params: PyTree,
    batch: Batch,
    forces: bool = False,
    stress: bool = False,
) -> tuple[Float[Array, " nodes"], Prediction]:
    """As `model_outputs`, and the energy of each node, which is zero for padding."""
    batch = jax.tree.map(jnp.asarray, _unlabelled(batch))
    graph = batch.graph
    positions, cell = graph.nodes["positions"], graph.globals["cell"]

    def total(moved):
        outputs = _outputs(model, params, _deformed(batch, *moved))
        return jnp.sum(outputs[1]), outputs

    # What the energy is differentiated by; None is no leaf.
    direct = getattr(model, "direct_forces", False)
    moved = (
        positions if forces and not direct else None,
        jnp.zeros_like(cell) if stress else None,
    )
    if all(x is None for x in moved):
        (sites, energy, force), slopes = total(moved)[1], moved
    else:
        slopes, (sites, energy, force) = jax.grad(total, has_aux=True)(moved)
    if not forces:
        force = None
    elif not direct:
        force = -slopes[0]
    if force is not None:
        force = jnp.where(ops.node_mask(graph)[:, None], force, 0.0)
    if not stress:
        return sites, Prediction(energy, force)
    has_volume = jnp.any(graph.globals["pbc"], axis=-1) & ops.graph_mask(graph)
    volume = jnp.where(has_volume, jnp.abs(cell_volume(cell)), 1.0)
    virial = jnp.where(has_volume[:, None, None], slopes[1], 0.0)
    return sites, Prediction(energy, force, virial / volume[:, None, None])


def apply_model(model: nn.Module, params: PyTree, batch: Batch, **options: Any) -> Any:
    """What the network itself returns: node energies, with `direct_forces` also forces.

    Args:
        model: The network.
        params: Its parameters.
        batch: Structures.
        **options: Of flax's ``apply``, such as ``mutable``.

    Returns:
        As the model's ``__call__``, or as the options make it.

    Raises:
        ParameterError: If the parameters are those of an ensemble, or of another model.
        InputError: If the structures are in another type of floats than the model's
            `precision` needs.
    """
    # numpy arrays that a caller closes over cannot be indexed by traced ones.
    batch = jax.tree.map(jnp.asarray, _unlabelled(batch))
    precision = precision_of(model)
    check_type(precision, batch.graph.nodes["positions"].dtype)
    try:
        with multiplying(precision):
            kspace = _geometry(model, batch)
            return model.apply({"params": params}, batch, kspace, **options)
    except ScopeParamShapeError as error:
        # Flax ends its sentences with an address.
        which = str(error).split(" (http")[0]
        raise ParameterError(
            f"the parameters have other shapes than those of the model: {which} Those of an "
            "ensemble go to predict_ensemble, to EwaldCalculator with members=..., or one by "
            "one, by ewald_jax.member, to whatever takes one network."
        ) from None


def predict(
    model: nn.Module,
    params: PyTree,
    batch: Batch,
    statistics: EnergyScale | None = None,
    forces: bool = True,
    stress: bool = False,
) -> Prediction:
    """Predicts a batch, compiled once per shape.

    Args:
        model: From `build_model` or `load_checkpoint`.
        params: Its parameters.
        batch: From `batch_from_atoms` or a loader.
        statistics: Scale and reference energies of the training data; with them the result is
            in physical eV, summed in float64 on the host (total energies of hundreds of keV
            do not fit float32). None leaves model units.
        forces: Also predict forces.
        stress: Also predict stress.

    Returns:
        The prediction; with `statistics` as numpy arrays.

    Raises:
        InputError: With `statistics`, for elements that the training data did not have;
            `ParameterError` for an ensemble's parameters, which `predict_ensemble` takes.
    """
    # Labels stay outside: they would make a compilation of their own.
    out = _jitted_outputs(model, params, _unlabelled(batch), forces, stress)
    return out if statistics is None else to_physical(out, batch, statistics)


def to_physical(
    prediction: Prediction, batch: Batch, statistics: EnergyScale
) -> Prediction:
    """Applies scale, mean and reference energies to a prediction in model units (host).

    Raises:
        InputError: If a structure has an element without a reference energy.
    """
    graph = batch.graph
    n_node, species = np.asarray(graph.n_node), np.asarray(graph.nodes["species"])
    offset = np.zeros(len(n_node))
    for index, atoms in enumerate(np.split(species, np.cumsum(n_node)[:-1])):
        if not atoms.any():
            continue
        check_elements(statistics, atoms, f"structure {index}")
        offset[index] = statistics.mean + statistics.reference(atoms)
    scale = statistics.scale
    energy = np.asarray(prediction.energy, np.float64) * scale + offset
    rest = [scaled(x, scale) for x in (prediction.forces, prediction.stress)]
    return Prediction(energy, *rest)


def check_elements(statistics: EnergyScale, species: Any, where: str) -> None:
    """Refuses atoms of elements without a reference energy.

    Args:
        statistics: Of the training data.
        species: Atomic numbers.
        where: What to call the structure in a message.

    Raises:
        InputError: Naming the first of the elements.
    """
    if unseen := statistics.unseen(species):
        raise InputError(
            f"{where} has the element {chemical_symbols[unseen[0]]}, which the training data "
            "did not have"
        )


def scaled(values: Array | None, scale: float) -> np.ndarray | None:
    """From model units to physical ones, in the type that the values have (host)."""
    if values is None:
        return None
    values = np.asarray(values)
    return values * values.dtype.type(scale)


@partial(jax.jit, static_argnames="model")
def _jitted_init(model, key, batch):
    return model.init(key, batch, _geometry(model, batch))


@partial(jax.jit, static_argnames=("model", "forces", "stress"))
def _jitted_outputs(model, params, batch, forces, stress):
    return model_outputs(model, params, batch, forces, stress)


def _outputs(
    model: nn.Module, params: PyTree, batch: Batch
) -> tuple[Float[Array, " nodes"], Float[Array, " graphs"], Float[Array, "nodes 3"] | None]:
    """Energies of nodes and of structures, and the forces of a direct head."""
    nodes = apply_model(model, params, batch)
    nodes, forces = nodes if isinstance(nodes, tuple) else (nodes, None)
    nodes = jnp.where(ops.node_mask(batch.graph), nodes, 0.0)
    return nodes, ops.sum_nodes(nodes, batch.graph), forces


def _geometry(model: nn.Module, batch: Batch):
    return None if model.ewald is None else kspace_geometry(model.ewald, batch)


def _deformed(batch: Batch, positions: Array | None, strain: Array | None) -> Batch:
    """The batch with new positions, then every structure strained; None for as it is."""
    graph = batch.graph
    cell = graph.globals["cell"]
    if positions is None:
        positions = graph.nodes["positions"]
    if strain is not None:
        symmetric = 0.5 * (strain + jnp.swapaxes(strain, -1, -2))
        of_node = symmetric[ops.node_graph_index(graph)]
        positions = positions + jnp.sum(positions[:, :, None] * of_node, axis=1)
        cell = cell + jnp.sum(cell[:, :, :, None] * symmetric[:, None, :, :], axis=2)
    return batch._replace(
        graph=graph._replace(
            nodes={**graph.nodes, "positions": positions},
            globals={**graph.globals, "cell": cell},
        )
    )


def _unlabelled(batch: Batch) -> Batch:
    """Models never see labels."""
    return batch._replace(targets={})
