"""Public data sets as the files that ``configs/data/{sapt10k,oc20_*,qm7x}.yaml`` name.

    python experiments/prepare.py FOLDER

FOLDER holds any of ``sapt10k/dimers.extxyz.xz`` (8,948 dimers with SAPT interaction energies,
as shipped with general-molecular-simulations/so3lr, MIT), ``oc20_s2ef/{train,val_id}`` (frames
of Open Catalyst 2020 in its raw S2EF layout, CC BY 4.0; both) and QM7-X. Written into
``runs/data`` are ``sapt10k_{train,val,test}.extxyz``, split by a seed,
``sapt10k_charged.extxyz`` with those test dimers that have a charged monomer (each dimer also
with ``interaction_less_disp``, its energy less the dispersion component), and
``oc20_frames.extxyz``: of OC20 every STRIDE-th frame with the energy less the reference of its
system, and the system's name to split by; the same frames as
``oc20_known_{train,val,test}.extxyz``, systems apart, but without elements in the latter two
that the first has not. Where FOLDER has ``qm7x_2500.npz`` (ten conformations of each of 250
molecules of QM7-X, as shipped with thorben-frank/mlff, MIT), it is written with an array
``molecule`` to split by.
"""

import io
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import ase.io
import numpy as np
import typer

from ewald_jax.cli.common import command, note
from ewald_jax.typing import InputError

SAPT = "sapt10k/dimers.extxyz.xz"
QM7X = "qm7x_2500.npz"
LESS_DISP = "interaction_less_disp"
OC20 = ("oc20_s2ef/train", "oc20_s2ef/val_id")


def write_sapt10k(source: Path, folder: Path, seed: int = 0) -> dict[str, int]:
    """Splits the dimers by a seed; returns the number of each file."""
    with lzma.open(source, "rt") as text:
        frames = ase.io.read(io.StringIO(text.read()), ":", format="extxyz")
    for atoms in frames:
        # To the digits of the data: what is left needs no dispersion to be learned.
        left = atoms.info["interaction_energy"] - atoms.info["disp"]
        atoms.info[LESS_DISP] = round(left, 8)
    order = np.random.default_rng(seed).permutation(len(frames))
    test, val = order[:1000], order[1000:1500]
    charged = [i for i in test if frames[i].info["charge_a"] or frames[i].info["charge_b"]]
    parts = {"train": order[1500:], "val": val, "test": test, "charged": charged}
    for name, indices in parts.items():
        chosen = [frames[i] for i in indices]
        ase.io.write(folder / f"sapt10k_{name}.extxyz", chosen, format="extxyz")
    return {name: len(indices) for name, indices in parts.items()}


def write_qm7x(source: Path, folder: Path) -> None:
    """Adds the number of the molecule, of which ten conformations follow each other.

    Raises:
        InputError: If ten structures that follow each other are not of the same atoms.
    """
    with np.load(source, allow_pickle=False) as file:
        arrays = dict(file)
    numbers = np.sort(arrays["z"], axis=1)
    molecule = np.arange(len(numbers)) // 10
    if not np.array_equal(numbers, numbers[10 * molecule]):
        raise InputError(f"{source}: expected ten conformations of each molecule in a row")
    np.savez_compressed(folder / "qm7x_2500.npz", molecule=molecule, **arrays)


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


def known_split(frames: Sequence[ase.Atoms], seed: int = 4) -> dict[str, list[ase.Atoms]]:
    """Frames with systems apart, a fifth for testing and a tenth for validation.

    Systems are drawn by a seed (the first that leaves two for validation); one whose elements
    would be missing in training stays there.
    """
    elements: dict[str, set[int]] = {}
    for atoms in frames:
        elements.setdefault(atoms.info["system"], set()).update(map(int, atoms.numbers))
    names = sorted(elements)
    order = [names[place] for place in np.random.default_rng(seed).permutation(len(names))]
    parts: dict[str, list[str]] = {"test": [], "val": []}
    train, apart = set(names), set()
    for part, share in (("test", 0.2), ("val", 0.1)):
        for name in order:
            if name not in train or len(parts[part]) >= round(share * len(names)):
                continue
            left = set().union(*(elements[other] for other in train - {name}))
            if apart | elements[name] <= left:
                parts[part].append(name)
                train.remove(name)
                apart |= elements[name]
    sets = {"train": sorted(train), **parts}
    return {k: [a for a in frames if a.info["system"] in v] for k, v in sets.items()}


def sizes(frames: Sequence[ase.Atoms]) -> str:
    """Mean sizes of energies (eV) and force components: the mean errors of predicting zero."""
    if not frames:
        return "none"
    energy = np.mean([abs(atoms.info["energy"]) for atoms in frames])
    forces = np.mean(np.abs(np.concatenate([atoms.arrays["forces"] for atoms in frames])))
    return f"energies of {1e3 * energy:.0f} meV, forces of {1e3 * forces:.1f} meV/Å"


@command
def main(
    folder: Annotated[Path, typer.Argument(help="Where the data sets are.")],
    output: Annotated[Path, typer.Option(help="Where the files go.")] = Path("runs/data"),
    stride: Annotated[int, typer.Option(min=1, help="Of OC20, every so many frames.")] = 4,
) -> None:
    """Write the files of those sets that are in FOLDER."""
    written = []
    output.mkdir(parents=True, exist_ok=True)
    if (folder / SAPT).exists():
        written.append(f"sapt10k {write_sapt10k(folder / SAPT, output)}")
    there = [(folder / path).exists() for path in OC20]
    if any(there) and not all(there):
        raise InputError(f"{folder / OC20[there.index(False)]} is not there")
    if all(there):
        frames = [atoms for path in OC20 for atoms in oc20_frames(folder / path, stride)]
        ase.io.write(output / "oc20_frames.extxyz", frames, format="extxyz")
        written.append(f"oc20_frames {len(frames)}")
        for name, part in known_split(frames).items():
            ase.io.write(output / f"oc20_known_{name}.extxyz", part, format="extxyz")
            written.append(f"oc20_known_{name} {len(part)} ({sizes(part)})")
    if (folder / QM7X).exists():
        write_qm7x(folder / QM7X, output)
        written.append("qm7x")
    if not written:
        raise InputError(f"{folder} has neither {SAPT} nor {' and '.join(OC20)} nor {QM7X}")
    note(f"in {output}: {', '.join(written)}")


if __name__ == "__main__":
    typer.run(main)
