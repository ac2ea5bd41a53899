"""LMDB files, opened for reading only and without a lock beside them.

LMDB maps the file: of a copy that ends early, a page beyond the end would kill the process.
So the size is compared with what the file says of itself before any page is read.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb

from ewald_jax.typing import InputError

_LARGEST_KEY = 18  # digits
_META_PAGES = 2


@contextlib.contextmanager
def open_lmdb(path: Path) -> Iterator[Any]:
    """A read transaction of an LMDB file.

    Raises:
        InputError: If the file is torn or of another kind.
    """
    size = path.stat().st_size
    try:
        environment = lmdb.open(
            str(path), subdir=False, readonly=True, lock=False, readahead=False, max_dbs=0
        )
    except lmdb.Error as error:
        raise InputError(f"cannot be read ({error}), expected an LMDB file") from error
    with contextlib.closing(environment):
        page = environment.stat()["psize"]
        used = (environment.info()["last_pgno"] + 1) * page
        if size < max(used, _META_PAGES * page):
            raise InputError(
                f"cannot be read: the file has {size} bytes, but says that it uses {used}; "
                "expected a complete LMDB file"
            )
        try:
            with environment.begin(buffers=True) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise InputError(
                f"cannot be read ({error}), expected a complete LMDB file"
            ) from error


def numbered_keys(transaction: Any) -> list[int]:
    """The keys that are whole numbers, ascending; LMDB itself sorts 10 before 2."""
    keys = (bytes(key) for key in transaction.cursor().iternext(keys=True, values=False))
    digits = re.compile(rb"\d{1,%d}" % _LARGEST_KEY)
    return sorted(int(key) for key in keys if digits.fullmatch(key))
