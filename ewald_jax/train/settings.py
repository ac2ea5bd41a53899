"""Settings of the training loop."""

import dataclasses

from ewald_jax.typing import InputError

_AT_LEAST_ONE = (
    "epochs",
    "batch_size",
    "eval_every",
    "log_every",
    "max_buckets",
    "devices",
    "members",
)
_NOT_NEGATIVE = (
    "max_steps",
    "eval_every_steps",
    "checkpoint_every",
    "checkpoint_seconds",
    "seed",
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long to train, and what to do on the way.

    Attributes:
        epochs: Passes over the training structures.
        max_steps: Stop after so many steps; 0 for no limit.
        batch_size: Structures per step.
        seed: Of the initial parameters and of the order of the structures.
        members: Networks that are trained at once, an ensemble: their initial parameters are
            those of the seeds `seed`, `seed` + 1, ..., and all see the same structures in the
            same order, that of `seed`.
        eval_every: Epochs between evaluations; the last step is always evaluated.
        eval_every_steps: Steps between evaluations, in place of `eval_every` if not 0.
        monitor: Validation metric that decides about the best checkpoint and the plateau.
        log_every: Steps between readings of the running loss, which wait for the device.
        checkpoint_every: Steps between saves of the last checkpoint, besides those at the
            end of epochs; 0 for none.
        checkpoint_seconds: Least time between saves at the end of epochs, so that saving
            costs little where epochs are short; 0 saves after each.
        max_buckets: Most shapes of batches, each of which costs a compilation.
        devices: Accelerators that share the structures of a step; more than one take batches
            of a single shape.
        scales: Where the scale factors of GemNet and PaiNN come from (see `nn.scaling`):
            ``fit`` finds them on the first batches when training starts, for each member
            its own, a file of ``ewald-jax fit-scales`` gives them, ``none`` leaves 1.
        tensorboard: Write TensorBoard files.
    """

    epochs: int = 100
    max_steps: int = 0
    batch_size: int = 32
    seed: int = 0
    members: int = 1
    eval_every: int = 1
    eval_every_steps: int = 0
    monitor: str = "loss"
    log_every: int = 50
    checkpoint_every: int = 0
    checkpoint_seconds: float = 10.0
    max_buckets: int = 4
    devices: int = 1
    scales: str = "none"
    tensorboard: bool = True

    @property
    def member_seeds(self) -> list[int]:
        """The seed of each member's initial parameters."""
        return list(range(self.seed, self.seed + self.members))

    def __post_init__(self):
        """Refuse values that make no training."""
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise InputError(f"train.{name} must be at least 1")
        for name in _NOT_NEGATIVE:
            if getattr(self, name) < 0:
                raise InputError(f"train.{name} must not be negative")
        if self.batch_size % self.devices:
            raise InputError(
                f"train.batch_size must be a multiple of train.devices, not {self.batch_size} "
                f"for {self.devices}"
            )
