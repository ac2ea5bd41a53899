"""Arrays of molecules in one .npz file, as QM7-X, MD17 and many others come.

Every array has one row per structure. Atomic numbers and positions are found by the names in
use; molecules of different sizes are padded with atomic number 0, and one list of atomic
numbers serves all structures of a trajectory. All other arrays keep their names: rows of one
number become `info`, rows of three numbers per atom columns of the structure, so that
``energy_key`` and ``forces_key`` find them.
"""

from collections.abc import Iterator
from pathlib import Path

import ase
import numpy as np

from ewald_jax.data.reading import BrokenFileError, Reader, attempt
from ewald_jax.graph.schema import MAX_ATOMIC_NUMBER
from ewald_jax.typing import InputError

_NUMBERS = ("z", "Z", "numbers", "atomic_numbers", "nuclear_charges", "species")
_POSITIONS = ("R", "pos", "positions", "coords", "coordinates", "xyz")
_CELLS = ("cell", "cells", "lattice", "box")
_PBC = "pbc"
_STANDS_FOR = {"numbers": "numbers_", "positions": "positions_"}  # taken by ASE


def read_npz(path: Path) -> Iterator[ase.Atoms | Exception]:
    """Structures of a .npz file.

    Yields:
        Structures in the units of the file; open, unless there is a cell.

    Raises:
        InputError: If atomic numbers or positions are missing, or have other shapes.
    """
    # Arrays of Python objects are pickles, which are not read.
    with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
        try:
            arrays = {name: file[name] for name in file.files}
        except ValueError as error:
            raise BrokenFileError(
                f"cannot be read ({error}), expected arrays of numbers"
            ) from error
    positions = _required(arrays, _POSITIONS, "positions")
    if positions.ndim != 3 or positions.shape[2] != 3 or positions.dtype.kind not in "fiu":
        raise BrokenFileError(
            f"cannot be read: its positions have the shape {positions.shape}, expected "
            "(structures, atoms, 3)"
        )
    count, width = positions.shape[:2]
    numbers = _required(arrays, _NUMBERS, "atomic numbers")
    if numbers.shape == (width,):
        numbers = np.broadcast_to(numbers, (count, width))
    if numbers.shape != (count, width) or numbers.dtype.kind not in "fiu":
        raise BrokenFileError(
            f"cannot be read: its atomic numbers have the shape {numbers.shape}, expected "
            f"({count}, {width}) or ({width},)"
        )
    cells = next((arrays.pop(name) for name in _CELLS if name in arrays), None)
    pbc = arrays.pop(_PBC, None)
    rows = {n: a for n, a in arrays.items() if a.ndim and len(a) == count}
    for index in range(count):
        row = {name: array[index] for name, array in rows.items()}
        yield attempt(
            _structure,
            positions[index],
            numbers[index],
            None if cells is None else cells[index] if cells.ndim == 3 else cells,
            None if pbc is None else pbc[index] if pbc.ndim == 2 else pbc,
            row,
        )


def _required(
    arrays: dict[str, np.ndarray], names: tuple[str, ...], what: str
) -> np.ndarray:
    for name in names:
        if name in arrays:
            return arrays.pop(name)
    present = ", ".join(map(repr, sorted(arrays))) or "nothing"
    raise BrokenFileError(
        f"cannot be read: it has no {what}, but {present}; expected one of {', '.join(names)}"
    )


def _structure(
    positions: np.ndarray,
    numbers: np.ndarray,
    cell: np.ndarray | None,
    pbc: np.ndarray | None,
    row: dict[str, np.ndarray],
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
    return atoms


READER = Reader(read_npz, (".npz",))
