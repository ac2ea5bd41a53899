"""`ewald-jax data`: look at data sets, and compute the sample sets anew."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ewald_jax.cli.common import (
    AsJson,
    Progress,
    command,
    note,
    print_json,
    print_table,
)
from ewald_jax.cli.convert import convert
from ewald_jax.cli.sources import SOURCE_HELP, data_config, note_skipped, note_units
from ewald_jax.typing import InputError

data_app = typer.Typer(
    help="Look at data sets; make the sample sets.", no_args_is_help=True
)

data_app.command("convert")(convert)

# Beyond these a frame is more often a failed calculation than physics.
SHORT_DISTANCE = 0.6
LARGE_FORCE = 50.0
OUTLIER = 10.0
SHOWN = 20


@data_app.command("inspect")
@command
def inspect_data(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCE_HELP)],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    cutoff: Annotated[float, typer.Option(min=0.1, help="Å, to count neighbors.")] = 6.0,
    picture: Annotated[
        Path | None, typer.Option(help="PNG to draw histograms of sizes and labels into.")
    ] = None,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Count structures, sizes, elements and neighbors; label ranges; suspicious frames."""
    from ewald_jax.data.base import load_dataset
    from ewald_jax.data.labels import LabelMissingError
    from ewald_jax.data.parallel import available_cores
    from ewald_jax.data.reading import NothingWholeError

    config = data_config(source, overrides or ())
    if picture is not None:
        from ewald_jax.analysis.plots import check_picture, plot_histograms, save_figure

        check_picture(picture)
    try:
        dataset = load_dataset(config, cutoff, progress, workers=available_cores())
    # Where broken structures are skipped, all are for the label that they lack.
    except (LabelMissingError, NothingWholeError) as error:
        # A user who names labels or their key expects them to be there.
        if config.labels or config.energy_key != "energy":
            raise
        note(f"no labels: {error}")
        dataset = load_dataset(config, cutoff, progress=progress, labelled=False)
    note_skipped(dataset)
    note_units(dataset, config)
    columns = columns_of(dataset, cutoff)
    summary = summarise(dataset, config, columns)
    if picture is not None:
        shown = {
            f"{name} ({unit})" if unit else name: x for (name, unit), x in columns.items()
        }
        note(f"histograms are in {save_figure(plot_histograms(shown, source), picture)}")
    if as_json:
        print_json(summary)
        return
    facts = ("structures", "boundaries", "labels", "splits")
    lines = [(key, _line(summary[key]) or f"no {key}") for key in facts]
    print_table("", ("", source), lines)
    print_table("", ("element", "structures", "atoms"), summary["elements"])
    ranges = [(name, *values.values()) for name, values in summary["ranges"].items()]
    print_table("", ("", "smallest", "median", "largest", "unit"), ranges)
    suspicious = summary["suspicious"]
    if suspicious:
        rows = [(entry["where"], entry["reason"]) for entry in suspicious[:SHOWN]]
        print_table(f"{len(suspicious)} suspicious", ("structure", "reason"), rows)
        if len(suspicious) > SHOWN:
            note(f"{len(suspicious) - SHOWN} more: see --json")


