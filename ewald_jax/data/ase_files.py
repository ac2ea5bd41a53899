"""Readers of the files that ASE knows: extended xyz (.xz, .gz too), .traj and .db.

A reader is a generator function from a path to `ase.Atoms`, labels wherever the file has
them. None of them runs code from a file: extended xyz is text, a trajectory is JSON and raw
arrays, a database is SQLite with JSON and raw arrays.
"""

import gzip
import io
import itertools
import lzma
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import ase
from ase.data import atomic_numbers
from ase.db import connect
from ase.io.extxyz import key_val_str_to_dict, read_xyz
from ase.io.formats import string2index
from ase.io.trajectory import TrajectoryReader

from ewald_jax.data.labels import LabelOptions, standardise
from ewald_jax.graph.schema import MAX_ATOMIC_NUMBER
from ewald_jax.typing import InputError

COMPRESSED: dict[str, Callable] = {".xz": lzma.open, ".gz": gzip.open}
"""How text files with these suffixes are opened."""

_SIX_NUMBERS = re.compile(r"(?<!\S)(stress|virial)(?=\s*=)")


class Reader(NamedTuple):
    """How files of one kind are read.

    Attributes:
        read: From a path to its structures, in order.
        suffixes: File names that this kind is chosen for by default.
        companions: Other files whose content matters, so that a cache notices a change.
    """

    read: Callable[[Path], Iterator[ase.Atoms]]
    suffixes: tuple[str, ...]
    companions: Callable[[Path], tuple[Path, ...]] = lambda path: ()


def read_extxyz(path: Path) -> Iterator[ase.Atoms]:
    """Structures of an extended xyz file, plain or compressed by xz or gzip."""
    opener = COMPRESSED.get(path.suffix.lower(), open)
    with opener(path, "rt", encoding="utf-8") as stream:
        yield from (parse_frame(lines) for lines in split_frames(stream))


def read_trajectory(path: Path) -> Iterator[ase.Atoms]:
    """Structures of an ASE trajectory."""
    with TrajectoryReader(str(path)) as trajectory:
        yield from trajectory


def read_database(path: Path) -> Iterator[ase.Atoms]:
    """Structures of an ASE SQLite database, key-value pairs and data as `info`."""
    # ASE would create its tables in a file that has none, and a reader must not write.
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as file:
        tables = file.execute("SELECT name FROM sqlite_master WHERE name = 'systems'")
        if tables.fetchone() is None:
            raise ValueError("there is no table 'systems'")
    database = connect(path, type="db", create_indices=False, use_lock_file=False)
    for row in database.select():
        atoms = row.toatoms()
        atoms.info.update(row.data)
        atoms.info.update(row.key_value_pairs)
        yield atoms


ASE_READERS: dict[str, Reader] = {
    "extxyz": Reader(
        read_extxyz, (".xyz", ".extxyz", ".xyz.xz", ".extxyz.xz", ".xyz.gz", ".extxyz.gz")
    ),
    "traj": Reader(read_trajectory, (".traj",)),
    "db": Reader(read_database, (".db",)),
}


def read_structures(
    path: str | Path,
    energy_key: str = "energy",
    forces_key: str = "forces",
    stress_key: str = "stress",
    labels: tuple[str, ...] | None = None,
    index: str | int | slice = ":",
    energy_unit: str = "eV",
    length_unit: str = "Angstrom",
) -> list[ase.Atoms]:
    """Reads structures with labels in a `SinglePointCalculator`, in eV and Å.

    Args:
        path: An extended xyz file (.xyz, .extxyz, also .xz and .gz), .traj or .db.
        energy_key: Key of the energy.
        forces_key: Key of the forces.
        stress_key: Key of the stress.
        labels: Labels that all structures must have, () to read none. None asks for the
            energy, and takes forces and stress where the first structure has them.
        index: ASE's way to choose structures: a number, a slice or a text such as ``":10"``.
        energy_unit: Unit of energies.
        length_unit: Unit of lengths.

    Returns:
        The structures. Other scalars of the file are in `info`, fixed atoms in constraints.

    Raises:
        InputError: If the file or a structure of it is broken, or labels are missing.
    """
    path = Path(path)
    options = LabelOptions(
        energy_key, forces_key, stress_key, labels, energy_unit, length_unit
    )
    reader = ASE_READERS[kind_of(path, ASE_READERS)]
    wanted = string2index(index) if isinstance(index, str) else index
    chosen = wanted if isinstance(wanted, slice) else slice(wanted, wanted + 1 or None)
    frames = standardise(iterate(path, reader), path, options)
    bounds = (chosen.start, chosen.stop, chosen.step)
    if all(bound is None or bound >= 0 for bound in bounds):
        structures = list(itertools.islice(frames, *bounds))
    else:
        structures = list(frames)[chosen]
    if not structures:
        raise InputError(f"{path} has no structure {index!r}, expected at least one")
    return structures


def kind_of(path: Path, readers: dict[str, Reader]) -> str:
    """The kind of a file by its name, a key of `readers`.

    Raises:
        InputError: If no reader claims the name.
    """
    name = path.name.lower()
    for kind, reader in readers.items():
        if name.endswith(reader.suffixes):
            return kind
    known = ", ".join(suffix for reader in readers.values() for suffix in reader.suffixes)
    raise InputError(f"{path}: unknown kind of file, expected a name that ends in {known}")


def check_file(path: Path) -> None:
    """Refuses a path that is not a file.

    Raises:
        InputError: If it is not.
    """
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}, expected a file of structures")


def iterate(path: Path, reader: Reader) -> Iterator[ase.Atoms]:
    """The structures of a file, as they are in it.

    Raises:
        InputError: If the file is missing, unreadable, truncated or empty, or a structure is
            broken; names the file and the structure.
    """
    check_file(path)
    index = 0
    with closing(_run(reader, path)) as frames:
        while True:
            try:
                atoms = next(frames)
            except StopIteration:
                break
            except InputError as error:
                raise InputError(f"{path}: structure {index} {error}") from error
            # Parsers fail on broken bytes in every way there is.
            except Exception as error:
                raise InputError(
                    f"{path}: structure {index} cannot be read ({_reason(error)}), expected "
                    f"a complete file of the kind {_kind_name(reader)}"
                ) from error
            yield atoms
            index += 1
    if index == 0:
        raise InputError(f"{path} has no structures, expected at least one")


def _run(reader: Reader, path: Path) -> Iterator[ase.Atoms]:
    # A generator even of a reader that is none: errors come one by one, and it can be closed.
    yield from reader.read(path)


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


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text:.120}" if text else type(error).__name__


def _kind_name(reader: Reader) -> str:
    return reader.suffixes[0]
