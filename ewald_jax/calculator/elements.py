"""Elements that the training data did not have: a warning once each, or a refusal."""

import warnings
from collections.abc import Iterable

import ase
from ase.data import chemical_symbols

from ewald_jax.calculator.errors import SetupError
from ewald_jax.data.statistics import Statistics
from ewald_jax.typing import InputError


class ElementCheck:
    """Knows the elements of the training data, and which others it has warned of."""

    def __init__(self, statistics: Statistics | None, strict: bool):
        """Start without warnings.

        Args:
            statistics: Of the training data; None, or no elements listed, checks nothing.
            strict: Refuse what is otherwise warned of.

        Raises:
            SetupError: If it is to be strict without knowing the elements.
        """
        if strict and not (statistics and statistics.species):
            raise SetupError(
                "strict needs to know the elements of the training data, expected statistics "
                "that list them"
            )
        self._statistics, self._strict = statistics, strict
        self._warned: set[int] = set()

    def __call__(self, atoms: ase.Atoms, stacklevel: int) -> None:
        """Looks at a structure.

        Args:
            atoms: The structure.
            stacklevel: Of the warning, seen from the caller.

        Raises:
            InputError: If strict, naming the elements.
        """
        if self._statistics is None or not self._statistics.species:
            return
        unseen = set(self._statistics.unseen(atoms.numbers))
        if not unseen:
            return
        seen = f"(they had {_names(self._statistics.species)})"
        if self._strict:
            raise InputError(
                f"has {_names(unseen)}, which the training data did not have {seen}"
            )
        if unseen - self._warned:
            names = _names(unseen - self._warned)
            self._warned |= unseen
            warnings.warn(
                f"the training data did not have {names} {seen}; energies and forces of "
                "structures with such atoms are guesses",
                UserWarning,
                stacklevel=stacklevel + 1,
            )


def _names(numbers: Iterable[int]) -> str:
    return ", ".join(chemical_symbols[number] for number in sorted(numbers))
