"""What a training step changes, in one pytree."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from ewald_jax.typing import Array, Bool, Float, Int, PyTree


@flax.struct.dataclass
class TrainState:
    """Everything on the device that training carries from step to step.

    The model and the optimiser are functions and stay outside.

    Attributes:
        step: Steps taken.
        params: Parameters.
        ema_params: Their exponential moving average, None where it is off.
        opt_state: State of the optimiser.
        key: Random key of the run; a step that needs randomness folds `step` into it.
        lr_scale: Factor on the learning rate, set by the plateau rule.
        healthy: False from the first step on whose loss, gradient or new parameters were
            not finite. That step and all later ones leave everything else as it was.
    """

    step: Int[Array, ""]
    params: PyTree
    ema_params: PyTree | None
    opt_state: optax.OptState
    key: Array
    lr_scale: Float[Array, ""]
    healthy: Bool[Array, ""]

    @property
    def eval_params(self) -> PyTree:
        """The parameters to evaluate and to publish: averaged ones where there are."""
        return self.params if self.ema_params is None else self.ema_params


def create_state(
    params: PyTree, tx: optax.GradientTransformation, key: Array, ema: bool = False
) -> TrainState:
    """The state before the first step.

    Args:
        params: Initial parameters; they are copied, because the step donates its state.
        tx: The optimiser.
        key: Random key (`jax.random.key`) of the run.
        ema: Whether to average parameters.
    """
    params = jax.tree.map(lambda x: jnp.array(x, copy=True), params)
    return TrainState(
        step=jnp.zeros([], jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
        opt_state=tx.init(params),
        key=jax.random.key_data(key),
        lr_scale=jnp.ones([], jnp.float32),
        healthy=jnp.ones([], bool),
    )


def count_parameters(params: PyTree) -> int:
    """Number of scalar parameters."""
    return sum(x.size for x in jax.tree.leaves(params))
