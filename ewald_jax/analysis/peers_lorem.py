"""A training step of lorem-jax, as its own training does it. Imports it when called."""

from collections.abc import Callable, Sequence
from typing import Any

import ase
import jax
import numpy as np
import optax
from ase.calculators.singlepoint import SinglePointCalculator


def lorem_step(
    structures: Sequence[ase.Atoms], features: int, cutoff: float
) -> Callable[[], Any]:
    """A compiled step on energies and forces, which are random numbers.

    Args:
        structures: The batch; padded as lorem pads it.
        features: Width; all other sizes are lorem's own.
        cutoff: Å.

    Returns:
        A function without arguments; each call is a step from where the last one ended.
    """
    # lorem sets jax's precision of matrix products: whoever compares compiles before.
    from lorem import Lorem, to_batch, to_sample
    from marathon.evaluate import get_loss_fn

    rng = np.random.default_rng(0)
    samples = []
    for atoms in structures:
        labelled = atoms.copy()
        forces = rng.normal(size=(len(atoms), 3))
        labelled.calc = SinglePointCalculator(labelled, energy=rng.normal(), forces=forces)
        samples.append(to_sample(labelled, cutoff))
    batch = jax.tree.map(jax.numpy.asarray, to_batch(samples, ["energy", "forces"]))
    model = Lorem(cutoff=cutoff, num_features=features)
    params = jax.jit(model.init)(jax.random.key(0), *batch[:4])
    tx = optax.adam(1e-5)
    loss = get_loss_fn(model.predict, weights={"energy": 0.5, "forces": 0.5})

    def step(state, batch):
        params, moments = state
        (value, _), slopes = jax.value_and_grad(loss, has_aux=True)(params, batch)
        updates, moments = tx.update(slopes, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    state = (params, tx.init(params))
    compiled = jax.jit(step).lower(state, batch).compile()

    def run():
        nonlocal state
        state, value = compiled(state, batch)
        return value

    return run
