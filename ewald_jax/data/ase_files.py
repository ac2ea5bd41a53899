"""Readers of the files that ASE knows: extended xyz (.xz, .gz too), .traj and .db.

None of them runs code from a file: extended xyz is text, a trajectory is JSON and raw
arrays, a database is SQLite with JSON and raw arrays.
"""

import itertools
from pathlib import Path

import ase
from ase.io.formats import string2index

from ewald_jax.data.ase_databases import read_database, read_trajectory
from ewald_jax.data.extxyz import read_extxyz
from ewald_jax.data.labels import LabelOptions, standardise
from ewald_jax.data.reading import Reader, iterate, kind_of
from ewald_jax.typing import InputError

ASE_READERS: dict[str, Reader] = {
    "extxyz": Reader(
        read_extxyz, (".xyz", ".extxyz", ".xyz.xz", ".extxyz.xz", ".xyz.gz", ".extxyz.gz")
    ),
    "traj": Reader(read_trajectory, (".traj",)),
    "db": Reader(read_database, (".db",)),
}


def read_structures(
    path: str | Path,
    energy_key: str = "energy",
    forces_key: str = "forces",
    stress_key: str = "stress",
    labels: tuple[str, ...] | None = None,
    index: str | int | slice = ":",
    energy_unit: str = "eV",
    length_unit: str = "Angstrom",
) -> list[ase.Atoms]:
    """Reads structures with labels in a `SinglePointCalculator`, in eV and Å.

    Args:
        path: An extended xyz file (.xyz, .extxyz, also .xz and .gz), .traj or .db.
        energy_key: Key of the energy.
        forces_key: Key of the forces.
        stress_key: Key of the stress.
        labels: Labels that all structures must have, () to read none. None asks for the
            energy, and takes forces and stress where the first structure has them.
        index: ASE's way to choose structures: a number, a slice or a text such as ``":10"``.
        energy_unit: Unit of energies.
        length_unit: Unit of lengths.

    Returns:
        The structures. Other scalars of the file are in `info`, fixed atoms in constraints.

    Raises:
        InputError: If the file or a structure of it is broken, or labels are missing.
    """
    path = Path(path)
    options = LabelOptions(
        energy_key, forces_key, stress_key, labels, energy_unit, length_unit
    )
    reader = ASE_READERS[kind_of(path, ASE_READERS)]
    wanted = string2index(index) if isinstance(index, str) else index
    chosen = wanted if isinstance(wanted, slice) else slice(wanted, wanted + 1 or None)
    frames = standardise(iterate(path, reader), path, options)
    bounds = (chosen.start, chosen.stop, chosen.step)
    if all(bound is None or bound >= 0 for bound in bounds):
        structures = list(itertools.islice(frames, *bounds))
    else:
        structures = list(frames)[chosen]
    if not structures:
        raise InputError(f"{path} has no structure {index!r}, expected at least one")
    return structures
