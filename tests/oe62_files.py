"""Files in the layout of the published OE62, of small molecules with made-up energies."""

import json

import ase.build
import numpy as np

from ewald_jax.data import DataConfig, load_dataset

NAMES = ("H2O", "CH3CH2OH", "C6H6", "CH4", "NH3", "CH3SH", "HCN", "C2H2", "CH3Cl", "PH3")
ATOMIC = {"H": -13.7, "C": -1030.5, "N": -1484.0, "O": -2040.25, "S": -10834.0}
ATOMIC |= {"Cl": -12520.0, "P": -9285.0}
COLUMNS = (
    "refcode_csd",
    "canonical_smiles",
    "inchi",
    "number_of_atoms",
    "xyz_pbe_relaxed",
    "energies_occ_pbe",
    "energies_unocc_pbe",
    "energies_occ_pbe0_vac_tier2",
    "energies_unocc_pbe0_vac_tier2",
    "total_energy_pbe",
    "total_energy_pbe0_vac_tier2",
    "hirshfeld_charges_pbe",
)
PBE, PBE0 = "total_energy_pbe", "total_energy_pbe0_vac_tier2"


def molecules(count, seed=0):
    """[count] rattled molecules."""
    out = [ase.build.molecule(NAMES[i % len(NAMES)]) for i in range(count)]
    for number, atoms in enumerate(out):
        atoms.rattle(0.03, seed=seed + number)
    return out


def row_of(atoms, number, orbitals=4):
    """One row, values by column; coordinates have the eight decimals of an xyz file."""
    rng = np.random.default_rng(number)
    energy = sum(ATOMIC[symbol] for symbol in atoms.symbols) + 3.0 + rng.normal()
    rows = [
        f"{symbol} {x:.8f} {y:.8f} {z:.8f}"
        for symbol, (x, y, z) in zip(atoms.symbols, atoms.positions, strict=True)
    ]
    levels = np.sort(rng.normal(size=(4, orbitals))).tolist()
    return {
        "refcode_csd": f"CODE{number:02d}",
        "canonical_smiles": "C/C=C\\C\t\n",
        "inchi": f"InChI=1S/{atoms.symbols}\n",
        "number_of_atoms": len(atoms),
        "xyz_pbe_relaxed": "\n".join([str(len(atoms)), "", *rows]) + "\n",
        **dict(zip(COLUMNS[5:9], levels, strict=True)),
        PBE: energy + 0.5,
        PBE0: energy,
        "hirshfeld_charges_pbe": rng.normal(size=len(atoms)).tolist(),
    }


def rows_of(count, **settings):
    """Rows of `count` molecules."""
    return [
        row_of(atoms, number) for number, atoms in enumerate(molecules(count, **settings))
    ]


def write_oe62(path, rows, order=("columns", "index", "data"), columns=COLUMNS, **changes):
    """Writes rows as pandas does (``to_json(orient="split")``), slashes escaped.

    Args:
        path: Where.
        rows: Values by column.
        order: Of the three parts of the file.
        columns: Their order.
        changes: Parts of the file to replace.
    """
    parts = {
        "columns": list(columns),
        "index": list(range(len(rows))),
        "data": [[row[name] for name in columns] for row in rows],
    } | changes
    text = json.dumps({key: parts[key] for key in order}, separators=(",", ":"))
    path.write_text(text.replace("/", "\\/"), encoding="utf-8")
    return path


def load(path, **settings):
    """The data set of a file, its PBE0 energies as labels."""
    settings = {"energy_key": PBE0, "cache_dir": "none"} | settings
    return load_dataset(DataConfig(path=str(path), **settings), 3.0)
