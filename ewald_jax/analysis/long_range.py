"""Long-range contributions to the energy of a structure: dispersion, point charges, SAPT.

Each is a number per structure, of all pairs of atoms or of those farther apart than a distance;
`analysis.long_range_bins` asks where in them a model is better than another. DFT-D3 and DFT-D4
are those of Grimme's group, in the packages dftd3 and dftd4 of the optional extra `samples`,
imported on first use.
"""

from collections.abc import Callable, Sequence
from types import ModuleType

import ase
import numpy as np
from ase.units import Hartree

from ewald_jax.analysis.point_charges import coulomb_energy
from ewald_jax.data.dispersion import (
    check_heaviest,
    dispersion_labels,
    geometry,
    load_dispersion,
    parse_dispersion,
    reach_only,
    reason,
)
from ewald_jax.graph.schema import ENERGY
from ewald_jax.typing import Float, InputError
from ewald_jax.units import KCAL_PER_MOL

SAPT_COMPONENTS = ("elst", "exch", "ind", "disp")
"""Keys of ``info`` in files of SAPT10k, kcal/mol."""

_HEAVIEST = 103
"""The last element that dftd4 has parameters of."""

_PBE0_D3 = "PBE0-D3(BJ)"

CHARGE = "charge"
"""Key of ``info`` with a structure's total charge."""


def d3_energy(atoms: ase.Atoms, functional: str = _PBE0_D3, beyond: float = 0.0) -> float:
    """DFT-D3 energy, of pairs of atoms farther apart than a distance.

    Args:
        atoms: Open or periodic.
        functional: As `data.dispersion.parse_dispersion` takes it; with ``-ATM``, triples
            count of which two atoms are farther apart than the distance.
        beyond: Å; 0 gives the total. dftd3 counts no pairs beyond 60 Bohr.

    Returns:
        eV.

    Raises:
        InputError: If dftd3 is not installed or does not know the functional; or, to be read
            after the name of the structure, if it fails.
    """
    dispersion = parse_dispersion(functional)
    load_dispersion(dispersion, "the D3 energy")
    energy = dispersion_labels(atoms, dispersion, derivatives=False)[ENERGY]
    if beyond > 0:
        energy -= dispersion_labels(atoms, dispersion, False, within=beyond)[ENERGY]
    return float(energy)


def d4_energy(
    atoms: ase.Atoms,
    functional: str = "pbe0",
    beyond: float = 0.0,
    charge: float | None = None,
) -> float:
    """DFT-D4 energy with its three-body term, of pairs farther apart than a distance.

    Args:
        atoms: Open or periodic.
        functional: Whose damping parameters to take.
        beyond: Å; 0 gives the total. Triples count of which two atoms are farther apart;
            dftd4 counts no pairs beyond 60 Bohr.
        charge: Of the structure; None is that of its ``info``, 0 without.

    Returns:
        eV.

    Raises:
        InputError: As `d3_energy`, of dftd4.
    """
    interface = _dftd4("the D4 energy")
    try:
        parameters = interface.DampingParam(method=functional, atm=True)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(
            f"the D4 energy: dftd4 has no parameters of {functional!r} ({reason(error)}), "
            "expected a functional that it knows"
        ) from error

    def energies(model) -> float:
        total = float(model.get_dispersion(parameters, grad=False)["energy"])
        if beyond > 0:
            reach_only(model, beyond)
            total -= float(model.get_dispersion(parameters, grad=False)["energy"])
        return total * Hartree

    return _with_d4(atoms, charge, interface, energies)


def eeq_charges(
    atoms: ase.Atoms, charge: float | None = None
) -> Float[np.ndarray, " nodes"]:
    """Partial charges of DFT-D4's electronegativity equilibration, elementary charges.

    Args:
        atoms: Open or periodic.
        charge: As in `d4_energy`.

    Returns:
        [nodes].

    Raises:
        InputError: If dftd4 is not installed; or, to be read after the name of the structure,
            if it fails.
    """
    interface = _dftd4("the charges of D4")

    def charges(model) -> np.ndarray:
        return model.get_properties()["partial charges"]

    return _with_d4(atoms, charge, interface, charges)


