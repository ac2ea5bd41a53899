"""The table and the picture of a study: errors, and how much smaller than the baseline's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cells import measured
from compare import summarise, with_spread
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ewald_jax.analysis.plots import COLORS, REFERENCE_COLOR, save_figure

SPLITS = ("train", "val", "test")
METRICS = {"energy_mae": "energy", "forces_mae": "forces"}
COLUMNS = (
    "data",
    "model",
    "variant",
    "seeds",
    "energy MAE (meV)",
    "smaller by",
    "force MAE (meV/Å)",
    "smaller by",
    "parameters",
)
MEAN = "mean"


class Improvement(NamedTuple):
    """How much smaller an error is than the baseline's.

    Attributes:
        value: 1 - error / error of the baseline, of means over the seeds that both have.
        low: The smallest of single seeds.
        high: The largest.
    """

    value: float
    low: float
    high: float


def improvements(
    results: Sequence[Mapping[str, Any]], baseline: str, metric: str
) -> dict[tuple[str, str, str], Improvement]:
    """The improvement of every (data, model, variant) that has a baseline beside it.

    For a variant that several models have, (data, "mean", variant) is the mean of theirs, with
    the smallest and the largest of them.

    Args:
        results: Of cells.
        baseline: Variant that the others are compared with.
        metric: A key of `METRICS`.
    """
    errors: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in results:
        # Beside the splits are other data sets, called as their configs are.
        others = {k: v for k, v in row["metrics"].items() if k not in SPLITS}
        for data, metrics in {row["data"]: measured(row), **others}.items():
            if metric in metrics:
                key = data, row["model"], row["variant"]
                errors.setdefault(key, {})[row["seed"]] = metrics[metric]
    found: dict[tuple[str, str, str], Improvement] = {}
    for (data, model, variant), of_seeds in errors.items():
        base = errors.get((data, model, baseline))
        if base is None or variant == baseline:
            continue
        # Seed beside seed, so that a variant of one seed is not compared with a mean.
        shared = [seed for seed in of_seeds if seed in base]
        if not shared:
            continue
        single = [1 - of_seeds[seed] / base[seed] for seed in shared]
        mean = sum(of_seeds[seed] for seed in shared) / sum(base[seed] for seed in shared)
        found[data, model, variant] = Improvement(1 - mean, min(single), max(single))
    for data, _, variant in list(found):
        of_models = [v.value for (d, _, w), v in found.items() if (d, w) == (data, variant)]
        if len(of_models) > 1 and (data, MEAN, variant) not in found:
            mean = float(np.mean(of_models))
            found[data, MEAN, variant] = Improvement(mean, min(of_models), max(of_models))
    return found


def accuracy_table(
    results: Sequence[Mapping[str, Any]], baseline: str
) -> tuple[Sequence[str], list[list[str]]]:
    """Columns and rows of text: every data set, model and variant, then means over models."""
    gains = {metric: improvements(results, baseline, metric) for metric in METRICS}
    rows = []
    for row in summarise(results):
        key = row["data"], row["model"], row["variant"]
        cells = [*key, str(row["seeds"])]
        for metric in METRICS:
            cells += [with_spread(row, metric), _percent(gains[metric].get(key))]
        rows.append([*cells, f"{row['parameters']:,}"])
    means = [key for key in gains["energy_mae"] if key[1] == MEAN]
    for key in means:
        of_models = {
            model
            for data, model, variant in gains["energy_mae"]
            if (data, variant) == (key[0], key[2]) and model != MEAN
        }
        texts = [_range(gains[metric].get(key)) for metric in METRICS]
        model = f"mean of {len(of_models)}"
        rows.append([key[0], model, key[2], "", "", texts[0], "", texts[1], ""])
    return COLUMNS, rows


def plot_accuracy(results: Sequence[Mapping[str, Any]], baseline: str, path: Path) -> bool:
    """Bars of the improvement of every model with every variant; lines are single seeds' range.

    Args:
        results: Of cells.
        baseline: Variant that the others are compared with.
        path: PNG to write; removed if there is nothing to draw.

    Returns:
        Whether there is a picture.
    """
    gains = {metric: improvements(results, baseline, metric) for metric in METRICS}
    panels = [
        (data, metric)
        for metric, found in gains.items()
        for data in dict.fromkeys(key[0] for key in found)
    ]
    if not panels:
        path.unlink(missing_ok=True)
        return False
    keys = [key[1:] for found in gains.values() for key in found]
    models = [model for model in dict.fromkeys(m for m, _ in keys) if model != MEAN]
    models += [MEAN] * any(model == MEAN for model, _ in keys)
    variants = list(dict.fromkeys(variant for _, variant in keys))
    # The baseline's color is for none of these.
    many = len(variants) >= len(COLORS)
    groups, bars = (variants, models) if many else (models, variants)
    height = max(3.8, 0.16 * len(groups) * len(bars) + 1) if many else 3.8
    figure = Figure(figsize=(4.6 * len(panels) + 1.5, height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(panels)))
    for axis, (data, metric) in zip(axes, panels, strict=True):
        own = {key[1:]: gain for key, gain in gains[metric].items() if key[0] == data}
        if many:
            own = {key[::-1]: gain for key, gain in own.items()}
        _draw(axis, own, groups, bars, many)
        axis.set_title(f"{data}: {METRICS[metric]}", fontsize=10)
        label = f"error smaller than of {baseline} by (%)"
        (axis.set_xlabel if many else axis.set_ylabel)(label)
    if len(bars) > 1:
        patches = [
            Patch(color=_color(place), label=_short(b)) for place, b in enumerate(bars)
        ]
        figure.legend(handles=patches, loc="outside right upper", fontsize=8, frameon=False)
    save_figure(figure, path)
    return True


def _draw(
    axis: Axes,
    gains: Mapping[tuple[str, str], Improvement],
    groups: Sequence[str],
    bars: Sequence[str],
    many: bool,
) -> None:
    """Bars of each group side by side; of many groups along the axis."""
    width = 0.8 / len(bars)
    for place, bar in enumerate(bars):
        there = [(at, gains[g, bar]) for at, g in enumerate(groups) if (g, bar) in gains]
        if not there:
            continue
        at = np.array([at for at, _ in there]) + (place - (len(bars) - 1) / 2) * width
        value, low, high = (100 * np.array([gain for _, gain in there])).T
        ends, style = np.maximum([value - low, high - value], 0), {"fmt": "none", "lw": 1}
        if many:
            axis.barh(at, value, width * 0.92, color=_color(place))
            axis.errorbar(value, at, xerr=ends, ecolor=REFERENCE_COLOR, **style)
        else:
            axis.bar(at, value, width * 0.92, color=_color(place))
            axis.errorbar(at, value, yerr=ends, ecolor=REFERENCE_COLOR, **style)
    names = [_short(group) for group in groups]
    if many:
        axis.axvline(0, color=REFERENCE_COLOR, lw=0.8)
        axis.set_yticks(range(len(groups)), names, fontsize=8)
        axis.invert_yaxis()
    else:
        axis.axhline(0, color=REFERENCE_COLOR, lw=0.8)
        axis.set_xticks(range(len(groups)), names)
    axis.spines[["top", "right"]].set_visible(False)


def _color(place: int) -> str:
    return COLORS[1 + place % (len(COLORS) - 1)]


def _short(name: str) -> str:
    return name.removesuffix("_small")


def _percent(gain: Improvement | None) -> str:
    return "" if gain is None else f"{100 * gain.value:.0f} %"


def _range(gain: Improvement | None) -> str:
    if gain is None:
        return ""
    low, high = 100 * gain.low, 100 * gain.high
    return f"{100 * gain.value:.0f} % ({low:.0f} to {high:.0f})"
