"""The demo: SchNet with and without Ewald message passing, in minutes on two cores.

    make demo          (or: python experiments/demo.py)

trains both on the packaged dimers (GFN2-xTB), on the splits `random` and `far`, with the same
budget and seed; prints the table and draws binding curves of pairs of molecules that neither
has seen, across the distance cutoff and beyond.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from cells import Cell, run_cell
from compare import COLUMNS, summarise, table_rows

from ewald_jax.cli.common import command, note, print_table
from ewald_jax.memory import keep_memory

NAMES = {"baseline": "SchNet", "radial": "SchNet + Ewald"}
DATA = ("dimers", "dimers_far")
MODEL = "schnet_small"


def closest_distance(atoms: Any) -> float:
    """Smallest distance between an atom of monomer A and one of monomer B, Å."""
    a, b = np.split(atoms.positions, [int(atoms.info["num_a"])])
    return float(np.linalg.norm(a[:, None] - b[None], axis=-1).min())


def predicted_energies(directory: Path, structures: list) -> np.ndarray:
    """Total energies [n], eV, of a checkpoint's best parameters."""
    import ewald_jax

    model, params, _, statistics = ewald_jax.load_checkpoint(directory)
    energies = []
    for start in range(0, len(structures), 64):
        chunk = structures[start : start + 64]
        batch = ewald_jax.batch_from_atoms(chunk, model)
        out = ewald_jax.predict(model, params, batch, statistics, forces=False)
        energies.append(np.asarray(out.energy)[: len(chunk)])
    return np.concatenate(energies)


def draw(directories: Mapping[str, Path], cutoff: float, path: Path) -> Path:
    """Draws the binding curves of the held-out pairs and the error by distance.

    Args:
        directories: Name of each model -> its training directory.
        cutoff: Distance cutoff of the models, Å.
        path: Of the picture.

    Returns:
        `path`.
    """
    from ewald_jax.analysis import Curve, plot_binding_curves, save_figure
    from ewald_jax.data.samples import read_sample, split_indices

    structures = read_sample("dimers")
    infos = [atoms.info for atoms in structures]
    parts = split_indices("dimers", "random", infos, seed=0)
    curve, test = ([structures[i] for i in parts[key]] for key in ("curve", "test"))
    shown = [*curve, *test]
    energy = np.array([atoms.get_potential_energy() for atoms in shown])
    distance = np.array([closest_distance(atoms) for atoms in shown])
    predictions = {name: predicted_energies(d, shown) for name, d in directories.items()}

    curves = []
    pairs = np.array([atoms.info["pair"] for atoms in curve])
    for pair in dict.fromkeys(pairs):
        rows = np.flatnonzero(pairs == pair)
        rows = rows[np.argsort(distance[rows])]
        # From the farthest point on: the part that depends on the distance. Errors of the
        # energy as a whole are in the last panel.
        curves.append(
            Curve(
                str(pair).replace("_", " "),
                distance[rows],
                energy[rows] - energy[rows[-1]],
                {name: e[rows] - e[rows[-1]] for name, e in predictions.items()},
            )
        )
    is_test = np.arange(len(shown)) >= len(curve)
    errors = {
        name: (distance[is_test], np.abs(e - energy)[is_test])
        for name, e in predictions.items()
    }
    figure = plot_binding_curves(
        curves[:5],
        errors,
        cutoff,
        reference_name="GFN2-xTB",
        title="Binding curves of pairs that were not in the training data",
        ylabel="energy from the farthest point (eV)",
    )
    return save_figure(figure, path)


@command
def main(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="For every training."),
    ] = None,
    output: Annotated[Path, typer.Option("-o", help="Folder of the runs.")] = Path(
        "runs/demo"
    ),
    picture: Annotated[
        Path | None, typer.Option(help="Where the picture goes; into OUTPUT if unset.")
    ] = None,
) -> None:
    """Train, compare, draw."""
    picture = picture or output / "binding_curves.png"
    cells = [Cell(data, MODEL, variant, 0) for data in DATA for variant in NAMES]
    results = [run_cell(cell, output, overrides or ()) for cell in cells]
    directories = {
        NAMES[cell.variant]: output / cell.name for cell in cells if cell.data == DATA[0]
    }
    cutoff = cells[0].config(overrides or ()).model.cutoff
    draw(directories, cutoff, picture)
    title = "test errors, one seed; `dimers`: random split, `dimers_far`: only beyond 8 Å"
    print_table(title, COLUMNS, table_rows(summarise(results)))
    note(f"the picture is {picture}")


if __name__ == "__main__":
    keep_memory()
    typer.run(main)
