"""The principal-axis frame of the `voxel` scheme, with finite gradients everywhere.

A cubic grid of wave vectors is not rotation invariant, so the paper turns every molecule into
the frame of the singular vectors of its centred positions. Signs and order of the axes do not
matter (the grid has the symmetry of the cube), but the frame is undefined where two singular
values coincide: symmetric tops, spherical molecules. There the energy of the `voxel` scheme
jumps whatever one does; what this file guarantees is that nothing becomes NaN or infinite.
"""

from functools import partial

import jax
import jax.numpy as jnp

from ewald_jax import ops
from ewald_jax.typing import Array, Bool, Float

_DEGENERACY = {"float64": 1e-8, "float32": 1e-4}
"""Eigenvalue gap, relative to their sum, below which two axes count as degenerate: there the
true derivative is not defined, and rounding noise would take its place."""


def svd_frame(
    positions: Float[Array, "*batch slots 3"],
    mask: Bool[Array, "*batch slots"],
    min_nodes: int = 2,
) -> Float[Array, "*batch slots 3"]:
    """Centres each structure and turns it into its principal axes.

    Args:
        positions: Å; any values in masked slots.
        mask: True for atoms.
        min_nodes: Structures with fewer atoms are centred only. The reference uses 3, which
            makes diatomic molecules depend on their orientation.

    Returns:
        Positions in the frame, zero in masked slots. The derivative through the frame leaves
        out rotations between axes whose singular values coincide.
    """
    centred = centre(positions, mask)
    # Symmetric 3 x 3 with the right singular vectors of `centred` as eigenvectors.
    scatter = jnp.sum(centred[..., :, :, None] * centred[..., :, None, :], axis=-3)
    axes = principal_axes(scatter)
    turned = jnp.sum(centred[..., :, :, None] * axes[..., None, :, :], axis=-2)
    enough = jnp.sum(mask, axis=-1) >= min_nodes
    return jnp.where(enough[..., None, None], turned, centred)


def centre(
    positions: Float[Array, "*batch slots 3"], mask: Bool[Array, "*batch slots"]
) -> Float[Array, "*batch slots 3"]:
    """Subtracts the mean position of each structure; masked slots become zero."""
    kept = jnp.where(mask[..., None], positions, 0.0)
    count = jnp.maximum(jnp.sum(mask, axis=-1), 1).astype(positions.dtype)
    mean = jnp.sum(kept, axis=-2) / count[..., None]
    return jnp.where(mask[..., None], kept - mean[..., None, :], 0.0)


@partial(jax.custom_jvp)
def principal_axes(matrix: Float[Array, "*batch 3 3"]) -> Float[Array, "*batch 3 3"]:
    """Eigenvectors, in columns, of symmetric matrices; degenerate gaps do not turn.

    The derivative of eigenvector a has components ``(v_b . dM v_a) / (l_a - l_b)`` along the
    others; where the gap vanishes they are set to zero instead of infinity.
    """
    return jnp.linalg.eigh(matrix)[1]


@principal_axes.defjvp
def _principal_axes_jvp(primals, tangents):
    (matrix,), (tangent,) = primals, tangents
    axes, product = principal_axes(matrix), ops.full_matmul
    projected = product(product(jnp.swapaxes(axes, -1, -2), tangent), axes)
    # Eigenvalues as quadratic forms of the axes: differentiable by this very rule again,
    # which second derivatives (training on forces) need.
    values = jnp.sum(axes * product(matrix, axes), axis=-2)
    gap = values[..., None, :] - values[..., :, None]
    trace = jnp.sum(values, axis=-1)[..., None, None]
    distinct = jnp.abs(gap) > _DEGENERACY[matrix.dtype.name] * trace
    inverse = jnp.where(distinct, 1.0 / jnp.where(distinct, gap, 1.0), 0.0)
    return axes, product(axes, projected * inverse)
