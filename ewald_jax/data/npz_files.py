"""Arrays of molecules in one .npz file, as QM7-X, MD17 and many others come.

Every array has one row per structure. Atomic numbers and positions are found by the names in
use; molecules of different sizes are padded with atomic number 0, and one list of atomic
numbers serves all structures of a trajectory. All other arrays keep their names: rows of one
number become `info`, rows of three numbers per atom columns of the structure, so that
``energy_key`` and ``forces_key`` find them.
"""

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ase
import numpy as np

from ewald_jax.data.labels import LEFT_OUT
from ewald_jax.data.reading import BrokenFileError, Reader, attempt
from ewald_jax.graph.schema import MAX_ATOMIC_NUMBER
from ewald_jax.typing import InputError

_NUMBERS = ("z", "Z", "numbers", "atomic_numbers", "nuclear_charges", "species")
_POSITIONS = ("R", "pos", "positions", "coords", "coordinates", "xyz")
_CELLS = ("cell", "cells", "lattice", "box")
_PBC = "pbc"
_STANDS_FOR = {"numbers": "numbers_", "positions": "positions_"}  # taken by ASE

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(path: Path) -> Iterator[ase.Atoms | Exception]:
    """Structures of a .npz file.

    Yields:
        Structures in the units of the file; open, unless there is a cell.

    Raises:
        InputError: If atomic numbers or positions are missing, or have other shapes.
    """
    with open(path, "rb") as stream, zipfile.ZipFile(stream) as archive:
        members = _members(archive)
        positions = _one_of(members, _POSITIONS, "positions")
        shape = members[positions].shape
        if (
            len(shape) != 3
            or shape[2] != 3
            or 0 in shape
            or members[positions].kind not in "fiu"
        ):
            raise BrokenFileError(
                f"cannot be read: its positions have the shape {shape}, expected "
                "(structures, atoms, 3)"
            )
        count, width = shape[:2]
        numbers = _one_of(members, _NUMBERS, "atomic numbers")
        _, shape, kind, _ = members[numbers]
        if shape not in ((count, width), (width,)) or kind not in "fiu":
            raise BrokenFileError(
                f"cannot be read: its atomic numbers have the shape {shape}, expected "
                f"({count}, {width}) or ({width},)"
            )
        chosen = [
            name for name, m in members.items() if _is_used(name, m.shape, count, width)
        ]
        arrays = _arrays(archive, members, {positions, numbers, *chosen}, path)
        left_out = _left_out(members, {positions, numbers, *chosen}, count, width)
    positions = arrays.pop(positions)
    numbers = np.broadcast_to(arrays.pop(numbers), (count, width))
    cells = next((arrays.pop(name) for name in _CELLS if name in arrays), None)
    pbc = arrays.pop(_PBC, None)
    for index in range(count):
        row = {name: array[index] for name, array in arrays.items()}
        yield attempt(
            _structure,
            positions[index],
            numbers[index],
            None if cells is None else cells[index] if cells.ndim == 3 else cells,
            None if pbc is None else pbc[index] if pbc.ndim == 2 else pbc,
            row,
            left_out,
        )


