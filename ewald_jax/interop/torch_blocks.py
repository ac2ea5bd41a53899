"""The long-range blocks of the PyTorch reference's configs, and settings of a config."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ewald_jax.checked import Sources, construct
from ewald_jax.interop.wording import brief
from ewald_jax.nn.atom_to_atom import AtomToAtomConfig
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.typing import InputError

# Sizes and numbers of layers above these are no model's, and take memory without end.
_LARGEST = 10_000
_MOST = dict.fromkeys(
    """num_blocks num_layers num_interactions num_before_skip num_after_skip num_concat num_atom
    num_output_layers num_hidden envelope_exponent""".split(),
    100,
)
_MOST |= {"num_spherical": 20, "num_radial": 500}  # zeros of Bessel functions for each
_MAX_KVECS = 100_000


def ewald_config(config: Mapping[str, Any]) -> EwaldConfig | None:
    """`EwaldConfig` of the reference's ``ewald_hyperparams``, with the reference's defects.

    Raises:
        InputError: If one of them is missing or of the wrong type.
    """
    if not has(config, "ewald_hyperparams"):
        return None
    hyper, periodic = config["ewald_hyperparams"], flag(config, "use_pbc", True)
    if not isinstance(hyper, Mapping):
        raise InputError(
            f"the config has ewald_hyperparams: {brief(hyper)}, expected settings by name"
        )
    names = _LATTICE if periodic else _VOXEL
    for name in (*names, *_SHARED):
        if hyper.get(name) is None:
            raise InputError(
                f"the config has ewald_hyperparams without {name!r}, expected it beside "
                f"use_pbc: {periodic}"
            )
    used = {name: moderate(name, hyper[name]) for name in (*names, *_SHARED)}
    values = {_SHARED[name]: used.pop(name) for name in _SHARED}
    settings = _construct(_Lattice if periodic else _Voxel, used)
    if periodic:
        num_k = dataclasses.astuple(settings)
        size, values["num_k"] = math.prod(2 * max(n, 0) + 1 for n in num_k), num_k
    else:
        values |= dataclasses.asdict(settings)
        if not 0 < settings.delta_k <= settings.k_cutoff < math.inf:
            raise InputError(
                "the config has ewald_hyperparams with delta_k: "
                f"{settings.delta_k} and k_cutoff: {settings.k_cutoff}, expected them above "
                "0, the latter larger"
            )
        size = (2 * settings.k_cutoff / settings.delta_k + 1) ** 3
    if size > _MAX_KVECS:
        raise InputError(
            f"the config has {size:.0f} wave vectors, expected fewer than {_MAX_KVECS}; look "
            f"at {' and '.join(names)} in ewald_hyperparams"
        )
    published = EwaldConfig.as_published()
    values["scheme"] = "lattice" if periodic else "voxel"
    for name in ("sinc", "float32_prune", "min_frame_nodes"):
        values[name] = getattr(published, name)
    return _construct(EwaldConfig, values)


def atomic_config(config: Mapping[str, Any]) -> AtomToAtomConfig | None:
    """The reference's atom-to-atom block, None if the config has none.

    Raises:
        InputError: If its settings are of the wrong type or out of range.
    """
    if not has(config, "atom_to_atom_cutoff"):
        return None
    key = "atom_to_atom_cutoff"
    cutoff = _construct(AtomToAtomConfig, {"cutoff": moderate(key, config[key])}).cutoff
    limit = int((cutoff / 6.0) ** 3 * 50) if flag(config, "use_pbc", True) else 100
    limit = moderate("max_neighbors_at", config.get("max_neighbors_at", limit), 10**9)
    return _construct(AtomToAtomConfig, {"cutoff": cutoff, "max_neighbors": limit})


@dataclasses.dataclass
class _Lattice:
    num_k_x: int
    num_k_y: int
    num_k_z: int


@dataclasses.dataclass
class _Voxel:
    k_cutoff: float
    delta_k: float
    num_k_rbf: int


_LATTICE = tuple(field.name for field in dataclasses.fields(_Lattice))
_VOXEL = tuple(field.name for field in dataclasses.fields(_Voxel))
_SHARED = {"downprojection_size": "bottleneck", "num_hidden": "num_hidden"}
_THEIRS = {
    "atomic.cutoff": "atom_to_atom_cutoff",
    "atomic.max_neighbors": "max_neighbors_at",
    "ewald.bottleneck": "ewald_hyperparams.downprojection_size",
    "ewald.": "ewald_hyperparams.",
}


def _construct(cls: type, values: Mapping[str, Any]) -> Any:
    """The settings, typed; errors call them as the reference does."""
    key = "atomic" if cls is AtomToAtomConfig else "ewald"
    try:
        return construct(cls, values, key, Sources({}))
    except InputError as error:
        sentence = str(error)
        for ours, theirs in _THEIRS.items():
            sentence = sentence.replace(ours, theirs)
        raise InputError(f"the config's {sentence}") from None


def has(config: Mapping[str, Any], key: str) -> bool:
    """Whether a setting is there and not null."""
    return config.get(key) is not None


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """A setting that is true or false; null is false.

    Raises:
        InputError: If it is neither.
    """
    value = config.get(key, default)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"the config has {key}: {brief(value)}, expected true or false")
    return bool(value)


def moderate(key: str, value: Any, most: int = _LARGEST) -> Any:
    """The value; it may be of any type but no larger number than a model has.

    Raises:
        InputError: If it is larger, or no single value.
    """
    most = _MOST.get(key, most)
    number = isinstance(value, int | float)
    if not (value is None or number or isinstance(value, str)) or (
        number and not -most <= value <= most
    ):
        raise InputError(
            f"the config has {key}: {brief(value)}, expected a number up to {most}"
        )
    return value
