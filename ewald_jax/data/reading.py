"""How files of structures are read: what a reader is, and one structure after the other.

A reader is a generator function from a path to `ase.Atoms`, labels wherever the file has
them; what is wrong with a file becomes a sentence here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import ase

from ewald_jax.typing import InputError


class BrokenFileError(InputError):
    """A file as a whole cannot be read; the message goes on after its name."""


class NothingWholeError(InputError):
    """All structures of a file are broken; `skipped` has a sentence about each."""

    def __init__(self, what: str, skipped: Sequence[str]):
        """Names what has no structure that is whole, a file or all of them."""
        super().__init__(what, skipped)
        self.what, self.skipped = what, tuple(skipped)

    def __str__(self) -> str:
        """The sentence."""
        return (
            f"{self.what} has no structure that is whole, all {len(self.skipped)} were "
            f"skipped; the first: {self.skipped[0]}"
        )


REST = "; the rest of the file is left out"
"""How the sentence about a file ends that could not be read on (``data.on_error: skip``)."""


class Reader(NamedTuple):
    """How files of one kind are read.

    Attributes:
        read: From a path to its structures, in order. In place of a structure that is broken
            by itself it may give the exception, and go on with the next.
        suffixes: File names that this kind is chosen for by default.
        companions: Other files whose content matters, so that a cache notices a change.
        claims: Which of the files with these names it is chosen for by default.
    """

    read: Callable[[Path], Iterator[ase.Atoms | Exception]]
    suffixes: tuple[str, ...]
    companions: Callable[[Path], tuple[Path, ...]] = lambda path: ()
    claims: Callable[[Path], bool] = lambda path: True


def kind_of(path: Path, readers: dict[str, Reader]) -> str:
    """The kind of a file, a key of `readers`: the first that its name is right for.

    Raises:
        InputError: If no reader claims it, or there is no such file.
    """
    name = path.name.lower()
    for kind, reader in readers.items():
        if name.endswith(reader.suffixes) and reader.claims(path):
            return kind
    check_file(path)
    endings = (suffix for reader in readers.values() for suffix in reader.suffixes)
    known = ", ".join(dict.fromkeys(endings))
    raise InputError(f"{path}: unknown kind of file, expected a name that ends in {known}")


def check_file(path: Path) -> None:
    """Refuses a path that is not a file.

    Raises:
        InputError: If it is not.
    """
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}, expected a file of structures")


def iterate(
    path: Path, reader: Reader, skipped: dict[int, str] | None = None
) -> Iterator[ase.Atoms | None]:
    """The structures of a file, as they are in it.

    Args:
        path: The file.
        reader: How it is read.
        skipped: If given, takes the sentences about broken structures by their number; None
            is yielded in their place. Where the file cannot be read on, its rest is one.

    Raises:
        InputError: If the file is missing; without `skipped`, if it is unreadable, truncated
            or empty, or a structure is broken. Names the file and the structure.
    """
    check_file(path)
    index = 0
    with closing(_run(reader, path)) as frames:
        while True:
            try:
                atoms = next(frames)
            except StopIteration:
                break
            except Exception as error:
                broken = _broken(path, reader, index, error)
                if skipped is None:
                    raise broken from error
                skipped[index] = f"{broken}{REST}"
                yield None
                return
            if isinstance(atoms, Exception):
                broken = _broken(path, reader, index, atoms)
                if skipped is None:
                    raise broken from atoms
                skipped[index] = str(broken)
                atoms = None
            yield atoms
            index += 1
    if index == 0:
        empty = f"{path} has no structures, expected at least one"
        if skipped is None:
            raise InputError(empty)
        skipped[0] = empty
        yield None


def attempt(make: Callable[..., ase.Atoms], *arguments: Any) -> ase.Atoms | Exception:
    """A structure, or why it cannot be made."""
    try:
        return make(*arguments)
    # Parsers fail on broken bytes in every way there is.
    except Exception as error:
        return error


def _broken(path: Path, reader: Reader, index: int, error: Exception) -> InputError:
    if isinstance(error, BrokenFileError):
        return InputError(f"{path} {error}")
    where = f"{path}: structure {index}"
    if isinstance(error, InputError):
        return InputError(f"{where} {error}")
    return InputError(
        f"{where} cannot be read ({_reason(error)}), expected a complete file of the kind "
        f"{_kind_name(reader, path)}"
    )


def _run(reader: Reader, path: Path) -> Iterator[ase.Atoms]:
    # A generator even of a reader that is none: errors come one by one, and it can be closed.
    yield from reader.read(path)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text:.120}" if text else type(error).__name__


def _kind_name(reader: Reader, path: Path) -> str:
    """The ending of a file's name if it is one of the kind, else the first of the kind."""
    matching = [s for s in reader.suffixes if path.name.lower().endswith(s)]
    return max(matching, key=len, default=reader.suffixes[0])
