"""The same sums in PyTorch: by torch-pme, and as one would write them down there.

PyTorch and torch-pme are imported when they are asked for. Numbers go in and out as numpy
arrays, and the sums are computed where JAX computes: on its GPU if there is one.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ewald_jax.typing import Array, Float, InputError


class SumProblem(NamedTuple):
    """One k-space sum with a Coulomb filter, ``4 pi exp(-s^2 k^2 / 2) / k^2``.

    Attributes:
        h: Features: charges of each channel.
        positions: Å.
        cell: Rows are lattice vectors, Å.
        kvecs: Half of the wave vectors, 1/Å.
        smearing: s, Å.
    """

    h: Float[np.ndarray, "nodes feat"]
    positions: Float[np.ndarray, "nodes 3"]
    cell: Float[np.ndarray, "3 3"]
    kvecs: Float[np.ndarray, "kvecs 3"]
    smearing: float


class Calls(NamedTuple):
    """What is timed of one implementation.

    Attributes:
        forward: Computes the message; or a training step.
        gradient: Half the message's squared length and its derivatives; None for steps.
        message: From what `forward` gives to the message as `ewald_jax` defines it.
    """

    forward: Callable[[], Any]
    gradient: Callable[[], Any] | None = None
    message: Callable[[Any], Float[np.ndarray, "nodes feat"]] = np.asarray


class BlockProblem(NamedTuple):
    """One Ewald block on one structure.

    Attributes:
        h: Features.
        positions: Å.
        kvecs: Half of the wave vectors, 1/Å.
        kernels: "pre_0", "pre_1" and "update" [feat, feat] of the dense layers, and "filter"
            [kvecs, feat].
        prefactor: Of the message.
    """

    h: Float[np.ndarray, "nodes feat"]
    positions: Float[np.ndarray, "nodes 3"]
    kvecs: Float[np.ndarray, "kvecs 3"]
    kernels: Mapping[str, np.ndarray]
    prefactor: float


def torch_pme_sum(problem: SumProblem) -> Calls:
    """The sum by torch-pme's Ewald calculator, whose channels are those of the features.

    It is given the same half of the wave vectors, which it takes for all of them, no
    neighbors, and subtracts what charges do to themselves and to the background.
    """
    import torch
    import torchpme

    h, positions, cell, kvecs = map(_tensor, problem[:4])
    potential = torchpme.CoulombPotential(smearing=problem.smearing).to(h.device)
    calculator = torchpme.EwaldCalculator(potential, lr_wavelength=1.0).to(h.device)
    nobody = {
        "neighbor_indices": torch.zeros((0, 2), dtype=torch.int64, device=h.device),
        "neighbor_distances": torch.zeros(0, device=h.device),
    }

    def potentials(h, positions):
        return calculator(h, cell, positions, kvectors=kvecs, **nobody)

    return _calls(potentials, (h, positions), lambda v: from_potentials(problem, v, 0.5))


def plain_block(problem: BlockProblem, materialised: bool, memory_limit: int) -> Calls:
    """The Ewald block in the obvious PyTorch.

    Args:
        problem: Of one structure.
        materialised: Form every term of the sums, [nodes, kvecs, feat], as broadcasting
            does it; else matrix products.
        memory_limit: Bytes.

    Raises:
        InputError: If the terms need more memory.
    """
    import torch

    if materialised:
        # Two products and their sum, and one more for their derivatives.
        needed = 4 * 4 * len(problem.h) * len(problem.kvecs) * problem.h.shape[1]
        if needed > memory_limit:
            raise InputError(
                f"all terms need about {needed / 1e9:.3g} GB of memory, expected at most "
                f"{memory_limit / 1e9:.3g} GB"
            )
    kernels = {name: _tensor(kernel) for name, kernel in problem.kernels.items()}
    h, positions, kvecs = map(_tensor, problem[:3])
    names = sorted(kernels)

    def dense(x, kernel):
        return torch.nn.functional.silu(x @ kernel) / 0.6

    def block(h, positions, *weights):
        w = dict(zip(names, weights, strict=True))
        h = (h + dense(dense(h, w["pre_0"]), w["pre_1"])) / 2**0.5
        message = problem.prefactor * summed(h, positions @ kvecs.T, w["filter"])
        return dense(message, w["update"])

    def summed(h, angle, filter):
        cosine, sine = torch.cos(angle), torch.sin(angle)
        if not materialised:
            real, imaginary = cosine.T @ h, sine.T @ h
            return cosine @ (filter * real) + sine @ (filter * imaginary)
        cosine, sine = cosine[:, :, None], sine[:, :, None]
        real = (cosine * h[:, None, :]).sum(0)
        imaginary = (sine * h[:, None, :]).sum(0)
        return (cosine * (filter * real) + sine * (filter * imaginary)).sum(1)

    inputs = (h, positions, *(kernels[name] for name in names))
    return _calls(block, inputs, lambda message: message.cpu().numpy())


def from_potentials(
    problem: SumProblem, potentials: Array, share: float
) -> Float[np.ndarray, "nodes feat"]:
    """The message of which a Coulomb potential is a part.

    The potential is half of the message less what a Gaussian charge does to itself, and less
    that of the background which makes the cell neutral.

    Args:
        problem: The sum.
        potentials: [nodes, feat].
        share: Of all wave vectors that the potential has summed over.
    """
    h, s = problem.h, problem.smearing
    background = 2 * np.pi * s**2 * h.sum(axis=0) / abs(np.linalg.det(problem.cell))
    own = np.sqrt(2 / np.pi) / s * h
    return (2 * np.asarray(potentials) + own + background) / share


def _calls(function: Callable, inputs: tuple, message: Callable) -> Calls:
    """Timed forms of a function of tensors; derivatives by all of them."""
    import torch

    leaves = [x.clone().requires_grad_() for x in inputs]

    def forward():
        with torch.no_grad():
            return _finished(function(*inputs))

    def gradient():
        value = (function(*leaves) ** 2).sum() / 2
        return _finished(torch.autograd.grad(value, leaves))

    return Calls(forward, gradient, message)


def _tensor(x: Any) -> Any:
    import torch

    device = (
        "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    )
    return torch.tensor(np.asarray(x, np.float32), device=device)


def _finished(result: Any) -> Any:
    """Results once a GPU has them."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result
