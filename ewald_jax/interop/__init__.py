"""Weights and formats of other programs."""

from ewald_jax.interop.torch_reference import from_reference

__all__ = ["Imported", "export", "from_reference", "import_checkpoint", "write_imported"]

_LATE = ("Imported", "import_checkpoint", "write_imported")


def __getattr__(name: str):
    """What needs checkpoints on first use: they take seconds to import."""
    if name in _LATE:
        from ewald_jax.interop import torch_import

        return getattr(torch_import, name)
    if name == "export":
        from ewald_jax.interop.exporting import export

        return export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
