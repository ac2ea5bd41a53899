"""Metadata of structures as arrays: a million dicts take a gigabyte, seven arrays do not.

Each key of the dicts is one column: truth values, whole numbers or numbers as an array, texts
of similar length as places in a sorted table, whatever else as JSON. Texts are UTF-8, which
sorts as Python does.
"""

import array
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


def to_columns(infos: Iterable[Mapping[str, Any]]) -> tuple[Columns, Keys]:
    """The columns of some dicts.

    Args:
        infos: The dicts, with scalars in them; gone through once.

    Returns:
        Arrays by name, and key and kind of each column, which `InfoTable` needs.
    """
    columns: dict[str, _Column] = {}
    count = 0
    for row, info in enumerate(infos):
        count = row + 1
        for key, value in info.items():
            kind = _kind(value)
            column = columns.setdefault(key, _Column(kind))
            if column.kind not in (kind, "json"):
                columns[key] = column = column.as_json()
            column.add(row, value)
    arrays: Columns = {}
    for number, (key, column) in enumerate(columns.items()):
        column.fill(count)
        if column.wastes():
            columns[key] = column = column.as_json()
        arrays.update(column.arrays(f"info{number}"))
    return arrays, [[key, column.kind] for key, column in columns.items()]


class _Column:
    """One column that grows, texts and JSON as their bytes and where each ends."""

    def __init__(self, kind: str):
        self.kind = kind
        self._has, self._bytes = bytearray(), bytearray()
        self._values = array.array({"bool": "b", "float": "d"}.get(kind, "q"))

    def add(self, row: int, value: Any) -> None:
        """Sets the value of a row, after all rows so far."""
        self.fill(row)
        self._has.append(True)
        if self.kind in ("text", "json"):
            text = self.kind == "text"
            self._bytes += _text(value) if text else json.dumps(value).encode()
            value = len(self._bytes)
        self._values.append(value)

    def fill(self, count: int) -> None:
        """Makes it so many rows, those at the end without a value."""
        missing = count - len(self._has)
        self._has.extend(bytes(missing))
        self._values.extend([len(self._bytes)] * missing)  # no bytes: a zero

    def wastes(self) -> bool:
        """Whether texts of one length would take far more than their bytes."""
        padded = len(self._values) * self._longest()
        return self.kind == "text" and padded > _WASTE * len(self._bytes) + 2**16

    def as_json(self) -> "_Column":
        """The same values, each by itself."""
        out = _Column("json")
        for row, has in enumerate(self._has):
            if has:
                out.add(row, self._value(row))
        out.fill(len(self._has))
        return out

    def arrays(self, name: str) -> Columns:
        """As `InfoTable` needs them."""
        out: Columns = {}
        if not all(self._has):
            out[f"{name}_has"] = np.array(self._has, np.bool_)
        if self.kind == "json":
            out[f"{name}_ends"] = np.array(self._values, "<i8")
            out[name] = np.frombuffer(bytes(self._bytes), np.uint8)
        elif self.kind == "text":
            texts = map(self._piece, range(len(self._values)))
            texts = np.fromiter(texts, f"S{self._longest()}", len(self._values))
            out[f"{name}_table"], places = np.unique(texts, return_inverse=True)
            out[name] = places.astype(_DTYPES["text"])
        else:
            out[name] = np.array(self._values).astype(_DTYPES[self.kind])
        return out

    def _longest(self) -> int:
        return int(np.diff(self._values, prepend=0).max(initial=1))

    def _piece(self, row: int) -> bytes:
        begin = self._values[row - 1] if row else 0
        return bytes(self._bytes[begin : self._values[row]])

    def _value(self, row: int) -> Any:
        if self.kind == "text":
            return self._piece(row).decode("utf-8", "surrogatepass")
        return bool(self._values[row]) if self.kind == "bool" else self._values[row]


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
