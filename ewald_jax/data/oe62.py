"""Reader of OE62, 61,489 organic molecules, as it is published: `df_62k.json`.

The file is a pandas data frame in JSON, ``orient="split"``: an object of columns, index and
data, of which each row is one molecule. It has about 1 GB, most of it orbital energies, so
that it is read row by row. The subsets `df_31k.json` and `df_5k.json` have the same layout.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import ase
import numpy as np
from ase.data import atomic_numbers

from ewald_jax.data.reading import Reader, attempt
from ewald_jax.graph.schema import MAX_ATOMIC_NUMBER
from ewald_jax.typing import InputError

GEOMETRY, COUNT = "xyz_pbe_relaxed", "number_of_atoms"
KEPT = ("refcode_csd", "canonical_smiles", COUNT)
ENERGIES = "total_energy"
"""How the names of the columns of total energies, eV, begin."""

_KEYS = ("columns", "index", "data")
_LAYOUT = "expected an object of columns, index and data (pandas, orient='split')"
_ENDS = "is where the file ends, it is truncated"
_CHUNK = 1 << 18
_LARGEST = 1 << 24
"""Characters of one row; the real ones have some 20,000."""

_MOST_COLUMNS = 1000
"""The real files have some 30."""

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def read_oe62(path: Path) -> Iterator[ase.Atoms | Exception]:
    """Molecules of a file of OE62, in a memory of a few rows.

    `info` has the CSD's code, SMILES, number of atoms and all total energies (eV) as they
    are in the file, without those that are null.

    Raises:
        InputError: If the file is no complete data frame, or a row of it is broken; to be
            read after the file's name and the number of a structure.
    """
    with open(path, encoding="utf-8") as stream:
        columns = _find_columns(_Scanner(stream))
    with open(path, encoding="utf-8") as stream:
        scanner = _Scanner(stream)
        lengths: dict[str, int] = {}
        for key in _sections(scanner):
            lengths[key] = 0
            for row in scanner.elements():
                if key == "data":
                    yield attempt(_molecule, columns, row)
                lengths[key] += 1
    if "data" not in lengths:
        raise InputError(f"is not there, the file has no data: {_LAYOUT}")
    rows, index = lengths["data"], lengths.get("index", lengths["data"])
    if rows != index:
        raise InputError(
            f"is where the rows end, after {rows}, expected {index} as the index has"
        )


OE62_READERS: dict[str, Reader] = {
    "oe62": Reader(read_oe62, ("df_62k.json", "df_31k.json", "df_5k.json")),
}


class _Scanner:
    """JSON value by value, from a stream of which it holds no more than it must."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._text, self._at = "", 0

    def peek(self) -> str:
        """The next character that is no space, or "" at the end."""
        while True:
            self._at = self._skip(self._at)
            if self._at < len(self._text) or not self._read_on():
                return self._text[self._at : self._at + 1]

    def expect(self, characters: str) -> str:
        """Takes one of some characters."""
        found = self.peek()
        if not found:
            raise InputError(_ENDS)
        if found not in characters:
            wanted = " or ".join(map(repr, characters))
            raise InputError(
                f"is where the file breaks: it has {self._glimpse()!r}, expected {wanted}"
            )
        self._at += 1
        return found

    def value(self) -> Any:
        """Takes a value, read until the character after it is there too."""
        if not self.peek():
            raise InputError(_ENDS)
        while True:
            problem = "nothing follows it"
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                after = self._skip(end)
                # Otherwise it may be the beginning of a number.
                if self._text[after : after + 1] in tuple(",:]}"):
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                problem = error.msg
            if len(self._text) - self._at > _LARGEST:
                raise InputError(
                    f"has {self._glimpse()!r} in the file, which is no JSON ({problem}) or "
                    f"longer than {_LARGEST} characters"
                )
            if not self._read_on():
                raise InputError(
                    f"ends in {self._glimpse()!r}, which is no complete JSON ({problem}); "
                    "the file is truncated or damaged"
                )

    def elements(self) -> Iterator[Any]:
        """Takes a list, yielding element by element."""
        self.expect("[")
        if self.peek() == "]":
            self.expect("]")
            return
        while True:
            yield self.value()
            if self.expect(",]") == "]":
                return

    def _skip(self, at: int) -> int:
        return _SPACE.match(self._text, at).end()

    def _read_on(self) -> bool:
        """At least doubles what is not yet taken, so that long values cost linear time."""
        left = self._text[self._at :]
        more = self._stream.read(max(_CHUNK, len(left)))
        self._text, self._at = left + more, 0
        return bool(more)

    def _glimpse(self) -> str:
        return self._text[self._at : self._at + 30]


