"""Training: losses, exact metrics, optimiser, one step, one loop, checkpoints."""

from ewald_jax.train.checkpoint import load_checkpoint, read_progress
from ewald_jax.train.culprits import NonFiniteError
from ewald_jax.train.description import members_of
from ewald_jax.train.evaluate import evaluate
from ewald_jax.train.loop import FitResult, fit
from ewald_jax.train.losses import LossConfig, loss
from ewald_jax.train.metrics import finalize, merge, metric_sums
from ewald_jax.train.optim import OptimConfig, make_optimizer
from ewald_jax.train.settings import TrainConfig
from ewald_jax.train.state import TrainState, create_state
from ewald_jax.train.step import make_eval_step, make_train_step

__all__ = [
    "FitResult",
    "LossConfig",
    "NonFiniteError",
    "OptimConfig",
    "TrainConfig",
    "TrainState",
    "create_state",
    "evaluate",
    "finalize",
    "fit",
    "load_checkpoint",
    "loss",
    "make_eval_step",
    "make_optimizer",
    "make_train_step",
    "members_of",
    "merge",
    "metric_sums",
    "read_progress",
]
