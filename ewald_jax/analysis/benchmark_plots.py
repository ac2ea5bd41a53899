"""Pictures of benchmarks, drawn from the plain values that they print as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ewald_jax.analysis.plots import COLORS, REFERENCE_COLOR

Row = Mapping[str, Any]

_SUM_COLORS = {"direct": COLORS[0], "mesh": COLORS[1]}


def plot_scaling(rows: Sequence[Row], crossover: float | None, title: str = "") -> Figure:
    """Time of an atom and memory against atoms, both axes logarithmic.

    Args:
        rows: Of `ScalingTiming`.
        crossover: Atoms from which the mesh is faster, marked; None if that is not known.
        title: Of the figure.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(9.2, 3.9), layout="constrained")
    of_time, of_memory = figure.subplots(1, 2)
    for name, color in _SUM_COLORS.items():
        own = [row for row in rows if row["sum"] == name]
        if not own:
            continue
        atoms = np.array([row["atoms"] for row in own])
        spread = [5e5 * row["seconds_spread"] / row["atoms"] for row in own]
        times = [row["microseconds_per_atom"] for row in own]
        of_time.errorbar(
            atoms, times, spread, fmt="o-", ms=5, lw=2, capsize=3, color=color, label=name
        )
        for key, style, kind in (
            ("resident_gb", "o-", "measured peak"),
            ("compiled_gb", "s:", "reserved by XLA"),
        ):
            if all(row[key] for row in own):
                values, label = [row[key] for row in own], f"{name}, {kind}"
                of_memory.plot(atoms, values, style, ms=5, lw=1.8, color=color, label=label)
    if crossover is not None:
        of_time.axvline(crossover, color=REFERENCE_COLOR, lw=1, ls="--")
        of_time.annotate(
            f"the mesh is faster\nfrom {crossover:,.0f} atoms",
            (crossover, 0.97),
            (5, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8,
            va="top",
        )
    of_time.set_ylabel("time of energy and forces (µs per atom)")
    of_memory.set_ylabel("memory above the inputs (GB)")
    sizes = sorted({row["atoms"] for row in rows})
    for axis in (of_time, of_memory):
        axis.set_xlabel("atoms in the cell")
        axis.set_yscale("log")
        _logarithmic(axis, sizes)
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_rates(rows: Sequence[Row], title: str = "") -> Figure:
    """Rates of an Ewald block over that of a matrix product, against atoms.

    Args:
        rows: Of `BlockTiming`.
        title: Of the figure.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(5.4, 3.7), layout="constrained")
    axis = figure.subplots()
    atoms = [row["nodes"] for row in rows]
    for color, times, rates, label in (
        (COLORS[1], ("seconds", "seconds_spread"), "fraction", "forward"),
        (
            COLORS[2],
            ("gradient_seconds", "gradient_spread"),
            "gradient_fraction",
            "forward and gradient",
        ),
    ):
        shares = np.array([row[rates] for row in rows])
        spread = [0.5 * row[times[1]] / row[times[0]] for row in rows] * shares
        axis.errorbar(
            atoms, shares, spread, fmt="o-", ms=5, lw=2, capsize=3, color=color, label=label
        )
    axis.axhline(1.0, color=REFERENCE_COLOR, lw=1, ls="--")
    axis.set_ylabel("rate of the sums / rate of a matrix product")
    axis.set_ylim(bottom=0)
    axis.set_xlabel("atoms in the cell")
    _logarithmic(axis, sorted(set(atoms)))
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, fontsize=10)
    return figure


def plot_bars(
    groups: Mapping[str, Mapping[str, tuple[float, float]]],
    xlabel: str,
    title: str = "",
    logarithmic: bool = False,
) -> Figure:
    """Horizontal bars with their spread, a panel for each group; the first bar is muted.

    Args:
        groups: Title of the panel -> name of the bar -> (value, interquartile range).
        xlabel: What the bars are.
        title: Of the figure.
        logarithmic: Draw points on a logarithmic axis: bars have no foot there.

    Returns:
        The figure.
    """
    heights = [len(bars) for bars in groups.values()]
    figure = Figure(figsize=(7.6, 1.0 + sum(0.36 * n + 0.5 for n in heights)))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(
        len(groups), 1, squeeze=False, height_ratios=heights, sharex=True
    )
    for axis, (name, bars) in zip(axes[:, 0], groups.items(), strict=True):
        values = np.array([value for value, _ in bars.values()])
        half = np.array([spread / 2 for _, spread in bars.values()])
        colors = [COLORS[0], *[COLORS[1]] * (len(bars) - 1)]
        places = np.arange(len(bars))
        if logarithmic:
            axis.set_xscale("log")
            axis.hlines(places, values.clip(max=1), values.clip(min=1), colors, lw=2)
            axis.scatter(values, places, c=colors, zorder=3)
            axis.axvline(1, color=REFERENCE_COLOR, lw=1, zorder=0)
            axis.margins(x=0.15)
        else:
            axis.barh(places, values, 0.6, color=colors)
            axis.set_xlim(left=0, right=1.18 * (values + half).max())
        axis.errorbar(
            values, places, xerr=half, fmt="none", ecolor=REFERENCE_COLOR, capsize=3
        )
        for place, value, error in zip(places, values, half, strict=True):
            axis.annotate(
                f"{value:.3g}", (value + error, place), (6, 0), textcoords="offset points",
                va="center", fontsize=9,
            )  # fmt: skip
        axis.set_yticks(places, list(bars))
        axis.set_ylim(len(bars) - 0.4, -0.6)
        axis.set_title(name, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel(xlabel)
    figure.suptitle(title, fontsize=10)
    return figure


def _logarithmic(axis: Axes, sizes: Sequence[int]) -> None:
    """A logarithmic axis with a tick at each number that was measured."""
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.set_xlim(min(sizes) / 1.4, max(sizes) * 1.4)
