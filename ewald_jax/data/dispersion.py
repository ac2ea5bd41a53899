"""DFT-D3 taken off the labels: what is left needs no dispersion to be learned.

This is the "cheating" baseline of the paper. The package dftd3, Grimme's group's own code,
belongs to the optional extra `samples` and is imported on first use.
"""

import re
from typing import Any, NamedTuple

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress
from ase.units import Bohr, Hartree

from ewald_jax.graph.schema import ENERGY, FORCES, STRESS
from ewald_jax.typing import InputError

_NAME = re.compile(r"(?P<functional>.+)-d3\((?P<damping>bj|zero)\)(?P<atm>-atm)?", re.I)
_REACH = {"disp2": 60.0, "disp3": 40.0, "cn": 30.0}
"""Cutoffs of dftd3 and dftd4 for pairs, triples and coordination numbers, Bohr."""

_HEAVIEST = 94
"""The last element with reference data of DFT-D3; beyond, dftd3 gives zeros or crashes."""


class Dispersion(NamedTuple):
    """A dispersion correction.

    Attributes:
        functional: Density functional whose parameters to take, such as ``pbe0``.
        damping: ``bj`` or ``zero``.
        atm: With the three-body term of Axilrod, Teller and Muto.
    """

    functional: str
    damping: str
    atm: bool


