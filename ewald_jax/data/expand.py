"""Which files a path of a config stands for."""

from pathlib import Path

from ewald_jax.data.readers import READERS
from ewald_jax.typing import InputError


def expand_path(value: str, kind: str = "") -> list[Path]:
    """The files that a path, folder or pattern stands for, sorted.

    Args:
        value: A file, a folder, or a pattern with ``*``.
        kind: Reader whose files to take from a folder, "" for any.

    Raises:
        InputError: If the kind is unknown, or there is no file.
    """
    if kind and kind not in READERS:
        raise InputError(f"data.kind is {kind!r}, expected one of {', '.join(READERS)}")
    path = Path(value).expanduser()
    if path.is_dir():
        readers = [READERS[kind]] if kind else READERS.values()
        suffixes = tuple(suffix for reader in readers for suffix in reader.suffixes)
        found = [p for p in path.iterdir() if p.name.lower().endswith(suffixes)]
        expected = f"files that end in {', '.join(suffixes)}"
    elif "*" in path.name:
        found = list(path.parent.glob(path.name))
        expected = "a pattern that some file matches"
    else:
        return [path]
    if not found:
        raise InputError(f"{path}: no file found, expected {expected}")
    # 2.xyz before 10.xyz
    return sorted(found, key=lambda p: (len(p.name), p.name))
