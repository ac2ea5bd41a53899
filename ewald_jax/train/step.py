"""The training step and the evaluation step: two jitted functions, all in sight."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ewald_jax.graph.schema import Batch
from ewald_jax.potential import Prediction, model_outputs
from ewald_jax.train.losses import LossConfig, loss_sums, total_loss
from ewald_jax.train.metrics import Sums, metric_sums
from ewald_jax.train.norms import tree_norm
from ewald_jax.train.optim import OptimConfig, update_ema
from ewald_jax.train.sharding import same_on, spread_over
from ewald_jax.train.state import TrainState
from ewald_jax.typing import Array, Float, PyTree

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Sums]]
EvalStep = Callable[[PyTree, Batch], Sums]


class BatchShape(NamedTuple):
    """What a step is compiled for: the padded sizes of a batch."""

    nodes: int
    edges: int
    graphs: int
    slots: int
    far_edges: int = 0

    def __str__(self) -> str:
        """Like ``64 nodes x 512 edges x 9 graphs``."""
        far = f" x {self.far_edges} far edges" if self.far_edges else ""
        return f"{self.nodes} nodes x {self.edges} edges{far} x {self.graphs} graphs"


def batch_shape(batch: Batch) -> BatchShape:
    """Padded sizes of a batch."""
    graph = batch.graph
    return BatchShape(
        graph.nodes["species"].shape[-1],
        graph.senders.shape[-1],
        graph.n_node.shape[-1],
        batch.dense_index.shape[-1],
        0 if batch.far_edges is None else batch.far_edges.senders.shape[-1],
    )


def make_loss_fn(
    model: nn.Module, config: LossConfig, scale: float, stacked: bool = False
) -> Callable[[PyTree, Batch], tuple[Float[Array, ""], Sums]]:
    """The loss as a function of parameters and batch, with its terms as (sum, count).

    Args:
        model: The network.
        config: What to minimise.
        scale: eV per model unit.
        stacked: Whether batches have a leading axis over devices.
    """

    def sums_fn(params: PyTree, batch: Batch) -> Sums:
        prediction = model_outputs(
            model, params, batch, forces=config.needs_forces, stress=config.needs_stress
        )
        return loss_sums(prediction, batch, config, scale)

    def loss_fn(params: PyTree, batch: Batch) -> tuple[Float[Array, ""], Sums]:
        if stacked:
            parts = jax.vmap(sums_fn, in_axes=(None, 0))(params, batch)
            sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), parts)
        else:
            sums = sums_fn(params, batch)
        return total_loss(sums, config), sums

    return loss_fn


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    loss_config: LossConfig,
    optim_config: OptimConfig,
    scale: float = 1.0,
    traces: list[BatchShape] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    members: int = 1,
) -> TrainStep:
    """Builds the jitted training step.

    Args:
        model: The network.
        tx: The optimiser, with its learning-rate schedule.
        loss_config: What to minimise.
        optim_config: For the moving average of the parameters.
        scale: eV per model unit, `Statistics.scale`.
        traces: A list that gets the batch's shape each time the step is traced, which is
            once per compilation.
        mesh: Devices that share the structures of a step (see `sharding`); batches are then
            stacked.
        members: Networks of an ensemble that take the step, each as if alone; everything in
            their state, and every sum, has a leading axis over them if there are several.

    Returns:
        ``(state, batch) -> (state, sums)``. The state passed in is donated. The sums are the
        terms of the loss and ``grad_norm``, scalars on the device.
    """
    loss_fn = make_loss_fn(model, loss_config, scale, stacked=mesh is not None)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        if traces is not None:
            traces.append(batch_shape(batch))
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (value, sums), grads = grad_fn(state.params, batch)
        grad_norm = tree_norm(grads)
        healthy = state.healthy & jnp.isfinite(value) & jnp.isfinite(grad_norm)
        # Frozen at the last good step, so that the culprit can be found with its parameters.
        new_state = _if_healthy(healthy, update, state, grads)
        # A learning rate that is far too large is seen here, before anything is saved.
        healthy &= jnp.isfinite(tree_norm(new_state.params))
        sums = {**sums, "grad_norm": (grad_norm, jnp.ones_like(grad_norm))}
        return new_state.replace(healthy=healthy), sums

    def update(state: TrainState, grads: PyTree) -> TrainState:
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: u * state.lr_scale.astype(u.dtype), updates)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            ema_params = update_ema(ema_params, params, state.step, optim_config)
        return state.replace(
            step=state.step + 1, params=params, ema_params=ema_params, opt_state=opt_state
        )

    step = _for_each(train_step, members)
    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(same_on(mesh), spread_over(mesh)),
        out_shardings=same_on(mesh),
    )


def _if_healthy(
    healthy: Array,
    update: Callable[[TrainState, PyTree], TrainState],
    state: TrainState,
    grads: PyTree,
) -> TrainState:
    """The updated state, or the state as it is.

    On CPUs only one of them is computed: to choose between the numbers of both takes memory
    and, for networks with many parameters and few atoms, a twentieth of a step. On accelerators
    a branch would wait for the host.
    """

    def branch(healthy, state, grads):
        return jax.lax.cond(healthy, update, lambda state, _: state, state, grads)

    def choice(healthy, state, grads):
        new = update(state, grads)
        return jax.tree.map(lambda x, y: jnp.where(healthy, x, y), new, state)

    return jax.lax.platform_dependent(healthy, state, grads, cpu=branch, default=choice)


def make_eval_step(
    model: nn.Module,
    loss_config: LossConfig | None = None,
    scale: float = 1.0,
    *,
    forces: bool | None = None,
    stress: bool | None = None,
    traces: list[BatchShape] | None = None,
    members: int = 1,
) -> EvalStep:
    """Builds the jitted evaluation step.

    Args:
        model: The network.
        loss_config: The loss to report; None for none.
        scale: eV per model unit, `Statistics.scale`.
        forces: Whether to compute forces; None does if the loss reads them.
        stress: Whether to compute stress; None does if the loss reads it.
        traces: As in `make_train_step`.
        members: As in `make_train_step`.

    Returns:
        ``(params, batch) -> sums`` of the loss's terms (model units) and of all metrics (eV,
        eV/Å, eV/Å^3), scalars on the device.
    """
    if loss_config is not None:
        forces = loss_config.needs_forces if forces is None else forces
        stress = loss_config.needs_stress if stress is None else stress

    def eval_step(params: PyTree, batch: Batch) -> Sums:
        if traces is not None:
            traces.append(batch_shape(batch))
        prediction = model_outputs(
            model, params, batch, forces=bool(forces), stress=bool(stress)
        )
        return prediction_sums(prediction, batch, loss_config, scale)

    return jax.jit(_for_each(eval_step, members))


def prediction_sums(
    prediction: Prediction, batch: Batch, loss_config: LossConfig | None, scale: float
) -> Sums:
    """Sums of the loss's terms, if there is one, and of all metrics.

    Args:
        prediction: In model units.
        batch: With its labels.
        loss_config: The loss to report; None for none.
        scale: eV per model unit.
    """
    sums = {}
    if loss_config is not None:
        sums = loss_sums(prediction, batch, loss_config, scale)
    return {**sums, **metric_sums(scale_prediction(prediction, scale), batch)}


def _for_each(step: Callable, members: int) -> Callable:
    """A step of every member of an ensemble on the same batch."""
    return step if members == 1 else jax.vmap(step, in_axes=(0, None))


def scale_prediction(prediction: Prediction, scale: float) -> Prediction:
    """From model units to eV, eV/Å, eV/Å^3; reference energies stay subtracted."""
    return jax.tree.map(lambda x: x * scale, prediction)