def parse_dispersion(name: str) -> Dispersion:
    """A correction by its usual name, such as ``PBE0-D3(BJ)`` or ``PBE-D3(zero)-ATM``.

    Raises:
        InputError: If it is not of that form.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(
            f"data.subtract is {name!r}, expected a functional with D3(BJ) or D3(zero), such "
            "as PBE0-D3(BJ), or PBE0-D3(BJ)-ATM with the three-body term"
        )
    functional, damping, atm = match.groups()
    return Dispersion(functional.lower(), damping.lower(), atm is not None)


def load_dispersion(
    dispersion: Dispersion, asked: str = "data.subtract"
) -> tuple[Any, Any]:
    """The module `dftd3.interface`, and the parameters of a correction as it takes them.

    Args:
        dispersion: Which correction.
        asked: What needs it, for messages.

    Raises:
        InputError: If dftd3 is not installed, or does not know the functional.
    """
    try:
        import dftd3.interface as interface
    except ImportError as error:
        raise InputError(
            f"{asked} needs dftd3, which is not installed: pip install -e '.[samples]' "
            "in a checkout, or pip install dftd3"
        ) from error
    kinds = {"bj": interface.RationalDampingParam, "zero": interface.ZeroDampingParam}
    try:
        # Versions of dftd3 disagree about the three-body term where it is not asked for.
        parameters = kinds[dispersion.damping](
            method=dispersion.functional, atm=dispersion.atm
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(
            f"{asked}: dftd3 has no D3({dispersion.damping}) of {dispersion.functional!r} "
            f"({reason(error)}), expected a functional that it knows"
        ) from error
    return interface, parameters


def dispersion_labels(
    atoms: ase.Atoms,
    dispersion: Dispersion,
    derivatives: bool = True,
    within: float | None = None,
) -> dict[str, np.ndarray]:
    """Energy [], eV, forces [n, 3], eV/Å, and stress [3, 3], eV/Å^3, of DFT-D3.

    Args:
        atoms: Molecule or crystal.
        dispersion: Which correction.
        derivatives: Forces too, and stress where a direction is periodic and the cell whole.
        within: Å; count only pairs up to this distance, and triples of such pairs. None counts
            them up to dftd3's own cutoffs, which are the most in any case.

    Raises:
        InputError: As `load_dispersion`; or if dftd3 fails, to be read after the name of the
            structure.
    """
    interface, parameters = load_dispersion(dispersion)
    check_heaviest(atoms, _HEAVIEST, "DFT-D3")
    try:
        model = interface.DispersionModel(**geometry(atoms))
        if within is not None:
            reach_only(model, within)
        found = model.get_dispersion(parameters, grad=derivatives)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(
            f"has no DFT-D3 energy ({reason(error)}), expected atoms apart"
        ) from error
    labels = {ENERGY: np.asarray(found["energy"], np.float64) * Hartree}
    if derivatives:
        labels[FORCES] = -found["gradient"] * (Hartree / Bohr)
        if atoms.pbc.any() and atoms.cell.rank == 3:
            labels[STRESS] = found["virial"] * Hartree / atoms.cell.volume
    if not all(np.isfinite(label).all() for label in labels.values()):
        raise InputError("has a DFT-D3 energy that is not finite, expected atoms apart")
    return labels


def without_dispersion(atoms: ase.Atoms, dispersion: Dispersion, where: str) -> ase.Atoms:
    """The structure with labels (in its calculator, eV and Å) less those of DFT-D3.

    Args:
        atoms: A standardised structure.
        dispersion: Which correction.
        where: What to call the structure in a message.

    Raises:
        InputError: As `dispersion_labels`.
    """
    results = dict(atoms.calc.results) if atoms.calc is not None else {}
    if not results:
        return atoms
    try:
        theirs = dispersion_labels(
            atoms, dispersion, derivatives=bool(set(results) - {ENERGY})
        )
    except InputError as error:
        raise InputError(f"{where} {error}") from error
    if ENERGY in results:
        results[ENERGY] = float(results[ENERGY] - theirs[ENERGY])
    if FORCES in results:
        results[FORCES] = results[FORCES] - theirs[FORCES]
    if STRESS in results:
        if STRESS not in theirs:
            raise InputError(
                f"{where} has a stress, expected a periodic cell to compute that of DFT-D3"
            )
        results[STRESS] = results[STRESS] - full_3x3_to_voigt_6_stress(theirs[STRESS])
    out = atoms.copy()
    out.calc = SinglePointCalculator(out, **results)
    return out


def check_heaviest(atoms: ase.Atoms, heaviest: int, method: str) -> None:
    """Refuses elements beyond the last one that a method has parameters of.

    Raises:
        InputError: To be read after the name of the structure.
    """
    if atoms.numbers.max() > heaviest:
        raise InputError(
            f"has the element {chemical_symbols[atoms.numbers.max()]}, for which {method} has "
            f"no parameters, expected at most {chemical_symbols[heaviest]}"
        )


def geometry(atoms: ase.Atoms) -> dict[str, np.ndarray]:
    """A structure as the models of dftd3 and dftd4 take it: lengths in Bohr."""
    positions, box = atoms.positions, {}
    if atoms.pbc.any():
        positions, cell = _boxed(atoms)
        box = {"lattice": cell / Bohr, "periodic": atoms.pbc}
    return {"numbers": atoms.numbers, "positions": positions / Bohr, **box}


def reach_only(model: Any, within: float) -> None:
    """Makes a model of dftd3 or dftd4 count only pairs up to a distance, Å.

    Coordination numbers stay as they are, and so do the coefficients.
    """
    reach = {name: min(most, within / Bohr) for name, most in _REACH.items()}
    model.set_realspace_cutoff(**{**reach, "cn": _REACH["cn"]})


def _boxed(atoms: ase.Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Positions and cell with all atoms inside along the open directions.

    dftd3 wraps atoms into the cell along those too, which would cut a slab in two.
    """
    cell, opened = atoms.cell.complete()[:], ~atoms.pbc
    spread = np.ptp(np.linalg.solve(cell.T, atoms.positions.T), axis=1)
    cell[opened] *= 1.0 + 2.0 * spread[opened, None]
    fractional = np.linalg.solve(cell.T, atoms.positions.T)
    middle = 0.5 * (fractional.max(axis=1) + fractional.min(axis=1))
    return atoms.positions + np.where(opened, 0.5 - middle, 0.0) @ cell, cell


def reason(error: Exception) -> str:
    """What a package says of a failure, on one line."""
    return f"{' '.join(str(error).split()) or type(error).__name__:.120}"
