"""Which structures of a batch made a loss, a gradient or a metric not finite."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ewald_jax.data.base import GraphDataset
from ewald_jax.data.loader import Loader
from ewald_jax.data.statistics import Statistics
from ewald_jax.graph.schema import FORCES, STRESS, Batch, Budget
from ewald_jax.potential import model_outputs
from ewald_jax.train.losses import LossConfig
from ewald_jax.train.step import make_loss_fn
from ewald_jax.typing import InputError, PyTree

_NAMED = 5


class NonFiniteError(InputError):
    """A loss, a gradient or a metric that is NaN or infinite.

    Attributes:
        structures: Indices, in the data set, of the structures to blame; all of the batch if
            no single one is.
        member: Of an ensemble, the network to blame; None if unknown or alone.
    """

    def __init__(self, message: str, structures: Sequence[int], member: int | None = None):
        """A sentence, and the structures and the member it is about."""
        super().__init__(message)
        self.member = member
        self.structures = tuple(int(index) for index in structures)


def blame(
    what: str,
    model: nn.Module,
    params: PyTree,
    dataset: GraphDataset,
    indices: Sequence[int] | np.ndarray,
    *,
    budgets: Sequence[Budget],
    statistics: Statistics,
    loss: LossConfig | None = None,
    dtype: np.dtype | type = np.float32,
    kept: str = "",
    member: int | None = None,
) -> NonFiniteError:
    """Looks at the structures of a failed batch one by one, and makes the error to raise.

    Args:
        what: What is not finite, and where: the start of the sentence.
        model: The network.
        params: Parameters with which the batch failed.
        dataset: The data set.
        indices: The structures of the batch.
        budgets: Shapes of batches, so that few are compiled.
        statistics: Of the training data.
        loss: If given, its gradient is looked at too.
        dtype: Of the computation.
        kept: What the user still has: the end of the sentence.
        member: Of an ensemble, the network that the parameters are of.

    Returns:
        The error, naming each culprit by index and file with what is wrong with it.
    """
    forces, stress = FORCES in dataset.labels, STRESS in dataset.labels
    if loss is not None:
        forces, stress = loss.needs_forces, loss.needs_stress
    loss_fn = make_loss_fn(model, loss, statistics.scale) if loss is not None else None

    @jax.jit
    def inspect(params: PyTree, batch: Batch) -> dict[str, jax.Array]:
        prediction = model_outputs(model, params, batch, forces=forces, stress=stress)
        out = {f"the predicted {k}": v for k, v in prediction._asdict().items()}
        if loss_fn is not None:
            (value, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
            out["the loss"] = value
            out["the gradient of the loss"] = optax.tree.norm(grads)
        return {k: jnp.isfinite(v).all() for k, v in out.items() if v is not None}

    reasons = {}
    for index in indices:
        loader = Loader(dataset, [index], 1, budgets, statistics, dtype=dtype, prefetch=0)
        batch = next(loader.epoch())
        finite = {f"the label {k}": np.isfinite(v).all() for k, v in batch.targets.items()}
        if all(finite.values()):
            # In order of cause: bad predictions make bad losses.
            found = jax.device_get(inspect(params, batch))
            finite = {k: found[k] for k in sorted(found, key=_cause)}
        bad = [name for name, good in finite.items() if not good]
        if bad:
            reasons[int(index)] = f"{bad[0]} is not finite"
    if len(reasons) == len(indices) and np.isinf(optax.tree.norm(params)):
        reasons = {}  # parameters too large for any structure: the step before diverged
    parts = [what, _describe(dataset, indices, reasons), kept]
    message = "; ".join(part for part in parts if part)
    return NonFiniteError(message, reasons or indices, member)


def _cause(name: str) -> int:
    order = ("energy", "forces", "stress", "loss", "gradient")
    return max(rank for rank, word in enumerate(order) if word in name)


def _describe(
    dataset: GraphDataset, indices: Sequence[int] | np.ndarray, reasons: dict[int, str]
) -> str:
    if not reasons:
        listed = ", ".join(str(int(index)) for index in indices)
        return (
            f"no single structure of the batch is to blame (structures {listed}): the "
            "training has diverged, expected a smaller optim.lr or an optim.clip_norm"
        )
    words = [
        f"structure {index} of the data set ({dataset.where(index)}): {reason}"
        for index, reason in list(reasons.items())[:_NAMED]
    ]
    more = len(reasons) - _NAMED
    return "; ".join(words + ([f"and {more} more"] if more > 0 else []))
