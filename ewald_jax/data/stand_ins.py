"""What takes the place of Python's and numpy's own names in a pickle of plain values.

Every function here makes plain data from plain data and checks what it is given: a file may
call it with anything (see `data.restricted`).
"""

import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ewald_jax.data.budget import Refused, budget_of_file, limit

_ATOMS = {type(None), bool, int, float, complex, str, bytes, bytearray, slice}
_MAX_AXES = 64  # as numpy
_DTYPE = re.compile(r"[<>=|]?([biufc]\d{1,2}|[SU][1-9]\d{0,6})")


class Held:
    """What a pickle may pass on but not look into: `value` comes out in its place.

    Attributes:
        value: An array, or a numpy type, which comes out as its name.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any):
        """Holds `value`."""
        self.value = value

    def __setstate__(self, state: Any) -> None:
        """Refuses: without this method, unpickling would set attributes."""
        raise Refused("changes an object it has made, expected tensors and plain values")


class Dictionary(dict):
    """A dictionary of a class with attributes, which are left out; comes out as a dict."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Leaves the attributes out."""


class Record:
    """Stand-in of a class with attributes, such as `argparse.Namespace`; becomes a dict.

    As an entry of a table it takes the place of a class whose objects are made without
    arguments and then given their attributes. An attribute that leads back to a record
    around it becomes None.
    """

    __slots__ = ("state",)
    __hash__ = None

    state: dict[str, Any]

    def __new__(cls) -> "Record":
        """No attributes yet; a pickle makes objects without their `__init__`."""
        record = object.__new__(cls)
        record.state = {}
        return record

    def __setstate__(self, state: Any) -> None:
        """Keeps the attributes; fails on the class itself, which lacks the argument."""
        parts = state if isinstance(state, tuple) else (state,)
        if {type(part) for part in parts} - {dict, Dictionary, type(None)}:
            raise TypeError("attributes are no dictionary")
        budget_of_file().arguments(parts)
        for part in parts:
            self.state.update(part or {})


def shown(name: str) -> str:
    """A name of the file, cut short and without characters that a terminal obeys."""
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= 120 else f"{name[:117]}..."


def plain_value(value: Any) -> Any:
    """A copy of what a pickle made with the stand-ins replaced by plain values.

    Objects that were shared stay shared.

    Raises:
        Refused: If it is nested too deep, too large, or contains itself.
    """
    return _Plain().copy(value, 0)[0]


