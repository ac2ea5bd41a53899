"""The optimiser: AdamW as PyTorch defines it, learning-rate schedules, plateau, EMA.

Everything that depends on the step alone is inside the jitted training step. Only the plateau
rule, which looks at validation results, runs on the host, and hands one number to the device.
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ewald_jax.nn.scaling import SCALE_FACTOR
from ewald_jax.typing import Array, Float, InputError, Int, PyTree


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimiser and learning-rate schedule; the defaults are the paper's where it has one.

    Attributes:
        lr: Learning rate after the warm-up.
        optimizer: ``adamw``: Adam with decoupled weight decay.
        amsgrad: Divide by the largest second moment so far.
        weight_decay: Times the learning rate, on every parameter.
        b1: Decay of the first moment.
        b2: Decay of the second moment.
        eps: Added to the root of the second moment.
        clip_norm: Largest norm of the whole gradient; 0 does not clip.
        schedule: ``step`` multiplies by `decay` at each milestone, ``plateau`` when
            validation stops improving, ``cosine`` goes to zero at the last step.
        warmup_steps: Steps of the linear warm-up, before every schedule; 0 for none.
        warmup_factor: Where the warm-up starts, as a fraction of `lr`.
        milestones: Steps, ascending, at which ``step`` decays.
        decay: Factor at each milestone.
        plateau_patience: Evaluations without improvement that ``plateau`` tolerates.
        plateau_factor: Factor when it loses patience.
        plateau_threshold: Relative improvement that counts as one.
        ema_decay: Decay per step of the averaged parameters, which evaluation uses; 0 is off.
        ema_warmup: Decay faster, by (1 + step) / (10 + step), until `ema_decay` is reached,
            so that a short training does not average in its start.
    """

    lr: float = 5e-4
    optimizer: Literal["adamw"] = "adamw"
    amsgrad: bool = False
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 0.0
    schedule: Literal["step", "plateau", "cosine"] = "step"
    warmup_steps: int = 0
    warmup_factor: float = 0.2
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    plateau_patience: int = 10
    plateau_factor: float = 0.5
    plateau_threshold: float = 1e-4
    ema_decay: float = 0.0
    ema_warmup: bool = True

    def __post_init__(self):
        """Refuse values that make no optimiser."""
        object.__setattr__(self, "milestones", tuple(self.milestones))
        checks = {
            "lr must be a finite number above 0": 0 < self.lr < math.inf,
            "optimizer must be adamw": self.optimizer == "adamw",
            "weight_decay must not be negative": self.weight_decay >= 0,
            "b1 and b2 must be in [0, 1)": 0 <= self.b1 < 1 and 0 <= self.b2 < 1,
            "eps must be above 0": self.eps > 0,
            "clip_norm must not be negative": self.clip_norm >= 0,
            "schedule must be step, plateau or cosine": self.schedule
            in ("step", "plateau", "cosine"),
            "warmup_steps must not be negative": self.warmup_steps >= 0,
            "warmup_factor must be in [0, 1]": 0 <= self.warmup_factor <= 1,
            "milestones must ascend from above 0": list(self.milestones)
            == sorted({step for step in self.milestones if step > 0}),
            "milestones belong to the schedule 'step'": not self.milestones
            or self.schedule == "step",
            "decay must be in (0, 1]": 0 < self.decay <= 1,
            "plateau_patience must not be negative": self.plateau_patience >= 0,
            "plateau_factor must be in (0, 1)": 0 < self.plateau_factor < 1,
            "plateau_threshold must be in [0, 1)": 0 <= self.plateau_threshold < 1,
            "ema_decay must be in [0, 1)": 0 <= self.ema_decay < 1,
        }
        for message, holds in checks.items():
            if not holds:
                raise InputError(f"optim.{message}")


def learning_rate(config: OptimConfig, num_steps: int) -> optax.Schedule:
    """Learning rate at each step, without the plateau's factor.

    Args:
        config: The schedule.
        num_steps: Steps of the whole training; only ``cosine`` reads it.

    Returns:
        A function of the step, traceable and callable with a host integer alike.
    """
    warmup = config.warmup_steps
    milestones = jnp.asarray(config.milestones, jnp.int32)

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        if config.schedule == "cosine":
            length = max(num_steps - warmup, 1)
            done = jnp.clip((step - warmup) / length, 0, 1)
            factor = 0.5 * (1 + jnp.cos(jnp.pi * done))
        else:
            factor = config.decay ** jnp.sum(step >= milestones)
        if warmup:
            rise = config.warmup_factor + (1 - config.warmup_factor) * step / warmup
            factor = jnp.where(step < warmup, rise, factor)
        return config.lr * factor

    return schedule


