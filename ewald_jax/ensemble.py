"""Ensembles: networks of one kind with parameters of their own, evaluated in one program.

The parameters of n members are one tree whose arrays have a leading axis of length n, in the
order of their seeds. The prediction is the mean over members, and their spread, the standard
deviation over members (divided by n, numpy's default), says how much to trust it (committees:
Schran, Brezina, Marsalek, J. Chem. Phys. 153, 104105 (2020)). It sees what the members
disagree about, not what all of them get wrong.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ewald_jax.graph.schema import Batch
from ewald_jax.potential import (
    EnergyScale,
    Prediction,
    model_outputs,
    scaled,
    to_physical,
)
from ewald_jax.typing import Array, InputError, PyTree


class EnsemblePrediction(NamedTuple):
    """What an ensemble says about a batch; rows of padding are zero.

    Attributes:
        energy: [graphs], eV, mean over members.
        forces: [nodes, 3], eV/Å, mean over members, or None; the exact derivative of the mean
            energy where each member's are.
        stress: [graphs, 3, 3], eV/Å^3, mean over members, or None.
        energy_std: [graphs], eV, standard deviation over members.
        forces_std: [nodes, 3], eV/Å, that of each component, or None.
    """

    energy: Array
    forces: Array | None
    stress: Array | None
    energy_std: Array
    forces_std: Array | None


def count_members(params: PyTree) -> int:
    """Length of the leading axis of an ensemble's parameters.

    Raises:
        InputError: If the arrays have no common leading axis: they are of one model.
    """
    lengths = {np.shape(x)[0] if np.ndim(x) else None for x in jax.tree.leaves(params)}
    if len(lengths) != 1 or None in lengths:
        raise InputError(
            "the parameters have no leading axis of members; expected those of an ensemble"
        )
    return int(lengths.pop())


def member(params: PyTree, index: int) -> PyTree:
    """The parameters of one member, for `predict` and whatever else takes one model's.

    Args:
        params: Of an ensemble, with a leading axis of members.
        index: Which, from 0.

    Raises:
        InputError: If there is no such member, or the parameters are of one model.
    """
    members = count_members(params)
    if not 0 <= index < members:
        raise InputError(f"the ensemble has {members} members, from 0; expected no {index}")
    return jax.tree.map(lambda x: x[index], params)


def stack_members(params: Sequence[PyTree]) -> PyTree:
    """The parameters of an ensemble, from those of its members; the inverse of `member`."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)


def mean_and_spread(values: Array) -> tuple[Array, Array]:
    """Mean and standard deviation over the leading axis."""
    return values.mean(axis=0), values.std(axis=0)


def ensemble_outputs(
    model: nn.Module,
    params: PyTree,
    batch: Batch,
    forces: bool = False,
    stress: bool = False,
) -> EnsemblePrediction:
    """Means and spreads in model units; a pure function for use inside `jax.jit`.

    Args:
        model: Module that returns node energies.
        params: With a leading axis of members.
        batch: Structures; targets are not looked at.
        forces: Also compute forces.
        stress: Also compute stress.
    """
    one = partial(model_outputs, model, forces=forces, stress=stress)
    out = jax.vmap(one, in_axes=(0, None))(params, batch)
    energy, energy_std = mean_and_spread(out.energy)
    force, forces_std = mean_and_spread(out.forces) if forces else (None, None)
    return EnsemblePrediction(
        energy, force, out.stress.mean(axis=0) if stress else None, energy_std, forces_std
    )


def predict_ensemble(
    model: nn.Module,
    params: PyTree,
    batch: Batch,
    statistics: EnergyScale | None = None,
    forces: bool = True,
    stress: bool = False,
) -> EnsemblePrediction:
    """Predicts a batch with all members at once, compiled once per shape.

    Args:
        model: From `load_checkpoint`.
        params: Its parameters, with a leading axis of members.
        batch: As in `predict`.
        statistics: As in `predict`; None leaves model units.
        forces: Also predict forces.
        stress: Also predict stress.

    Returns:
        The prediction; with `statistics` as numpy arrays.

    Raises:
        InputError: If the parameters are of one model; with `statistics`, for elements that
            the training data did not have.
    """
    count_members(params)
    out = _jitted_outputs(model, params, batch._replace(targets={}), forces, stress)
    if statistics is None:
        return out
    means = Prediction(out.energy, out.forces, out.stress)
    spread = [scaled(x, statistics.scale) for x in (out.energy_std, out.forces_std)]
    return EnsemblePrediction(*to_physical(means, batch, statistics), *spread)


@partial(jax.jit, static_argnames=("model", "forces", "stress"))
def _jitted_outputs(model, params, batch, forces, stress):
    return ensemble_outputs(model, params, batch, forces, stress)
