"""OC20 S2EF as it is downloaded and unpacked: frames, and a line of text for each beside them.

``N.extxyz`` holds frames with total energies and forces of VASP; line i of ``N.txt`` is
``system,frame,reference`` of frame i, such as ``random1000110,frame0,-273.08613666``. The
target is the adsorption energy: that of the frame less the reference, which is slab plus
adsorbate in the gas phase (Chanussot et al., ACS Catal. 2021). Both files may be compressed
(.xz, .gz).
"""

import itertools
import math
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import ase
from ase.calculators.singlepoint import SinglePointCalculator

from ewald_jax.data.extxyz import parse_frame, split_frames
from ewald_jax.data.reading import BrokenFileError, Reader, attempt
from ewald_jax.data.text_files import most_characters, open_text, read_line
from ewald_jax.typing import InputError

_FRAMES = re.compile(r"(.+)\.(ext)?xyz(\.xz|\.gz)?$", re.IGNORECASE)
_ENDINGS = (".txt.xz", ".txt", ".txt.gz")
_LINE = "system,frame,reference energy"
_OFFICIAL = re.compile(r"[^,\s]+,frame\d+,-?\d")
_BEGINNING = 10  # lines by which a companion is known
_COUNTED = 10**6  # lines too many of which the number is told


def companion(path: Path) -> Path:
    """The file of text lines that belongs to a file of frames.

    Raises:
        BrokenFileError: If there is none.
    """
    match = _FRAMES.match(path.name)
    stem = match.group(1) if match else path.name
    for ending in _ENDINGS:
        found = path.with_name(stem + ending)
        if found.is_file():
            return found
    raise BrokenFileError(
        f"has no {stem}.txt or {stem}.txt.xz beside it, expected one with the line "
        f"'{_LINE}' for each frame, as OC20 is downloaded"
    )


def read_s2ef(path: Path) -> Iterator[ase.Atoms | Exception]:
    """Frames with adsorption energies.

    Args:
        path: The file of frames; that of the lines lies beside it.

    Yields:
        Structures with the adsorption energy, eV, forces, eV/Å, tags (0 below the surface, 1
        surface, 2 adsorbate) and fixed atoms as constraints. In `info`: ``system``, ``frame``,
        their numbers ``sid`` and ``fid`` as OC20's own LMDB files have them,
        ``total_energy`` and ``reference_energy``, eV.

    Raises:
        InputError: If the two files do not belong together, or a line is broken.
    """
    beside = companion(path)
    lines = _lines(beside)
    count = 0
    with closing(lines), open_text(path) as stream:
        for count, frame in enumerate(split_frames(stream, most_characters(path)), 1):
            line = next(lines, None)
            if line is None:
                raise InputError(
                    f"has no line in {beside.name}, which ends after {count - 1}; expected "
                    f"the line '{_LINE}' for each frame"
                )
            yield attempt(_labelled, frame, line, f"{beside.name}:{count}")
        more = sum(1 for _ in itertools.islice(lines, _COUNTED))
    if more:
        raise InputError(
            f"is missing: {beside.name} has {count + more} lines for {count} frames, expected "
            "one for each; is the file of frames complete?"
        )


def is_official(path: Path) -> bool:
    """Whether a companion in OC20's own layout lies beside a file of frames.

    Of one whose first lines are all others, the frames tell: OC20's have tags and a mask.
    """
    try:
        beside = companion(path)
    except InputError:
        return False
    try:
        with open_text(beside) as stream:
            lines = (stream.readline(1000) for _ in range(_BEGINNING))
            if any(_OFFICIAL.match(line) for line in lines):
                return True
    except Exception:  # damaged, of which the reader tells
        return True
    try:
        with open_text(path) as stream:
            read_line(stream)
            return {"tags", "move_mask"} <= set(re.split(r"[:=\s\"]", read_line(stream)))
    except Exception:  # of which that of plain frames tells
        return False


def why_not_official(path: Path) -> str:
    """What is wrong with a file of frames that `is_official` is false of, after its name."""
    try:
        return f"has a {companion(path).name} beside it that begins with no line '{_LINE}'"
    except InputError as error:
        return str(error)


def _lines(path: Path) -> Iterator[str]:
    try:
        with open_text(path) as stream:
            while line := read_line(stream):
                yield line.rstrip("\n")
    # Broken archives and bytes fail in many ways.
    except Exception as error:
        raise BrokenFileError(
            f"cannot be read: its companion {path.name} is damaged ({error}), expected lines "
            f"of '{_LINE}'"
        ) from error


def _labelled(text: list[str], line: str, where: str) -> ase.Atoms:
    atoms = parse_frame(text)
    system, frame, reference = _fields(line, where)
    results = dict(atoms.calc.results) if atoms.calc is not None else {}
    if "energy" not in results:
        raise InputError("has no energy, expected energy=... in its comment line")
    total = float(results["energy"])
    atoms.calc = SinglePointCalculator(atoms, **results | {"energy": total - reference})
    atoms.info = {
        "system": system,
        "frame": frame,
        **_number("sid", system),
        **_number("fid", frame),
        "total_energy": total,
        "reference_energy": reference,
    }
    return atoms


def _fields(line: str, where: str) -> tuple[str, str, float]:
    words = [word.strip() for word in line.split(",")]
    try:
        system, frame, number = words
        reference = float(number)
    except ValueError:
        reference = math.nan
    if not math.isfinite(reference):
        raise InputError(f"has the line {line!r:.60} ({where}), expected '{_LINE}'")
    return system, frame, reference


def _number(key: str, name: str) -> dict[str, int]:
    """The number at the end of a name, if there is one."""
    digits = re.search(r"\d{1,18}$", name)
    return {key: int(digits.group())} if digits else {}


def _companions(path: Path) -> tuple[Path, ...]:
    try:
        return (companion(path),)
    except InputError:  # reading tells, and may skip the file
        return ()


READER = Reader(read_s2ef, (".extxyz.xz", ".extxyz", ".extxyz.gz"), _companions)
