"""Labels of a structure, wherever a file keeps them, brought to one place and one unit.

Every reader yields `ase.Atoms` as it found them; `standardise` turns them into `ase.Atoms`
whose labels are in a `SinglePointCalculator` (eV, eV/Å, eV/Å^3, Voigt stress: ASE's own
convention) and whose `info` holds plain metadata. Nothing downstream looks anywhere else.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from ewald_jax.data.dispersion import (
    load_dispersion,
    parse_dispersion,
    without_dispersion,
)
from ewald_jax.data.file_units import unit_factor
from ewald_jax.data.structure_info import check_metadata
from ewald_jax.graph.build import check_atoms
from ewald_jax.graph.schema import ENERGY, FORCES, FREE, STRESS
from ewald_jax.typing import InputError

LABELS = (ENERGY, FORCES, STRESS)

USE_LABELS = "data.labels with the labels to use"
"""How the sentence about a structure ends that has other labels than those before it."""

LEFT_OUT = "_left_out"
"""Key in `info` of what a reader could not use: sentences by the key of each."""


class LabelMissingError(InputError):
    """The first structure lacks a label."""


class LabelOptions(NamedTuple):
    """Which labels to read, under which keys and in which units.

    Attributes:
        energy_key: Key of the energy, in `info`, in the calculator's results or in a column.
        forces_key: Key of the forces.
        stress_key: Key of the stress: 3x3, 9 numbers, or 6 in Voigt order.
        labels: Labels that every structure must have; others are ignored. None asks for the
            energy, and takes forces and stress where the first structure has them.
        energy_unit: Unit of energies, such as ``eV``, ``kcal/mol`` or ``Hartree``.
        length_unit: Unit of lengths, such as ``Angstrom`` or ``Bohr``.
        on_error: ``raise`` stops at a broken structure, ``skip`` leaves it out.
        subtract: Dispersion to take off the labels, such as ``PBE0-D3(BJ)``; "" for none.
    """

    energy_key: str = "energy"
    forces_key: str = "forces"
    stress_key: str = "stress"
    labels: tuple[str, ...] | None = None
    energy_unit: str = "eV"
    length_unit: str = "Angstrom"
    on_error: str = "raise"
    subtract: str = ""

    def key(self, label: str) -> str:
        """The key in the file of a label."""
        return {
            ENERGY: self.energy_key,
            FORCES: self.forces_key,
            STRESS: self.stress_key,
        }[label]


def standardise(
    frames: Iterable[ase.Atoms | None],
    source: str | Path,
    options: LabelOptions,
    skipped: dict[int, str] | None = None,
    start: int = 0,
    decided: tuple[str, ...] | None = None,
) -> Iterator[ase.Atoms | None]:
    """Yields each structure with its labels in a `SinglePointCalculator`, in eV and Å.

    Args:
        frames: Structures as a reader found them, None for those that were skipped.
        source: The file, for error messages.
        options: What to read.
        skipped: If given, takes the sentences about broken structures, by their number; None
            is yielded in their place.
        start: Number of the first of these structures.
        decided: Labels of the structures before them, if there are some.

    Raises:
        InputError: If a label is missing, only on some structures, not finite or of the
            wrong shape, if a unit or label name is unknown, or dispersion has no value.
    """
    unknown = set(options.labels or ()) - set(LABELS)
    if unknown:
        raise InputError(f"unknown label {min(unknown)!r}, expected {', '.join(LABELS)}")
    energy = unit_factor(options.energy_unit, "energy")
    length = unit_factor(options.length_unit, "length")
    dispersion = parse_dispersion(options.subtract) if options.subtract else None
    if dispersion and options.labels != ():
        load_dispersion(dispersion)
    factors = {ENERGY: energy, FORCES: energy / length, STRESS: energy / length**3}
    wanted: tuple[str, ...] | None = options.labels if decided is None else decided
    first = decided is None
    for index, atoms in enumerate(frames, start):
        labelled = None
        try:
            if atoms is not None:
                where = f"{source}: structure {index}"
                found, chosen = _labels(atoms, wanted, first, where, options)
                results = {
                    name: _convert(name, found[name], len(atoms), where, options.key(name))
                    * factors[name]
                    for name in chosen
                }
                out = _with_results(atoms, results, length, options)
                labelled = without_dispersion(out, dispersion, where) if dispersion else out
                # Only a structure that is whole decides what the others must have.
                wanted, first = chosen, False
        except InputError as error:
            if skipped is None:
                raise
            skipped[index] = str(error)
        yield labelled


def _labels(
    atoms: ase.Atoms,
    wanted: tuple[str, ...] | None,
    first: bool,
    where: str,
    options: LabelOptions,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Raw labels of a structure, and which of them are wanted."""
    try:
        check_atoms(atoms)
        check_metadata(atoms)
    except InputError as error:
        raise InputError(f"{where} {error}") from error
    found = {name: _find(atoms, options.key(name)) for name in LABELS}
    if wanted is None:
        # Only the energy is compulsory; what else the first structure has, all must.
        wanted = tuple(n for n in LABELS if n == ENERGY or found[n] is not None)
    _check_complete(atoms, found, wanted, first, where, options)
    return found, wanted


