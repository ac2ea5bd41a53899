"""The monomers of the ``dimers`` set: charged, zwitterionic and polar molecules.

Each one is written as SMILES, embedded by rdkit with a fixed seed and relaxed once with
GFN2-xTB. A bare zwitterion would fold and give its proton away in the gas phase, so the
lengths of its N-H bonds and the distances of its ammonium N to its carboxylate are held,
and every relaxed monomer is checked against the bonds of its SMILES.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np

from ewald_jax.data.samples.xtb import XtbError, missing

if TYPE_CHECKING:
    from ase import Atoms

KINDS = ("cation", "anion", "zwitterion", "polar")
EMBED_SEED = 7
CONFORMERS = 10
MAX_FORCE = 0.01
MAX_STEPS = 300
BOND_SLACK = 1.3


@dataclasses.dataclass(frozen=True)
class Monomer:
    """One molecule of the library.

    Attributes:
        smiles: Its bonds and formal charges.
        kind: One of ``KINDS``.
    """

    smiles: str
    kind: str

    @property
    def charge(self) -> int:
        """Total charge in e."""
        return {"cation": 1, "anion": -1}.get(self.kind, 0)


MONOMERS: dict[str, Monomer] = {
    "ammonium": Monomer("[NH4+]", "cation"),
    "methylammonium": Monomer("C[NH3+]", "cation"),
    "guanidinium": Monomer("NC(N)=[NH2+]", "cation"),
    "imidazolium": Monomer("c1c[nH]c[nH+]1", "cation"),
    "tetramethylammonium": Monomer("C[N+](C)(C)C", "cation"),
    "pyridinium": Monomer("c1cc[nH+]cc1", "cation"),
    "chloride": Monomer("[Cl-]", "anion"),
    "formate": Monomer("C(=O)[O-]", "anion"),
    "acetate": Monomer("CC(=O)[O-]", "anion"),
    "nitrate": Monomer("[N+](=O)([O-])[O-]", "anion"),
    "thiocyanate": Monomer("[S-]C#N", "anion"),
    "mesylate": Monomer("CS(=O)(=O)[O-]", "anion"),
    "perchlorate": Monomer("O=Cl(=O)(=O)[O-]", "anion"),
    "tetrafluoroborate": Monomer("F[B-](F)(F)F", "anion"),
    "trifluoroacetate": Monomer("FC(F)(F)C(=O)[O-]", "anion"),
    "glycine": Monomer("[NH3+]CC(=O)[O-]", "zwitterion"),
    "beta_alanine": Monomer("[NH3+]CCC(=O)[O-]", "zwitterion"),
    "betaine": Monomer("C[N+](C)(C)CC(=O)[O-]", "zwitterion"),
    "tmao": Monomer("C[N+](C)(C)[O-]", "zwitterion"),
    "water": Monomer("O", "polar"),
    "formamide": Monomer("NC=O", "polar"),
    "urea": Monomer("NC(N)=O", "polar"),
    "acetone": Monomer("CC(C)=O", "polar"),
    "dmso": Monomer("CS(C)=O", "polar"),
    "acetonitrile": Monomer("CC#N", "polar"),
    "pyridine": Monomer("c1ccncc1", "polar"),
}


class MonomerError(XtbError):
    """A relaxed monomer is not the molecule its SMILES says."""


@functools.cache
def relaxed_monomer(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The relaxed geometry of one monomer, centred on its mean atom position.

    Args:
        name: A key of ``MONOMERS``.

    Returns:
        ``numbers`` ``[n_atoms]`` and ``positions`` ``[n_atoms, 3]`` in Å.

    Raises:
        MonomerError: If the relaxation broke or made a bond, or did not finish.
        XtbMissing: If rdkit or tblite is not installed.
    """
    atoms, bonds = embed(MONOMERS[name].smiles)
    if len(atoms) > 1:
        _relax(name, atoms, bonds)
        if bonded_pairs(atoms) != bonds:
            raise MonomerError(f"Relaxing {name} changed its bonds.")
    return atoms.numbers.copy(), atoms.positions - atoms.positions.mean(axis=0)


def embed(smiles: str) -> tuple[Atoms, set[tuple[int, int]]]:
    """A force-field geometry for a SMILES string.

    Args:
        smiles: One molecule; hydrogens are added.

    Returns:
        The ``Atoms`` (Å) and its bonds as pairs of atom indices, smaller first.
    """
    try:
        from rdkit import Chem
        from rdkit.Chem import AllChem
    except ImportError as error:
        raise missing("rdkit") from error
    from ase import Atoms

    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    found = AllChem.EmbedMultipleConfs(molecule, CONFORMERS, randomSeed=EMBED_SEED)
    if not list(found):
        raise MonomerError(f"rdkit found no geometry for {smiles}.")
    if AllChem.MMFFHasAllMoleculeParams(molecule) and molecule.GetNumAtoms() > 1:
        AllChem.MMFFOptimizeMoleculeConfs(molecule)
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    shapes = [conformer.GetPositions() for conformer in molecule.GetConformers()]
    # the most extended one: a folded zwitterion is one short step from losing its proton
    positions = max(shapes, key=lambda x: np.sum((x - x.mean(axis=0)) ** 2))
    ends = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in molecule.GetBonds()]
    return Atoms(numbers, positions), {(min(pair), max(pair)) for pair in ends}


def bonded_pairs(atoms: Atoms) -> set[tuple[int, int]]:
    """Pairs of atoms closer than ``BOND_SLACK`` times their covalent radii."""
    from ase.data import covalent_radii

    radii = covalent_radii[atoms.numbers]
    close = atoms.get_all_distances() < BOND_SLACK * (radii[:, None] + radii)
    first, second = np.nonzero(np.triu(close, k=1))
    return set(zip(first.tolist(), second.tolist(), strict=True))


def _relax(name: str, atoms: Atoms, bonds: set[tuple[int, int]]) -> None:
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise missing("tblite") from error
    from ase.constraints import FixBondLengths
    from ase.optimize import BFGS

    monomer = MONOMERS[name]
    if monomer.kind == "zwitterion":
        held = [pair for pair in sorted(bonds) if set(atoms.numbers[list(pair)]) == {1, 7}]
        if held:
            nitrogen = int(np.flatnonzero(atoms.numbers == 7)[0])
            held += [(nitrogen, int(i)) for i in np.flatnonzero(atoms.numbers == 8)]
            atoms.set_constraint(FixBondLengths(held))
    atoms.calc = TBLite(method="GFN2-xTB", charge=monomer.charge, verbosity=0)
    done = BFGS(atoms, logfile=None).run(fmax=MAX_FORCE, steps=MAX_STEPS)
    atoms.calc = None
    atoms.set_constraint()
    if not done:
        raise MonomerError(f"Relaxing {name} did not finish in {MAX_STEPS} steps.")
