"""Weights under the names of the PyTorch reference and of the Open Catalyst Project.

Only names and layouts are translated here: weights come as a mapping of name to array.
PyTorch stores a dense layer as [out, in], flax as [in, out].
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np

from ewald_jax.models import build_model
from ewald_jax.nn.ewald import EwaldConfig
from ewald_jax.typing import InputError, PyTree

_IGNORED_SUFFIXES = ("distance_expansion.offset", "initial_embedding")
"""Buffers of the reference that are constants here."""


def from_reference(
    config: Mapping[str, Any], weights: Mapping[str, np.ndarray]
) -> tuple[nn.Module, PyTree]:
    """Builds a model from the reference's constructor arguments and ``state_dict`` names.

    Args:
        config: The reference's arguments and its name, ``arch``.
        weights: Arrays by name.

    Returns:
        The model and its parameters.

    Raises:
        InputError: If the architecture is not known, a weight is missing or left over, or a
            shape does not fit.
    """
    arch = config.get("arch", "schnet")
    if arch not in _ARCHITECTURES:
        raise InputError(
            f"no reference weights for architecture {arch!r}; it is one of "
            f"{sorted(_ARCHITECTURES)}"
        )
    return _ARCHITECTURES[arch](config, _Weights(weights))


def ewald_config(config: Mapping[str, Any]) -> EwaldConfig | None:
    """`EwaldConfig` of the reference's ``ewald_hyperparams``, with the reference's defects."""
    hyper = config.get("ewald_hyperparams")
    if hyper is None:
        return None
    shared = {"bottleneck": hyper["downprojection_size"], "num_hidden": hyper["num_hidden"]}
    if config["use_pbc"]:
        num_k = (hyper["num_k_x"], hyper["num_k_y"], hyper["num_k_z"])
        return EwaldConfig.as_published(scheme="lattice", num_k=num_k, **shared)
    return EwaldConfig.as_published(
        scheme="voxel",
        k_cutoff=hyper["k_cutoff"],
        delta_k=hyper["delta_k"],
        num_k_rbf=hyper["num_k_rbf"],
        **shared,
    )


def ewald_block_params(
    take: Callable[[str], np.ndarray], prefix: str, num_hidden: int
) -> PyTree:
    """Parameters of one `EwaldBlock`; `take(name)` hands out an array, once."""

    def residual(name: str) -> PyTree:
        return {
            f"dense_{i}": scaled_dense(f"{name}.dense_mlp.{i}.linear.weight")
            for i in range(2)
        }

    def scaled_dense(name: str) -> PyTree:
        return {"kernel": take(name).T}

    params = {
        "up": take(f"{prefix}up.linear.weight").T,
        "pre_residual": residual(f"{prefix}pre_residual"),
        "update": scaled_dense(f"{prefix}ewald_layers.0.linear.weight"),
    }
    for i in range(num_hidden):
        params[f"hidden_{i}"] = residual(f"{prefix}ewald_layers.{i + 1}")
    return params


class _Weights:
    """Hands out arrays by name and knows which were never asked for."""

    def __init__(self, weights: Mapping[str, np.ndarray]):
        self._weights = dict(weights)
        self._used: set[str] = set()

    def __call__(self, name: str) -> np.ndarray:
        if name not in self._weights:
            raise InputError(
                f"the weights have no array {name!r}, which the config asks for"
            )
        self._used.add(name)
        return np.asarray(self._weights[name])

    def ignore(self, *names: str) -> None:
        self._used.update(names)

    def finish(self) -> None:
        left = [
            name
            for name in self._weights
            if name not in self._used and not name.endswith(_IGNORED_SUFFIXES)
        ]
        if left:
            raise InputError(
                f"the weights have an array {left[0]!r} (and {len(left) - 1} more) that the "
                "config has no place for"
            )


def _schnet(config: Mapping[str, Any], take: _Weights) -> tuple[nn.Module, PyTree]:
    ewald = ewald_config(config)
    model = build_model(
        "schnet",
        ewald=ewald,
        **{
            key: config[key]
            for key in (
                "hidden_channels",
                "num_filters",
                "num_interactions",
                "num_gaussians",
                "cutoff",
                "max_neighbors",
            )
        },
    )

    def dense(name: str, bias: bool = True) -> PyTree:
        kernel = {"kernel": take(f"{name}.weight").T}
        return kernel | {"bias": take(f"{name}.bias")} if bias else kernel

    params = {
        "embedding": {"embedding": take("embedding.weight")},
        "output_0": dense("lin1"),
        "output_1": dense("lin2"),
    }
    for i in range(model.num_interactions):
        prefix = f"interactions.{i}"
        params[f"interaction_{i}"] = {
            "filter_0": dense(f"{prefix}.mlp.0"),
            "filter_1": dense(f"{prefix}.mlp.2"),
            "lin_in": dense(f"{prefix}.conv.lin1", bias=False),
            "lin_out": dense(f"{prefix}.conv.lin2"),
            "lin": dense(f"{prefix}.lin"),
        }
        # The convolution holds the same filter network a second time.
        take.ignore(
            *(f"{prefix}.conv.nn.{n}.{k}" for n in (0, 2) for k in ("weight", "bias"))
        )
    if ewald is not None:
        params["ewald_filter"] = {"down": take("down.linear.weight").T}
        for i in range(model.num_interactions):
            prefix = f"ewald_blocks.{i}."
            params[f"ewald_{i}"] = ewald_block_params(take, prefix, ewald.num_hidden)
            take.ignore(f"{prefix}down.linear.weight")  # the shared one again
    take.finish()
    return model, params


_ARCHITECTURES: Mapping[str, Callable[..., tuple[nn.Module, PyTree]]] = {"schnet": _schnet}
