"""What a trained model learned: figures and error analysis."""

from ewald_jax.analysis.filters import filter_parts, kernel_parts, plot_filters
from ewald_jax.analysis.plots import (
    Curve,
    binned_means,
    plot_binding_curves,
    plot_parity,
    plot_training,
    save_figure,
)

__all__ = [
    "Curve",
    "binned_means",
    "filter_parts",
    "kernel_parts",
    "plot_binding_curves",
    "plot_filters",
    "plot_parity",
    "plot_training",
    "save_figure",
]
