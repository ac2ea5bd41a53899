"""What reading a pickle may take, in proportion to the size of its file.

A few bytes of a pickle can ask again and again for the same large work: to copy a text, to
repeat a tensor, to hash a key. One `Budget` for the whole file counts all of it.
"""

import contextlib
import contextvars
from collections.abc import Iterable, Iterator
from typing import Any

MAX_DEPTH = 100
"""Containers within one another that a file may hold."""

MAX_SIZE = 10_000_000
"""Values that a file may hold, shared ones counted every time they are reached."""

LARGEST_KEY = 2**60
"""Integers from here on may share their hash, and make a dictionary slow."""

_MAX_KEYS = 5000  # those whose hash a file can choose
_PER_ENTRY = 8  # of a list: what a pointer takes
_EASY = {type(None), bool, float, str, bytes}  # their hashes cannot be chosen, or hardly


class Refused(Exception):
    """What a file holds is not allowed; the message goes on after the name of the file."""


def limit(depth: int, size: int, most: int = MAX_SIZE) -> None:
    """Refuses values nested deeper than `MAX_DEPTH`, or more than `most` of them."""
    if depth > MAX_DEPTH:
        raise Refused(f"nests its values deeper than {MAX_DEPTH} levels")
    if size > most:
        raise Refused(f"expands to more than {most} values")


def most_entries(size: int) -> int:
    """Entries that all tensors of a file of `size` bytes may have, repeated ones counted."""
    return 4 * size + 10_000_000


class Budget:
    """What is left for the rest of a file."""

    def __init__(self, size: int):
        """All that a file of `size` bytes may take."""
        self._size = size
        self._work = 8 * size + 1_000_000
        self._entries = most_entries(size)
        self._keys = _MAX_KEYS

    def work(self, amount: int) -> None:
        """Takes `amount` bytes, roughly, of copying."""
        self._work -= amount
        if self._work < 0:
            raise Refused("repeats its values more than its size allows")

    def entries(self, count: int) -> None:
        """Takes the entries of a tensor."""
        self._entries -= count
        if self._entries < 0:
            raise Refused(
                f"repeats its tensors to more than {most_entries(self._size)} entries"
            )

    def key(self, size: int = 1, large: bool = False) -> None:
        """Takes a key of a kind whose hash a file can choose, of `size` values."""
        if large:
            raise Refused("has an integer above 2**60 as a key, expected text")
        self.work(size)
        self._keys -= 1
        if self._keys < 0:
            raise Refused(f"has more than {_MAX_KEYS} keys that are no text, expected text")

    def keys(self, values: Iterable[Any]) -> None:
        """Takes what will be hashed."""
        for value in values:
            if type(value) is int:
                if not -LARGEST_KEY < value < LARGEST_KEY:
                    self.key(large=True)
            elif type(value) not in _EASY:
                self.key()
                self._inside(value)

    def _inside(self, value: Any) -> None:
        """Takes the parts of a tuple, which are hashed every time that it is."""
        left = [value]
        while left:
            part = left.pop()
            if type(part) is tuple:
                self.work(len(part))
                left += part
            elif type(part) is int and not -LARGEST_KEY < part < LARGEST_KEY:
                self.key(large=True)

    def arguments(self, values: Iterable[Any]) -> None:
        """Takes what a function is given."""
        for value in values:
            kind = type(value)
            if kind in (str, bytes, bytearray):
                self.work(len(value))
            elif isinstance(value, (list, tuple, dict, set, frozenset)):
                self.work(_PER_ENTRY * len(value))
            self.work(1)


_CURRENT: contextvars.ContextVar[Budget | None] = contextvars.ContextVar("budget")


@contextlib.contextmanager
def budgeted(size: int) -> Iterator[Budget]:
    """The budget for a file of `size` bytes; within another file, that of the latter."""
    budget = _CURRENT.get(None)
    if budget is not None:
        yield budget
        return
    token = _CURRENT.set(Budget(size))
    try:
        yield budget_of_file()
    finally:
        _CURRENT.reset(token)


def budget_of_file() -> Budget:
    """The budget of the file that is being read."""
    budget = _CURRENT.get(None)
    assert budget is not None
    return budget
