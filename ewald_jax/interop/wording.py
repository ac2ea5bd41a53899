"""Values of other programs' files in messages, whatever they are."""

import reprlib
from typing import Any

import numpy as np


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 80, 80

    def repr_int(self, value: int, level: int) -> str:
        if value.bit_length() > 200:  # Python writes no more than 4300 digits
            return f"an integer of {value.bit_length()} bits"
        return repr(value)

    def repr_ndarray(self, value: np.ndarray, level: int) -> str:
        if value.size > 4:
            return f"an array of shape {value.shape}"
        return repr(value.tolist())


def brief(value: Any) -> str:
    """A value as Python writes it, cut short."""
    return " ".join(_Brief().repr(value).split())[:200]


def given(value: Any) -> bool:
    """Whether there is something: not None, zero or empty. Arrays are something."""
    return isinstance(value, np.ndarray) or bool(value)