def sapt_component(atoms: ase.Atoms, component: str) -> float:
    """A component of a SAPT interaction energy that stands beside the structure, eV.

    Args:
        atoms: With the component in its ``info``, kcal/mol.
        component: One of `SAPT_COMPONENTS`.

    Raises:
        InputError: To be read after the name of the structure, if it is not there or no
            finite number.
    """
    value = atoms.info.get(component)
    if value is None:
        raise InputError(
            f"has no {component!r} beside it, expected the SAPT component in kcal/mol"
        )
    if isinstance(value, bool | str) or not np.isfinite(value):
        raise InputError(
            f"has {component} = {value!r}, expected the SAPT component in kcal/mol"
        )
    return float(value) * KCAL_PER_MOL


def long_range_contributions(
    structures: Sequence[ase.Atoms],
    kind: str,
    beyond: float = 0.0,
    names: Sequence[str] | None = None,
) -> Float[np.ndarray, " structures"]:
    """One contribution to the energies of several structures, eV.

    Args:
        structures: At least one.
        kind: A SAPT component (``elst``, ``exch``, ``ind``, ``disp``), ``d3``, ``d4``, both
            with the parameters of PBE0, or ``charges``, the point charges of D4.
        beyond: Å; only pairs of atoms farther apart. SAPT components have no such part.
        names: What to call each in a message, such as the file and its number there.

    Returns:
        [structures].

    Raises:
        InputError: If the kind is unknown, needs a package that is not installed, or a
            structure does not have it; names the structure.
    """
    if kind not in KINDS:
        raise InputError(
            f"the contribution is {kind!r}, expected one of {', '.join(KINDS)}"
        )
    if not (np.isfinite(beyond) and beyond >= 0):
        raise InputError(f"beyond is {beyond} Å, expected a distance of 0 or more")
    if kind in SAPT_COMPONENTS and beyond:
        raise InputError(
            f"beyond is {beyond} Å, expected 0 for {kind}: a SAPT component is no sum over "
            "pairs of atoms"
        )
    if kind in _NEEDS:
        _NEEDS[kind]()
    values = np.empty(len(structures))
    for index, atoms in enumerate(structures):
        try:
            values[index] = KINDS[kind](atoms, beyond)
        except InputError as error:
            name = f"structure {index}" if names is None else names[index]
            raise InputError(f"{name} {error}") from None
    return values


def _component(name: str) -> Callable[[ase.Atoms, float], float]:
    return lambda atoms, _: sapt_component(atoms, name)


KINDS: dict[str, Callable[[ase.Atoms, float], float]] = {
    **{name: _component(name) for name in SAPT_COMPONENTS},
    "d3": lambda atoms, beyond: d3_energy(atoms, beyond=beyond),
    "d4": lambda atoms, beyond: d4_energy(atoms, beyond=beyond),
    "charges": lambda atoms, beyond: coulomb_energy(atoms, eeq_charges(atoms), beyond),
}
"""Name -> function of a structure and a distance."""

_NEEDS: dict[str, Callable[[], object]] = {
    "d3": lambda: load_dispersion(parse_dispersion(_PBE0_D3), "the D3 energy"),
    "d4": lambda: _dftd4("the D4 energy"),
    "charges": lambda: _dftd4("the charges of D4"),
}
"""What fails, before any structure is looked at, where a package is missing."""


def _dftd4(asked: str) -> ModuleType:
    try:
        import dftd4.interface as interface
    except ImportError as error:
        raise InputError(
            f"{asked} needs dftd4, which is not installed: pip install -e '.[samples]' in a "
            "checkout, or pip install dftd4"
        ) from error
    return interface


def _with_d4(
    atoms: ase.Atoms,
    charge: float | None,
    interface: ModuleType,
    wanted: Callable,
) -> float | np.ndarray:
    """What dftd4's model of a structure gives, or one sentence about the structure."""
    check_heaviest(atoms, _HEAVIEST, "DFT-D4")
    charge = float(atoms.info.get(CHARGE, 0.0) if charge is None else charge)
    try:
        found = wanted(interface.DispersionModel(**geometry(atoms), charge=charge))
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(
            f"has no DFT-D4 energy ({reason(error)}), expected atoms apart"
        ) from error
    if not np.isfinite(found).all():
        raise InputError("has a DFT-D4 energy that is not finite, expected atoms apart")
    return found
