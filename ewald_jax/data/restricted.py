"""Pickles read as plain values: nothing that a file names is ever imported or called.

A pickle is a program: it names objects of any module and calls them. Here a name is looked
up in a table of stand-ins (see `data.stand_ins`) and nowhere else, so that a file can only
arrange what it holds. Four things keep it so:

* `find_class` returns entries of the table and imports nothing. Functions come wrapped in
  `_Call`, arrays in `Held`, whose `__setstate__` refuses: a pickle can set no attribute of
  anything, and never has an object of numpy in its hands.
* The instructions are read once before they run. Those that reach around `find_class` are
  refused, and so are those that make Python take memory or recurse without end.
* What comes out is copied into plain values, to a limited depth and size.
* The stand-ins check what they are given, and one `data.budget` for the whole file counts
  what that takes.
"""

import contextlib
import io
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ewald_jax.data.budget import (
    LARGEST_KEY,
    Budget,
    Refused,
    budget_of_file,
    budgeted,
    limit,
)
from ewald_jax.data.stand_ins import Held, Record, plain_value, shown
from ewald_jax.typing import InputError

# Values in a tuple, those within others included: Python walks all where it is a key.
_MAX_TUPLE = 100_000

# Extensions bypass find_class, out-of-band buffers are not in the file; Python 3 writes the
# others for nothing that is read here.
_REFUSED = {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
_REFUSED |= {"INST", "OBJ", "NEWOBJ_EX"}

_DAMAGE = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError),
    *(RuntimeError, TypeError, ValueError),
    *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile),
    Warning,  # where warnings are errors
)