def make_optimizer(config: OptimConfig, num_steps: int) -> optax.GradientTransformation:
    """Clipping, Adam or AMSGrad, decoupled weight decay, learning rate: in this order.

    Scale factors (`nn.scaling`) stay what they are.

    Args:
        config: What to build.
        num_steps: Steps of the whole training, for the ``cosine`` schedule.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else None
    adam = scale_by_amsgrad if config.amsgrad else optax.scale_by_adam
    parts = (
        clip,
        adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay) if config.weight_decay else None,
        optax.scale_by_learning_rate(learning_rate(config, num_steps)),
        hold_scale_factors(),
    )
    return optax.chain(*(part for part in parts if part is not None))


def hold_scale_factors() -> optax.GradientTransformation:
    """No update, not even weight decay, for the fitted constants of `nn.scaling`."""

    def held(path: tuple, update: Array) -> Array:
        name = getattr(path[-1], "key", None) if path else None
        return jnp.zeros_like(update) if name == SCALE_FACTOR else update

    return optax.stateless(
        lambda updates, params: jax.tree_util.tree_map_with_path(held, updates)
    )


class AmsgradState(NamedTuple):
    """State of `scale_by_amsgrad`."""

    count: Int[Array, ""]
    mu: PyTree  # first moment
    nu: PyTree  # second moment
    nu_max: PyTree  # largest second moment so far


def scale_by_amsgrad(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    r"""AMSGrad as in PyTorch's AdamW, with which the paper's models were trained.

    With moments m, v and t steps taken,

        v_max = max(v_max, v),   update = m / (1 - b1^t) / (sqrt(v_max / (1 - b2^t)) + eps).

    `optax.scale_by_amsgrad` takes the maximum after the bias correction. The square of the
    first gradient, which is all that the corrected v holds then, so bounds every later step.
    """

    def init(params: PyTree) -> AmsgradState:
        zeros = lambda: optax.tree.zeros_like(params)
        return AmsgradState(jnp.zeros([], jnp.int32), zeros(), zeros(), zeros())

    def update(
        updates: PyTree, state: AmsgradState, params: PyTree | None = None
    ) -> tuple[PyTree, AmsgradState]:
        del params
        count = state.count + 1
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)
        mu_hat = optax.tree.bias_correction(mu, b1, count)
        nu_hat = optax.tree.bias_correction(nu_max, b2, count)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu_hat, nu_hat)
        return updates, AmsgradState(count, mu, nu, nu_max)

    return optax.GradientTransformation(init, update)


def update_ema(
    ema: PyTree, params: PyTree, step: Int[Array, ""], config: OptimConfig
) -> PyTree:
    """Moves the averaged parameters towards `params`, once a step.

    Args:
        ema: Averaged parameters.
        params: Parameters after the step.
        step: Steps taken before this one.
        config: `ema_decay`, `ema_warmup`.
    """
    decay = config.ema_decay
    if config.ema_warmup:
        decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return optax.incremental_update(params, ema, 1 - decay)


class Plateau(NamedTuple):
    """State of the plateau rule, plain numbers that a checkpoint keeps.

    Attributes:
        best: Lowest value so far, None before the first.
        waited: Evaluations since then.
        scale: Factor on the learning rate.
    """

    best: float | None = None
    waited: int = 0
    scale: float = 1.0


def update_plateau(state: Plateau, value: float, config: OptimConfig) -> Plateau:
    """One evaluation of the plateau rule, PyTorch's ReduceLROnPlateau in mode ``min``.

    The learning rate falls at the first evaluation that exceeds the patience; then the
    waiting starts anew. For a value of which more is better, give its negative.

    Args:
        state: So far.
        value: New value of the monitored quantity.
        config: Patience, factor, threshold.
    """
    if state.best is None or value < state.best - config.plateau_threshold * abs(
        state.best
    ):
        return Plateau(value, 0, state.scale)
    waited = state.waited + 1
    if waited > config.plateau_patience:
        return Plateau(state.best, 0, state.scale * config.plateau_factor)
    return Plateau(state.best, waited, state.scale)
