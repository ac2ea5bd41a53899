r"""Compare variants of a model on data sets: the same budget, several seeds, one table.

    python experiments/compare.py --data dimers --data dimers_far --model schnet_small \
        --variant baseline --variant voxel --seeds 3 --name dimers

trains every cell of data x variant x seed into ``runs/NAME/``, writes what came out to
``experiments/results/NAME.json``, and prints the table. Names are files of
``experiments/configs``, MODEL_VARIANT.yaml in place of VARIANT.yaml where there is one;
KEY=VALUE overrides apply to every cell. Cells that are finished are
not run again, one that was interrupted goes on where it stopped, and a cell of other settings
is never mixed in. ``experiments/report.py`` puts the tables into ``experiments/README.md``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from cells import CONFIGS, HERE, Cell, check_once, measured, run_cell

from ewald_jax.cli.common import command, note, print_table
from ewald_jax.memory import keep_memory
from ewald_jax.train.files import write_json


def summarise(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread over seeds: one row per data set and variant, in order of appearance.

    The ratio is the row's energy MAE over that of the first variant on the same data.
    """
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for result in results:
        for name in ("test", *_tested_too(result)):
            data = result["data"] if name == "test" else name
            metrics = measured(result) if name == "test" else result["metrics"][name]
            test = {**result, "test": metrics}
            groups.setdefault((data, result["model"], result["variant"]), []).append(test)
    rows, first = [], {}
    for (data, model, variant), group in sorted(groups.items(), key=_place(groups)):
        row: dict[str, Any] = {"data": data, "model": model, "variant": variant}
        row["seeds"] = len(group)
        for metric in ("energy_mae", "forces_mae"):
            values = [r["test"].get(metric, np.nan) for r in group]
            row[metric] = float(np.mean(values))
            row[f"{metric}_spread"] = (
                float(np.std(values, ddof=1)) if len(values) > 1 else None
            )
        row["ratio"] = row["energy_mae"] / first.setdefault(
            (data, model), row["energy_mae"]
        )
        row["parameters"] = group[0]["parameters"]
        # The fastest seed: other programs on the machine only ever add time.
        row["ms_per_step"] = 1e3 * min(r["seconds_per_step"] or np.inf for r in group)
        rows.append(row)
    return rows


def _tested_too(result: Mapping[str, Any]) -> list[str]:
    """Data sets of `tested_on` among the metrics, which have the names of configs."""
    return [name for name in result["metrics"] if (CONFIGS / f"data/{name}.yaml").exists()]


def _place(groups: Iterable[tuple[str, str, str]]) -> Callable[[tuple], tuple[int, int]]:
    """Sorts items by data set and model, each in the order of their first appearance."""
    order = list(groups)
    sets = list(dict.fromkeys(key[:2] for key in order))
    return lambda item: (sets.index(item[0][:2]), order.index(item[0]))


COLUMNS = (
    "data",
    "variant",
    "seeds",
    "energy MAE (meV)",
    "energy ratio",
    "force MAE (meV/Å)",
    "parameters",
    "ms per step",
)


def table_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Text for the columns of `COLUMNS`."""
    return [
        [
            row["data"],
            row["variant"],
            str(row["seeds"]),
            with_spread(row, "energy_mae"),
            f"{row['ratio']:.2f}",
            with_spread(row, "forces_mae"),
            f"{row['parameters']:,}",
            f"{row['ms_per_step']:.1f}",
        ]
        for row in rows
    ]


def with_spread(row: Mapping[str, Any], metric: str) -> str:
    """A metric of `summarise` in thousandths, with its spread; "-" if there is none."""
    spread = row[f"{metric}_spread"]
    if np.isnan(row[metric]):  # trained and tested on energies alone
        return "-"
    text = f"{1e3 * row[metric]:.1f}"
    return text if spread is None else f"{text} ± {1e3 * spread:.1f}"


@command
def main(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For every cell.")
    ] = None,
    data: Annotated[list[str], typer.Option(help="Data configs.")] = ("dimers",),
    model: Annotated[str, typer.Option(help="Model config.")] = "schnet_small",
    variant: Annotated[list[str], typer.Option(help="Variants.")] = ("baseline", "voxel"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0, 1, ...")] = 3,
    also: Annotated[
        list[str] | None,
        typer.Option(help="More data configs, whose test split is measured."),
    ] = None,
    name: Annotated[str, typer.Option(help="Of the study.")] = "study",
    output: Annotated[Path, typer.Option(help="Where runs go.")] = Path("runs"),
    results: Annotated[Path, typer.Option(help="Where results go.")] = HERE / "results",
) -> None:
    """Train every cell and print the table."""
    cells = [Cell(d, model, v, s) for s in range(seeds) for d in data for v in variant]
    check_once(cells)
    for cell in cells:
        cell.config(overrides or ())  # what does not fit is said before anything runs
    folder, file = output / name, results / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    done: list[dict[str, Any]] = []
    for cell in cells:
        done.append(run_cell(cell, folder, overrides or (), also=also or ()))
        write_json(file, {"overrides": overrides or [], "cells": done})
    order = {cell.name: place for place, cell in enumerate(_by_data(cells))}
    done.sort(
        key=lambda r: order[Cell(r["data"], r["model"], r["variant"], r["seed"]).name]
    )
    title = f"{name}: mean ± spread over {seeds} seeds"
    print_table(title, COLUMNS, table_rows(summarise(done)))
    note(f"results are in {file}, runs in {folder}")


def _by_data(cells: Sequence[Cell]) -> list[Cell]:
    data = list(dict.fromkeys(cell.data for cell in cells))
    return sorted(cells, key=lambda cell: data.index(cell.data))


if __name__ == "__main__":
    keep_memory()
    typer.run(main)