@data_app.command("make-samples")
@command
def make_samples(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    names: Annotated[str, typer.Option(help="Sample sets, joined by commas.")] = "",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    limit: Annotated[int, typer.Option(min=0, help="Try so many of each; 0: all.")] = 0,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Compute the sample sets anew with GFN-xTB (needs the extra `samples`; takes hours)."""
    from ewald_jax.data.samples import SAMPLES, make, xtb

    chosen = tuple(name.strip() for name in names.split(",")) if names else SAMPLES
    for name in chosen:
        if name not in SAMPLES:
            known = ", ".join(SAMPLES)
            raise InputError(f"there is no sample set {name!r}; there are {known}")
    try:
        made = make.make_samples(output, chosen, seed, workers, limit or None, progress)
    except xtb.XtbMissing as error:
        raise InputError(str(error)) from None
    if as_json:
        print_json(made)
    else:
        for name, entry in made.items():
            note(f"{name}: {entry['counts']['kept']} structures, {output / entry['file']}")


def columns_of(dataset, cutoff: float) -> dict[tuple[str, str], np.ndarray]:
    """[structures] of sizes and labels, by name and unit."""
    shortest, forces = [], []
    for sample in dataset:
        shortest.append(_shortest(sample.graph))
        if "forces" in sample.targets:
            forces.append(np.linalg.norm(sample.targets["forces"], axis=1).max())
    columns = {
        ("atoms", ""): dataset.n_node,
        (f"neighbors within {cutoff:g} Å", "per atom"): dataset.n_edge / dataset.n_node,
        ("shortest distance", "Å"): np.array(shortest),
    }
    if "energy" in dataset.labels:
        columns["energy", "eV"] = dataset.energies
        columns["energy - reference", "eV"] = _residual_energies(dataset)
    if forces:
        columns["largest force", "eV/Å"] = np.array(forces)
    return columns


def summarise(
    dataset, config, columns: dict[tuple[str, str], np.ndarray]
) -> dict[str, Any]:
    """What `data inspect` prints, as plain values."""
    atoms, structures, kinds = Counter(), Counter(), Counter()
    for index, sample in enumerate(dataset):
        symbols = [_symbol(z) for z in dataset.species(index)]
        atoms.update(symbols)
        structures.update(set(symbols))
        kinds[_boundary(sample.graph.globals["pbc"][0])] += 1
    by_name = {name: values for (name, _), values in columns.items()}
    short, force = by_name["shortest distance"], by_name.get("largest force", np.zeros(0))
    suspicious = [
        {"structure": int(i), "reason": f"two atoms {short[i]:.2f} Å apart"}
        for i in np.flatnonzero(short < SHORT_DISTANCE)
    ]
    suspicious += [
        {"structure": int(i), "reason": f"a force of {force[i]:.1f} eV/Å"}
        for i in np.flatnonzero(force > LARGE_FORCE)
    ]
    if "energy - reference" in by_name:
        suspicious += _outliers(by_name["energy - reference"])
    for entry in suspicious:
        entry["where"] = dataset.where(entry["structure"])
    ranges = {name: _range(values, unit) for (name, unit), values in columns.items()}
    return {
        "structures": len(dataset),
        "boundaries": dict(kinds),
        "labels": list(dataset.labels),
        "splits": _split_sizes(dataset, config),
        "elements": [[name, structures[name], n] for name, n in atoms.most_common()],
        "ranges": {name: values for name, values in ranges.items() if values},
        "skipped": dataset.skipped,
        "suspicious": sorted(suspicious, key=lambda entry: entry["structure"]),
    }


def _split_sizes(dataset, config) -> dict[str, int] | str:
    from ewald_jax.data.splits import split_dataset

    try:
        return {name: len(part) for name, part in split_dataset(config, dataset).items()}
    except InputError as error:
        return str(error)


def _residual_energies(dataset) -> np.ndarray:
    """Energies less the least-squares reference energies, eV."""
    from ewald_jax.data.fitting import dataset_statistics

    statistics = dataset_statistics(dataset, range(len(dataset)))
    reference = [statistics.reference(dataset.species(i)) for i in range(len(dataset))]
    return dataset.energies - reference


def _outliers(residual: np.ndarray) -> list[dict[str, Any]]:
    """Energies far from the rest, by the median absolute deviation."""
    deviation = np.abs(residual - np.median(residual))
    typical = float(np.median(deviation))
    if typical == 0.0:
        return []
    return [
        {
            "structure": int(index),
            "reason": f"its energy is off by {residual[index]:.2f} eV, "
            f"{deviation[index] / typical:.0f} times the median",
        }
        for index in np.flatnonzero(deviation > OUTLIER * typical)
    ]


def _shortest(graph) -> float:
    """The shortest edge, Å; infinite without edges."""
    x, cell = graph.nodes["positions"], graph.globals["cell"][0]
    vectors = x[graph.senders] + graph.edges["shifts"] @ cell - x[graph.receivers]
    return float(np.linalg.norm(vectors, axis=1).min(initial=np.inf))


def _boundary(pbc: np.ndarray) -> str:
    words = ("open", "periodic in 1 direction", "periodic in 2 directions", "periodic")
    return words[int(np.sum(pbc))]


def _symbol(number: int) -> str:
    from ase.data import chemical_symbols

    return chemical_symbols[int(number)]


def _range(values, unit: str) -> dict[str, Any]:
    """Of the finite values; empty if there are none, as of distances of lone atoms."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return {}
    smallest, median, largest = np.quantile(values, [0, 0.5, 1])
    return {
        "smallest": float(smallest),
        "median": float(median),
        "largest": float(largest),
        "unit": unit,
    }


def _line(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
