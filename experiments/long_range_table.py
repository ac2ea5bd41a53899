"""The table of ``results/long_range_STUDY.json``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def in_words(contribution: str, beyond: float) -> str:
    """A contribution and the distance beyond which its pairs are."""
    return f"{contribution} beyond {beyond:g} Å" if beyond else contribution


def long_range_columns(study: Mapping[str, Any]) -> list[str]:
    """Titles: of so many bins as the study has."""
    bins = len(study["long_range"][0]["count"])
    parts = [f"{place} of {bins}" for place in range(1, bins + 1)]
    parts[0] += " (smallest)"
    parts[-1] += " (largest)"
    return ["data, model", "contribution", "variant", "all", *parts, "largest - smallest"]


def long_range_rows(study: Mapping[str, Any]) -> list[list[str]]:
    """Text for `long_range_columns`, in front of the variants the bins and the baseline."""
    rows: list[list[str]] = []
    before = None
    for row in study["long_range"]:
        place = [
            f"{row['data']}, {row['model']}",
            in_words(row["contribution"], row["beyond"]),
        ]
        if place != before:
            for what, name in (
                ("mean size (meV)", "size"),
                (f"MAE of {study['baseline']} (meV)", "baseline_mae"),
            ):
                # Mean over bins of almost equal count, by their counts.
                values = [np.average(row[name], weights=row["count"])]
                rows.append([*place, what, *_in_mev([*values, *row[name]]), ""])
        before = place
        rows.append(
            [
                *place,
                row["variant"],
                _percent(row["overall"], row["overall_interval"]),
                *map(_percent, row["improvement"], row["interval"]),
                _percent(row["difference"], row["difference_interval"]),
            ]
        )
    return rows


def long_range_table(study: Mapping[str, Any]) -> str:
    """Markdown."""
    columns = long_range_columns(study)
    rows = [columns, ["---"] * len(columns), *long_range_rows(study)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines += [
        "",
        f"Improvement of the energy MAE over `{study['baseline']}` in %, by size of the "
        "contribution, with 95 % intervals of the bootstrap over test structures and seeds"
        + "".join(f"; beside it runs of `{name}`" for name in study.get("beside", ()))
        + ".",
    ]
    return "\n".join(lines)


def _percent(value: float, interval: Sequence[float]) -> str:
    low, high = (f"{100 * x:.0f}" for x in interval)
    return f"{100 * value:.1f} [{low}, {high}]"


def _in_mev(values: Sequence[float]) -> list[str]:
    return [f"{1e3 * x:.3g}" if abs(x) < 1 else f"{1e3 * x:.0f}" for x in values]
