"""Which files a path of a config stands for."""

from collections.abc import Sequence
from pathlib import Path

from ewald_jax.data.oc20_s2ef import why_not_official
from ewald_jax.data.readers import READERS
from ewald_jax.data.reading import kind_of
from ewald_jax.typing import InputError

_DATABASES = (".aselmdb", ".lmdb")
_BESIDE_DATABASES = "metadata.npz"
"""The sizes of structures, which fairchem keeps beside its databases."""


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
        if any(p.name.lower().endswith(_DATABASES) for p in found):
            found = [p for p in found if p.name.lower() != _BESIDE_DATABASES]
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


def kinds_of_files(
    paths: Sequence[Path], kind: str = "", labelled: bool = True
) -> list[str]:
    """The reader of each file, a key of `READERS`.

    Args:
        paths: Files.
        kind: That of all of them, "" to choose it by their names.
        labelled: Whether their energies matter.

    Raises:
        InputError: If no reader claims a file; if some are OC20's frames, with adsorption
            energies, and others look like them but have total ones.
    """
    if kind:
        return [kind] * len(paths)
    kinds = [kind_of(path, READERS) for path in paths]
    if labelled and {"oc20_s2ef", "extxyz"} <= set(kinds):
        path = paths[kinds.index("extxyz")]
        raise InputError(
            f"{path} {why_not_official(path)}; other files, such as "
            f"{paths[kinds.index('oc20_s2ef')].name}, have one and with it adsorption "
            "energies, which total ones cannot be mixed with: expected a companion of each, "
            "or data.kind to be set (oc20_s2ef, or extxyz for total energies)"
        )
    return kinds
