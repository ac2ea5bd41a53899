"""Extended xyz, plain or compressed: frames are split here, in one pass, and parsed by ASE."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import ase
from ase.data import atomic_numbers
from ase.io.extxyz import key_val_str_to_dict, read_xyz

from ewald_jax.data.reading import attempt
from ewald_jax.data.text_files import most_characters, open_text, read_line
from ewald_jax.graph.schema import MAX_ATOMIC_NUMBER
from ewald_jax.typing import InputError

# Characters that an atom counts for at least, for what it takes in memory.
_SHORTEST = 32
_DEFAULT = "species:S:1:pos:R:3"
_PARSED = {"R": float, "I": int}
_SIX_NUMBERS = re.compile(r"(?<!\S)(stress|virial)(?=\s*=)")


def read_extxyz(path: Path) -> Iterator[ase.Atoms | Exception]:
    """Structures of an extended xyz file, plain or compressed by xz or gzip."""
    with open_text(path) as stream:
        frames = split_frames(stream, most_characters(path))
        yield from (attempt(parse_frame, lines) for lines in frames)


def split_frames(stream: TextIO, most: int = 2**24) -> Iterator[list[str]]:
    """The lines of each frame: the number of atoms, the comment, one line per atom.

    Args:
        stream: The file.
        most: Characters that a frame may have.

    Raises:
        InputError: If a frame does not begin with a number of atoms, ends early or is larger.
    """
    while header := read_line(stream):
        if not header.strip():
            # Blank lines may end a file, but not stand between frames.
            while line := read_line(stream):
                if line.strip():
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
        yield [header, *_rows(stream, count, most)]


def _rows(stream: TextIO, count: int, most: int) -> list[str]:
    """The comment and the lines of `count` atoms."""
    lines: list[str] = []
    left = most - _SHORTEST * count
    while left >= 0 and len(lines) < count + 1 and (line := read_line(stream)):
        lines.append(line)
        left -= max(len(line), _SHORTEST) - (_SHORTEST if len(lines) > 1 else 0)
    if left < 0:
        raise InputError(
            f"has {count} atoms in more than {most} characters, expected a smaller structure"
        )
    if len(lines) < count + 1:
        raise InputError(
            f"ends after {max(len(lines) - 1, 0)} atoms, expected {count}; the file is "
            "truncated"
        )
    if not lines[-1].endswith("\n"):
        _check_last_number(lines[1:])
    return lines


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
    except InputError:
        raise
    except Exception:  # ASE does not say which atom it failed at
        _check_rows(lines)
        raise
    return atoms


def _check_rows(lines: list[str]) -> None:
    """Refuses lines of atoms that do not have the columns of the comment, by their atom."""
    properties = str(_parse_comment(lines[1].strip()).get("Properties", _DEFAULT))
    fields = properties.split(":")
    columns = [
        (name, kind)
        for name, kind, count in zip(fields[::3], fields[1::3], fields[2::3], strict=True)
        for _ in range(int(count))
    ]
    for atom, line in enumerate(lines[2:]):
        words = line.split()
        if len(words) < len(columns):
            raise InputError(
                f"has {len(words)} fields at atom {atom}, expected {len(columns)} "
                f"(Properties={properties:.80})"
            )
        for word, (name, kind) in zip(words, columns, strict=False):
            try:
                _PARSED.get(kind, str)(word.replace("D", "E"))
            except ValueError:
                raise InputError(
                    f"has {word!r:.40} as {name} at atom {atom}, expected a "
                    f"{'whole ' if kind == 'I' else ''}number"
                ) from None


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
