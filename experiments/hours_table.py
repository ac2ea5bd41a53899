"""The table and the picture of ``results/hours.json`` (experiments/hours.py)."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from tables import markdown

from ewald_jax.analysis.plots import COLORS, REFERENCE_COLOR

COLUMNS = (
    "data",
    "model",
    "variant",
    "parameters",
    "steps",
    "GFLOP, GB a step",
    "step (ms)",
    "limit",
    "GPU-hours",
    "the reference's hours",
    "/ reference",
    "memory (GB)",
)


def table_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Text for `COLUMNS`."""
    texts = []
    for row in rows:
        counts, reference = row["counts"], row["reference_hours"]
        texts.append(
            [
                row["data"],
                row["model"],
                row["variant"],
                f"{counts['parameters']:,}",
                f"{row['steps']:,}",
                f"{counts['gflop']:,.0f}, {counts['gbytes']:.1f}",
                f"{1e3 * row['step_seconds']:.1f}",
                row["limit"],
                _short(row["hours"]),
                "-" if reference is None else f"{reference:g}",
                "-" if reference is None else f"{row['hours'] / reference:.2f}",
                f"{row['memory_gb']:.1f}",
            ]
        )
    return texts


def _short(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 10 else f"{hours:.2g}"


def hours_table(study: Mapping[str, Any]) -> str:
    """The table of ``results/hours.json``, as markdown."""
    device = study["device"]
    compiled = {
        (row["counts"]["device"], row["counts"]["jax"]) for row in study["trainings"]
    }
    programs = " and ".join(f"{name}, JAX {version}" for name, version in sorted(compiled))
    shares = [
        r["hours"] / r["reference_hours"]
        for r in study["trainings"]
        if r["reference_hours"]
    ]
    median = (
        f" Median of predicted over theirs: {statistics.median(shares):.2f}."
        if shares
        else ""
    )
    text = (
        f"Predicted for one {device['name']}: {device['efficiency']:g} of "
        f"{device['tflops']:g} TFLOP/s, {device['tbytes']:g} TB/s; counts of the program that "
        f"XLA makes for {programs}. The reference's hours: its notebooks, on one A100.{median}"
    )
    return markdown(COLUMNS, table_rows(study["trainings"]), text)


def plot_hours(study: Mapping[str, Any]) -> Figure:
    """Predicted hours beside those of the reference, a panel for each data set."""
    figure = Figure(figsize=(10.5, 6.2), layout="constrained")
    for axis, data in zip(figure.subplots(1, 2), ("oe62", "oc20"), strict=True):
        rows = [row for row in study["trainings"] if row["data"] == data]
        places = range(len(rows))
        hours = [row["hours"] for row in rows]
        known = [(row["reference_hours"], at) for row, at in zip(rows, places, strict=True)]
        known = [(value, at) for value, at in known if value is not None]
        axis.scatter(hours, places, s=26, color=COLORS[1], label="predicted", zorder=3)
        if known:
            axis.scatter(
                *zip(*known, strict=True),
                s=34,
                facecolors="none",
                edgecolors=REFERENCE_COLOR,
                label="reference (PyTorch, A100)",
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_yticks(places, [f"{row['model']} {row['variant']}" for row in rows])
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.grid(axis="y", lw=0.4, alpha=0.5)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("GPU-hours of the published training")
        axis.set_title(data.upper(), fontsize=10)
    axis.legend(frameon=False, fontsize=8, loc="lower left")
    figure.suptitle(f"{study['device']['name']}, {study['device']['efficiency']:g} of peak")
    return figure
