"""Exact metrics: every quantity is a sum and a count, added over batches, divided once.

The mean of batch means is wrong when batches differ in size; sums and counts are not.
"""

from collections.abc import Mapping

import jax.numpy as jnp

from ewald_jax import ops
from ewald_jax.graph.schema import ENERGY, FORCES, FREE, PBC, STRESS, Batch
from ewald_jax.potential import Prediction
from ewald_jax.typing import Array, Bool

Sums = Mapping[str, tuple[Array, Array]]
"""Name -> (sum, count)."""

ENERGY_THRESHOLD = 0.02
"""eV; of energy-and-forces-within-threshold, as OC20 defines it."""

FORCES_THRESHOLD = 0.03
"""eV/Å; of energy-and-forces-within-threshold, as OC20 defines it."""

LARGER_IS_BETTER = ("forces_cosine", "efwt")


def counted_nodes(batch: Batch, free_atoms_only: bool = True) -> Bool[Array, " nodes"]:
    """Atoms whose forces count: no padding, and only free atoms where the data mark them."""
    mask = ops.node_mask(batch.graph)
    if free_atoms_only and FREE in batch.targets:
        mask = mask & batch.targets[FREE]
    return mask


def counted_stresses(batch: Batch) -> Bool[Array, " graphs"]:
    """Structures whose stress counts: those with a periodic direction."""
    return ops.graph_mask(batch.graph) & jnp.any(batch.graph.globals[PBC], axis=-1)


def masked_sum(values: Array, mask: Bool[Array, " rows"]) -> tuple[Array, Array]:
    """Sum and count of the values [rows, ...] in rows where the mask holds."""
    shape = mask.shape + (1,) * (values.ndim - 1)
    total = jnp.sum(jnp.where(mask.reshape(shape), values, 0))
    per_row = values.size // max(values.shape[0], 1)
    return total, jnp.sum(mask, dtype=total.dtype) * per_row


def metric_sums(prediction: Prediction, batch: Batch) -> dict[str, tuple[Array, Array]]:
    """Sums and counts of all metrics that the prediction and the labels allow.

    ======================== ==================================================== ========
    name                     averaged over                                        unit
    ======================== ==================================================== ========
    ``energy_mae``           structures                                           eV
    ``energy_per_atom_mae``  structures, each error divided by its atoms          eV
    ``forces_mae``           Cartesian components of free atoms                   eV/Å
    ``forces_cosine``        free atoms; 0 where either vector is zero            1
    ``efwt``                 structures with an energy error below 0.02 eV and    1
                             all force components of free atoms below 0.03 eV/Å
    ``stress_mae``           the nine components of each periodic structure       eV/Å^3
    ======================== ==================================================== ========

    Args:
        prediction: In eV, reference energies still subtracted, like the labels of a batch.
        batch: With its targets.

    Returns:
        Name -> (sum, count), scalars.
    """
    graph, targets = batch.graph, batch.targets
    graphs = ops.graph_mask(graph)
    sums = {}
    if ENERGY in targets:
        energy_error = jnp.abs(prediction.energy - targets[ENERGY])
        atoms = jnp.maximum(graph.n_node, 1).astype(energy_error.dtype)
        sums["energy_mae"] = masked_sum(energy_error, graphs)
        sums["energy_per_atom_mae"] = masked_sum(energy_error / atoms, graphs)
    if FORCES in targets and prediction.forces is not None:
        free = counted_nodes(batch)
        error = jnp.abs(prediction.forces - targets[FORCES])
        sums["forces_mae"] = masked_sum(error, free)
        sums["forces_cosine"] = masked_sum(
            _cosine(prediction.forces, targets[FORCES]), free
        )
        if ENERGY in targets:
            largest = jnp.where(free, jnp.max(error, axis=1), 0)
            largest = (
                jnp.zeros_like(energy_error).at[ops.node_graph_index(graph)].max(largest)
            )
            within = (energy_error < ENERGY_THRESHOLD) & (largest < FORCES_THRESHOLD)
            sums["efwt"] = masked_sum(within.astype(energy_error.dtype), graphs)
    if STRESS in targets and prediction.stress is not None:
        error = jnp.abs(prediction.stress - targets[STRESS])
        sums["stress_mae"] = masked_sum(error, counted_stresses(batch))
    return sums


def metric_names(forces: bool, stress: bool) -> tuple[str, ...]:
    """Names of the loss and metrics of an evaluation with energies, and these labels."""
    names = ["loss", "energy_mae", "energy_per_atom_mae"]
    names += ["forces_mae", "forces_cosine", "efwt"] if forces else []
    return (*names, "stress_mae") if stress else tuple(names)


def merge(first: Sums, second: Sums) -> dict[str, tuple[Array, Array]]:
    """Adds sums and counts; a name that only one of them has is kept."""
    out = dict(first)
    for name, (total, count) in second.items():
        if name in out:
            total, count = out[name][0] + total, out[name][1] + count
        out[name] = (total, count)
    return out


def finalize(sums: Sums) -> dict[str, float]:
    """The means; a metric that counted nothing (no free atom, say) is left out."""
    return {name: float(s) / float(c) for name, (s, c) in sums.items() if float(c) > 0}


def _cosine(first: Array, second: Array) -> Array:
    """Cosine of the angle between vectors [nodes, 3], zero where one of them is zero."""
    product = ops.safe_norm(first) * ops.safe_norm(second)
    is_zero = product == 0
    return jnp.where(
        is_zero, 0, jnp.sum(first * second, axis=1) / jnp.where(is_zero, 1, product)
    )
