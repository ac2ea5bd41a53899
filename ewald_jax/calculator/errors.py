"""Mistakes in ASE's classes of errors, which are also the package's own."""

import contextlib
from collections.abc import Iterator

from ase.calculators import calculator as ase_errors

from ewald_jax.potential import ParameterError
from ewald_jax.typing import InputError


class SetupError(ase_errors.CalculatorSetupError, InputError):
    """A calculator that cannot be made: a missing, damaged or newer checkpoint."""


class StructureError(ase_errors.InputError, InputError):
    """A structure that the calculator refuses: one sentence that says why."""


@contextlib.contextmanager
def raised_as(kind: type[InputError], what: str = "") -> Iterator[None]:
    """Raises mistakes as `kind`, with `what` before their sentence."""
    try:
        yield
    except ParameterError as error:
        # Whatever the structure, it is not what is wrong.
        raise SetupError(str(error)) from None
    except InputError as error:
        if isinstance(error, kind):
            raise
        raise kind(f"{what}{error}") from None
