"""Where a model is better than another: improvement in bins of a long-range contribution.

The long-range analysis of the paper (Kosmala et al., ICML 2023): structures are sorted by the
size of a contribution to their energy, and errors are compared in each part by itself.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ewald_jax.analysis.plots import COLORS, REFERENCE_COLOR, binned_means
from ewald_jax.typing import Float, InputError

_AT_ONCE = 2**22
"""Numbers of a table of resampled structures that is made at once."""


class Improvement(NamedTuple):
    """Relative improvement of a model over a baseline, in bins and in all.

    Intervals hold the middle 95 % of the bootstrap.

    Attributes:
        count: [bins] structures.
        size: [bins] mean of the contribution without its sign, eV.
        baseline_mae: [bins] eV.
        mae: [bins] of the model, eV.
        improvement: [bins] ``1 - mae / baseline_mae``.
        interval: [bins, 2] of it.
        overall: Improvement over all structures.
        overall_interval: [2].
        difference: Improvement in the top bin less that in the bottom bin.
        difference_interval: [2].
    """

    count: np.ndarray
    size: np.ndarray
    baseline_mae: np.ndarray
    mae: np.ndarray
    improvement: np.ndarray
    interval: np.ndarray
    overall: float
    overall_interval: np.ndarray
    difference: float
    difference_interval: np.ndarray


def equal_count_bins(values: Float[np.ndarray, " n"], bins: int) -> np.ndarray:
    """The bin of each value [n]: by size, from 0, as many in each as can be.

    Raises:
        InputError: If there are fewer values than bins, or bins than one.
    """
    if not 1 <= bins <= len(values):
        raise InputError(f"{bins} bins of {len(values)} structures, expected 1 to one each")
    ranks = np.empty(len(values), int)
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks * bins // len(values)


def binned_improvement(
    contribution: Float[np.ndarray, " n"],
    baseline: Float[np.ndarray, "... n"],
    model: Float[np.ndarray, "... n"],
    bins: int = 5,
    samples: int = 2000,
    seed: int = 0,
) -> Improvement:
    """Improvement of a model over a baseline, in bins of a contribution.

    The bootstrap draws structures, the same for both models, and with several seeds also the
    seeds, of each model by themselves. Each structure keeps its bin. With few seeds it
    makes the share of the seeds in the intervals too small, by (seeds - 1) / seeds in variance.

    Args:
        contribution: To the energy of each structure, eV; sorted by its size without sign.
        baseline: [n] or [seeds, n] errors of the baseline, eV; their sign does not matter.
        model: The same of the model, on the same structures; its number of seeds may differ.
        bins: How many.
        samples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        See `Improvement`.

    Raises:
        InputError: If the numbers of structures differ, or a number is not finite.
    """
    size = np.abs(np.asarray(contribution, np.float64))
    errors = [np.abs(np.atleast_2d(np.asarray(e, np.float64))) for e in (baseline, model)]
    for name, values in zip(("baseline", "model"), errors, strict=True):
        if values.ndim != 2 or values.shape[1] != len(size):
            raise InputError(
                f"the errors of the {name} have shape {values.shape}, expected those of "
                f"{len(size)} structures, as the contributions are"
            )
    if not all(np.isfinite(values).all() for values in (size, *errors)):
        raise InputError("a contribution or an error is not finite, expected numbers")
    which = equal_count_bins(size, bins)
    edges = np.arange(bins + 1)
    means, count = binned_means(which, size, edges)
    maes = [binned_means(which, e.mean(axis=0), edges)[0] for e in errors]
    gain = 1 - maes[1] / maes[0]
    drawn, overall = _bootstrap(errors, which, bins, samples, seed)
    return Improvement(
        count,
        means,
        *maes,
        gain,
        _interval(drawn).T,
        float(1 - errors[1].mean() / errors[0].mean()),
        _interval(overall),
        float(gain[-1] - gain[0]),
        _interval(drawn[:, -1] - drawn[:, 0]),
    )


def plot_improvement(
    panels: Mapping[str, Mapping[str, Improvement]], title: str = ""
) -> Figure:
    """Improvement against bins, one line with intervals for each model.

    Args:
        panels: What the bins are of, such as "disp" -> name of a model -> its improvement.
        title: Of the figure.

    Returns:
        The figure, one panel each.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.3 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    # Baselines have the first, muted colour; here every line is of another model, which has the
    # same colour in all panels.
    palette = (*COLORS[1:], COLORS[0])
    names = dict.fromkeys(model for models in panels.values() for model in models)
    colors = {model: palette[place % len(palette)] for place, model in enumerate(names)}
    handles: dict[str, object] = {}
    for axis, (name, models) in zip(axes, panels.items(), strict=False):
        handles |= _draw_panel(axis, name, models, colors)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(4, len(handles)),
        frameon=False,
    )
    if title:
        figure.suptitle(title, parse_math=False)
    return figure


def _draw_panel(
    axis: Axes, name: str, models: Mapping[str, Improvement], colors: Mapping[str, str]
) -> dict[str, object]:
    handles, spread = {}, np.linspace(-0.15, 0.15, len(models))
    for number, (model, found) in enumerate(models.items()):
        places = np.arange(len(found.count)) + spread[number]
        low, high = found.interval.T
        error = 100 * np.stack([found.improvement - low, high - found.improvement])
        handles[model] = axis.errorbar(
            places, 100 * found.improvement, np.maximum(error, 0), fmt="o-", ms=4, lw=1.6,
            capsize=2.5, color=colors[model],
        )  # fmt: skip
    first = next(iter(models.values()))
    axis.axhline(0.0, color=REFERENCE_COLOR, lw=0.8, zorder=-1)
    axis.set_xticks(np.arange(len(first.count)), [f"{x:.2g}" for x in first.size])
    axis.set_title(name, fontsize=10, parse_math=False)
    axis.set_xlabel("mean size in the bin (eV)")
    axis.set_ylabel("MAE below the baseline's (%)")
    axis.spines[["top", "right"]].set_visible(False)
    return handles


def _bootstrap(
    errors: list[np.ndarray], which: np.ndarray, bins: int, samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Improvements of resampled structures and seeds: [samples, bins], and of all [samples]."""
    rng = np.random.default_rng(seed)
    members = np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))[:-1])
    # Of each bin [samples, seeds] sums over as many structures as it has.
    sums = [np.empty((samples, len(e), bins)) for e in errors]
    for place, chosen in enumerate(members):
        size = len(chosen)
        step = max(1, _AT_ONCE // size)
        for start in range(0, samples, step):
            part = slice(start, min(start + step, samples))
            times = _drawn(rng, size, part.stop - part.start)
            for total, e in zip(sums, errors, strict=True):
                total[part, :, place] = times @ e[:, chosen].T
    each = []
    for total in sums:
        seeds = total.shape[1]
        times = _drawn(rng, seeds, samples) / seeds
        each.append(np.sum(total * times[:, :, None], axis=1))
    baseline, model = each
    return 1 - model / baseline, 1 - model.sum(axis=1) / baseline.sum(axis=1)


def _drawn(rng: np.random.Generator, n: int, samples: int) -> np.ndarray:
    """How often each of n was drawn in n draws with replacement, [samples, n]."""
    draws = rng.integers(n, size=(samples, n)) + n * np.arange(samples)[:, None]
    counts = np.bincount(draws.ravel(), minlength=samples * n)
    return counts.reshape(samples, n).astype(np.float64)


def _interval(values: np.ndarray) -> np.ndarray:
    return np.percentile(values, (2.5, 97.5), axis=0)
