"""JSON of data files, refused before it takes much more memory than its own text.

Python's objects are many times larger than the text that they come from, and ASE's JSON can
ask for an array of any size. Both are seen in the text before anything is made of it.
"""

import json
import math
from typing import Any

import numpy as np

from ewald_jax.typing import InputError

MOST_TEXT = 2**24
"""Bytes of JSON that one structure may take."""

_MOST_OBJECTS = 2**27
# Bytes that Python takes for what begins with, or ends in, one of these.
_COSTS = {b"{": 240, b"[": 90, b'"': 32, b",": 40}

_SHAPED = ("__ndarray__", "ndarray")


def check_json(text: bytes) -> None:
    """Refuses the text of a record if it would take too much memory.

    Raises:
        InputError: If it is longer than `MOST_TEXT`, or has too many values.
    """
    if len(text) > MOST_TEXT:
        raise InputError(f"has {len(text)} bytes of JSON, expected at most {MOST_TEXT}")
    needed = sum(cost * text.count(what) for what, cost in _COSTS.items())
    if needed > _MOST_OBJECTS:
        raise InputError(
            f"has JSON of {len(text)} bytes that takes some {needed // 2**20} MiB as values, "
            f"expected at most {_MOST_OBJECTS // 2**20} MiB for one structure"
        )


def check_arrays(text: bytes, most: int) -> None:
    """Refuses ASE's JSON with an array that is larger than what there is to fill it.

    Args:
        text: JSON in which ``{"__ndarray__": [shape, type, values]}`` is an array, and
            ``{"ndarray": [shape, type, offset]}`` one elsewhere in the file.
        most: Bytes that an array elsewhere may have.

    Raises:
        InputError: If there is one, or `check_json` refuses the text.
        ValueError: If it is no JSON.
    """
    check_json(text)
    if not any(f'"{name}"'.encode() in text for name in _SHAPED) and b"\\u" not in text:
        return

    def check(value: dict[str, Any]) -> dict[str, Any]:
        for name in _SHAPED:
            if name in value:
                shape, kind, content = value[name]
                size = math.prod(shape)
                real = isinstance(content, list)
                kind = np.dtype(kind)
                room = len(content) // (2 if kind.kind == "c" else 1) if real else 0
                if real and size != room or not real and size * kind.itemsize > most:
                    raise InputError(
                        f"has an array of the shape {shape!s:.60} that its file does not "
                        "hold, expected as many values"
                    )
        return value

    json.loads(text, object_hook=check)
