"""The ``dimers`` set: pairs of charged, zwitterionic and polar molecules, GFN2-xTB.

Every pool structure has its own random orientations, its own small thermal distortion of
both monomers and a surface distance drawn between contact and 15 Å. The held-out pairs of
``CURVES`` give one undistorted binding curve each, for pictures, never for training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ewald_jax.data.samples import xtb
from ewald_jax.data.samples.geometry import (
    facing_rotation,
    place,
    random_rotation,
    surface_distance,
)
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
CHUNK = 40
CURVE_POINTS = 24

PAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    "unlike ions": (
        ("tetrafluoroborate", "ammonium"),
        ("tetrafluoroborate", "methylammonium"),
        ("perchlorate", "methylammonium"),
        ("perchlorate", "tetramethylammonium"),
        ("trifluoroacetate", "methylammonium"),
        ("trifluoroacetate", "tetramethylammonium"),
        ("nitrate", "tetramethylammonium"),
        ("thiocyanate", "tetramethylammonium"),
        ("chloride", "tetramethylammonium"),
        ("nitrate", "methylammonium"),
        ("mesylate", "methylammonium"),
        ("mesylate", "ammonium"),
        ("formate", "methylammonium"),
        # these leak at many distances: what is kept of them is mostly near contact
        ("acetate", "ammonium"),
        ("nitrate", "guanidinium"),
    ),
    "like ions": (
        ("ammonium", "guanidinium"),
        ("methylammonium", "imidazolium"),
        ("methylammonium", "methylammonium"),
        ("pyridinium", "tetramethylammonium"),
        ("guanidinium", "tetramethylammonium"),
        ("acetate", "nitrate"),
        ("formate", "mesylate"),
        ("thiocyanate", "acetate"),
        ("tetrafluoroborate", "trifluoroacetate"),
        ("perchlorate", "mesylate"),
    ),
    "ion-zwitterion": (
        ("ammonium", "glycine"),
        ("chloride", "glycine"),
        ("tetramethylammonium", "beta_alanine"),
        ("formate", "beta_alanine"),
        ("methylammonium", "betaine"),
        ("acetate", "betaine"),
        ("guanidinium", "glycine"),
        ("nitrate", "tmao"),
    ),
    "zwitterions": (
        ("glycine", "glycine"),
        ("glycine", "beta_alanine"),
        ("beta_alanine", "tmao"),
        ("betaine", "tmao"),
        ("betaine", "betaine"),
    ),
    "ion-polar": (
        ("guanidinium", "water"),
        ("acetate", "formamide"),
        ("ammonium", "dmso"),
        ("mesylate", "acetonitrile"),
        ("imidazolium", "acetone"),
    ),
    "polar": (
        ("urea", "betaine"),
        ("water", "glycine"),
        ("urea", "dmso"),
        ("pyridine", "formamide"),
    ),
}

# most of the set are two ions: what a short-range model cannot see is largest there
TRIES_PER_PAIR = {
    "unlike ions": 92,
    "like ions": 80,
    "ion-zwitterion": 60,
    "zwitterions": 60,
    "ion-polar": 44,
    "polar": 36,
}

# pair, then for each monomer the atoms of its SMILES that face the partner
CURVES: tuple[tuple[str, str, tuple[int, ...], tuple[int, ...]], ...] = (
    ("mesylate", "tetramethylammonium", (2, 3, 4), (0, 2, 3)),
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
    for turn in range(max(TRIES_PER_PAIR.values())):
        for kind, pairs in PAIRS.items():
            if turn < TRIES_PER_PAIR[kind]:
                for pair in pairs:
                    items.append({"index": len(items), "subset": "pool", "pair": pair})
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
        "tries_per_pair": TRIES_PER_PAIR,
        "pairs": {kind: [f"{a}-{b}" for a, b in pairs] for kind, pairs in PAIRS.items()},
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
