"""Two public data sets as the files that ``configs/data/{sapt10k,oc20_frames}.yaml`` name.

    python experiments/prepare.py FOLDER

FOLDER holds ``sapt10k/dimers.extxyz.xz`` (8,948 dimers with SAPT interaction energies, as
shipped with general-molecular-simulations/so3lr, MIT) and ``oc20_s2ef/{train,val_id}`` (frames
of Open Catalyst 2020 in its raw S2EF layout, CC BY 4.0). Written are
``runs/data/sapt10k.extxyz`` and ``runs/data/oc20_frames.extxyz``: of OC20 every STRIDE-th frame
with the energy less the reference of its system, and the system's name to split by.
"""

import io
import lzma
import shutil
from pathlib import Path
from typing import Annotated

import ase.io
import typer

from ewald_jax.cli.common import command, note
from ewald_jax.typing import InputError

SAPT = "sapt10k/dimers.extxyz.xz"
OC20 = ("oc20_s2ef/train", "oc20_s2ef/val_id")


def write_sapt10k(source: Path, target: Path) -> None:
    """Unpacks the dimers, as they are."""
    with lzma.open(source, "rb") as packed, open(target, "wb") as file:
        shutil.copyfileobj(packed, file)


def oc20_frames(folder: Path, stride: int) -> list[ase.Atoms]:
    """Every `stride`-th frame of a folder of OC20 files, with system and adsorption energy.

    Raises:
        InputError: If a frame has no line beside it.
    """
    frames = []
    for path in sorted(folder.glob("*.extxyz.xz"), key=lambda p: int(p.name.split(".")[0])):
        companion = path.with_name(path.name.replace(".extxyz.", ".txt."))
        with lzma.open(companion, "rt") as lines:
            rows = [line.strip().split(",") for line in lines if line.strip()]
        with lzma.open(path, "rt") as text:
            # Read at once: the reader of frames goes back and forth in the file.
            read = ase.io.read(io.StringIO(text.read()), ":", format="extxyz")
        if len(rows) != len(read):
            raise InputError(
                f"{companion} has {len(rows)} lines, expected {len(read)}, one for each frame"
            )
        for atoms, (system, _, reference) in list(zip(read, rows, strict=True))[::stride]:
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            atoms.calc = None
            atoms.info = {"system": system, "energy": energy - float(reference)}
            # Only what the study needs; fixed atoms count as all others.
            kept = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
            kept.info, kept.arrays["forces"] = atoms.info, forces
            frames.append(kept)
    return frames


@command
def main(
    folder: Annotated[Path, typer.Argument(help="Where the data sets are.")],
    output: Annotated[Path, typer.Option(help="Where the files go.")] = Path("runs/data"),
    stride: Annotated[int, typer.Option(min=1, help="Of OC20, every so many frames.")] = 4,
) -> None:
    """Write both files."""
    for path in (SAPT, *OC20):
        if not (folder / path).exists():
            raise InputError(f"{folder / path} is not there; see the top of this script")
    output.mkdir(parents=True, exist_ok=True)
    write_sapt10k(folder / SAPT, output / "sapt10k.extxyz")
    frames = [atoms for path in OC20 for atoms in oc20_frames(folder / path, stride)]
    ase.io.write(output / "oc20_frames.extxyz", frames, format="extxyz")
    note(f"{output}/sapt10k.extxyz and oc20_frames.extxyz with {len(frames)} frames")


if __name__ == "__main__":
    typer.run(main)