def _sections(scanner: _Scanner) -> Iterator[str]:
    """Keys of the file's object; the caller takes the list of each before the next."""
    if scanner.peek() != "{":
        raise InputError(f"cannot be read, the file begins with no object: {_LAYOUT}")
    scanner.expect("{")
    found: set[str] = set()
    while True:
        key = scanner.value()
        if key not in _KEYS or key in found:
            what = "a second" if key in _KEYS else "the key"
            raise InputError(f"cannot be read, the file has {what} {key!r:.40}: {_LAYOUT}")
        found.add(key)
        scanner.expect(":")
        yield key
        if scanner.expect(",}") == "}":
            break
    if scanner.peek():
        raise InputError("is where the file should end, but more follows the object")


def _find_columns(scanner: _Scanner) -> list[str]:
    """Names of the columns; they come first in the published files, but need not."""
    for key in _sections(scanner):
        if key != "columns":
            for _ in scanner.elements():
                pass
            continue
        columns: dict[str, None] = {}  # in their order
        for name in scanner.elements():
            if not isinstance(name, str) or name in columns:
                raise InputError(
                    f"cannot be read, the file has the column {name!r:.40} twice or without "
                    "a name, expected different names"
                )
            if len(columns) == _MOST_COLUMNS:
                raise InputError(
                    f"cannot be read, the file has more than {_MOST_COLUMNS} columns"
                )
            columns[name] = None
        for name in (GEOMETRY, COUNT):
            if name not in columns:
                raise InputError(
                    f"cannot be read, the file has no column {name!r}, it has "
                    f"{', '.join(map(repr, columns)) or 'none':.200}"
                )
        return list(columns)
    raise InputError(f"cannot be read, the file has no columns: {_LAYOUT}")


def _molecule(columns: list[str], row: Any) -> ase.Atoms:
    if not isinstance(row, list) or len(row) != len(columns):
        what = f"{len(row)} values" if isinstance(row, list) else f"{row!r:.40}"
        raise InputError(
            f"is a row of {what}, expected one for each of {len(columns)} columns"
        )
    values = dict(zip(columns, row, strict=True))
    atoms = _parse_xyz(values[GEOMETRY])
    count = values[COUNT]
    if isinstance(count, bool) or count != len(atoms):
        raise InputError(
            f"has {COUNT} {count!r:.40}, but {GEOMETRY} has {len(atoms)}; expected the same"
        )
    atoms.info = {
        # Codes and SMILES end in tabs and newlines.
        name: value.strip() if isinstance(value, str) else value
        for name, value in values.items()
        if value is not None and (name in KEPT or name.startswith(ENERGIES))
    }
    return atoms


def _parse_xyz(text: Any) -> ase.Atoms:
    """A molecule from lines: the number of atoms, a comment, element and x y z (Å) of each."""
    if not isinstance(text, str):
        raise InputError(f"has {GEOMETRY} {text!r:.40}, expected lines of text")
    count, *lines = text.strip().split("\n")
    # After an empty comment, the first atom must not be taken for it.
    rows = [line.split() for line in lines[1:]]
    if not count.strip().isdecimal() or int(count) != len(rows):
        raise InputError(
            f"has {GEOMETRY} that begins with {count!r:.40} before {len(rows)} atoms, "
            "expected their number"
        )
    numbers, positions = [], []
    for atom, words in enumerate(rows):
        try:
            symbol, x, y, z = words
            positions.append((float(x), float(y), float(z)))
        except ValueError:
            raise InputError(
                f"has {GEOMETRY} with {' '.join(words)!r:.60} for atom {atom}, expected an "
                "element and three numbers"
            ) from None
        number = atomic_numbers.get(symbol, 0)
        if not 1 <= number <= MAX_ATOMIC_NUMBER:
            raise InputError(
                f"has an unknown element {symbol!r:.20} at atom {atom}, expected a symbol"
            )
        numbers.append(number)
    return ase.Atoms(numbers=numbers, positions=np.reshape(positions, (-1, 3)))
