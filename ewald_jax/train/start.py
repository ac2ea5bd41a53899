"""The state before the first step: random, from another training, or of several members."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ewald_jax.data.base import GraphDataset
from ewald_jax.data.loader import Loader
from ewald_jax.ensemble import stack_members
from ewald_jax.potential import init_params
from ewald_jax.train.initial import Initial
from ewald_jax.train.scales import initial_scales
from ewald_jax.train.settings import TrainConfig
from ewald_jax.train.state import TrainState, create_state


def starting_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    dataset: GraphDataset,
    indices: np.ndarray,
    *,
    train: TrainConfig,
    ema: bool,
    initial: Initial | None,
    scales: bool,
    dtype: np.dtype,
) -> TrainState:
    """What a training starts from; with several members, everything has a leading axis.

    Args:
        model: The network.
        tx: The optimiser.
        dataset: The data.
        indices: The training structures.
        train: Seed, members, scale factors. A member starts from what a training with its
            seed alone would start from.
        ema: Whether to average parameters.
        initial: Parameters to start from, scale factors included; None for random ones.
        scales: Whether random ones get scale factors; not if a checkpoint is to take their
            place.
        dtype: Of the computation.

    Raises:
        InputError: If the parameters to start from, or the scale factors, do not fit.
    """
    keys = [jax.random.split(jax.random.key(seed)) for seed in train.member_seeds]
    first = next(Loader(dataset, indices[:1], 1, dtype=dtype, prefetch=0).epoch())
    params = [init_params(model, init_key, first) for init_key, _ in keys]
    if initial is None and scales:
        # Whole batches, however many devices share one.
        whole = Loader(
            dataset, indices, train.batch_size, shuffle_seed=train.seed, dtype=dtype
        )
        params = [initial_scales(train.scales, model, x, whole.epoch()) for x in params]
    params = params[0] if len(params) == 1 else stack_members(params)
    if initial is not None:
        params = initial.parameters(params)
    if train.members == 1:
        return create_state(params, tx, keys[0][1], ema)
    create = lambda params, key: create_state(params, tx, key, ema)
    return jax.vmap(create)(params, jnp.stack([run_key for _, run_key in keys]))