class _Member(NamedTuple):
    """What a member of the archive says of its array."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    kind: str
    size: int


def _members(archive: zipfile.ZipFile) -> dict[str, _Member]:
    """The arrays of a file by name, of which only the headers are read."""
    found = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BrokenFileError(
                f"cannot be read: its array {name!r:.40} is compressed by other means than "
                "numpy's, expected what numpy.savez_compressed writes"
            )
        with archive.open(info) as stream:
            try:
                version = np.lib.format.read_magic(stream)
                shape, _, dtype = _HEADERS[version](stream)
            except (KeyError, ValueError) as error:
                raise BrokenFileError(
                    f"cannot be read: {name!r:.40} is no array ({error!s:.60}), expected "
                    "arrays of numbers"
                ) from error
            size = math.prod(shape) * dtype.itemsize
            # Arrays of Python objects are pickles, which are not read.
            if dtype.hasobject or dtype.kind not in "biufcSU":
                raise BrokenFileError(
                    f"cannot be read (its array {name!r:.40} is of the type {dtype!s:.40}), "
                    "expected arrays of numbers"
                )
            if min(shape, default=0) < 0 or stream.tell() + size != info.file_size:
                raise BrokenFileError(
                    f"cannot be read: its array {name!r:.40} of the shape {shape!s:.60} would "
                    f"take {size} bytes, but {info.file_size} are there"
                )
        found[name] = _Member(info, shape, dtype.kind, size)
    return found


def _is_used(name: str, shape: tuple[int, ...], count: int, width: int) -> bool:
    """Whether an array is read: a cell, or one with a row for each structure that fits."""
    if name in _CELLS or name == _PBC:
        return math.prod(shape) <= 9 * max(count, 1)
    row = shape[1:]
    fits = math.prod(row) in (1, 6, 9) or row in ((width,), (width, 1), (width, 3))
    return shape[:1] == (count,) and fits


def _left_out(
    members: dict[str, _Member], used: set[str], count: int, width: int
) -> dict[str, str]:
    """What is said of each array, by its name, that no structure has a part of."""
    rows = f"{count} rows of 1, 6, 9, {width} or ({width}, 3) numbers"
    return {
        name: f"its array {name!r:.40} has the shape {member.shape}, expected "
        + (f"{count} rows" if member.shape[:1] != (count,) else rows)
        for name, member in members.items()
        if name not in used and member.kind in "iuf"
    }


def _arrays(
    archive: zipfile.ZipFile, members: dict[str, _Member], names: set[str], path: Path
) -> dict[str, np.ndarray]:
    """Some arrays of a file, if they are not much larger than it."""
    total, limit = sum(members[name].size for name in names), _most_bytes(path)
    if total > limit:
        raise BrokenFileError(
            f"cannot be read: its arrays would take {total} bytes, expected at most {limit} "
            "of a file of this size"
        )
    found = {}
    for name in members:
        if name in names:
            with archive.open(members[name].info) as stream:
                found[name] = np.lib.format.read_array(stream, allow_pickle=False)
    return found


def _most_bytes(path: Path) -> int:
    return 2**26 + 32 * path.stat().st_size


def _one_of(members: dict[str, _Member], names: tuple[str, ...], what: str) -> str:
    for name in names:
        if name in members:
            return name
    present = ", ".join(map(repr, sorted(members))) or "nothing"
    raise BrokenFileError(
        f"cannot be read: it has no {what}, but {present:.200}; expected one of "
        f"{', '.join(names)}"
    )


def _structure(
    positions: np.ndarray,
    numbers: np.ndarray,
    cell: np.ndarray | None,
    pbc: np.ndarray | None,
    row: dict[str, np.ndarray],
    left_out: dict[str, str],
) -> ase.Atoms:
    if not np.all((numbers >= 0) & (numbers <= MAX_ATOMIC_NUMBER) & (numbers % 1 == 0)):
        raise InputError(
            f"has atomic numbers out of range, expected whole numbers 0 (no atom) to "
            f"{MAX_ATOMIC_NUMBER}"
        )
    present = numbers > 0
    atoms = ase.Atoms(numbers[present].astype(int), positions[present].astype(np.float64))
    if cell is not None:
        if np.shape(cell) not in ((3,), (3, 3)):
            raise InputError(f"has a cell of the shape {np.shape(cell)}, expected (3, 3)")
        atoms.set_cell(cell)
        atoms.pbc = True if pbc is None else pbc
    for name, values in row.items():
        key = _STANDS_FOR.get(name, name)
        if values.size == 1:
            atoms.info[key] = values.reshape(()).item()
        elif values.shape[0] == len(numbers):
            atoms.arrays[key] = values[present]
        elif values.size in (6, 9):  # a stress
            atoms.info[key] = values
    if left_out:
        atoms.info[LEFT_OUT] = left_out
    return atoms


READER = Reader(read_npz, (".npz",))
