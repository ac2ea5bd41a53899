"""Reference energies per element, mean and scale: what a network need not learn.

    E = scale * E_network + mean + sum_i reference[Z_i],     F = scale * F_network

By default the reference energies are the least-squares fit of the energies to the number of
atoms of each element, the mean is zero, and the scale is the spread of what is left. All of
it is float64 on the host: total energies have more digits than float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from ewald_jax.graph.schema import MAX_ATOMIC_NUMBER
from ewald_jax.typing import InputError

_LENGTH = MAX_ATOMIC_NUMBER + 1


@dataclass(frozen=True)
class StatisticsConfig:
    """How energies are made ready for a network.

    Attributes:
        reference: ``lstsq`` fits reference energies, ``nonnegative`` fits them with every
            atom's energy at most zero (as the paper does for OE62), ``none`` leaves them 0.
        intercept: Fit a constant beside them, which becomes the mean.
        fit_on: ``train``, the training split, or ``all`` structures (the paper's OE62).
        scale_from: ``energy``, the residual's standard deviation, or ``forces``, their RMS.
        reference_energies: eV by symbol; given ones are not fitted.
        mean: Fixed mean, eV.
        scale: Fixed scale, eV, larger than zero.
    """

    reference: str = "lstsq"
    intercept: bool = False
    fit_on: str = "train"
    scale_from: str = "energy"
    reference_energies: dict[str, float] = field(default_factory=dict)
    mean: float | None = None
    scale: float | None = None

    def __post_init__(self):
        """Checks the values.

        Raises:
            InputError: If one is out of range.
        """
        for key, known in (
            ("reference", ("lstsq", "nonnegative", "none")),
            ("fit_on", ("train", "all")),
            ("scale_from", ("energy", "forces")),
        ):
            if getattr(self, key) not in known:
                raise InputError(
                    f"statistics.{key} is {getattr(self, key)!r}, expected one of "
                    f"{', '.join(known)}"
                )
        for symbol in self.reference_energies:
            if not 0 < atomic_numbers.get(symbol, 0) < _LENGTH:
                raise InputError(
                    f"statistics.reference_energies has {symbol!r}, expected element symbols"
                )
        if self.scale is not None and not (np.isfinite(self.scale) and self.scale > 0):
            raise InputError(f"statistics.scale is {self.scale}, expected a number above 0")


@dataclass(frozen=True)
class Statistics:
    """Reference energies and normalisation of a training set.

    Attributes:
        reference_energies: [119] eV by atomic number, 0 where unseen.
        mean: eV per structure.
        scale: eV, larger than zero.
        species: Atomic numbers seen, ascending.
    """

    reference_energies: tuple[float, ...] = (0.0,) * _LENGTH
    mean: float = 0.0
    scale: float = 1.0
    species: tuple[int, ...] = ()

    def __post_init__(self):
        """Checks the values.

        Raises:
            InputError: If lengths are wrong or numbers not finite.
        """
        if len(self.reference_energies) != _LENGTH:
            raise InputError(
                f"statistics have {len(self.reference_energies)} reference energies, "
                f"expected {_LENGTH}"
            )
        if not np.isfinite([*self.reference_energies, self.mean, self.scale]).all():
            raise InputError(
                "statistics have a NaN or infinite number, expected finite ones"
            )
        if not self.scale > 0:
            raise InputError(f"statistics have the scale {self.scale}, expected it above 0")

    def reference(self, species: Sequence[int] | np.ndarray) -> np.float64:
        """Sum of the reference energies of atoms [n], eV; the mean is not in it."""
        return np.asarray(self.reference_energies, np.float64)[np.asarray(species)].sum()

    def references(self, species: np.ndarray, n_node: np.ndarray) -> np.ndarray:
        """`reference` of several structures [structures], from their atoms end to end.

        Args:
            species: [nodes] atomic numbers; nodes beyond the last structure are ignored.
            n_node: [structures] atoms of each, at least one.
        """
        atoms = np.asarray(self.reference_energies, np.float64)[species[: n_node.sum()]]
        return np.add.reduceat(atoms, np.cumsum(n_node) - n_node)

    def unseen(self, species: Sequence[int] | np.ndarray) -> tuple[int, ...]:
        """Atomic numbers among `species` [n] that the training set did not have."""
        return tuple(sorted(set(np.asarray(species).tolist()) - set(self.species)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; reference energies by symbol, of the species seen."""
        seen = {
            z: energy
            for z, energy in enumerate(self.reference_energies)
            if energy or z in self.species
        }
        return {
            "reference_energies": {chemical_symbols[z]: e for z, e in seen.items()},
            "mean": self.mean,
            "scale": self.scale,
            "species": [chemical_symbols[z] for z in self.species],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Statistics":
        """The inverse of `to_dict`.

        Raises:
            InputError: If keys are missing or values broken.
        """
        for key in ("reference_energies", "mean", "scale", "species"):
            if not isinstance(values, Mapping) or key not in values:
                raise InputError(f"statistics are incomplete, expected the key {key!r}")
        given, species = values["reference_energies"], values["species"]
        if not isinstance(given, Mapping):
            raise _broken("reference_energies", given, "energies by element symbol")
        if not isinstance(species, list | tuple):
            raise _broken("species", species, "a list of element symbols")
        energies = [0.0] * _LENGTH
        for symbol, energy in given.items():
            number = _atomic_number(symbol, "reference_energies")
            energies[number] = _number(energy, f"reference_energies.{symbol}")
        return cls(
            tuple(energies),
            _number(values["mean"], "mean"),
            _number(values["scale"], "scale"),
            tuple(sorted(_atomic_number(symbol, "species") for symbol in species)),
        )


def _broken(key: str, value: Any, expected: str) -> InputError:
    return InputError(
        f"statistics are broken: {key!r} is {value!r:.40}, expected {expected}"
    )


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _broken(key, value, "a number")
    try:
        return float(value)
    except OverflowError:
        raise _broken(key, value, "a finite number") from None


def _atomic_number(symbol: Any, key: str) -> int:
    number = atomic_numbers.get(symbol) if isinstance(symbol, str) else None
    if number is None:
        raise InputError(
            f"statistics are broken: {key!r} has the unknown element {symbol!r}"
        )
    return number
