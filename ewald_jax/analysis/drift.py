"""How well a dynamics keeps the energy that it should."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Drift(NamedTuple):
    """What a conserved energy did, per atom.

    Attributes:
        slope: Of the straight line through it, eV/atom/ps.
        uncertainty: Standard error of the slope, from means over blocks of time, eV/atom/ps.
        fluctuation: Standard deviation about the line, eV/atom.
    """

    slope: float
    uncertainty: float
    fluctuation: float


def energy_drift(
    times: Sequence[float] | np.ndarray,
    energies: Sequence[float] | np.ndarray,
    num_atoms: int,
    num_blocks: int = 10,
) -> Drift:
    """Fits a straight line to a conserved energy.

    Args:
        times: [steps] ascending, ps.
        energies: [steps] eV, of the whole structure.
        num_atoms: Atoms of it.
        num_blocks: Blocks of consecutive steps whose means count as independent: single steps
            are not, since energies oscillate with the bonds.

    Returns:
        The drift; zeros for fewer than two different times.
    """
    times = np.asarray(times, np.float64)
    energies = np.asarray(energies, np.float64)
    if len(times) < 2 or np.ptp(times) == 0:
        return Drift(0.0, 0.0, 0.0)
    energies = (energies - energies.mean()) / num_atoms
    centred = times - times.mean()
    slope = float(centred @ energies / (centred @ centred))
    left = energies - slope * centred
    blocks = min(num_blocks, len(times))
    means = np.array([block.mean() for block in np.array_split(left, blocks)])
    places = np.array([block.mean() for block in np.array_split(centred, blocks)])
    # Two degrees of freedom went into the line.
    variance = float(means @ means) / max(blocks - 2, 1)
    uncertainty = float(np.sqrt(variance / (places @ places)))
    return Drift(slope, uncertainty, float(left.std()))
