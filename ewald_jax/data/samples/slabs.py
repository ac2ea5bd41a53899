"""The ``slabs`` set: molecules on ionic slabs and distorted bulk cells, GFN1-xTB.

Two thirds are rattled, strained NaCl, LiF and MgO (100) slabs with one or two molecules
above them, from contact to a few Å away; one third are rattled, strained bulk cells, some
with substituted ions. Everything is periodic along the three axes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ewald_jax.data.samples import xtb

if TYPE_CHECKING:
    from ase import Atoms

METHOD = "GFN1-xTB"
STREAM = 2
CHUNK = 6
ACCURACY = 0.5

# GFN1-xTB's own rocksalt lattice constants in Å (Gamma point, 64 atoms)
LATTICE = {"NaCl": 5.47, "LiF": 4.28, "MgO": 4.42}
IONS = {"NaCl": ("Na", "Cl"), "LiF": ("Li", "F"), "MgO": ("Mg", "O")}
SUBSTITUTES = {"Na": "Li", "Cl": "F", "Li": "Na", "F": "Cl"}

MOLECULES = ("H2O", "CO", "CO2", "NH3", "HCl", "CH3OH", "N2", "HCN")
SLAB_TRIES = 21
BULK_TRIES = 50
MIXED = ("NaCl", "LiF")

# tblite samples only the Gamma point, so cells stay near 8 Å wide where that is affordable:
# surface cells per (100) layer, number of layers
SLAB_SHAPES = {
    "NaCl": ((2, 2, 2), (2, 2, 3), (2, 2, 4), (2, 3, 2), (2, 3, 3), (3, 3, 2), (3, 3, 3)),
    "LiF": ((2, 3, 3), (3, 3, 2), (3, 3, 3), (3, 4, 2), (3, 4, 3)),
    "MgO": ((2, 3, 3), (3, 3, 2), (3, 3, 3), (3, 4, 2), (3, 4, 3)),
}
BULK_SHAPES = {
    "NaCl": (("cubic", 2, 2, 1), ("prism", 3, 3, 1), ("primitive", 3, 3, 2))
    + (("primitive", 3, 3, 3), ("cubic", 2, 2, 2)),
    "LiF": (("primitive", 3, 3, 3), ("cubic", 2, 2, 2), ("prism", 3, 3, 2)),
    "MgO": (("primitive", 3, 3, 3), ("cubic", 2, 2, 2), ("prism", 3, 3, 2)),
}
STRAIN = 0.035
SLAB_STRAIN = 0.02
BULK_RATTLE = (0.05, 0.15)
SLAB_RATTLE = (0.03, 0.10)
MOLECULE_RATTLE = 0.03
NEAR_GAP = (0.35, 1.6)
FAR_GAP = (1.6, 5.0)
NEAR_SHARE = 0.65
PAIR_SHARE = 0.35
VACUUM = (8.0, 12.0)


def tasks() -> list[dict]:
    """What to compute, in order: plain values a worker process can be sent.

    Returns:
        One dictionary per structure to try: ``index``, ``system``, ``solid``, ``shape``
        and ``molecule`` (slabs) or ``mixed`` (bulk).
    """
    items: list[dict] = []
    for turn in range(max(SLAB_TRIES, BULK_TRIES)):
        kinds = [
            {"system": f"{solid}-slab-{molecule}", "solid": solid, "molecule": molecule}
            for solid in LATTICE
            for molecule in MOLECULES
            if turn < SLAB_TRIES
        ]
        kinds += [
            {"system": f"{solid}-bulk", "solid": solid, "mixed": False}
            for solid in LATTICE
            if turn < BULK_TRIES
        ]
        kinds += [
            {"system": f"{solid}-bulk-mixed", "solid": solid, "mixed": True}
            for solid in MIXED
            if turn < BULK_TRIES
        ]
        for number, kind in enumerate(kinds):
            shapes = SLAB_SHAPES if "molecule" in kind else BULK_SHAPES
            choice = shapes[kind["solid"]]
            shape = choice[(turn + number) % len(choice)]
            items.append({"index": len(items), **kind, "shape": list(shape)})
    return items


def label(task: dict) -> str:
    """The group a task is counted under: its system."""
    return task["system"]


def describe() -> dict:
    """The settings and units for the provenance file."""
    return {
        "structures": "rattled, strained (100) slabs with molecules, and bulk cells",
        "sampling": "Gamma point only",
        "known_limits": "energies keep a dependence on the cell's width, and jump by 1 to 2 "
        "meV where a periodic image crosses one of tblite's cutoffs",
        "accuracy": ACCURACY,
        "lattice_constants_A": LATTICE,
        "strain": {"bulk": STRAIN, "slab": SLAB_STRAIN},
        "rattle_sigma_A": {"bulk": list(BULK_RATTLE), "slab": list(SLAB_RATTLE)},
        "gap_A": "min over atom pairs of distance - both covalent radii, "
        f"{NEAR_GAP[0]} to {FAR_GAP[1]}",
        "tags": "0 deeper layers and bulk, 1 top layer, 2 molecules",
        "units": {
            "positions": "A",
            "energy": "eV, total",
            "forces": "eV/A",
            "stress": "eV/A^3, dE/dstrain / volume (ase's sign)",
        },
    }


def compute(task: dict, seed: int) -> tuple[Atoms | None, str]:
    """Build and label one structure.

    Args:
        task: An entry of ``tasks()``.
        seed: Seed of the whole set; with the task's index it fixes every random number.

    Returns:
        The labelled ``Atoms`` and ``"kept"``, or ``None`` and ``"unconverged"``.
    """
    from ase.calculators.singlepoint import SinglePointCalculator

    rng = np.random.default_rng([seed, STREAM, task["index"]])
    atoms = slab_cell(task, rng) if "molecule" in task else bulk_cell(task, rng)
    # labels belong to the coordinates as they are written
    atoms.set_cell(np.round(atoms.cell.array, 5))
    atoms.positions = np.round(atoms.positions, 5)
    try:
        labels = xtb.single_point(atoms, METHOD, accuracy=ACCURACY)
    except xtb.XtbNotConverged:
        return None, "unconverged"
    atoms.info = {"system": task["system"]}
    atoms.calc = SinglePointCalculator(
        atoms,
        energy=round(labels.energy, 6),
        forces=np.round(labels.forces, 5),
        stress=np.round(labels.stress, 7),
    )
    return atoms, "kept"


def bulk_cell(task: dict, rng: np.random.Generator) -> Atoms:
    """A rattled, strained bulk supercell, with a few ions replaced if ``mixed``."""
    from ase.build import bulk

    solid, (form, *repeats) = task["solid"], task["shape"]
    style = {"cubic": {"cubic": True}, "prism": {"orthorhombic": True}}.get(form, {})
    atoms = bulk(solid, "rocksalt", a=LATTICE[solid], **style).repeat(repeats)
    if task["mixed"]:
        symbols = np.array(atoms.get_chemical_symbols())
        element = IONS[solid][int(rng.integers(2))]
        sites = np.flatnonzero(symbols == element)
        count = int(rng.integers(1, max(2, len(sites) // 6) + 1))
        symbols[rng.choice(sites, count, replace=False)] = SUBSTITUTES[element]
        atoms.set_chemical_symbols(symbols.tolist())
    strain = rng.uniform(-STRAIN, STRAIN, (3, 3))
    strain = 0.5 * (strain + strain.T)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    atoms.positions += rng.normal(0.0, rng.uniform(*BULK_RATTLE), (len(atoms), 3))
    atoms.set_tags(np.zeros(len(atoms), int))
    return atoms


def slab_cell(task: dict, rng: np.random.Generator) -> Atoms:
    """A rattled, strained (100) slab with one or two molecules above it."""
    from ase.build import molecule

    atoms = clean_slab(task["solid"], *task["shape"])
    strain = np.zeros((3, 3))
    strain[:2, :2] = rng.uniform(-SLAB_STRAIN, SLAB_STRAIN, (2, 2))
    strain = 0.5 * (strain + strain.T)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    atoms.positions += rng.normal(0.0, rng.uniform(*SLAB_RATTLE), (len(atoms), 3))
    for _ in range(2 if rng.random() < PAIR_SHARE else 1):
        guest = molecule(task["molecule"])
        guest.positions += rng.normal(0.0, MOLECULE_RATTLE, (len(guest), 3))
        _lay_down(atoms, guest, rng)
    heights = atoms.positions[:, 2]
    cell = atoms.cell.array.copy()
    cell[2] = [0.0, 0.0, heights.max() - heights.min() + rng.uniform(*VACUUM)]
    atoms.set_cell(cell)
    atoms.positions[:, 2] -= heights.min() - 1.0
    atoms.pbc = True
    return atoms


def clean_slab(solid: str, nx: int, ny: int, layers: int) -> Atoms:
    """A flat rocksalt (100) slab, periodic in its plane, its top layer tagged 1."""
    from ase import Atoms

    cation, anion = IONS[solid]
    constant = LATTICE[solid]
    edge = constant / np.sqrt(2.0)
    corners = np.array([[0.0, 0.0], [0.5, 0.5]]) * edge
    symbols, positions, tags = [], [], []
    for layer in range(layers):
        symbols += [cation, anion] if layer % 2 == 0 else [anion, cation]
        positions += [[x, y, layer * constant / 2] for x, y in corners]
        tags += [int(layer == layers - 1)] * 2
    cell = [edge, edge, layers * constant / 2 + VACUUM[1]]
    slab = Atoms(symbols, positions, cell=cell, pbc=(True, True, False), tags=tags)
    return slab.repeat((nx, ny, 1))


def _lay_down(atoms: Atoms, guest: Atoms, rng: np.random.Generator) -> None:
    """Add a molecule above what is there, at a random place, orientation and gap."""
    from ase.data import covalent_radii
    from ase.geometry import get_distances
    from scipy.spatial.transform import Rotation

    turn = Rotation.random(rng=rng).as_matrix()
    centred = (guest.positions - guest.positions.mean(axis=0)) @ turn.T
    across = rng.random(2) @ atoms.cell.array[:2, :2]
    gap = rng.uniform(*(NEAR_GAP if rng.random() < NEAR_SHARE else FAR_GAP))
    radii = covalent_radii[guest.numbers][:, None] + covalent_radii[atoms.numbers]
    height = atoms.positions[:, 2].max() + np.abs(centred).max() + gap + 4.0
    # lowered like a sphere-traced ray: a step of the excess gap cannot overshoot
    for _ in range(1000):
        moved = centred + np.array([across[0], across[1], height])
        pbc = (True, True, False)
        _, distances = get_distances(moved, atoms.positions, atoms.cell.array, pbc)
        excess = float((distances - radii).min()) - gap
        if excess < 1e-4:
            break
        height -= excess
    guest.positions = moved
    guest.set_tags(np.full(len(guest), 2))
    atoms.extend(guest)
