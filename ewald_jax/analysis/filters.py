r"""What a network with the `radial` scheme has learned, as functions of k and of r.

A trained model holds `bottleneck` filters, one for each head of the features. Each is the sum
of a smooth part, the Gaussians, and of channels with known tails. In real space it is

.. math::
    K(r) = \frac{3}{k_c^3} \int_0^{k_c} k^2\, \varphi(k)\, \mathrm{sinc}(k r)\, dk ,

the weight with which an atom at distance r enters the message, for molecules exactly and for
crystals summed over images. Both are linear in the parts, so that each part has a kernel.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ewald_jax import kspace as ks
from ewald_jax.analysis.plots import REFERENCE_COLOR
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.typing import Array, Float, InputError, PyTree

GAUSSIANS = "gaussians"
"""Name of the smooth part; the others have those of `kspace.CHANNELS`."""


def filter_parts(
    config: EwaldConfig, params: PyTree, k: Float[np.ndarray, " kvecs"]
) -> dict[str, Float[np.ndarray, "kvecs heads"]]:
    """The learned filters phi(k) by part; their sum is the filter.

    Args:
        config: ``model.ewald``.
        params: Of the model, or of its `EwaldFilter` alone.
        k: Wave numbers, 1/Å. The Coulomb part has no value at 0 and is given as 0 there.

    Returns:
        ``gaussians`` and each of ``config.channels`` -> [kvecs, heads], in float64.

    Raises:
        InputError: If the scheme is not ``radial``, or the parameters are not those of its
            filters.
    """
    weights = _weights(config, params)
    square = (np.asarray(k, np.float64) / config.k_cutoff) ** 2
    # In float32, rounding would hide tails that have fallen by six orders of magnitude.
    with jax.enable_x64(True):
        basis = ks.channel_basis(jnp.asarray(square), config.num_k_rbf, config.channels)
        return {name: np.asarray(basis[:, rows] @ w) for name, rows, w in weights}


def kernel_parts(
    config: EwaldConfig, params: PyTree, r: Float[np.ndarray, " distances"]
) -> dict[str, Float[np.ndarray, "distances heads"]]:
    """The kernels K(r) of `filter_parts`, for the message ``prefactor * sum_j K(r_ij) h_j``.

    Args:
        config: ``model.ewald``.
        params: Of the model, or of its `EwaldFilter` alone.
        r: Distances, Å; 0 is the weight of an atom's message to itself.

    Returns:
        As `filter_parts`, [distances, heads].

    Raises:
        InputError: As `filter_parts`.
    """
    r = np.asarray(r, np.float64)
    reach = float(np.max(r, initial=0.0))
    num = ks.num_radial(config.k_cutoff, 1 / (config.num_k_rbf - 1), reach)
    x, quadrature = ks.radial_nodes(num)
    k = config.k_cutoff * x
    parts = filter_parts(config, params, k)
    with jax.enable_x64(True):
        square, k_square = jnp.asarray(r**2), jnp.asarray(k**2)
        return {
            name: np.asarray(ks.pair_kernel(square, k_square, quadrature[:, None] * phi))
            for name, phi in parts.items()
        }


def plot_filters(
    config: EwaldConfig,
    params: PyTree,
    r_max: float = 12.0,
    cutoff: float | None = None,
    num_points: int = 400,
) -> Figure:
    """The learned filters over kernels, whole and by part, one line for each head.

    The upper row shows ``3 (k / k_cutoff)^2 phi(k)``, the integrand of the kernel at r = 0,
    which is finite for the Coulomb channel too.

    Args:
        config: ``model.ewald``.
        params: Of the model, or of its `EwaldFilter` alone.
        r_max: Largest distance, Å.
        cutoff: Distance cutoff of the short-range messages, Å, to be marked; None for none.
        num_points: Of each curve.

    Returns:
        The figure.

    Raises:
        InputError: As `filter_parts`.
    """
    k = np.linspace(0.0, config.k_cutoff, num_points + 1)[1:]
    r = np.linspace(0.0, r_max, num_points)
    shells = 3 * (k[:, None] / config.k_cutoff) ** 2
    above = {name: shells * phi for name, phi in filter_parts(config, params, k).items()}
    below = kernel_parts(config, params, r)
    columns = 1 + len(above)
    figure = Figure(figsize=(2.4 * columns, 4.6), layout="constrained")
    axes = figure.subplots(2, columns, sharex="row", sharey="row", squeeze=False)
    for row, x, parts in zip(axes, (k, r), (above, below), strict=True):
        _draw_parts(row, x, {"whole filter": sum(parts.values()), **parts})
    for axis in axes[0]:
        axis.set_xlabel("k (1/Å)")
    for axis in axes[1]:
        axis.set_title("")
        axis.set_xlabel("r (Å)")
        if cutoff is not None:
            axis.axvline(cutoff, color=REFERENCE_COLOR, lw=0.9, ls=":")
    axes[0, 0].set_ylabel("3 (k / k$_c$)$^2$ φ(k)")
    axes[1, 0].set_ylabel("kernel K(r)")
    return figure


def _draw_parts(axes: np.ndarray, x: np.ndarray, parts: Mapping[str, np.ndarray]) -> None:
    for axis, (name, values) in zip(axes, parts.items(), strict=True):
        colors = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, values.shape[1]))
        axis.axhline(0.0, color=REFERENCE_COLOR, lw=0.6)
        for color, value in zip(colors, values.T, strict=True):
            axis.plot(x, value, color=color, lw=1.5)
        axis.set_title(name, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)


def _weights(config: EwaldConfig, params: PyTree) -> list[tuple[str, slice, Array]]:
    """Of each part its name, its functions in `channel_basis`, and [functions, heads]."""
    if config is None or config.scheme != "radial":
        scheme = "none" if config is None else repr(config.scheme)
        raise InputError(
            f"the Ewald scheme is {scheme}, expected 'radial': only its filters are "
            "functions of |k| that all blocks share"
        )
    own = params.get("ewald_filter", params)
    num, channels = config.num_k_rbf, config.channels
    wanted = {"down": (num, config.bottleneck)}
    if channels:
        wanted["channels"] = (len(channels), config.bottleneck)
    for name, shape in wanted.items():
        found = np.shape(own[name]) if name in own else None
        if found != shape:
            raise InputError(
                f"the parameters have {'no' if found is None else found} {name!r} of the Ewald "
                f"filter, expected {shape} (those of the model, or of its EwaldFilter)"
            )
    arrays = {name: np.asarray(own[name], np.float64) for name in wanted}
    parts = [(GAUSSIANS, slice(0, num), arrays["down"])]
    for i, name in enumerate(channels):
        parts.append((name, slice(num + i, num + i + 1), arrays["channels"][i : i + 1]))
    return parts
