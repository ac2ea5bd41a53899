"""Metadata of structures as arrays: a million dicts take a gigabyte, seven arrays do not.

Each key of the dicts is one column: truth values, whole numbers or numbers as an array, texts
of similar length as places in a sorted table, whatever else as JSON. Texts are UTF-8, which
sorts as Python does.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_TYPES = {bool: "bool", int: "int", float: "float", str: "text"}
_DTYPES = {
    "bool": np.dtype(np.bool_),
    "int": np.dtype("<i8"),
    "float": np.dtype("<f8"),
    "text": np.dtype("<i4"),
    "json": np.dtype(np.uint8),
}
_WASTE = 4
"""Texts are padded to the longest of them up to this factor of their bytes."""

Columns = dict[str, np.ndarray]
Keys = list[list[str]]


def to_columns(infos: Callable[[], Iterable[Mapping[str, Any]]]) -> tuple[Columns, Keys]:
    """The columns of some dicts.

    Args:
        infos: Gives the dicts, from the first one, whenever it is called; scalars in them.

    Returns:
        Arrays by name, and key and kind of each column, which `InfoTable` needs.
    """
    kinds: dict[str, str] = {}
    longest, total, present = {}, {}, {}
    count = 0
    for info in infos():
        count += 1
        for key, value in info.items():
            kind = _kind(value)
            kinds[key] = kind if kinds.setdefault(key, kind) == kind else "json"
            present[key] = present.get(key, 0) + 1
            size = len(_text(value)) if kind == "text" else 0
            longest[key] = max(longest.get(key, 1), size)
            total[key] = total.get(key, 0) + size
    for key, kind in kinds.items():
        if kind == "text" and count * longest[key] > _WASTE * total[key] + 2**16:
            kinds[key] = "json"
    arrays: Columns = {}
    for number, (key, kind) in enumerate(kinds.items()):
        name = f"info{number}"
        if present[key] < count:
            has = (key in info for info in infos())
            arrays[f"{name}_has"] = np.fromiter(has, np.bool_, count)
        found = (info.get(key) for info in infos())
        if kind == "json":
            texts = [b"" if v is None else json.dumps(v).encode() for v in found]
            ends = np.fromiter(itertools.accumulate(map(len, texts)), "<i8", count)
            arrays[f"{name}_ends"] = ends
            arrays[name] = np.frombuffer(b"".join(texts), np.uint8)
        elif kind == "text":
            texts = (_text(v) if v else b"" for v in found)
            texts = np.fromiter(texts, f"S{longest[key]}", count)
            arrays[f"{name}_table"], places = np.unique(texts, return_inverse=True)
            arrays[name] = places.astype(_DTYPES["text"])
        else:
            arrays[name] = np.fromiter(
                (0 if v is None else v for v in found), _DTYPES[kind], count
            )
    return arrays, [[key, kind] for key, kind in kinds.items()]


class InfoTable(Sequence):
    """Dicts that are made of columns when asked for."""

    def __init__(
        self, arrays: Callable[[], Mapping[str, np.ndarray]], keys: Keys, count: int
    ):
        """Args: arrays: Gives those of `to_columns`; keys: from it; count: dicts."""
        self._arrays, self._count = arrays, count
        self._columns = {
            key: (f"info{number}", kind) for number, (key, kind) in enumerate(keys)
        }

    def __len__(self) -> int:
        """Number of dicts."""
        return self._count

    def __getitem__(self, index):
        """One dict."""
        index = range(self._count)[index]  # there may be no column to refuse it
        arrays = self._arrays()
        return {
            key: _value(arrays, name, kind, index)
            for key, (name, kind) in self._columns.items()
            if f"{name}_has" not in arrays or arrays[f"{name}_has"][index]
        }

    def column(self, key: str) -> tuple[np.ndarray, np.ndarray | None] | None:
        """The values of a key, None if some dicts lack it or they are of no one type.

        Returns:
            [structures] values and None; or, for texts, [structures] places in a table, and
            the table, sorted UTF-8.
        """
        name, kind = self._columns.get(key, ("", "json"))
        arrays = self._arrays()
        if kind == "json" or f"{name}_has" in arrays:
            return None
        table = np.array(arrays[f"{name}_table"]) if kind == "text" else None
        return np.array(arrays[name]), table


def check_columns(
    shapes: Mapping[str, tuple[np.dtype, tuple[int, ...]]], keys: Keys, count: int
) -> None:
    """Refuses columns that do not belong together.

    Raises:
        ValueError: If they do not.
        KeyError: If one is missing.
    """
    for number, (key, kind) in enumerate(keys):
        name = f"info{number}"
        dtype, shape = shapes[name]
        texts = shapes[f"{name}_table"][0].kind if kind == "text" else "S"
        if dtype != _DTYPES[kind] or texts != "S":
            raise ValueError(f"metadata {key} are {dtype}")
        lengths = [] if kind == "json" else [shape]
        lengths += [shapes[f"{name}_ends"][1]] if kind == "json" else []
        lengths += [shapes[f"{name}_has"][1]] if f"{name}_has" in shapes else []
        if any(length != (count,) for length in lengths):
            raise ValueError(f"metadata {key} are of another length")


def _value(arrays: Mapping[str, np.ndarray], name: str, kind: str, index: int) -> Any:
    if kind == "json":
        ends = arrays[f"{name}_ends"]
        begin = ends[index - 1] if index else 0
        return json.loads(arrays[name][begin : ends[index]].tobytes())
    value = arrays[name][index].item()
    if kind == "text":
        return arrays[f"{name}_table"][value].decode("utf-8", "surrogatepass")
    return value


def _kind(value: Any) -> str:
    kind = _TYPES.get(type(value), "json")
    if kind == "int" and not -(2**63) <= value < 2**63:
        return "json"
    if kind == "text" and value.endswith("\0"):  # which arrays of texts drop
        return "json"
    return kind


def _text(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")
