"""Figures as matplotlib objects; nothing here touches pyplot's global state.

Every function takes plain arrays and returns a `matplotlib.figure.Figure`, which a notebook
shows and `save_figure` writes.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from ewald_jax.typing import InputError

REFERENCE_COLOR = "#222222"
COLORS = ("#8a9bb0", "#d9622b", "#2b7a78", "#7b4fa3", "#b8860b", "#5b8c2a")
"""Baseline first and muted, Ewald second and warm; distinct in grey as well."""


class Curve(NamedTuple):
    """Energies along one coordinate, from a reference and from models.

    Attributes:
        name: Title of the panel.
        distance: [n] coordinate, Å.
        reference: [n] reference energies, eV.
        predictions: Model name -> [n] energies, eV.
    """

    name: str
    distance: np.ndarray
    reference: np.ndarray
    predictions: Mapping[str, np.ndarray]


def plot_binding_curves(
    curves: Sequence[Curve],
    errors: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    cutoff: float | None = None,
    reference_name: str = "reference",
    title: str = "",
    ylabel: str = "interaction energy (eV)",
) -> Figure:
    """Binding curves, one panel each, and a panel with errors by distance.

    Args:
        curves: What to draw.
        errors: Model name -> ([n] distances in Å, [n] absolute errors in eV) of test
            structures; drawn as means in bins.
        cutoff: Distance beyond which a short-range model cannot see, Å.
        reference_name: For the legend.
        title: Of the figure.
        ylabel: Of the curves.

    Returns:
        The figure.
    """
    n_panels = len(curves) + (errors is not None)
    n_columns = min(3, n_panels)
    n_rows = -(-n_panels // n_columns)
    figure = Figure(figsize=(4.0 * n_columns, 3.1 * n_rows + 0.5), layout="constrained")
    axes = np.atleast_1d(figure.subplots(n_rows, n_columns)).ravel()
    for axis in axes[n_panels:]:
        axis.set_axis_off()
    for axis, curve in zip(axes, curves, strict=False):
        for color, (name, energy) in zip(COLORS, curve.predictions.items(), strict=False):
            axis.plot(curve.distance, energy, color=color, lw=2.2, label=name)
        axis.plot(
            curve.distance, curve.reference, "o", ms=3.5, color=REFERENCE_COLOR, mfc="white",
            label=reference_name,
        )  # fmt: skip
        axis.set_title(curve.name, fontsize=10)
        axis.set_ylabel(ylabel)
    if errors is not None:
        _draw_binned_errors(axes[len(curves)], errors)
    for axis in axes[:n_panels]:
        axis.set_xlabel("closest distance between monomers (Å)")
        axis.spines[["top", "right"]].set_visible(False)
        if cutoff is not None:
            axis.axvspan(cutoff, axis.get_xlim()[1], color="#f3efe6", zorder=-2, lw=0)
            axis.set_xlim(right=axis.get_xlim()[1])
    handles, labels = axes[0].get_legend_handles_labels()
    if cutoff is not None:
        from matplotlib.patches import Patch

        handles.append(Patch(color="#f3efe6"))
        labels.append(f"beyond the {cutoff:g} Å cutoff")
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False
    )
    if title:
        figure.suptitle(title)
    return figure


def binned_means(
    x: np.ndarray, y: np.ndarray, edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean of `y` in bins of `x`.

    Args:
        x: [n].
        y: [n].
        edges: [bins + 1], ascending.

    Returns:
        ([bins] means, NaN where a bin is empty; [bins] counts).
    """
    which = np.digitize(x, edges) - 1
    inside = (which >= 0) & (which < len(edges) - 1)
    counts = np.bincount(which[inside], minlength=len(edges) - 1)
    sums = np.bincount(which[inside], weights=y[inside], minlength=len(edges) - 1)
    means = np.full(len(counts), np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means, counts


def plot_training(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    metrics: Sequence[str] = ("energy_mae", "forces_mae"),
) -> Figure:
    """Validation metrics against steps, on logarithmic axes, one line per run.

    Args:
        histories: Run name -> records as in ``metrics.jsonl``, with ``step`` and the
            validation metrics under ``val_NAME``.
        metrics: Metrics that get a panel each, if any record has them.

    Returns:
        The figure.
    """
    records = [record for history in histories.values() for record in history]
    shown = [m for m in metrics if any(f"val_{m}" in record for record in records)]
    figure = Figure(figsize=(4.6 * max(len(shown), 1), 3.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, max(len(shown), 1)))
    for axis, metric in zip(axes, shown, strict=False):
        for color, (name, history) in zip(COLORS, histories.items(), strict=False):
            points = [r for r in history if f"val_{metric}" in r]
            steps, values = ([r[key] for r in points] for key in ("step", f"val_{metric}"))
            axis.plot(steps, values, color=color, lw=2, label=name)
        axis.set_yscale("log")
        axis.set_xlabel("step")
        axis.set_ylabel(f"validation {metric} ({_unit(metric)})")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    return figure


def plot_parity(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], quantity: str, unit: str
) -> Figure:
    """Predicted against reference values, one panel per model, with the mean absolute error.

    Args:
        pairs: Model name -> ([n] reference, [n] prediction).
        quantity: Name for the axes, such as "energy".
        unit: Its unit.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(3.6 * len(pairs), 3.7), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(pairs), sharex=True, sharey=True))
    for axis, color, (name, (reference, prediction)) in zip(
        axes, COLORS, pairs.items(), strict=False
    ):
        both = np.concatenate([reference, prediction])
        limits = [both.min(), both.max()]
        axis.plot(limits, limits, color=REFERENCE_COLOR, lw=0.8)
        axis.plot(reference, prediction, ".", ms=3, color=color, alpha=0.6)
        error = np.mean(np.abs(prediction - reference))
        axis.set_title(f"{name}: MAE {error:.3g} {unit}", fontsize=10)
        axis.set_xlabel(f"reference {quantity} ({unit})")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(f"predicted {quantity} ({unit})")
    return figure


def plot_histograms(values: Mapping[str, np.ndarray], title: str = "") -> Figure:
    """One histogram each, counts on a logarithmic axis so that single outliers show.

    Args:
        values: Label of the axis, with its unit -> [n] numbers; those not finite are left out.
        title: Of the figure.

    Returns:
        The figure.
    """
    columns = min(3, len(values))
    rows = -(-len(values) // columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (label, numbers) in zip(axes, values.items(), strict=False):
        numbers = np.asarray(numbers, np.float64)
        numbers = numbers[np.isfinite(numbers)]
        whole = len(numbers) > 0 and np.all(numbers % 1 == 0) and np.ptp(numbers) < 60
        bins = np.arange(numbers.min(), numbers.max() + 2) - 0.5 if whole else 50
        axis.hist(numbers, bins=bins, color=COLORS[2], log=True)
        axis.set_xlabel(label, parse_math=False)
        axis.set_ylabel("structures")
    for axis in axes[len(values) :]:
        axis.remove()
    figure.suptitle(title, parse_math=False)  # names of files may have dollars
    return figure


def check_picture(path: str | os.PathLike) -> Path:
    """Refuses a path that `save_figure` cannot write a picture to.

    Raises:
        InputError: If it is a folder, or its suffix is that of no picture.
    """
    path, known = Path(path), FigureCanvasBase.get_supported_filetypes()
    if path.is_dir():
        raise InputError(f"{path} is a directory, expected the file of a picture")
    if path.suffix[1:].lower() not in known:
        raise InputError(
            f"{path} has {f'the suffix {path.suffix}' if path.suffix else 'no suffix'}, "
            f"expected that of a picture: {', '.join(f'.{name}' for name in sorted(known))}"
        )
    return path


def save_figure(figure: Figure, path: str | os.PathLike, dpi: int = 150) -> Path:
    """Writes a figure; an existing file is replaced only by a complete one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial{path.suffix}")
    try:
        figure.savefig(partial, dpi=dpi)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _draw_binned_errors(axis, errors: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    farthest = max(x.max() for x, _ in errors.values())
    edges = np.linspace(0.0, farthest + 1e-9, 11)
    centres = 0.5 * (edges[1:] + edges[:-1])
    for color, (name, (distance, error)) in zip(COLORS, errors.items(), strict=False):
        means, _ = binned_means(distance, error, edges)
        axis.plot(centres, means, "o-", ms=4, color=color, lw=1.8, label=name)
    axis.set_yscale("log")
    axis.set_title("all test structures", fontsize=10)
    axis.set_ylabel("MAE of the whole energy (eV)")


def _unit(metric: str) -> str:
    return {"energy_mae": "eV", "forces_mae": "eV/Å"}.get(metric, "")
