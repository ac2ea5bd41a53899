"""ASE's own files of structures: .traj and .db, frame by frame and row by row.

ASE's reading of both trusts what they say of their sizes, so that this is compared with the
file first. Frames and rows are fetched one by one: a broken one does not end the others.
"""

import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import ase
from ase.db import connect
from ase.io.trajectory import TrajectoryReader

from ewald_jax.data.json_records import MOST_TEXT, check_arrays
from ewald_jax.data.reading import attempt

_MAGIC = b"- of Ulm"
_HEADER = "<qqq"  # version, frames, and where the table of their places is
_HEADER_START, _TABLE_START = 24, 48
_JSON_COLUMNS = ("key_value_pairs", "data", "constraints", "calculator_parameters")


def read_trajectory(path: Path) -> Iterator[ase.Atoms | Exception]:
    """Structures of an ASE trajectory."""
    with open(path, "rb") as file:
        places = _places(file, path.stat().st_size)

        def frame(index: int) -> ase.Atoms:
            _check_frame(file, places[index], path.stat().st_size)
            return trajectory[index]

        if places:
            # ASE reads the first at once: what all have in common is there.
            _check_frame(file, places[0], path.stat().st_size)
        with TrajectoryReader(str(path)) as trajectory:
            yield from (attempt(frame, index) for index in range(len(places)))


def _places(file: BinaryIO, size: int) -> tuple[int, ...]:
    """Where the frames of an ulm file begin (format of `ase.io.ulm`)."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it is no trajectory of ASE 3.9 or later")
    file.seek(_HEADER_START)
    _, count, table = struct.unpack(_HEADER, file.read(_TABLE_START - _HEADER_START))
    if not (0 <= 8 * count <= size and 0 <= table <= size - 8 * count):
        raise ValueError("its table of frames lies outside of it")
    file.seek(table)
    return struct.unpack(f"<{count}q", file.read(8 * count))


def _check_frame(file: BinaryIO, place: int, size: int) -> None:
    file.seek(place)
    (length,) = struct.unpack("<q", file.read(8))
    if not 0 <= length <= size:
        raise ValueError("a frame is larger than its file")
    check_arrays(file.read(length), size)


def read_database(path: Path) -> Iterator[ase.Atoms | Exception]:
    """Structures of an ASE SQLite database, key-value pairs and data as `info`."""
    # ASE would create its tables in a file that has none, and a reader must not write.
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as file:
        # A database may hold instructions to make values of any size.
        file.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_TEXT)
        tables = file.execute(
            "SELECT name FROM sqlite_master WHERE name = 'systems' AND type = 'table'"
        )
        if tables.fetchone() is None:
            raise ValueError("there is no table 'systems'")
        numbers = [row[0] for row in file.execute("SELECT id FROM systems ORDER BY id")]
        database = connect(path, type="db", create_indices=False, use_lock_file=False)
        # ASE's own connection would write, and have no limits.
        database.connection, database.change_count = file, 0
        yield from (attempt(_row, database, number) for number in numbers)


def _row(database, number: int) -> ase.Atoms:
    columns = ", ".join(_JSON_COLUMNS)
    found = database.connection.execute(
        f"SELECT {columns} FROM systems WHERE id = ?",  # noqa: S608
        (number,),
    )
    for text in found.fetchone():
        if isinstance(text, str):
            check_arrays(text.encode(), 0)
    row = database.get(id=number)
    atoms = row.toatoms()
    atoms.info.update(row.data)
    atoms.info.update(row.key_value_pairs)
    return atoms
