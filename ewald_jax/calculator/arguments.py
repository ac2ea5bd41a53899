"""Arguments of the calculator, looked at before anything is computed."""

import difflib
import inspect
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import Calculator

from ewald_jax.calculator.errors import SetupError, StructureError
from ewald_jax.ensemble import count_members
from ewald_jax.typing import InputError, PyTree


def check_settings(
    cls: type, options: Mapping[str, Any], lengths: Mapping[str, Any]
) -> None:
    """Refuses options that nobody knows, which ASE would keep and ignore.

    Args:
        cls: The calculator's class.
        options: Given to it beyond its own.
        lengths: Its settings that are numbers from 0 on.

    Raises:
        SetupError: Naming the option.
    """
    known = {
        name
        for made in (cls, Calculator)
        for name in inspect.signature(made.__init__).parameters
    }
    for name in sorted(options.keys() - known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise SetupError(f"the calculator has no option {name!r}{hint}")
    for name, value in lengths.items():
        if not (isinstance(value, numbers.Real) and value >= 0 and np.isfinite(value)):
            raise SetupError(f"{name} must be at least 0 and finite, not {value!r}")


def check_members(members: int, params: PyTree) -> None:
    """Refuses parameters of another number of networks.

    Raises:
        InputError: With both numbers.
    """
    if not (isinstance(members, numbers.Integral) and members >= 1):
        raise InputError(f"members must be a whole number from 1 on, not {members!r}")
    if members > 1 and count_members(params) != members:
        raise InputError(
            f"members is {members}, but the parameters have a leading axis of "
            f"{count_members(params)}"
        )


def check_list(list_of_atoms: Sequence[ase.Atoms], batch_size: int) -> None:
    """Refuses what is no list of structures.

    Raises:
        StructureError: Naming the first entry that is none.
    """
    if not (isinstance(batch_size, numbers.Integral) and batch_size >= 1):
        raise StructureError(
            f"batch_size must be a whole number from 1 on, not {batch_size!r}"
        )
    if isinstance(list_of_atoms, ase.Atoms):
        raise StructureError("one structure was given, expected a list of ase.Atoms")
    for index, atoms in enumerate(list_of_atoms):
        if not isinstance(atoms, ase.Atoms):
            raise StructureError(
                f"structure {index} is a {type(atoms).__name__}, expected ase.Atoms"
            )
