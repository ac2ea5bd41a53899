"""Two packaged sample sets, computed with tblite: ``dimers`` and ``slabs``.

``dimers`` holds charged, zwitterionic and polar molecular dimers (GFN2-xTB), ``slabs``
molecules on rattled ionic slabs and rattled bulk cells (GFN1-xTB, full periodicity).
``provenance.json`` beside the files says how they were made; ``make.make_samples`` makes
them again.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ewald_jax.data.samples.splits import SPLITS, split_indices

if TYPE_CHECKING:
    from ase import Atoms

SAMPLES: tuple[str, ...] = ("dimers", "slabs")

__all__ = [
    "SAMPLES",
    "SPLITS",
    "provenance_path",
    "read_sample",
    "sample_path",
    "split_indices",
]


def sample_path(name: str) -> Path:
    """The packaged file of one sample set.

    Args:
        name: One of ``SAMPLES``.

    Returns:
        Path of the xz-compressed extended XYZ file. ``read_sample`` reads it in seconds;
        ``ase.io.read`` on the compressed file gives the same after minutes.

    Raises:
        ValueError: If there is no set of that name.
    """
    if name not in SAMPLES:
        raise ValueError(f"Unknown sample set {name!r}; choose one of {SAMPLES}.")
    return Path(__file__).parent / f"{name}.extxyz.xz"


def read_sample(name: str, path: Path | None = None) -> list[Atoms]:
    """All structures of one sample set.

    Energy (eV), forces (eV/Å), stress (eV/Å^3, slabs) and partial charges (e, dimers) are
    in ``atoms.calc.results``, everything else in ``atoms.info`` and ``atoms.arrays``.

    Args:
        name: One of ``SAMPLES``.
        path: Another file of the same format; the packaged one by default.

    Returns:
        One ``ase.Atoms`` per structure, in file order.
    """
    from ewald_jax.data.extxyz import read_extxyz

    return list(read_extxyz(path or sample_path(name)))


def provenance_path() -> Path:
    """Path of the JSON file that says how the packaged sets were made."""
    return Path(__file__).parent / "provenance.json"
