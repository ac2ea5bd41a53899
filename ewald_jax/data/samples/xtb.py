"""A thin tblite wrapper: one structure in, ASE-unit labels out.

tblite belongs to the optional extra ``samples`` and is imported on first use.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ase import Atoms

METHODS = ("GFN1-xTB", "GFN2-xTB")

# tried in turn: a nearly closed gap (ions far apart) needs a slower mixer or another start,
# and every way that converges gives the same energy
ATTEMPTS: tuple[dict[str, float], ...] = (
    {"max-iter": 150},
    {"max-iter": 500, "mixer-damping": 0.15},
    {"max-iter": 500, "mixer-damping": 0.1, "guess": 1},
)


class XtbError(RuntimeError):
    """Anything that stopped a single point from giving usable labels."""


class XtbNotConverged(XtbError):
    """The self-consistent charges did not converge (or are not finite)."""


class XtbMissing(XtbError, ImportError):
    """A package of the extra ``samples`` is not installed."""


def missing(package: str) -> XtbMissing:
    """The error for a package that is not installed, saying how to get it."""
    return XtbMissing(
        f"{package} is not installed: pip install -e '.[samples]' in a checkout, or "
        f"pip install {package}"
    )


@dataclasses.dataclass(frozen=True)
class SinglePoint:
    """The labels of one structure.

    Attributes:
        energy: Total energy in eV.
        forces: ``[n_atoms, 3]`` in eV/Å.
        charges: ``[n_atoms]`` Mulliken partial charges in e.
        stress: ``[3, 3]`` in eV/Å^3 with ASE's sign (dE/dstrain / V), or ``None``
            without a cell.
    """

    energy: float
    forces: np.ndarray
    charges: np.ndarray
    stress: np.ndarray | None = None


def _interface():
    try:
        import tblite.interface
    except ImportError as error:
        raise missing("tblite") from error
    return tblite.interface


def single_point(
    atoms: Atoms,
    method: str = "GFN2-xTB",
    charge: float = 0.0,
    accuracy: float = 0.2,
    attempts: Sequence[Mapping[str, float]] = ATTEMPTS,
) -> SinglePoint:
    """Closed-shell xTB energy, forces, charges and (with a cell) stress.

    Periodic structures are computed at the Gamma point only, the one choice tblite has.

    Args:
        atoms: The structure; ``pbc`` must be the same along the three axes.
        method: One of ``METHODS``.
        charge: Total charge in e.
        accuracy: tblite's threshold scale; smaller is tighter, 1 is its default.
        attempts: tblite settings to try in turn until one converges.

    Returns:
        The labels in eV, Å and e.

    Raises:
        XtbMissing: If tblite is not installed.
        XtbNotConverged: If no attempt converged or a label is not finite.
        ValueError: If ``method`` is unknown or only some axes are periodic.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
    periodic = bool(atoms.pbc.any())
    if periodic and not atoms.pbc.all():
        raise ValueError("xTB here takes either no periodic axis or three.")
    for number, settings in enumerate(attempts, start=1):
        try:
            return _labels(atoms, _run(atoms, method, charge, accuracy, settings))
        except XtbNotConverged:
            if number == len(attempts):
                raise
    raise ValueError("attempts must hold at least one set of tblite settings.")


def _run(
    atoms: Atoms, method: str, charge: float, accuracy: float, settings: Mapping[str, float]
) -> dict:
    from ase.units import Bohr

    interface = _interface()
    cell = {}
    if atoms.pbc.any():
        cell = {"lattice": atoms.cell.array / Bohr, "periodic": np.ones(3, bool)}
    try:
        calculator = interface.Calculator(
            method, atoms.numbers, atoms.positions / Bohr, charge=charge, uhf=0, **cell
        )
        for key, value in {"verbosity": 0, "accuracy": accuracy, **settings}.items():
            calculator.set(key, value)
        return calculator.singlepoint().dict()
    # tblite raises several exception classes (and a bare RuntimeError) for a failed SCC
    except (RuntimeError, ValueError) as error:
        message = str(error).strip() or type(error).__name__
        raise XtbNotConverged(f"{method} single point failed: {message}") from error


def _labels(atoms: Atoms, result: dict) -> SinglePoint:
    from ase.units import Bohr, Hartree

    labels = SinglePoint(
        energy=float(result["energy"]) * Hartree,
        forces=-np.asarray(result["gradient"]) * (Hartree / Bohr),
        charges=np.asarray(result["charges"]),
        stress=_stress(result, atoms) if atoms.pbc.any() else None,
    )
    arrays = [labels.energy, labels.forces, labels.charges]
    arrays += [] if labels.stress is None else [labels.stress]
    if not all(np.all(np.isfinite(array)) for array in arrays):
        raise XtbNotConverged("The single point gave labels that are not finite.")
    return labels


def _stress(result: dict, atoms: Atoms) -> np.ndarray:
    from ase.units import Hartree

    virial = np.asarray(result["virial"]) * Hartree
    return 0.5 * (virial + virial.T) / atoms.get_volume()
