"""Made-up structures to measure with: molecules, slabs and crystals of any size."""

import ase
import ase.build
import numpy as np


def alkanes(count: int, carbons: int = 13) -> list[ase.Atoms]:
    """Chain molecules C_n H_2n+2, each a little different; 13 carbons make 41 atoms.

    Args:
        count: Molecules.
        carbons: Carbon atoms of each.
    """
    positions, species = [], []
    for i in range(carbons):
        side = 1 if i % 2 else -1
        carbon = np.array([1.27 * i, 0.43 * side, 0.0])
        positions += [
            carbon,
            carbon + [0, 0.63 * side, 0.88],
            carbon + [0, 0.63 * side, -0.88],
        ]
        species += [6, 1, 1]
    for end, step in ((positions[0], -1.0), (positions[-3], 1.0)):
        positions.append(end + [step, -0.5 * np.sign(end[1]), 0.0])
        species.append(1)
    return _rattled(ase.Atoms(species, positions), count)


def slabs(count: int, size: tuple[int, int, int] = (4, 4, 4)) -> list[ase.Atoms]:
    """CO on Pt(111), periodic along all axes, each a little different.

    Args:
        count: Slabs.
        size: Atoms along each axis; the default makes 66 with CO.
    """
    atoms = ase.build.fcc111("Pt", size, vacuum=8.0, periodic=True)
    ase.build.add_adsorbate(atoms, ase.build.molecule("CO"), 1.9, "ontop", mol_index=1)
    return _rattled(atoms, count)


def _rattled(atoms: ase.Atoms, count: int) -> list[ase.Atoms]:
    copies = [atoms.copy() for _ in range(count)]
    for seed, copy in enumerate(copies):
        copy.rattle(0.02, seed=seed)
    return copies


def ionic_crystal(num_atoms: int, density: float = 0.05, seed: int = 0) -> ase.Atoms:
    """A cubic cell of sodium and chlorine in disorder, periodic along all axes.

    Any number of atoms has the same density: places of a cubic grid, of which those that are
    too many stay empty at random, and every atom up to a fifth of the spacing away from its
    own along each axis, so that none are on top of each other.

    Args:
        num_atoms: Of the cell.
        density: Atoms per cubic Å; 0.045 is that of salt.
        seed: Of the displacements and of the empty places.
    """
    rng = np.random.default_rng(seed)
    side = int(np.ceil(round(num_atoms ** (1 / 3), 9)))
    length = (num_atoms / density) ** (1 / 3)
    places = np.sort(rng.permutation(side**3)[:num_atoms])
    grid = np.stack(np.unravel_index(places, (side,) * 3), axis=-1)
    positions = (grid + rng.uniform(-0.2, 0.2, grid.shape)) * (length / side)
    species = np.where(grid.sum(axis=1) % 2, 17, 11)
    return ase.Atoms(species, positions, cell=[length] * 3, pbc=True)
