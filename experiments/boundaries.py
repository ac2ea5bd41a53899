"""One set of weights from molecule to crystal: pictures of what the `radial` scheme promises.

    python experiments/boundaries.py RUN

RUN is a checkpoint directory of a model with `radial` Ewald blocks, such as those of
``experiments/compare.py``. Drawn are, into ``experiments/results/``:

* ``boundaries.png``: the energy of a molecule in a wire, a slab and a crystal of growing cells,
  against that of the open molecule: the four boundary conditions meet;
* ``far_apart.png``: the interaction of two ions at distances beyond all training, with and
  without the Coulomb channel of the same weights.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import ase
import numpy as np
import typer

from ewald_jax.cli.common import command, note
from ewald_jax.typing import InputError, PyTree

HERE = Path(__file__).resolve().parent
SIZES = np.geomspace(12.0, 72.0, 12)
DISTANCES = np.geomspace(8.0, 200.0, 15)
PBC = {"wire": [True, False, False], "slab": [True, True, False], "crystal": [True] * 3}


def energies(model: Any, params: PyTree, statistics: Any, structures: list) -> np.ndarray:
    """Total energies [n], eV."""
    import ewald_jax

    batch = ewald_jax.batch_from_atoms(structures, model)
    out = ewald_jax.predict(model, params, batch, statistics, forces=False)
    return np.asarray(out.energy)[: len(structures)]


def without_coulomb(model: Any, params: PyTree) -> tuple[Any, PyTree]:
    """The same weights without the Coulomb channel."""
    ewald = model.ewald
    kept = [n for n, name in enumerate(ewald.channels) if name != "coulomb"]
    channels = tuple(ewald.channels[n] for n in kept)
    filter_ = dict(params["ewald_filter"])
    rows = filter_.pop("channels")
    if kept:
        filter_["channels"] = rows[np.array(kept)]
    model = model.clone(ewald=dataclasses.replace(ewald, channels=channels))
    return model, {**params, "ewald_filter": filter_}


def boxed(atoms: ase.Atoms, size: float, pbc: list[bool]) -> ase.Atoms:
    """The molecule in a cubic cell, periodic along some axes."""
    atoms = atoms.copy()
    atoms.set_cell(size * np.eye(3))
    atoms.pbc = pbc
    return atoms


def ion_pair(distance: float) -> tuple[ase.Atoms, ase.Atoms]:
    """The first two halves of an oppositely charged pair of the samples, moved apart."""
    from ewald_jax.data.samples import read_sample

    atoms = next(
        a for a in read_sample("dimers") if a.info["charge_a"] * a.info["charge_b"] < 0
    )
    a, b = np.split(np.arange(len(atoms)), [int(atoms.info["num_a"])])
    one, two = (ase.Atoms(atoms.numbers[x], atoms.positions[x]) for x in (a, b))
    one.positions -= one.positions.mean(axis=0)
    two.positions -= two.positions.mean(axis=0) - [distance, 0, 0]
    return one, two


def draw_boundaries(model, params, statistics, path: Path) -> None:
    """Energy against the size of the cell, for each kind of boundary conditions."""
    from matplotlib.figure import Figure

    from ewald_jax.analysis import save_figure

    one, _ = ion_pair(0.0)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    plain = without_coulomb(model, params)
    for axis, (which, weights), title in (
        (axes[0], plain, "without the Coulomb channel"),
        (axes[1], (model, params), "with it, for an ion"),
    ):
        open_energy = energies(which, weights, statistics, [one])[0]
        for kind, pbc in PBC.items():
            if kind == "wire" and "coulomb" in which.ewald.channels:
                continue
            values = energies(
                which, weights, statistics, [boxed(one, s, pbc) for s in SIZES]
            )
            axis.loglog(SIZES, np.abs(values - open_energy) * 1e3, "o-", label=kind)
        axis.set(title=title, xlabel="size of the cell (Å)", ylabel="|E - E(open)| (meV)")
        axis.legend()
    save_figure(figure, path)


def draw_far_apart(model, params, statistics, path: Path) -> None:
    """Interaction of two ions against their distance."""
    from matplotlib.figure import Figure

    from ewald_jax.analysis import save_figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axis = figure.subplots()
    for (which, weights), label in (
        ((model, params), "all channels"),
        (without_coulomb(model, params), "without Coulomb"),
    ):
        alone = energies(which, weights, statistics, list(ion_pair(0.0))).sum()
        pairs = [sum(ion_pair(d), ase.Atoms()) for d in DISTANCES]
        interaction = np.abs(energies(which, weights, statistics, pairs) - alone)
        axis.loglog(DISTANCES, np.maximum(interaction, 1e-7), "o-", label=label)
    axis.loglog(DISTANCES, 14.4 / DISTANCES, "k:", label="14.4 eV Å / distance")
    axis.axvline(8.0, color="grey", lw=0.8)
    axis.set(xlabel="distance of the centres (Å)", ylabel="|interaction energy| (eV)")
    axis.legend()
    save_figure(figure, path)


@command
def main(
    run: Annotated[Path, typer.Argument(help="Checkpoint directory.")],
    results: Annotated[Path, typer.Option(help="Where pictures go.")] = HERE / "results",
) -> None:
    """Draw both pictures."""
    import ewald_jax

    model, params, _, statistics = ewald_jax.load_checkpoint(run)
    if model.ewald is None or model.ewald.scheme != "radial":
        raise InputError(f"{run} is not a model with ewald.scheme = radial")
    draw_boundaries(model, params, statistics, results / "boundaries.png")
    draw_far_apart(model, params, statistics, results / "far_apart.png")
    note(f"pictures are {results}/boundaries.png and far_apart.png")


if __name__ == "__main__":
    typer.run(main)
