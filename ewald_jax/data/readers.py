"""All kinds of files that can be read.

A new kind of file is one new module with a reader (see `reading.Reader`): a generator
from a path to `ase.Atoms`, and one line in `READERS`.
"""

from ewald_jax.data import ase_files, aselmdb, npz_files, oc20_lmdb, oc20_s2ef, oe62
from ewald_jax.data.reading import Reader

_EXTXYZ = ase_files.ASE_READERS["extxyz"]

READERS: dict[str, Reader] = {
    **ase_files.ASE_READERS,
    # OC20's frames have the same names, but their reference energies beside them.
    "extxyz": _EXTXYZ._replace(claims=lambda path: not oc20_s2ef.is_official(path)),
    "oc20_s2ef": oc20_s2ef.READER,
    "oc20_lmdb": oc20_lmdb.READER,
    "aselmdb": aselmdb.READER,
    "npz": npz_files.READER,
    **oe62.OE62_READERS,
}
"""Readers by the name that `DataConfig.kind` takes."""
