"""Units that files may have, as factors to eV and Å."""

import ase.units

from ewald_jax.typing import InputError

_ALIASES = {"ev": "eV", "angstrom": "Ang", "å": "Ang", "hartree": "Ha", "rydberg": "Ry"}
_UNITS = {
    "energy": {name: getattr(ase.units, name) for name in ("eV", "Ha", "Ry", "kcal", "kJ")}
    | {"meV": 1e-3 * ase.units.eV, "mHa": 1e-3 * ase.units.Ha},
    "length": {name: getattr(ase.units, name) for name in ("Ang", "Bohr", "nm")},
}


def unit_factor(unit: str, kind: str) -> float:
    """What a quantity in `unit` is multiplied by to be in eV or Å.

    Args:
        unit: Such as ``kcal/mol`` or ``Bohr``.
        kind: ``energy`` or ``length``.

    Raises:
        InputError: If it is not a known unit of that kind.
    """
    name, *per = (word.strip() for word in unit.split("/"))
    name = _ALIASES.get(name.lower(), name)
    if name not in _UNITS[kind] or (per and (kind, per) != ("energy", ["mol"])):
        per_mole = ", or one of them with '/mol'" if kind == "energy" else ""
        raise InputError(
            f"unknown unit of {kind} {unit!r}, expected one of "
            f"{', '.join(_UNITS[kind])}{per_mole}"
        )
    return _UNITS[kind][name] / (ase.units.mol if per else 1.0)
