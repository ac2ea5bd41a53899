"""From the constructor arguments of the PyTorch reference and of OCP to a model of ours."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from ewald_jax.interop.torch_blocks import (
    atomic_config,
    ewald_config,
    flag,
    has,
    moderate,
)
from ewald_jax.interop.wording import brief
from ewald_jax.models import build_model
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
    "act": ("silu", "swish"),
    "readout": ("add",),
    "num_targets": (1,),
    "forces_coupled": (False, None),
}

# Arguments that are used below, or that change nothing about a network with given weights.
_OTHERS = {"arch", "name", "num_elements", "max_neighbors", "use_pbc", "otf_graph"}
_OTHERS |= {"regress_forces", "direct_forces", "ewald_hyperparams", "atom_to_atom_cutoff"}
_OTHERS |= {"max_neighbors_at", "num_atoms", "bond_feat_dim", "output_init", "scale_file"}

OWN_ARRAYS: Mapping[str, str] = {
    "schnet": "interactions.0.",
    "painn": "message_layers.0.",
    "dimenetplusplus": "interaction_blocks.0.",
    "gemnet_t": "int_blocks.0.",
}
"""How the names of some arrays begin in one architecture and in no other."""

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
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise InputError(
            f"no reference weights for architecture {brief(name)}; it is one of "
            f"{sorted(ARCHITECTURES)}"
        )
    return name


def reference_model(config: Mapping[str, Any], num_elements: int) -> nn.Module:
    """The model that the reference builds from a config, defects included.

    The reference's DimeNet++ has an atom-to-atom block that no output depends on; it is left
    out.

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
        value = config.get(key, allowed[0])
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise InputError(
                f"the config has {key}: {brief(value)}, expected "
                f"{' or '.join(repr(one) for one in allowed)}"
            )
    fields = {}
    for key, default in _DEFAULTS[arch].items():
        fields[key] = moderate(key, config.get(key, default))
        if fields[key] is None:
            raise InputError(f"the config of {arch} lacks {key}, expected a number")
    if arch in ("painn", "gemnet_t"):
        # OCP's constructors differ in their default.
        direct = flag(config, "direct_forces", arch == "painn")
        fields["direct_forces"] = direct and flag(config, "regress_forces", True)
    if arch == "painn":
        fields["smooth_cutoff"] = False
    atomic = atomic_config(config)
    return build_model(
        ARCHITECTURES[arch],
        **fields,
        max_neighbors=moderate("max_neighbors", config.get("max_neighbors", 50), 10**9),
        num_elements=num_elements,
        ewald=ewald_config(config),
        atomic=None if without_effect(config) else atomic,
    )


def without_effect(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Beginnings of names of arrays that no output of the reference depends on."""
    if architecture(config) != "dimenetplusplus" or not has(config, "atom_to_atom_cutoff"):
        return ()
    names = ("interactions_at.", "distance_expansion_at.")
    return names if has(config, "ewald_hyperparams") else (*names, "atom_emb.")


def config_notes(config: Mapping[str, Any]) -> list[str]:
    """What is not as somebody may expect of this config, sentences."""
    arch, notes = architecture(config), []
    if without_effect(config):
        notes.append(
            "atom_to_atom_cutoff is left out: in the reference, no output of "
            "dimenetplusplus depends on its atom-to-atom block"
        )
        if has(config, "ewald_hyperparams"):
            notes.append("warning: that was not checked for both blocks in one model")
    cutoff = config.get("cutoff", _DEFAULTS[arch]["cutoff"])
    if not flag(config, "otf_graph", arch == "painn") and float(cutoff) > 6:
        notes.append(
            "without otf_graph the edges came with the training data, often to 6 Å and for "
            f"50 neighbors; here they go to the config's cutoff of {float(cutoff):g} Å"
        )
    known = {*_DEFAULTS[arch], *_FIXED, *_OTHERS}
    unknown = [brief(key) for key in config if key not in known]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        notes.append(
            f"settings of the config that were not looked at: {', '.join(unknown[:5])}{more}"
        )
    return notes