class _Plain:
    """Copies each object once."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[Any, int, int]] = {}
        self._open: set[int] = set()

    def copy(self, value: Any, depth: int) -> tuple[Any, int, int]:
        """The plain value, how many values it is when written out, and how deep."""
        kind, key = type(value), id(value)
        if kind in _ATOMS:
            return value, 1, 0
        if isinstance(value, Held):
            held = value.value
            return held.name if isinstance(held, np.dtype) else held, 1, 0
        if key in self._done:
            return self._done[key]
        if key in self._open:
            if isinstance(value, Record):
                return None, 1, 0
            raise Refused("holds a container that contains itself")
        limit(depth, 0)
        self._open.add(key)
        parts = value.state if isinstance(value, Record) else value
        if isinstance(parts, dict):
            flat = [part for item in parts.items() for part in item]
        elif kind in (list, tuple, set, frozenset):
            flat = list(parts)
        else:
            raise Refused(f"holds an object {shown(kind.__name__)}, expected plain values")
        copies = [self.copy(part, depth + 1) for part in flat]
        plain = [copy[0] for copy in copies]
        size = 1 + sum(copy[1] for copy in copies)
        height = 1 + max((copy[2] for copy in copies), default=0)
        limit(height, size)
        if isinstance(parts, dict):
            result: Any = dict(zip(plain[::2], plain[1::2], strict=True))
        else:
            result = kind(plain)
        self._open.remove(key)
        self._done[key] = result, size, height
        return self._done[key]


def sizes(numbers: Any) -> tuple[int, ...]:
    """`numbers` as a tuple.

    Raises:
        TypeError: If it is neither a tuple nor a list.
        ValueError: If it has more than 64 entries, or an entry is not an integer, is negative
            or has more than 63 bits.
    """
    if type(numbers) not in (tuple, list):
        raise TypeError("a shape is not a tuple")
    if len(numbers) > _MAX_AXES:
        raise ValueError(f"a shape has more than {_MAX_AXES} entries")
    if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
        raise ValueError("a shape has an entry that is not a size")
    return tuple(numbers)


class _Dtype(Held):
    """Stand-in of `numpy.dtype`: numbers or text, no objects and no fields."""

    __slots__ = ()

    def __init__(self, name: Any, align: Any = False, copy: Any = False):
        if type(name) is not str or not _DTYPE.fullmatch(name):
            what = shown(name) if type(name) is str else "without a name"
            raise Refused(f"holds a numpy type {what}, expected numbers or text")
        super().__init__(np.dtype(name))

    def __setstate__(self, state: Any) -> None:
        budget_of_file().arguments([state])
        _, order, *structure = state
        if any(part is not None for part in structure[:3]):
            raise Refused("holds a numpy type of several fields, expected numbers or text")
        self.value = self.value.newbyteorder(order)


class _Array(Held):
    """Stand-in of a `numpy.ndarray`, which is made empty and then given its content."""

    __slots__ = ()

    def __init__(self, kind: Any, shape: Any, code: Any):
        if type(kind) is not str or kind != "numpy.ndarray":
            raise Refused("holds a subclass of numpy.ndarray, expected plain arrays")

    def __setstate__(self, state: Any) -> None:
        budget_of_file().arguments([state])
        *_, shape, dtype, fortran, raw = state
        self.value = _array(raw, dtype, shape, "F" if fortran else "C")


def _array(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """The read-only array of these bytes, in the byte order of this machine."""
    if not isinstance(dtype, _Dtype) or type(raw) not in (bytes, bytearray):
        raise Refused("holds a numpy array of objects, expected numbers or text")
    budget_of_file().work(len(raw))
    kind, shape = dtype.value, sizes(shape)
    if math.prod(shape) * kind.itemsize != len(raw):
        raise ValueError("the bytes of a numpy array do not match its shape")
    stored = np.uint8 if kind.kind == "b" else kind  # any byte but zero is true
    array = np.ndarray(shape, stored, bytes(raw), order=order)
    array = array.astype(kind.newbyteorder("="), copy=False)
    array.flags.writeable = False
    return array


def _scalar(dtype: Any, raw: Any) -> Any:
    return _array(raw, dtype, (), "C").item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise TypeError("bytes are not text in latin1")
    return text.encode("latin1")


def _bytes(data: Any = b"") -> bytes:
    if type(data) not in (bytes, bytearray):
        raise TypeError("bytes are made of something else")
    return bytes(data)


def _bytearray(data: Any = b"", encoding: Any = "latin1") -> bytearray:
    return bytearray(_encode(data, encoding) if type(data) is str else _bytes(data))


def _complex(real: Any, imaginary: Any = 0.0) -> complex:
    if {type(real), type(imaginary)} - {int, float}:
        raise TypeError("a complex number is made of something else")
    return complex(real, imaginary)


class _Slice(Held):
    """Stand-in of a slice, with which a pickle could make a list longer."""

    __slots__ = ()


def _slice(start: Any, stop: Any, step: Any) -> _Slice:
    if {type(start), type(stop), type(step)} - {int, type(None)}:
        raise TypeError("a slice is made of something else")
    return _Slice(slice(start, stop, step))


def _path(*parts: Any) -> str:
    if {type(part) for part in parts} - {str}:
        raise TypeError("a path is made of something else")
    return str(pathlib.PurePosixPath(*parts))


def _made_of_items(kind: Callable[[Any], Any]) -> Callable[..., Any]:
    def make(items: Any = ()) -> Any:
        if type(items) not in (list, tuple, dict, Dictionary):
            raise TypeError("a container is made of something else")
        if type(items) in (list, tuple):
            is_pair = kind is Dictionary
            budget_of_file().keys(part[0] if is_pair and part else part for part in items)
        return kind(items)

    return make


PLAIN: Mapping[str, Any] = {
    "argparse.Namespace": Record,
    "collections.OrderedDict": _made_of_items(Dictionary),
    "collections.Counter": _made_of_items(Dictionary),
    # The factory was found in a table, else the file had been refused; it is not needed.
    "collections.defaultdict": lambda factory=None: Dictionary(),
    "_codecs.encode": _encode,
    "builtins.bytearray": _bytearray,
    "builtins.bytes": _bytes,
    "builtins.complex": _complex,
    "builtins.frozenset": _made_of_items(frozenset),
    "builtins.set": _made_of_items(set),
    "builtins.slice": _slice,
    **{
        f"builtins.{kind}": f"builtins.{kind}"
        for kind in ("bool", "dict", "float", "int", "list", "str", "tuple")
    },
    **{
        f"{module}.{kind}": _path
        for module in ("pathlib", "pathlib._local")
        for kind in ("PosixPath", "PurePosixPath")
    },
    "numpy.dtype": _Dtype,
    "numpy.ndarray": "numpy.ndarray",
    **{
        f"numpy.{core}.{name}": function
        for core in ("core", "_core")
        for name, function in {
            "multiarray._reconstruct": _Array,
            "multiarray.scalar": _scalar,
            "numeric._frombuffer": _array,
        }.items()
    },
}
"""Stand-ins by "module.name", for `restricted.restricted_loads`."""
