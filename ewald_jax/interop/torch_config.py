"""From the constructor arguments of the PyTorch reference and of OCP to a model of ours."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from ewald_jax.models import build_model
from ewald_jax.nn.atom_to_atom import AtomToAtomConfig
from ewald_jax.nn.ewald import EwaldConfig
from ewald_jax.typing import InputError

ARCHITECTURES: Mapping[str, str] = {
    "schnet": "schnet",
    "painn": "painn",
    "dimenetplusplus": "dimenetpp",
    "gemnet_t": "gemnet_t",
}
"""The reference's names of models, and ours."""

# Arguments that the reference's constructors have a value for when the config has none.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "schnet": {
        "hidden_channels": 128,
        "num_filters": 128,
        "num_interactions": 6,
        "num_gaussians": 50,
        "cutoff": 10.0,
    },
    "painn": {"hidden_channels": 512, "num_layers": 6, "num_rbf": 128, "cutoff": 12.0},
    "dimenetplusplus": {
        "hidden_channels": 128,
        "out_emb_channels": 256,
        "num_blocks": 4,
        "int_emb_size": 64,
        "basis_emb_size": 8,
        "num_spherical": 7,
        "num_radial": 6,
        "num_before_skip": 1,
        "num_after_skip": 2,
        "num_output_layers": 3,
        "envelope_exponent": 5,
        "cutoff": 10.0,
    },
    "gemnet_t": {
        "emb_size_atom": None,  # None: the reference has no default either
        "emb_size_edge": None,
        "emb_size_trip": None,
        "emb_size_rbf": None,
        "emb_size_cbf": None,
        "emb_size_bil_trip": None,
        "num_blocks": None,
        "num_spherical": None,
        "num_radial": None,
        "num_before_skip": None,
        "num_after_skip": None,
        "num_concat": None,
        "num_atom": None,
        "cutoff": 6.0,
    },
}

# Arguments with one value only here.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "rbf": ({"name": "gaussian"},),
    "envelope": ({"name": "polynomial", "exponent": 5},),
    "cbf": ({"name": "spherical_harmonics"},),
    "extensive": (True,),
    "activation": ("silu", "swish"),
    "readout": ("add",),
    "num_targets": (1,),
}

EMBEDDINGS: Mapping[str, str] = {
    "schnet": "embedding.weight",
    "painn": "atom_emb.embeddings.weight",
    "dimenetplusplus": "emb.emb.weight",
    "gemnet_t": "atom_emb.embeddings.weight",
}
"""The element embedding of each architecture, which knows how many elements there are."""


def architecture(config: Mapping[str, Any]) -> str:
    """The reference's name of the model.

    Raises:
        InputError: If it is not one of `ARCHITECTURES`.
    """
    name = config.get("arch", config.get("name"))
    if name not in ARCHITECTURES:
        raise InputError(
            f"no reference weights for architecture {name!r}; it is one of "
            f"{sorted(ARCHITECTURES)}"
        )
    return name


def reference_model(config: Mapping[str, Any], num_elements: int) -> nn.Module:
    """The model that the reference builds from a config, defects included.

    Args:
        config: Its constructor arguments and its name, ``arch`` or ``name``.
        num_elements: Rows of its element embedding.

    Returns:
        A model that its weights fit.

    Raises:
        InputError: If the config lacks an argument, or has one that there is nothing for here.
    """
    arch = architecture(config)
    for key, allowed in _FIXED.items():
        if key in config and config[key] not in allowed:
            raise InputError(
                f"the config has {key}: {config[key]!r}, expected "
                f"{' or '.join(repr(value) for value in allowed)}"
            )
    fields = {}
    for key, default in _DEFAULTS[arch].items():
        fields[key] = config.get(key, default)
        if fields[key] is None:
            raise InputError(f"the config of {arch} lacks {key}, expected a number")
    if arch in ("painn", "gemnet_t"):
        # OCP's constructors differ in their default.
        direct = config.get("direct_forces", arch == "painn")
        fields["direct_forces"] = bool(direct and config.get("regress_forces", True))
    if arch == "painn":
        fields["smooth_cutoff"] = False
    return build_model(
        ARCHITECTURES[arch],
        **fields,
        max_neighbors=config.get("max_neighbors", 50),
        num_elements=num_elements,
        ewald=ewald_config(config),
        atomic=atomic_config(config),
    )


def ewald_config(config: Mapping[str, Any]) -> EwaldConfig | None:
    """`EwaldConfig` of the reference's ``ewald_hyperparams``, with the reference's defects.

    Raises:
        InputError: If one of them is missing.
    """
    hyper = config.get("ewald_hyperparams")
    if hyper is None:
        return None
    try:
        shared = {
            "bottleneck": hyper["downprojection_size"],
            "num_hidden": hyper["num_hidden"],
        }
        if config.get("use_pbc", True):
            num_k = (hyper["num_k_x"], hyper["num_k_y"], hyper["num_k_z"])
            return EwaldConfig.as_published(scheme="lattice", num_k=num_k, **shared)
        return EwaldConfig.as_published(
            scheme="voxel",
            k_cutoff=hyper["k_cutoff"],
            delta_k=hyper["delta_k"],
            num_k_rbf=hyper["num_k_rbf"],
            **shared,
        )
    except KeyError as error:
        raise InputError(
            f"the config has ewald_hyperparams without {error.args[0]!r}, expected it beside "
            f"use_pbc: {config.get('use_pbc', True)}"
        ) from None


def atomic_config(config: Mapping[str, Any]) -> AtomToAtomConfig | None:
    """The reference's atom-to-atom block, None if the config has none."""
    cutoff = config.get("atom_to_atom_cutoff")
    if cutoff is None:
        return None
    neighbors = 100 if not config.get("use_pbc", True) else int((cutoff / 6.0) ** 3 * 50)
    return AtomToAtomConfig(
        cutoff=cutoff, max_neighbors=config.get("max_neighbors_at", neighbors)
    )
