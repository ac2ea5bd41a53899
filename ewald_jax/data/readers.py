"""All kinds of files that can be read.

A new kind of file is one new module with a reader (see `reading.Reader`): a generator
from a path to `ase.Atoms`, and one line in `READERS`.
"""

from ewald_jax.data import ase_files, aselmdb, npz_files, oc20_lmdb, oc20_s2ef, oe62
from ewald_jax.data.reading import Reader

READERS: dict[str, Reader] = {
    # Before extended xyz in general: it claims only the frames of OC20.
    "oc20_s2ef": oc20_s2ef.READER,
    **ase_files.ASE_READERS,
    "oc20_lmdb": oc20_lmdb.READER,
    "aselmdb": aselmdb.READER,
    "npz": npz_files.READER,
    **oe62.OE62_READERS,
}
"""Readers by the name that `DataConfig.kind` takes."""