def structure_targets(atoms: ase.Atoms) -> dict[str, np.ndarray]:
    """The labels of a standardised structure, in the layout of `graph.schema`.

    Returns:
        ``energy`` [], ``forces`` [n, 3], ``stress`` [3, 3], as far as they are there, all
        float64, and always ``free`` [n] bool: the atoms that no constraint holds fixed.
    """
    results = atoms.calc.results if atoms.calc is not None else {}
    targets = {name: np.asarray(results[name]) for name in LABELS if name in results}
    if STRESS in targets and targets[STRESS].shape != (3, 3):
        targets[STRESS] = voigt_6_to_full_3x3_stress(targets[STRESS])
    return {**targets, FREE: free_atoms(atoms)}


def free_atoms(atoms: ase.Atoms) -> np.ndarray:
    """[n] bool: False for atoms that are fixed in all three directions."""
    free = np.ones(len(atoms), bool)
    for constraint in atoms.constraints:
        whole = isinstance(constraint, FixCartesian) and np.all(constraint.mask)
        if isinstance(constraint, FixAtoms) or whole:
            free[constraint.get_indices()] = False
    return free


def keys_for(label: str, atoms: ase.Atoms) -> list[str]:
    """Keys under which a structure has numbers of a label's shape, sorted."""
    results = atoms.calc.results if atoms.calc is not None else {}
    columns = {k: v for k, v in atoms.arrays.items() if k not in ("numbers", "positions")}
    shapes, _ = _expected(label, len(atoms))
    return sorted(
        str(key)
        for key, value in {**columns, **atoms.info, **results}.items()
        if _numeric_shape(value) in shapes
    )


def _numeric_shape(value: Any) -> tuple[int, ...] | None:
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unequal length
        return None
    return array.shape if array.dtype.kind in "iuf" else None


def _find(atoms: ase.Atoms, key: str) -> Any:
    results: Mapping[str, Any] = atoms.calc.results if atoms.calc is not None else {}
    for place in (results, atoms.info, atoms.arrays):
        if place.get(key) is not None:
            return place[key]
    return None


def _check_complete(
    atoms: ase.Atoms,
    found: Mapping[str, Any],
    wanted: tuple[str, ...],
    first: bool,
    where: str,
    options: LabelOptions,
) -> None:
    """Every wanted label must be there; by default, no structure may have more or fewer."""
    for name in LABELS:
        key = options.key(name)
        has, needed = found[name] is not None, name in wanted
        unread = None if has else atoms.info.get(LEFT_OUT, {}).get(key)
        if unread and (needed or options.labels is None):
            raise InputError(f"{where} has no {name}: {unread}")
        if has == needed or (has and options.labels is not None):
            continue
        if first or options.labels is not None:
            present = ", ".join(map(repr, keys_for(name, atoms)))
            advice = (
                f"it has {present}; expected data.{name}_key to be one of them"
                if present
                else f"and nothing else that could be one; expected structures with {name}"
            )
            advice = "; ".join((advice, *atoms.info.get(LEFT_OUT, {}).values()))
            kind = LabelMissingError if first else InputError
            raise kind(f"{where} has no {name} under the key {key!r}, {advice}")
        raise InputError(
            f"{where} has {'a' if has else 'no'} label {name} (key {key!r}), but the "
            f"structures before it have {'none' if has else 'one'}; expected it on all or "
            f"on none, or {USE_LABELS}"
        )


def _expected(name: str, n: int) -> tuple[tuple[tuple[int, ...], ...], str]:
    """Shapes that a label of `n` atoms may have, and in words."""
    return {
        ENERGY: (((), (1,)), "one number"),
        FORCES: (((n, 3),), f"three numbers for each of its {n} atoms"),
        STRESS: (((3, 3), (9,), (6,)), "a 3x3 matrix, or 6 numbers in Voigt order"),
    }[name]


def _convert(name: str, value: Any, n: int, where: str, key: str) -> np.ndarray:
    """The label as float64 of its proper shape, in the file's unit."""
    shapes, expected = _expected(name, n)
    if np.asarray(value).dtype.kind not in "iuf":
        raise InputError(f"{where}: {name} {key!r} is {value!r:.40}, expected {expected}")
    array = np.asarray(value, np.float64)
    if array.shape not in shapes:
        raise InputError(
            f"{where}: {name} {key!r} has the shape {array.shape}, expected {expected}"
        )
    if not np.isfinite(array).all():
        first = np.argwhere(~np.isfinite(array))[0]
        place = f" at atom {first[0]}" if name == FORCES else ""
        raise InputError(
            f"{where}: {name} {key!r} is NaN or infinite{place}, expected finite numbers"
        )
    if name == STRESS:
        if array.size == 6:
            return voigt_6_to_full_3x3_stress(array)
        array = array.reshape(3, 3)
        return 0.5 * (array + array.T)
    return array.reshape(shapes[0])


def _with_results(
    atoms: ase.Atoms, results: dict[str, np.ndarray], length: float, options: LabelOptions
) -> ase.Atoms:
    out = atoms.copy()
    out.info.pop(LEFT_OUT, None)
    for label in LABELS:
        out.info.pop(options.key(label), None)
        if options.key(label) not in ("numbers", "positions"):
            out.arrays.pop(options.key(label), None)
    if length != 1.0:
        out.positions *= length
        out.cell[:] *= length
    if results:
        plain: dict[str, Any] = dict(results)
        if ENERGY in plain:
            plain[ENERGY] = float(plain[ENERGY])
        if STRESS in plain:
            plain[STRESS] = full_3x3_to_voigt_6_stress(plain[STRESS])
        out.calc = SinglePointCalculator(out, **plain)
    return out
