"""The ``dimers`` set: pairs of charged, zwitterionic and polar molecules, GFN2-xTB.

Every pool structure has its own random orientations, its own small thermal distortion of
both monomers and a surface distance drawn between contact and 15 Å. The held-out pairs of
``CURVES`` give one undistorted binding curve each, for pictures, never for training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ewald_jax.data.samples import xtb
from ewald_jax.data.samples.monomers import MONOMERS, relaxed_monomer

if TYPE_CHECKING:
    from ase import Atoms

METHOD = "GFN2-xTB"
STREAM = 1
LEAK_LIMIT = 0.15
MAX_DISTANCE = 15.0
POOL_CONTACT = -0.5
CURVE_CONTACT = -0.8
NEAR_LIMIT = 3.0
NEAR_SHARE = 0.15
RATTLE = (0.015, 0.035)
TRIES_PER_PAIR = 84
CHUNK = 40
CURVE_POINTS = 24

# Bondi's radii in Å (A. Bondi, J. Phys. Chem. 68, 441, 1964)
VDW_RADII = {1: 1.20, 6: 1.70, 7: 1.55, 8: 1.52, 16: 1.80, 17: 1.75}

PAIRS: tuple[tuple[str, str], ...] = (
    # unlike ions
    ("acetate", "ammonium"),
    ("nitrate", "ammonium"),
    ("mesylate", "ammonium"),
    ("formate", "methylammonium"),
    ("mesylate", "methylammonium"),
    ("nitrate", "methylammonium"),
    ("formate", "tetramethylammonium"),
    ("thiocyanate", "tetramethylammonium"),
    ("chloride", "tetramethylammonium"),
    # unlike ions that leak at most distances
    ("nitrate", "guanidinium"),
    ("mesylate", "imidazolium"),
    # like ions
    ("ammonium", "guanidinium"),
    ("methylammonium", "imidazolium"),
    ("methylammonium", "methylammonium"),
    ("pyridinium", "tetramethylammonium"),
    ("acetate", "nitrate"),
    ("formate", "mesylate"),
    ("thiocyanate", "acetate"),
    # ion and zwitterion
    ("ammonium", "glycine"),
    ("chloride", "glycine"),
    ("tetramethylammonium", "beta_alanine"),
    ("formate", "beta_alanine"),
    ("methylammonium", "betaine"),
    ("acetate", "betaine"),
    ("guanidinium", "glycine"),
    ("nitrate", "tmao"),
    # two zwitterions
    ("glycine", "glycine"),
    ("glycine", "beta_alanine"),
    ("beta_alanine", "tmao"),
    ("betaine", "tmao"),
    ("betaine", "betaine"),
    # ion and polar molecule
    ("guanidinium", "water"),
    ("acetate", "formamide"),
    ("ammonium", "dmso"),
    ("mesylate", "acetonitrile"),
    ("imidazolium", "acetone"),
    # polar molecules, with and without a zwitterion
    ("urea", "betaine"),
    ("water", "glycine"),
    ("urea", "dmso"),
    ("pyridine", "formamide"),
)

# pair, then for each monomer the atoms of its SMILES that face the partner
CURVES: tuple[tuple[str, str, tuple[int, ...], tuple[int, ...]], ...] = (
    ("acetate", "methylammonium", (2, 3), (1,)),
    ("guanidinium", "imidazolium", (0, 3), (2,)),
    ("formate", "acetate", (1, 2), (2, 3)),
    ("guanidinium", "betaine", (0, 3), (6, 7)),
    ("ammonium", "formamide", (1,), (2,)),
)


def tasks() -> list[dict]:
    """What to compute, in order: plain values a worker process can be sent.

    Returns:
        One dictionary per structure to try, with ``index``, ``subset``, ``pair`` (names)
        and, for a curve, ``distance`` in Å and the two tuples of facing atoms.
    """
    items: list[dict] = []
    for number in range(TRIES_PER_PAIR * len(PAIRS)):
        pair = PAIRS[number % len(PAIRS)]
        items.append({"index": number, "subset": "pool", "pair": pair})
    # squared, so that the points crowd where the curve bends
    steps = np.linspace(0.0, 1.0, CURVE_POINTS) ** 2
    for first, second, face_a, face_b in CURVES:
        for step in steps:
            distance = CURVE_CONTACT + float(step) * (MAX_DISTANCE - CURVE_CONTACT)
            items.append(
                {
                    "index": len(items),
                    "subset": "curve",
                    "pair": (first, second),
                    "distance": min(distance, MAX_DISTANCE - 1e-4),
                    "faces": (face_a, face_b),
                }
            )
    return items


def label(task: dict) -> str:
    """The group a task is counted under: its pair of monomers."""
    return "-".join(task["pair"])


def describe() -> dict:
    """The settings and units for the provenance file."""
    return {
        "structures": "pairs of GFN2-xTB relaxed monomers, rattled, randomly oriented",
        "leak_limit_e": LEAK_LIMIT,
        "surface_distance_A": "min over atom pairs of distance - both Bondi radii",
        "distance_range_A": [POOL_CONTACT, MAX_DISTANCE],
        "rattle_sigma_A": list(RATTLE),
        "curves": [f"{a}-{b}" for a, b, *_ in CURVES],
        "monomers": {name: MONOMERS[name].smiles for name in sorted(MONOMERS)},
        "units": {
            "positions": "A",
            "distance": "A",
            "energy": "eV, total",
            "interaction_energy": "eV, against the same monomers apart, frozen",
            "forces": "eV/A",
            "charges": "e, Mulliken",
        },
    }


def compute(task: dict, seed: int) -> tuple[Atoms | None, str]:
    """Build and label one structure.

    Args:
        task: An entry of ``tasks()``.
        seed: Seed of the whole set; with the task's index it fixes every random number.

    Returns:
        The labelled ``Atoms`` and ``"kept"``, or ``None`` and why it was dropped
        (``"unconverged"`` or ``"leaked"``).
    """
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    rng = np.random.default_rng([seed, STREAM, task["index"]])
    build = _curve_geometry if task["subset"] == "curve" else _pool_geometry
    numbers, parts = build(task, rng)
    # labels belong to the coordinates as they are written
    parts = [np.round(part, 5) for part in parts]
    first, second = task["pair"]
    charges = [MONOMERS[name].charge for name in (first, second)]
    atoms = Atoms(np.concatenate(numbers), np.concatenate(parts))
    try:
        whole = xtb.single_point(atoms, METHOD, charge=sum(charges))
        frozen = [
            xtb.single_point(Atoms(z, x), METHOD, charge=q).energy
            for z, x, q in zip(numbers, parts, charges, strict=True)
        ]
    except xtb.XtbNotConverged:
        return None, "unconverged"
    num_a = len(numbers[0])
    if abs(whole.charges[:num_a].sum() - charges[0]) > LEAK_LIMIT:
        return None, "leaked"
    atoms.info = {
        "interaction_energy": round(whole.energy - sum(frozen), 6),
        "pair": f"{first}-{second}",
        "num_a": num_a,
        "charge": sum(charges),
        "charge_a": charges[0],
        "charge_b": charges[1],
        "distance": round(surface_distance(numbers, parts), 4),
        "subset": task["subset"],
    }
    atoms.calc = SinglePointCalculator(
        atoms,
        energy=round(whole.energy, 6),
        forces=np.round(whole.forces, 5),
        charges=np.round(whole.charges, 4),
    )
    return atoms, "kept"


def surface_distance(numbers: list[np.ndarray], parts: list[np.ndarray]) -> float:
    """The smallest distance between the van der Waals surfaces of two molecules.

    Args:
        numbers: Atomic numbers of the two molecules, ``[n_a]`` and ``[n_b]``.
        parts: Their positions in Å, ``[n_a, 3]`` and ``[n_b, 3]``.

    Returns:
        min over atom pairs of (distance - both Bondi radii) in Å. Zero is contact; a
        hydrogen bond is negative.
    """
    radii = [np.array([VDW_RADII[int(z)] for z in group]) for group in numbers]
    gaps = np.linalg.norm(parts[0][:, None] - parts[1][None], axis=-1)
    return float((gaps - radii[0][:, None] - radii[1]).min())


def place(
    numbers: list[np.ndarray],
    parts: list[np.ndarray],
    direction: np.ndarray,
    distance: float,
) -> list[np.ndarray]:
    """Shift the second molecule along a direction to a surface distance.

    Args:
        numbers: Atomic numbers of the two molecules.
        parts: Their positions in Å, each around the origin.
        direction: ``[3]`` unit vector from the first to the second.
        distance: Wanted ``surface_distance`` in Å.

    Returns:
        The positions with the second molecule shifted.
    """
    reach = sum(np.linalg.norm(part, axis=1).max() for part in parts) + 4.0
    shift = distance + reach
    # the distance changes by at most the shift, so these steps from outside cannot cross
    # the outermost solution
    for _ in range(1000):
        moved = [parts[0], parts[1] + shift * direction]
        excess = surface_distance(numbers, moved) - distance
        if excess < 1e-6:
            break
        shift -= excess
    return moved


def _pool_geometry(task: dict, rng: np.random.Generator):
    numbers, parts = zip(*(relaxed_monomer(name) for name in task["pair"]), strict=True)
    near = rng.random() < NEAR_SHARE
    distance = rng.uniform(POOL_CONTACT, NEAR_LIMIT if near else MAX_DISTANCE)
    shaken = []
    for part in parts:
        moved = part + rng.normal(0.0, rng.uniform(*RATTLE), part.shape)
        shaken.append((moved - moved.mean(axis=0)) @ random_rotation(rng).T)
    direction = random_rotation(rng)[0]
    return list(numbers), place(list(numbers), shaken, direction, distance)


def _curve_geometry(task: dict, rng: np.random.Generator):
    numbers, parts = zip(*(relaxed_monomer(name) for name in task["pair"]), strict=True)
    turned = [
        part @ facing_rotation(part, face, sign).T
        for part, face, sign in zip(parts, task["faces"], (1.0, -1.0), strict=True)
    ]
    direction = np.array([1.0, 0.0, 0.0])
    return list(numbers), place(list(numbers), turned, direction, task["distance"])


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A uniformly random rotation matrix ``[3, 3]``."""
    from scipy.spatial.transform import Rotation

    return Rotation.random(rng=rng).as_matrix()


def facing_rotation(
    positions: np.ndarray, face: tuple[int, ...], sign: float
) -> np.ndarray:
    """The rotation that turns some atoms of a molecule towards ``sign`` x.

    The molecule's flattest direction goes to z as far as possible, so that two planar
    molecules come out coplanar.

    Args:
        positions: ``[n_atoms, 3]`` in Å around the origin.
        face: Indices of the atoms that should face the partner.
        sign: +1 or -1.

    Returns:
        ``[3, 3]`` matrix ``R``, to be used as ``positions @ R.T``.
    """
    x = positions[list(face)].mean(axis=0) - positions.mean(axis=0)
    x = sign * x / np.linalg.norm(x)
    _, _, axes = np.linalg.svd(positions)
    normal = next(axis for axis in axes[::-1] if abs(axis @ x) < 0.9)
    z = normal - (normal @ x) * x
    z /= np.linalg.norm(z)
    return np.stack([x, np.cross(z, x), z])
