"""Losses: energy, forces and stress, as sums and counts over real structures and free atoms.

Losses are in model units: labels are divided by the statistics' scale, so that a weight means
the same for data sets of different spread, and the loss of an untrained model is about one.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp

from ewald_jax import ops
from ewald_jax.graph.schema import ENERGY, FORCES, STRESS, Batch
from ewald_jax.potential import Prediction
from ewald_jax.train.metrics import (
    Sums,
    counted_nodes,
    counted_stresses,
    finalize,
    masked_sum,
)
from ewald_jax.typing import Array, InputError


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimised: the weighted sum of a mean energy, forces and stress error.

    Attributes:
        energy: Error of each structure's energy; the mean is over structures.
        energy_weight: Its weight.
        forces: ``l2`` is the norm of each atom's error vector, its mean over atoms; ``l1``,
            ``mse`` and ``huber`` are of each component. ``none`` does not compute forces.
        forces_weight: Its weight (the force coefficient of OC20).
        stress: Error of each component, its mean over components. ``none`` computes none.
        stress_weight: Its weight.
        huber_delta: Where ``huber`` turns from quadratic to linear, in model units.
        free_atoms_only: Leave out the forces of atoms that the data mark as fixed.
    """

    energy: Literal["mae", "mse", "huber"] = "mae"
    energy_weight: float = 1.0
    forces: Literal["none", "l1", "l2", "mse", "huber"] = "none"
    forces_weight: float = 1.0
    stress: Literal["none", "mae", "mse", "huber"] = "none"
    stress_weight: float = 1.0
    huber_delta: float = 0.01
    free_atoms_only: bool = True

    def __post_init__(self):
        """Refuse values that define no loss."""
        for name, options in _OPTIONS.items():
            if getattr(self, name) not in options:
                raise InputError(
                    f"loss.{name} is {getattr(self, name)!r}; expected one of "
                    + ", ".join(options)
                )
        for name in ("energy_weight", "forces_weight", "stress_weight"):
            if not getattr(self, name) >= 0:
                raise InputError(f"loss.{name} must not be negative")
        if not self.huber_delta > 0:
            raise InputError("loss.huber_delta must be above 0")
        if not any(self.weights.values()):
            raise InputError("the loss has no term with a weight above 0")

    @property
    def needs_forces(self) -> bool:
        """Whether the model's forces enter the loss."""
        return self.forces != "none"

    @property
    def needs_stress(self) -> bool:
        """Whether the model's stress enters the loss."""
        return self.stress != "none"

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each label that the loss reads."""
        weights = {ENERGY: self.energy_weight}
        if self.needs_forces:
            weights[FORCES] = self.forces_weight
        if self.needs_stress:
            weights[STRESS] = self.stress_weight
        return weights


_OPTIONS = {
    "energy": ("mae", "mse", "huber"),
    "forces": ("none", "l1", "l2", "mse", "huber"),
    "stress": ("none", "mae", "mse", "huber"),
}


def loss_sums(
    prediction: Prediction, batch: Batch, config: LossConfig, scale: float = 1.0
) -> dict[str, tuple[Array, Array]]:
    """Sum and count of each term of the loss.

    Args:
        prediction: In model units.
        batch: With targets in eV, eV/Å, eV/Å^3.
        config: Which terms.
        scale: eV per model unit, `Statistics.scale`.

    Returns:
        ``energy_loss``, ``forces_loss``, ``stress_loss`` -> (sum, count), unweighted.

    Raises:
        InputError: If the batch lacks a label that the loss reads.
    """
    for label in config.weights:
        if label not in batch.targets:
            raise InputError(
                f"the loss needs the label {label!r}, which the data do not have"
            )
    graphs = ops.graph_mask(batch.graph)
    error = prediction.energy - batch.targets[ENERGY] / scale
    sums = {"energy_loss": masked_sum(_elementwise(error, config.energy, config), graphs)}
    if config.needs_forces:
        mask = counted_nodes(batch, config.free_atoms_only)
        error = prediction.forces - batch.targets[FORCES] / scale
        if config.forces == "l2":
            values = ops.safe_norm(jnp.where(mask[:, None], error, 0))
        else:
            values = _elementwise(error, config.forces, config)
        sums["forces_loss"] = masked_sum(values, mask)
    if config.needs_stress:
        error = prediction.stress - batch.targets[STRESS] / scale
        values = _elementwise(error, config.stress, config)
        sums["stress_loss"] = masked_sum(values, counted_stresses(batch))
    return sums


def total_loss(sums: Sums, config: LossConfig) -> Array:
    """Weighted sum of the mean terms; traced arrays and host numbers alike."""
    total = 0.0
    for label, weight in config.weights.items():
        value, count = sums[f"{label}_loss"]
        # A batch may hold no free atom: its term is 0, not 0 / 0.
        total = total + weight * value / (count + (count == 0))
    return total


def means(sums: Sums, config: LossConfig | None = None) -> dict[str, float]:
    """Final values of host sums: the means, and the weighted ``loss`` of its terms."""
    values = finalize(sums)
    return values if config is None else {"loss": float(total_loss(sums, config)), **values}


def loss(
    prediction: Prediction, batch: Batch, config: LossConfig, scale: float = 1.0
) -> tuple[Array, dict[str, tuple[Array, Array]]]:
    """The loss of one batch and its terms; arguments and errors as in `loss_sums`."""
    sums = loss_sums(prediction, batch, config, scale)
    return total_loss(sums, config), sums


def _elementwise(error: Array, kind: str, config: LossConfig) -> Array:
    if kind in ("mae", "l1"):
        return jnp.abs(error)
    if kind == "mse":
        return error * error
    size, delta = jnp.abs(error), config.huber_delta
    return jnp.where(size <= delta, 0.5 * error * error, delta * (size - 0.5 * delta))
