"""ASE databases in LMDB files (``.aselmdb``), as fairchem's data sets come.

A record is the JSON of an ASE database row, compressed by zlib, under the row's number; beside
them are ``nextid`` and ``deleted_ids``. Rows of older writers hold plain lists where newer ones
hold ``{"__ndarray__": [shape, type, values]}``. JSON makes no objects, and only the keys below
are looked at.
"""

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from ewald_jax.data.json_records import MOST_TEXT, check_json
from ewald_jax.data.lmdb_files import LmdbFile, open_lmdb
from ewald_jax.data.reading import BrokenFileError, Reader, attempt
from ewald_jax.graph.schema import MAX_ATOMIC_NUMBER
from ewald_jax.typing import InputError

_RESULTS = ("energy", "forces", "stress")


def read_aselmdb(path: Path) -> Iterator[ase.Atoms | Exception]:
    """Rows of an ASE database in an LMDB file, key-value pairs and scalar data as `info`.

    Yields:
        Structures with energy, eV, forces, eV/Å, and stress, eV/Å^3, as far as a row has them;
        tags, and fixed atoms as constraints.

    Raises:
        InputError: If the file is torn, or a row is broken.
    """
    with open_lmdb(path) as file:
        keys = file.numbers()
        _check_count(file, len(keys))
        for key in keys:
            yield attempt(_read, file.get(b"%d" % key))


def _read(raw: bytes) -> ase.Atoms:
    return _structure(_decoded(raw))


def _check_count(file: LmdbFile, count: int) -> None:
    """Deleted rows are gone; all others must be there."""
    following, deleted = (file.get(key) for key in (b"nextid", b"deleted_ids"))
    if following is None:
        raise BrokenFileError(
            "cannot be read: the key 'nextid' is missing, expected an ASE database in an "
            "LMDB file; is it complete?"
        )
    following = _decoded(following)
    deleted = [] if deleted is None else _decoded(deleted)
    if type(following) is not int or not isinstance(deleted, list):
        raise BrokenFileError(
            "cannot be read: 'nextid' or 'deleted_ids' is broken, expected an ASE database"
        )
    expected = following - 1 - len(deleted)
    if expected != count:
        raise BrokenFileError(
            f"cannot be read: there are {count} rows, expected {expected} as the file says; "
            "is it complete?"
        )


def _decoded(raw: bytes) -> Any:
    if raw[:1] == b"x":  # zlib; its size is unknown until the end
        unpacker = zlib.decompressobj()
        try:
            text = unpacker.decompress(raw, MOST_TEXT)
        except zlib.error as error:
            raise InputError(f"is damaged ({error}), expected compressed JSON") from error
        if unpacker.unconsumed_tail:
            raise InputError(
                f"expands to more than {MOST_TEXT} bytes, expected the row of a database"
            )
        if not unpacker.eof:
            raise InputError("ends early, expected compressed JSON")
    else:
        text = raw
    check_json(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"is no JSON ({error:.60}), expected the row of a database"
        ) from error


def _structure(row: Any) -> ase.Atoms:
    if not isinstance(row, dict):
        raise InputError("is no database row, expected a JSON object")
    numbers = _array(row, "numbers", (-1,))
    if not np.all((numbers >= 1) & (numbers <= MAX_ATOMIC_NUMBER) & (numbers % 1 == 0)):
        raise InputError(f"has 'numbers' out of range, expected 1 to {MAX_ATOMIC_NUMBER}")
    n = len(numbers)
    atoms = ase.Atoms(numbers.astype(int), _array(row, "positions", (n, 3)))
    if row.get("cell") is not None:
        atoms.cell[:] = _array(row, "cell", (3, 3))
    if row.get("pbc") is not None:
        atoms.pbc = _array(row, "pbc", (3,)).astype(bool)
    if row.get("tags") is not None:
        atoms.set_tags(_array(row, "tags", (n,)).astype(int))
    fixed = _fixed(row.get("constraints") or [], n)
    atoms.set_constraint([FixAtoms(fixed)] if fixed else None)
    shapes = {"energy": (), "forces": (n, 3), "stress": (-1,)}
    results = {
        name: _array(row, name, shapes[name])
        for name in _RESULTS
        if row.get(name) is not None
    }
    if "energy" in results:
        results["energy"] = float(results["energy"])
    if "stress" in results and results["stress"].size == 9:
        results["stress"] = results["stress"].reshape(3, 3)
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    atoms.info.update(_scalars(row.get("data")))
    atoms.info.update(_scalars(row.get("key_value_pairs")))
    return atoms


def _array(row: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> np.ndarray:
    value, given = row.get(key), None
    if isinstance(value, dict) and isinstance(value.get("__ndarray__"), list):
        given, _, value = (value["__ndarray__"] + [None] * 3)[:3]
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "iufb":
            raise ValueError(f"values of {array.dtype.name}")
        # The given shape is only compared: a file may claim any size.
        if isinstance(given, list) and math.prod(given) != array.size:
            raise ValueError(f"{array.size} values for the shape {given}")
        return array.reshape(shape).astype(np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        words = f"numbers of the shape {shape}" if shape else "one number"
        raise InputError(
            f"has no valid {key!r} ({error!s:.60}), expected {words}"
        ) from error


def _fixed(constraints: Any, n: int) -> list[int]:
    """Atoms of all FixAtoms; no other constraint holds an atom in all directions."""
    fixed: set[int] = set()
    for entry in constraints if isinstance(constraints, list) else ():
        if isinstance(entry, dict) and entry.get("name") == "FixAtoms":
            indices = _array(entry.get("kwargs") or {}, "indices", (-1,))
            if not np.all((indices >= -n) & (indices < n) & (indices % 1 == 0)):
                raise InputError(f"fixes atoms that are none of its {n}")
            fixed.update(int(i) % n for i in indices)
    return sorted(fixed)


def _scalars(values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        return {}
    return {k: v for k, v in values.items() if isinstance(v, bool | int | float | str)}


READER = Reader(read_aselmdb, (".aselmdb",))