def restricted_loads(
    data: bytes | BinaryIO,
    allowed: Mapping[str, Any],
    where: str,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Plain values of a pickle, without running anything that it names.

    Args:
        data: The pickle; or a stream, left at the end of the first pickle.
        allowed: From "module.name" to what takes its place: a function, `Record` or a
            subclass of it, or text for a name that is never called.
        where: The file and what else says where the pickle is, for error messages.
        persistent: Gives the array that a persistent id stands for.

    Returns:
        Nested dicts, lists, tuples and sets of numbers, text and arrays.

    Raises:
        InputError: If the pickle names what is not in `allowed`, is damaged, or holds more
            or deeper nested values than `MAX_SIZE` and `MAX_DEPTH`.
    """
    with reading(where, "a pickle of plain values"):
        return unpickle(data, allowed, persistent)


def unpickle(
    data: bytes | BinaryIO,
    allowed: Mapping[str, Any],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """As `restricted_loads`, within a `reading` of the caller.

    Raises:
        Refused: If the pickle asks for what is not allowed; other exceptions if it is
            damaged.
    """
    stream = io.BytesIO(data) if isinstance(data, (bytes, bytearray)) else data
    start = stream.tell()
    bounded = _Bounded(stream)
    with budgeted(bounded.end - start) as budget:
        _scan(bounded, budget)
        size = stream.tell() - start
        stream.seek(start)
        pickled = io.BytesIO(stream.read(size))
        return plain_value(_Unpickler(pickled, allowed, persistent).load())


@contextlib.contextmanager
def reading(where: str | Path, expected: str) -> Iterator[None]:
    """Makes one sentence of whatever is wrong with a file, as an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Refused as error:
        raise InputError(f"{where}: {error}") from None
    except PermissionError as error:
        raise InputError(f"{where}: cannot be read, permission denied") from error
    except _DAMAGE as error:
        reason = " ".join(shown(str(error)).split()).rstrip(".") or type(error).__name__
        raise InputError(
            f"{where}: is truncated or damaged ({reason}), expected {expected}"
        ) from error


class _Call(Held):
    """A function of the table; its name comes out where a file holds it as a value."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any], name: str):
        super().__init__(name)
        self.function = function

    def __call__(self, *args: Any) -> Any:
        budget_of_file().arguments(args)
        plain = [arg.value if type(arg) is Held else arg for arg in args]
        return _hold(self.function(*plain))


class _Unpickler(pickle.Unpickler):
    """Runs a pickle that was scanned before, on a table of stand-ins."""

    def __init__(
        self, stream: BinaryIO, allowed: Mapping[str, Any], persistent: Callable | None
    ):
        super().__init__(stream, encoding="utf-8")
        self._allowed, self._persistent = allowed, persistent

    def find_class(self, module: str, name: str) -> Any:
        # Protocols below 3 say what Python 2 called it.
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full not in self._allowed:
            raise Refused(
                f"asks to call {shown(full)}, expected a file of tensors and plain values "
                "(nothing in it was executed)"
            )
        entry = self._allowed[full]
        is_record = isinstance(entry, type) and issubclass(entry, Record)
        return entry if is_record or isinstance(entry, str) else _Call(entry, full)

    def persistent_load(self, pid: Any) -> Any:
        if self._persistent is None:
            raise Refused("refers to data outside of it, expected a pickle of plain values")
        return _hold(self._persistent(pid))


def _hold(value: Any) -> Any:
    return Held(value) if isinstance(value, np.ndarray) else value


class _Bounded:
    """A stream that no length in a file can make ask for more than is left of it."""

    def __init__(self, stream: BinaryIO):
        self.tell, self.readline, self._stream = stream.tell, stream.readline, stream
        here = stream.tell()
        self.end = stream.seek(0, io.SEEK_END)
        stream.seek(here)

    def read(self, size: int) -> bytes:
        return self._stream.read(min(size, self.end - self.tell()))


class _Item(NamedTuple):
    """What `_scan` knows of a value: its depth and size as a tuple, and its hash.

    Attributes:
        depth: Tuples within one another.
        size: Values in them.
        chosen: Whether a file can choose its hash.
        large: Whether there are integers in it that are too large for a key.
    """

    depth: int = 1
    size: int = 1
    chosen: bool = False
    large: bool = False


# What is hashed: every second value above the mark (or the container), or each.
_PAIRS = {"DICT", "SETITEM", "SETITEMS"}
_ELEMENTS = {"ADDITEMS", "FROZENSET"}
_MADE = {"REDUCE", "BINPERSID", "PERSID", "BUILD", "NEWOBJ", "FROZENSET"}
_PLAIN, _UNKNOWN, _LARGE = _Item(), _Item(chosen=True), _Item(large=True)


def _scan(stream: Any, budget: Budget) -> None:
    """Refuses instructions that could do harm before they reach a table.

    Runs them on depths and sizes of tuples in place of values: tuples are the only
    containers whose hash Python takes by recursion, without a limit of its own. (No function
    of the tables returns a tuple that it was given.)
    """
    stack: list[_Item | None] = []  # None is a mark
    memo: dict[int, _Item] = {}

    def pop() -> _Item:
        if (item := stack.pop()) is None:
            raise pickle.UnpicklingError("unexpected mark")
        return item

    def push(item: _Item) -> _Item:
        stack.append(item)
        return item

    for count, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        name, before = operation.name, operation.stack_before
        if name in _REFUSED:
            raise Refused(f"has a pickle instruction {name}, which torch.save never writes")
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = len(memo) if name == "MEMOIZE" else argument
            if index > count:  # Python makes room for all numbers below it
                raise pickle.UnpicklingError("memo index out of range")
            memo[index] = push(pop())
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            push(memo[argument])
        elif name == "MARK":
            stack.append(None)
        elif name == "POP":
            stack.pop()
        elif name == "DUP":
            push(push(pop()))
        else:
            items: list[_Item] = []
            if pickletools.markobject in before:
                while (item := stack.pop()) is not None:
                    items.append(item)
                before = before[: before.index(pickletools.markobject)]
            marked = len(items)
            items += [pop() for _ in before]
            if name in _PAIRS:  # the last value comes first
                hashed = items[1 : 2 if name == "SETITEM" else marked : 2]
            else:
                hashed = items[:marked] if name in _ELEMENTS else []
            for item in hashed:
                if item.chosen or item.large:
                    budget.key(item.size, item.large)
            result = _UNKNOWN if name in _MADE else _PLAIN
            if name.startswith("TUPLE"):
                depth = 1 + max((item.depth for item in items), default=0)
                size = 1 + sum(item.size for item in items)
                limit(depth, size, _MAX_TUPLE)
                result = _Item(depth, size, True, any(item.large for item in items))
            elif type(argument) is int and abs(argument) >= LARGEST_KEY:
                result = _LARGE
            for _ in operation.stack_after:
                push(result)
