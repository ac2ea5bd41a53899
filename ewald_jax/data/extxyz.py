"""Extended xyz, plain or compressed: frames are split here, in one pass, and parsed by ASE."""

import gzip
import io
import itertools
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import ase
from ase.data import atomic_numbers
from ase.io.extxyz import key_val_str_to_dict, read_xyz

from ewald_jax.data.reading import attempt
from ewald_jax.graph.schema import MAX_ATOMIC_NUMBER
from ewald_jax.typing import InputError

COMPRESSED: dict[str, Callable] = {".xz": lzma.open, ".gz": gzip.open}
"""How text files with these suffixes are opened."""

_SIX_NUMBERS = re.compile(r"(?<!\S)(stress|virial)(?=\s*=)")


def read_extxyz(path: Path) -> Iterator[ase.Atoms]:
    """Structures of an extended xyz file, plain or compressed by xz or gzip."""
    opener = COMPRESSED.get(path.suffix.lower(), open)
    with opener(path, "rt", encoding="utf-8") as stream:
        yield from (attempt(parse_frame, lines) for lines in split_frames(stream))


def split_frames(stream: TextIO) -> Iterator[list[str]]:
    """The lines of each frame: the number of atoms, the comment, one line per atom."""
    while header := stream.readline():
        if not header.strip():
            # Blank lines may end a file, but not stand between frames.
            if any(line.strip() for line in stream):
                raise InputError("begins with a blank line, expected a number of atoms")
            return
        try:
            count = int(header)
        except ValueError:
            count = -1
        if count < 0:
            raise InputError(
                f"begins with {header.strip()!r:.40}, expected a number of atoms"
            )
        lines = [header, *itertools.islice(stream, count + 1)]
        if len(lines) < count + 2:
            raise InputError(
                f"ends after {max(len(lines) - 2, 0)} atoms, expected {count}; the file is "
                "truncated"
            )
        if not lines[-1].endswith("\n"):
            _check_last_number(lines[2:])
        yield lines


def _check_last_number(rows: list[str]) -> None:
    """Refuses a file that seems cut inside its last number.

    No program leaves out the final newline, but hands do: only a number with fewer decimals
    than all the others of its column tells that digits are missing.
    """
    columns = [row.split() for row in rows]
    if len(rows) < 2 or any(len(words) != len(columns[-1]) for words in columns):
        return
    *others, last = (len(words[-1].partition(".")[2]) for words in columns if words)
    if last < min(others, default=0):
        raise InputError(
            f"ends without a newline in {columns[-1][-1]!r:.40}, which has fewer digits than "
            "the rest of its column; the file seems truncated, expected a final newline if "
            "it is complete"
        )


def parse_frame(lines: list[str]) -> ase.Atoms:
    """One frame; ASE does the parsing, one frame at a time so that an error has a place."""
    text = io.StringIO("".join(lines))
    try:
        (atoms,) = read_xyz(text, index=slice(None), properties_parser=_parse_comment)
    except KeyError as error:
        name = error.args[0] if error.args else None
        if isinstance(name, str) and name not in atomic_numbers:
            raise InputError(
                f"has an unknown element {name!r:.20}, expected a symbol or an atomic "
                f"number from 1 to {MAX_ATOMIC_NUMBER}"
            ) from error
        raise
    return atoms


def _parse_comment(comment: str) -> dict[str, Any]:
    """ASE's parser, made to take a stress of six numbers and no nonsense as columns."""
    try:
        info = key_val_str_to_dict(comment)
    except ValueError:
        # ASE knows stress only as nine numbers.
        masked = key_val_str_to_dict(_SIX_NUMBERS.sub(r"\1_six", comment))
        info = {key.removesuffix("_six"): value for key, value in masked.items()}
    fields = str(info.get("Properties", "pos::")).split(":")
    if len(fields) % 3 or "pos" not in fields[::3]:
        # ASE would go on without the positions.
        raise InputError(
            f"has Properties={info['Properties']!r:.60}, expected name:type:columns "
            "repeated, with pos among them"
        )
    return info
