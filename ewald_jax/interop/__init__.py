"""Weights and formats of other programs, and models in them."""

import importlib

from ewald_jax.interop.torch_reference import from_reference

__all__ = [
    "Imported",
    "export",
    "from_reference",
    "import_checkpoint",
    "jax_md_neighbor_list",
    "write_imported",
]

_LATE = {
    "Imported": "torch_import",
    "export": "exporting",
    "import_checkpoint": "torch_import",
    "jax_md_neighbor_list": "jax_md",
    "write_imported": "torch_import",
}


def __getattr__(name: str):
    """What needs checkpoints or data on first use: they take seconds to import."""
    if name in _LATE:
        return getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
