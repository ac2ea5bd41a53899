"""OC20 as LMDB files of pickled `torch_geometric` graphs, read without PyTorch.

Records are `Data` objects of torch_geometric 1.x (attributes in one dictionary) or 2.x (in a
store within it) with torch tensors, under the keys 0, 1, ...; the key ``length`` holds their
number. The pickles go through `data.restricted`, which knows these objects and no others.

S2EF records hold ``y`` (adsorption energy) and ``force``; IS2RE records ``y_relaxed``, the
energy of the relaxed structure, which becomes the energy of the initial one.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from ewald_jax.data.lmdb_files import open_lmdb
from ewald_jax.data.reading import BrokenFileError, Reader, attempt
from ewald_jax.data.restricted import restricted_loads
from ewald_jax.data.stand_ins import Record
from ewald_jax.data.torch_pickle import TORCH
from ewald_jax.graph.schema import MAX_ATOMIC_NUMBER
from ewald_jax.typing import InputError

_LENGTH = b"length"
_RECORD = "record"
_INITIAL = "initial_energy"
_DATA = "torch_geometric.data"
_OPTIONAL = {"natoms", "tags", "fixed", "y_init", "sid", "fid"}  # and labels

TABLE: Mapping[str, Any] = {
    **TORCH,
    f"{_DATA}.data.Data": Record,
    f"{_DATA}.storage.GlobalStorage": Record,
    **{f"{_DATA}.data.{name}": name for name in ("DataEdgeAttr", "DataTensorAttr")},
}
"""Stand-ins of what a record may name."""


def read_oc20_lmdb(path: Path) -> Iterator[ase.Atoms | Exception]:
    """Structures of an OC20 LMDB file, S2EF or IS2RE.

    Yields:
        Periodic structures with the adsorption energy, eV, for S2EF forces, eV/Å, tags (0
        below the surface, 1 surface, 2 adsorbate) and fixed atoms as constraints. In `info`:
        ``sid``, ``fid``, and of IS2RE ``initial_energy``, eV.

    Raises:
        InputError: If the file is torn, or a record holds anything but such a graph.
    """
    with open_lmdb(path) as file:
        keys = file.numbers()
        length = file.get(_LENGTH)
        if length is None:
            first = attempt(_read, file.get(b"0"), set()) if keys else None
            _check_unmarked(keys, len(file), first)
        else:
            _check_length(length, keys)
        known: set[str] = set()
        for key in keys:
            yield attempt(_read, file.get(b"%d" % key), known)


def _read(raw: bytes, known: set[str]) -> ase.Atoms:
    """A structure; `known` are the optional attributes so far, which all must have."""
    data = _attributes(_loads(raw))
    atoms = _structure(data)
    # A name that one wrong byte has changed would be an attribute that nobody misses.
    if lacking := known - data.keys():
        raise InputError(
            f"has no {min(lacking)!r}, but the records before it have one, expected the same "
            "attributes in all"
        )
    known |= _OPTIONAL & data.keys()
    return atoms


def _loads(raw: bytes) -> Any:
    try:
        return restricted_loads(raw, TABLE, _RECORD)
    except InputError as error:  # whoever asked says where it is
        raise InputError(str(error).removeprefix(f"{_RECORD}: ")) from error


def _check_unmarked(keys: list[int], count: int, first: Any) -> None:
    """IS2RE may come without a length, as its loader in OCP took it: records only."""
    relaxed = isinstance(first, ase.Atoms) and _INITIAL in first.info
    if not relaxed or keys != list(range(count)):
        raise BrokenFileError(
            f"cannot be read: the key 'length' is missing beside {len(keys)} records, "
            "expected OC20's LMDB layout; is the file complete?"
        )


def _check_length(raw: bytes, keys: list[int]) -> None:
    try:
        length = _loads(raw)
    except InputError as error:
        raise BrokenFileError(f"cannot be read: its key 'length' {error}") from error
    # Not range(length), which may be any number.
    if type(length) is not int or length != len(keys) or keys != list(range(len(keys))):
        raise BrokenFileError(
            f"cannot be read: the key 'length' says {length!r:.20}, but there are "
            f"{len(keys)} records; expected one for each number below it"
        )


def _attributes(found: Any) -> dict[str, Any]:
    """Of either layout, without those that are not set."""
    store = found.get("_store") if isinstance(found, dict) else None
    if isinstance(store, dict):
        found = store.get("_mapping")
    if not isinstance(found, dict):
        raise InputError("is no graph, expected a torch_geometric Data object")
    return {key: value for key, value in found.items() if value is not None}


def _structure(data: Mapping[str, Any]) -> ase.Atoms:
    numbers = _whole(data, "atomic_numbers", 1, MAX_ATOMIC_NUMBER)
    n = len(numbers)
    if n == 0:
        raise InputError("has no atoms, expected at least one")
    if "natoms" in data and int(_array(data, "natoms", ((), (1,))).reshape(())) != n:
        raise InputError(f"has natoms other than its {n} atomic_numbers, expected the same")
    positions = _array(data, "pos", ((n, 3),))
    cell = _array(data, "cell", ((1, 3, 3), (3, 3)))
    atoms = ase.Atoms(numbers, positions, cell=cell.reshape(3, 3), pbc=True)
    if "tags" in data:
        atoms.set_tags(_whole(data, "tags", 0, 2, n))
    if "fixed" in data:
        fixed = np.flatnonzero(_whole(data, "fixed", 0, 1, n))
        atoms.set_constraint([FixAtoms(fixed)] if len(fixed) else None)
    results = {}
    energy = "y_relaxed" if "y_relaxed" in data else "y"
    if energy in data:
        results["energy"] = _scalar(data, energy)
    if "force" in data:
        results["forces"] = _array(data, "force", ((n, 3),))
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    if energy == "y_relaxed" and "y_init" in data:
        atoms.info[_INITIAL] = _scalar(data, "y_init")
    for key in ("sid", "fid"):
        if key in data:
            atoms.info[key] = int(_scalar(data, key))
    return atoms


def _array(
    data: Mapping[str, Any], key: str, shapes: tuple[tuple[int, ...], ...]
) -> np.ndarray:
    if key not in data:
        raise InputError(f"has no {key!r}, expected it in an OC20 graph")
    try:
        array = np.asarray(data[key])
    except ValueError:
        array = np.zeros(0, object)
    if array.dtype.kind not in "iufb" or (shapes and array.shape not in shapes):
        words = " or ".join(map(str, shapes)) or "[atoms]"
        raise InputError(
            f"has {key!r} of {array.dtype.name} with the shape {array.shape}, expected "
            f"numbers with the shape {words}"
        )
    if _repeats(array):
        raise InputError(
            f"has {key!r} of the shape {array.shape} that repeats the same numbers (strides "
            f"{array.strides} bytes), expected one for each entry"
        )
    with np.errstate(invalid="ignore"):  # NaNs are refused where they matter
        return array.astype(np.float64)


def _repeats(array: np.ndarray) -> bool:
    """Whether entries share their memory, so that a small file holds a large tensor."""
    reached = 0  # from the first entry to the last
    axes = sorted((s, n) for s, n in zip(array.strides, array.shape, strict=True) if n > 1)
    for step, count in axes:
        if step <= reached:
            return True
        reached += step * (count - 1)
    return False


def _scalar(data: Mapping[str, Any], key: str) -> float:
    return float(_array(data, key, ((), (1,))).reshape(()))


def _whole(
    data: Mapping[str, Any], key: str, low: int, high: int, length: int | None = None
) -> np.ndarray:
    """Whole numbers [atoms]; OC20 stores them as floats."""
    array = _array(data, key, () if length is None else ((length,),))
    if array.ndim != 1 or not np.all((array >= low) & (array <= high) & (array % 1 == 0)):
        raise InputError(
            f"has {key!r} out of range, expected whole numbers {low} to {high}"
        )
    return array.astype(np.int64)


READER = Reader(read_oc20_lmdb, (".lmdb",))
