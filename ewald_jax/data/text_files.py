"""Text files, plain or compressed, read line by line in bounded memory.

A few kilobytes of a compressed file can stand for gigabytes: of one line, of one frame, or of
the dictionary that its decoder is asked to keep. All three have limits here.
"""

import gzip
import io
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from ewald_jax.typing import InputError

COMPRESSED: dict[str, Callable] = {".xz": lzma.open, ".gz": gzip.open}
"""How text files with these suffixes are written."""

MOST_LINE = 2**20
"""Characters that one line may have; those of real files have some hundreds."""

_MOST_RECORD = 2**24
_IN_PROPORTION = 16
_DECODER = 2**27  # bytes; `xz -9` asks for 65 MiB
_CHUNK = 2**16


def most_characters(path: Path) -> int:
    """Characters that one structure of a text file may have, in proportion to the file."""
    return max(_MOST_RECORD, _IN_PROPORTION * path.stat().st_size)


def open_text(path: Path) -> TextIO:
    """Opens a text file for reading; ``.xz`` and ``.gz`` are unpacked on the way."""
    opener = _OPENERS.get(path.suffix.lower())
    if opener is None:
        return open(path, encoding="utf-8")
    return io.TextIOWrapper(opener(path), encoding="utf-8")


def read_line(stream: TextIO) -> str:
    """The next line, "" at the end.

    Raises:
        InputError: If it is longer than `MOST_LINE` characters.
    """
    line = stream.readline(MOST_LINE + 1)
    if len(line) > MOST_LINE:
        raise InputError(
            f"has a line of more than {MOST_LINE} characters, expected a file of structures"
        )
    return line


class _XzStream(io.RawIOBase):
    """What an .xz file holds; unlike `lzma.open`, with a limit on the decoder's memory."""

    def __init__(self, path: Path):
        self._file = open(path, "rb")  # noqa: SIM115
        self._decoder: lzma.LZMADecompressor | None = None

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer) -> int:
        while True:
            fed = b""
            if self._decoder is None or self._decoder.eof:
                if not (fed := self._next_stream()):
                    return 0
                self._decoder = lzma.LZMADecompressor(memlimit=_DECODER)
            elif self._decoder.needs_input and not (fed := self._file.read(_CHUNK)):
                raise EOFError("the compressed data end early")
            if found := self._decoder.decompress(fed, len(buffer)):
                buffer[: len(found)] = found
                return len(found)

    def _next_stream(self) -> bytes:
        """The beginning of the next of several streams, between which zeros may stand."""
        if self._decoder is None:
            if not (found := self._file.read(_CHUNK)):
                raise EOFError("the file is empty")
            return found
        found = self._decoder.unused_data.lstrip(b"\0")
        while not found and (more := self._file.read(_CHUNK)):
            found = more.lstrip(b"\0")
        return found


_OPENERS: dict[str, Callable] = {
    ".xz": lambda path: io.BufferedReader(_XzStream(path), _CHUNK),
    ".gz": gzip.open,
}
