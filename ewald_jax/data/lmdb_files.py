"""LMDB files read page by page, whatever is in them.

LMDB's own library maps a file and trusts what its pages say of each other: one wrong number in
a damaged or malicious file ends the process. Here every offset is compared with the size of the
file first. Only what the data sets use is known: one database of plain keys, written on a
machine with 64 bits and little-endian numbers (format version 1, LMDB 0.9 and its Python
package). Source: the structures of ``mdb.c`` of OpenLDAP's LMDB.
"""

import contextlib
import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from ewald_jax.data.reading import BrokenFileError

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_HEADER = 16  # of a page: its number, flags, and the bounds of its free space
_BRANCH, _LEAF, _OVERFLOW, _META = 1, 2, 4, 8
_BIG = 1  # the value of a node is in pages of its own
_NO_PAGE = 2**64 - 1
_MOST_LEVELS = 32
_PAGE_SIZES = [2**n for n in range(8, 17)]
_DIGITS = re.compile(rb"\d{1,18}")

_EXPECTED = "expected a complete LMDB file"


class LmdbFile:
    """The keys of an LMDB file and where their values are."""

    def __init__(self, data: mmap.mmap):
        """Walks through all pages.

        Raises:
            BrokenFileError: If they are not those of a complete file.
        """
        self._data, self._size = data, len(data)
        self._left = self._size  # for values: none may share its bytes with another
        self._places: dict[bytes, tuple[int, int]] = {}
        try:
            self._page_size, root, last = self._newest_meta()
            if (last + 1) * self._page_size > self._size:
                raise BrokenFileError(
                    f"cannot be read: the file has {self._size} bytes, but says that it uses "
                    f"{(last + 1) * self._page_size}; {_EXPECTED}"
                )
            self._walk(root)
        except struct.error as error:
            raise BrokenFileError(
                f"cannot be read (a page is damaged), {_EXPECTED}"
            ) from error

    def __len__(self) -> int:
        """Number of keys, of whatever kind."""
        return len(self._places)

    def numbers(self) -> list[int]:
        """The keys that are whole numbers, ascending; LMDB itself sorts 10 before 2."""
        return sorted(int(key) for key in self._places if _DIGITS.fullmatch(key))

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, None if there is none."""
        if key not in self._places:
            return None
        start, size = self._places[key]
        return self._data[start : start + size]

    def _newest_meta(self) -> tuple[int, int, int]:
        """(page size, root page, last page) of the newer of the two first pages."""
        found = []
        size = struct.unpack_from("<I", self._data, _HEADER + 24)[0]
        if size not in _PAGE_SIZES:
            raise BrokenFileError(f"is no LMDB file, {_EXPECTED}")
        for start in (0, size):
            flags = struct.unpack_from("<H", self._data, start + 10)[0]
            magic, version = struct.unpack_from("<II", self._data, start + _HEADER)
            if magic != _MAGIC or not flags & _META:
                continue
            if version != _VERSION:
                raise BrokenFileError(
                    f"is an LMDB file of the format {version}, expected {_VERSION} (LMDB 0.9)"
                )
            root = struct.unpack_from("<Q", self._data, start + _HEADER + 24 + 88)[0]
            last, count = struct.unpack_from("<QQ", self._data, start + _HEADER + 120)
            found.append((count, root, last))
        if not found:
            raise BrokenFileError(f"is no LMDB file, {_EXPECTED}")
        _, root, last = max(found)
        return size, root, last

    def _walk(self, root: int) -> None:
        """Notes the entries of all leaves."""
        waiting = [] if root == _NO_PAGE else [(root, 0)]
        seen: set[int] = set()
        while waiting:
            number, level = waiting.pop()
            if number in seen or level > _MOST_LEVELS:
                raise BrokenFileError(
                    f"cannot be read (its pages lead in circles), {_EXPECTED}"
                )
            seen.add(number)
            start, flags = self._page(number)
            for node in self._nodes(start):
                low, high, node_flags, key_size = struct.unpack_from(
                    "<HHHH", self._data, node
                )
                if flags & _BRANCH:
                    waiting.append((low | high << 16 | node_flags << 32, level + 1))
                elif flags & _LEAF:
                    key = self._bytes(node + 8, key_size)
                    self._add(key, node + 8 + key_size, low | high << 16, node_flags)
                else:
                    raise BrokenFileError(
                        f"cannot be read (page {number} is damaged), {_EXPECTED}"
                    )

    def _add(self, key: bytes, place: int, size: int, flags: int) -> None:
        if flags & ~_BIG:
            raise BrokenFileError(
                "cannot be read: it holds several databases, expected the one of a data set"
            )
        if flags & _BIG:
            number = struct.unpack_from("<Q", self._data, place)[0]
            start, page_flags = self._page(number)
            if not page_flags & _OVERFLOW:
                raise BrokenFileError(
                    f"cannot be read (page {number} is damaged), {_EXPECTED}"
                )
            place = start + _HEADER
        self._left -= size
        if place + size > self._size or self._left < 0:
            raise BrokenFileError(
                f"cannot be read (a value is larger than the file), {_EXPECTED}"
            )
        self._places[key] = place, size

    def _page(self, number: int) -> tuple[int, int]:
        """Where a page begins, and its flags."""
        start = number * self._page_size
        if start + self._page_size > self._size:
            raise BrokenFileError(
                f"cannot be read (there is no page {number}), {_EXPECTED}"
            )
        stored, _, flags = struct.unpack_from("<QHH", self._data, start)
        if stored != number:
            raise BrokenFileError(f"cannot be read (page {number} is damaged), {_EXPECTED}")
        return start, flags

    def _nodes(self, start: int) -> Iterator[int]:
        """Where the entries of a page are."""
        lower = struct.unpack_from("<H", self._data, start + 12)[0]
        count = (min(lower, self._page_size) - _HEADER) // 2
        for index in range(count):
            offset = struct.unpack_from("<H", self._data, start + _HEADER + 2 * index)[0]
            if not _HEADER <= offset <= self._page_size - 8:
                raise BrokenFileError(f"cannot be read (a page is damaged), {_EXPECTED}")
            yield start + offset

    def _bytes(self, start: int, size: int) -> bytes:
        found = self._data[start : start + size]
        if len(found) < size:
            raise BrokenFileError(f"cannot be read (a page is damaged), {_EXPECTED}")
        return found


@contextlib.contextmanager
def open_lmdb(path: Path) -> Iterator[LmdbFile]:
    """An LMDB file, for reading only and without a lock beside it.

    Raises:
        BrokenFileError: If the file is torn, damaged or of another kind.
    """
    if path.stat().st_size < 2 * _PAGE_SIZES[0]:
        raise BrokenFileError(f"is too small for an LMDB file, {_EXPECTED}")
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        yield LmdbFile(data)
