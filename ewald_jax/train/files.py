"""Files of an output directory: written whole or not at all, read with clear errors."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ewald_jax.typing import InputError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_SPACE_TEXT = ("No space left on device", "Disk quota exceeded")


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one step: readers see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    """`write_text` of plain values; NaN is refused, because it is not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Plain values of a JSON file.

    Raises:
        InputError: If the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing; expected a directory that `ewald-jax train` has written"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise InputError(f"{path}: is not valid JSON; the file is damaged") from None


@contextlib.contextmanager
def writing(what: str, kept: str = "") -> Iterator[None]:
    """Turns a failure to write into one sentence.

    Args:
        what: What is being written, with its place.
        kept: What the user still has.

    Raises:
        InputError: For a full disk, and for any other error of the file system.
    """
    kept = f"; {kept}" if kept else ""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        # tensorstore reports file errors as ValueError, with the system's text inside.
        number = getattr(error, "errno", None)
        if number in _NO_SPACE or any(text in str(error) for text in _NO_SPACE_TEXT):
            raise InputError(f"the disk is full: could not write {what}{kept}") from error
        if isinstance(error, OSError):
            raise InputError(f"could not write {what} ({error.strerror}){kept}") from error
        raise
