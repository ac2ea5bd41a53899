"""Many arrays in one file that is mapped, not read, and files that are open for a while only.

A file is the word EWALDJAX, the length of a header as a 64-bit little-endian number, the header
in JSON, and the arrays, each at a multiple of 64 bytes. The header has name, type, shape and
place of every array. A mapped file holds a descriptor of the process as long as it is mapped,
and a system allows few of them: `OpenMaps` keeps the files that were used last.
"""

import errno
import json
import math
import mmap
import os
import shutil
import struct
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ewald_jax.typing import InputError

try:
    import resource
except ImportError:  # not on Windows, which has no such limit
    resource = None  # type: ignore[assignment]

_MAGIC = b"EWALDJAX"
_PREFIX = len(_MAGIC) + 8
_ALIGNMENT = 64
_KINDS = "biufS"
_MOST_OPEN = 512
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


class Column(NamedTuple):
    """An array on its way into a file.

    Attributes:
        dtype: Of its numbers.
        shape: Of all of it.
        content: The array, or a file of its bytes.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    content: np.ndarray | Path


class Packed(NamedTuple):
    """A file of arrays.

    Attributes:
        path: The file.
        head: Its first bytes, up to the end of the header.
        arrays: Type, shape and place of each array.
        facts: What the writer put beside them.
        size: Bytes of the whole file.
    """

    path: Path
    head: bytes
    arrays: dict[str, tuple[np.dtype, tuple[int, ...], int]]
    facts: dict[str, Any]
    size: int


def write_packed(path: Path, columns: Mapping[str, Column], facts: dict[str, Any]) -> None:
    """Writes a file and waits until the disk has it.

    Args:
        path: The file; one that is there is replaced.
        columns: Arrays by name. A file of bytes is removed once it is copied.
        facts: Plain JSON values to keep in the header.

    Raises:
        OSError: If it cannot be written.
    """
    places, end = {}, 0
    for name, column in columns.items():
        begin = _aligned(end)
        places[name] = [column.dtype.str, list(column.shape), begin]
        end = begin + column.dtype.itemsize * math.prod(column.shape)
    header = json.dumps({"arrays": places, "bytes": end, "facts": facts}).encode()
    with open(path, "wb") as file:
        file.write(_MAGIC + struct.pack("<Q", len(header)) + header)
        first = _aligned(file.tell())
        for name, column in columns.items():
            begin = first + places[name][2]
            file.write(b"\0" * (begin - file.tell()))
            if isinstance(column.content, Path):
                with open(column.content, "rb") as source:
                    shutil.copyfileobj(source, file, 2**20)
                column.content.unlink()
            else:
                file.write(np.ascontiguousarray(column.content, column.dtype).tobytes())
        file.flush()
        os.fsync(file.fileno())


def read_header(path: Path) -> Packed:
    """What is in a file.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is truncated or something else.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(_PREFIX)
        if len(prefix) < _PREFIX or not prefix.startswith(_MAGIC):
            raise ValueError("no file of arrays")
        length = struct.unpack("<Q", prefix[len(_MAGIC) :])[0]
        if _PREFIX + length > size:
            raise ValueError("truncated")
        head = prefix + file.read(length)
    values = json.loads(head[_PREFIX:])
    first = _aligned(len(head))
    if first + values["bytes"] != size and (values["bytes"] or len(head) != size):
        raise ValueError("truncated")
    arrays = {}
    for name, (kind, shape, begin) in values["arrays"].items():
        dtype = np.dtype(str(kind))
        if dtype.kind not in _KINDS or min(shape, default=0) < 0 or begin < 0:
            raise ValueError(f"array {name} is {kind} {shape}")
        if begin + dtype.itemsize * math.prod(shape) > values["bytes"]:
            raise ValueError(f"array {name} is beyond the end")
        arrays[name] = (dtype, tuple(shape), first + begin)
    return Packed(path, head, arrays, values["facts"], size)


def _map(packed: Packed) -> dict[str, np.ndarray]:
    """The arrays of a file, read-only views of its pages.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is no longer the file whose header was read.
    """
    with open(packed.path, "rb") as file:
        if os.fstat(file.fileno()).st_size != packed.size:
            raise ValueError("changed since it was opened")
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if pages[: len(packed.head)] != packed.head:
        raise ValueError("changed since it was opened")
    return {
        name: np.ndarray(shape, dtype, pages, begin)
        if math.prod(shape)
        else np.zeros(shape, dtype)
        for name, (dtype, shape, begin) in packed.arrays.items()
    }


class OpenMaps:
    """The files that were used last, mapped; safe to use from several threads."""

    def __init__(self, most: int | None = None):
        """Args: most: Files open at a time; None is a quarter of what the system allows."""
        self._most = most_open() if most is None else most
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, tuple[bytes, dict[str, np.ndarray]]] = OrderedDict()

    def arrays(self, packed: Packed) -> dict[str, np.ndarray]:
        """The arrays of a file, valid as long as they are referenced.

        Raises:
            InputError: If the file has gone or changed since its header was read, or the
                process may not open more files.
        """
        with self._lock:
            found = self._open.get(packed.path)
            if found is not None and found[0] is packed.head:
                self._open.move_to_end(packed.path)
                return found[1]
            while len(self._open) >= self._most:
                self._open.popitem(last=False)
            try:
                arrays = _map(packed)
            except (OSError, ValueError) as error:
                refuse_too_many(error, packed.path)
                raise InputError(
                    f"the cached graphs {packed.path} have gone or changed while they were "
                    "in use, expected nobody to touch them; start again to rebuild them"
                ) from error
            self._open[packed.path] = packed.head, arrays
            return arrays

    def __reduce__(self):
        """Another process opens the files itself."""
        return OpenMaps, (self._most,)


def most_open() -> int:
    """Files that a data set keeps open: a quarter of what the process may have open."""
    if resource is None:
        return _MOST_OPEN
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST_OPEN
    return max(4, min(_MOST_OPEN, soft // 4))


def refuse_too_many(error: Exception, path: Path) -> None:
    """Says so if a file could not be opened because too many are.

    Raises:
        InputError: If that is the reason.
    """
    if isinstance(error, OSError) and error.errno in _NO_DESCRIPTORS:
        raise InputError(
            f"{path} cannot be opened: {error.strerror}; expected room for a few more, raise "
            "the limit (ulimit -n) or close files"
        ) from error


def _aligned(place: int) -> int:
    return -(-place // _ALIGNMENT) * _ALIGNMENT
