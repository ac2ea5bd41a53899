"""`ewald-jax predict`: energies, forces and stress of structures, into a file."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import ase
import jax
import numpy as np
import typer
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from ewald_jax.cli.common import (
    AsJson,
    BatchSize,
    Checkpoint,
    Progress,
    Which,
    command,
    note,
    print_json,
    progress_bar,
)
from ewald_jax.cli.sources import check_known
from ewald_jax.data.ase_files import ASE_READERS
from ewald_jax.data.reading import Reader, iterate
from ewald_jax.data.text_files import COMPRESSED
from ewald_jax.typing import InputError

# Text formats beside those of `data.ase_files`. Not every format of ASE: some of its readers
# load pickles, which run code.
MORE_FORMATS = (
    "cif",
    "vasp",
    "proteindatabank",
    "sdf",
    "mol",
    "xsf",
    "gen",
    "json",
    "aims",
)

# What depends on the energy: a file must not mix two methods.
REPLACED = ("energy", "free_energy", "energies", "forces", "stress", "stresses", "virial")
REPLACED += ("energy_std", "forces_std")


@command
def predict(
    checkpoint: Checkpoint,
    structures: Annotated[
        Path,
        typer.Argument(help=f"Extended xyz, .traj, .db, or {', '.join(MORE_FORMATS)}."),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", help="Extended xyz to write, .xz and .gz compress."),
    ],
    stress: Annotated[bool, typer.Option("--stress", help="Also predict stress.")] = False,
    forces: Annotated[bool, typer.Option(help="Predict forces.")] = True,
    which: Which = "best",
    batch_size: BatchSize = 16,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT.")] = False,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Predict energies, forces and stress, and write them into an extended xyz file.

    Units are eV, eV/Å and eV/Å^3. Energies, forces and stresses that the file had are left
    out, everything else is kept that extended xyz can hold, charges and dipoles among it.
    Nothing is written unless every structure has been predicted.

    Of an ensemble, they are means over its members; the standard deviations are beside them,
    energy_std of each structure and forces_std (three columns) of each atom.
    """
    if not output.name.lower().endswith(ASE_READERS["extxyz"].suffixes):
        known = ", ".join(ASE_READERS["extxyz"].suffixes)
        raise InputError(f"{output} would be extended xyz, expected a name with {known}")
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists; use --overwrite to replace it")
    if not output.parent.is_dir():
        raise InputError(f"there is no folder {output.parent} to write {output.name} into")
    if not structures.is_file():
        raise InputError(f"there is no file of structures {structures}")

    from ewald_jax.train.checkpoint import load_checkpoint
    from ewald_jax.train.description import members_of

    model, params, saved, statistics = load_checkpoint(checkpoint, which)
    ensemble = members_of(saved) > 1
    frames = read_frames(structures)
    options = {"forces": forces, "stress": stress}
    predicted = _predictions(
        model, params, statistics, frames, structures, batch_size, ensemble, options
    )
    # A name of this process: two runs at once must not write into one file.
    temporary = output.with_name(f".{output.name}.{os.getpid()}.unfinished")
    try:
        opener = COMPRESSED.get(output.suffix.lower(), open)
        count = _write(temporary, opener, predicted, progress)
        os.replace(temporary, output)
    except KeyboardInterrupt:
        kept = "as it was" if output.exists() else "not written"
        raise KeyboardInterrupt(f"interrupted; {output} is {kept}") from None
    except OSError as error:
        if error.errno is None:
            raise
        raise InputError(
            f"{output}: {os.strerror(error.errno)}, nothing written"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    if as_json:
        print_json({"output": str(output), "structures": count})
    else:
        note(f"{count} structures predicted, written to {output}")


def read_frames(path: Path) -> Iterator[ase.Atoms]:
    """The structures of a file, one after the other, without looking at labels.

    Raises:
        InputError: If the file is of an unknown kind or broken, naming the structure.
    """
    from ase.io import iread
    from ase.io.formats import UnknownFileTypeError, filetype

    name = path.name.lower()
    for reader in ASE_READERS.values():
        if name.endswith(reader.suffixes):
            return iterate(path, reader)
    try:
        kind = filetype(str(path))
    except UnknownFileTypeError:
        kind = ""
    if kind not in MORE_FORMATS:
        known = [suffix for reader in ASE_READERS.values() for suffix in reader.suffixes]
        raise InputError(
            f"{path}: unknown kind of file, expected {', '.join(known)} or one of the "
            f"formats {', '.join(MORE_FORMATS)}"
        )
    return iterate(path, Reader(lambda path: iread(path, format=kind), (f".{kind}",)))


def _predictions(
    model, params, statistics, frames, source, batch_size, ensemble, options
) -> Iterator[ase.Atoms]:
    """Each structure with the prediction as its calculator's results."""
    from ewald_jax.ensemble import predict_ensemble
    from ewald_jax.graph import batch_graphs, coarse_budget
    from ewald_jax.models import neighborhood
    from ewald_jax.potential import predict as predict_one

    needed = neighborhood(model)
    for start in itertools.count(0, batch_size):
        chunk = list(itertools.islice(frames, batch_size))
        if not chunk:
            return
        built = [
            _structure(model, statistics, atoms, f"{source}: structure {number}")
            for number, atoms in enumerate(chunk, start)
        ]
        budget = coarse_budget(built, batch_size, needed.triplets)
        batch = batch_graphs(built, budget=budget, neighborhood=needed)
        predict_batch = predict_ensemble if ensemble else predict_one
        out = predict_batch(model, params, batch, statistics, **options)
        ends = np.cumsum([len(atoms) for atoms in chunk])
        for number, (atoms, end) in enumerate(zip(chunk, ends, strict=True)):
            results = {"energy": float(out.energy[number])}
            own = slice(end - len(atoms), end)
            if out.forces is not None:
                results["forces"] = np.asarray(out.forces[own])
            if out.stress is not None and atoms.pbc.any():
                results["stress"] = full_3x3_to_voigt_6_stress(out.stress[number])
            _check_finite(results, f"{source}: structure {start + number}")
            predicted = _labelled(atoms, results)
            if ensemble:
                predicted.info["energy_std"] = float(out.energy_std[number])
            if ensemble and out.forces_std is not None:
                predicted.set_array("forces_std", np.asarray(out.forces_std[own]))
            yield predicted


def _structure(model, statistics, atoms: ase.Atoms, where: str):
    """The edges of a structure that the model was trained for."""
    from ewald_jax.graph import structure_from_atoms
    from ewald_jax.models import neighborhood

    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    try:
        structure = structure_from_atoms(atoms, neighborhood(model), dtype)
    except InputError as error:
        raise InputError(f"{where} {error}") from None
    check_known(model, statistics, atoms.numbers, atoms.pbc, where)
    return structure


def _write(path: Path, opener, structures: Iterator[ase.Atoms], progress: bool) -> int:
    from ase.io import write

    count = 0
    shown = progress_bar("structures", progress)
    with shown as advance, opener(path, "wt", encoding="utf-8") as file:
        for count, atoms in enumerate(structures, 1):
            write(file, atoms, format="extxyz")
            advance(count, None)
    return count


def _labelled(atoms: ase.Atoms, results: dict) -> ase.Atoms:
    out = atoms.copy()
    for key in REPLACED:
        out.info.pop(key, None)
        out.arrays.pop(key, None)
    out.calc = SinglePointCalculator(out, **results)
    for key, value in (atoms.calc.results if atoms.calc is not None else {}).items():
        # ASE refuses to write a result that is also a column or a key of the comment.
        if not (key in REPLACED or key in out.info or key in out.arrays):
            out.calc.results[key] = value
    return out


def _check_finite(results: dict, where: str) -> None:
    for name, value in results.items():
        if not np.isfinite(value).all():
            raise InputError(f"{where}: the predicted {name} is not finite")
