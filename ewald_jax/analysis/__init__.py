"""What a trained model learned: figures and error analysis."""

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
    "plot_binding_curves",
    "plot_parity",
    "plot_training",
    "save_figure",
]
