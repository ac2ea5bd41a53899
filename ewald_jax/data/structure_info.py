"""What stands beside a structure in its file: plain scalars, few enough to be kept."""

import math
from typing import Any

import ase
import numpy as np

from ewald_jax.typing import InputError

MOST_TEXT = 4096
"""Characters of a text that is kept; longer ones are no metadata."""

_MOST_ENTRIES = 1000
_MOST_CHARACTERS = 2**16


def metadata(atoms: ase.Atoms) -> dict[str, Any]:
    """The scalars of `info` as plain Python values; others do not survive a cache."""
    out = {}
    for key, value in atoms.info.items():
        if isinstance(value, np.generic) or (
            isinstance(value, np.ndarray) and value.ndim == 0
        ):
            value = value.item()
        if isinstance(value, str):
            plain = len(value) <= MOST_TEXT
        elif isinstance(value, float):
            plain = math.isfinite(value)
        else:
            plain = isinstance(value, bool | int)
        if plain:
            out[str(key)] = value
    return out


def check_metadata(atoms: ase.Atoms) -> None:
    """Refuses more metadata than a data set of many structures can hold.

    Raises:
        InputError: If there are too many entries, or they are too long.
    """
    count = len(atoms.info)
    if count > _MOST_ENTRIES:
        raise InputError(
            f"has {count} entries of metadata, expected at most {_MOST_ENTRIES}"
        )
    size = sum(
        len(str(key)) + (len(value) if isinstance(value, str) else 8)
        for key, value in metadata(atoms).items()
    )
    if size > _MOST_CHARACTERS:
        raise InputError(
            f"has {size} characters of metadata, expected at most {_MOST_CHARACTERS}"
        )
