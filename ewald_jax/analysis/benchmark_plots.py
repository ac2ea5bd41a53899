"""Pictures of benchmarks, drawn from the plain values that they print as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from ewald_jax.analysis.plots import COLORS, REFERENCE_COLOR
from ewald_jax.typing import Array

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
            # None or nothing could be measured of what was in the memory kept from before.
            values = [row[key] or np.nan for row in own]
            if np.isfinite(values).any():
                label = f"{name}, {kind}"
                of_memory.plot(atoms, values, style, ms=5, lw=1.8, color=color, label=label)
    if crossover is not None:
        of_time.axvline(crossover, color=REFERENCE_COLOR, lw=1, ls="--")
        of_time.annotate(
            f"the mesh is faster\nfrom {crossover:,.0f} atoms",
            (crossover, 0.03),
            (5, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=8,
        )
    of_time.set_ylabel("time of energy and forces (µs per atom)")
    of_memory.set_ylabel("memory above the inputs (GB)")
    sizes = sorted({row["atoms"] for row in rows})
    for axis in (of_time, of_memory):
        axis.set_xlabel("atoms in the cell")
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_locator(NullLocator())
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
    bars: Mapping[str, tuple[float, float]], xlabel: str, title: str = ""
) -> Figure:
    """Horizontal bars with their spread; the first one, of the baseline, is muted.

    Args:
        bars: Name -> (value, interquartile range).
        xlabel: What the bars are.
        title: Of the figure.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(6.4, 1.2 + 0.4 * len(bars)), layout="constrained")
    axis = figure.subplots()
    values, spreads = np.array(list(bars.values())).T
    colors = [COLORS[0], *[COLORS[1]] * (len(bars) - 1)]
    places = np.arange(len(bars))
    axis.barh(places, values, 0.6, color=colors)
    axis.set_xlim(0, 1.15 * (values + spreads / 2).max())
    _points(axis, values, spreads, places, "none", REFERENCE_COLOR)
    _names(axis, list(bars))
    axis.set_xlabel(xlabel)
    axis.set_title(title, fontsize=10)
    return figure


def plot_ratios(
    groups: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]],
    xlabel: str,
    title: str = "",
) -> Figure:
    """Ratios to a baseline on a logarithmic axis, a panel for each group.

    Args:
        groups: Title of the panel -> name of the row -> kind, at most two in all ->
            (ratio, interquartile range).
        xlabel: What the ratios are.
        title: Of the figure.

    Returns:
        The figure.
    """
    heights = [len(rows) for rows in groups.values()]
    figure = Figure(figsize=(7.6, 1.2 + sum(0.42 * n + 0.5 for n in heights)))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(
        len(groups), 1, squeeze=False, height_ratios=heights, sharex=True
    )[:, 0]
    kinds = dict.fromkeys(
        k for rows in groups.values() for row in rows.values() for k in row
    )
    for axis, (name, rows) in zip(axes, groups.items(), strict=True):
        axis.set_xscale("log")
        axis.axvline(1, color=REFERENCE_COLOR, lw=1, zorder=0)
        for number, (kind, color) in enumerate(zip(kinds, COLORS[1:], strict=False)):
            found = [(i, row[kind]) for i, row in enumerate(rows.values()) if kind in row]
            if found:
                places = np.array([i for i, _ in found]) + 0.3 * number - 0.15
                values, spreads = np.array([pair for _, pair in found]).T
                axis.hlines(places, values.clip(max=1), values.clip(min=1), color, lw=2)
                _points(axis, values, spreads, places, "o", color)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.margins(x=0.15)
        _names(axis, list(rows))
        axis.set_title(name, fontsize=10)
    axes[-1].set_xlabel(xlabel)
    handles = [
        Line2D([], [], marker="o", color=color, label=kind)
        for kind, color in zip(kinds, COLORS[1:], strict=False)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False
    )
    figure.suptitle(title, fontsize=10)
    return figure


def _points(
    axis: Axes, values: Array, spreads: Array, places: Array, fmt: str, color: str
) -> None:
    """Values with their spread and their numbers."""
    half = spreads / 2
    axis.errorbar(values, places, xerr=half, fmt=fmt, ms=5, color=color, capsize=3)
    for value, error, place in zip(values, half, places, strict=True):
        axis.annotate(
            f"{value:.3g}",
            (max(value + error, 1), place),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )


def _names(axis: Axes, names: Sequence[str]) -> None:
    """One row for each name, the first on top."""
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _logarithmic(axis: Axes, sizes: Sequence[int]) -> None:
    """A logarithmic axis with a tick at each number that was measured."""
    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.set_xlim(min(sizes) / 1.4, max(sizes) * 1.4)
