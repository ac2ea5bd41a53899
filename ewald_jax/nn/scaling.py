"""Scale factors: constants, fitted once to data, that keep the variance of features.

Where GemNet sums or multiplies features, their variance depends on numbers of neighbors that
no initialiser knows. A constant behind each such place brings it back to that of what came
in. The constants are parameters that no optimiser moves (`SCALE_FACTOR` is their name);
`fit_scales` in `ewald_jax.train.scales` finds them.

Source: Gasteiger, Becker, Günnemann, "GemNet" (NeurIPS 2021), section 6; PaiNN has them in
the Open Catalyst Project's version.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ewald_jax.typing import Array, Bool, Float

SCALE_FACTOR = "scale_factor"
"""Name of the parameter, by which optimisers leave it alone."""

OBSERVED = "observed_variances"
"""Collection that `ScaleFactor` writes to when it is mutable."""


class ScaleFactor(nn.Module):
    """Multiplies by a fitted constant."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "rows feat"],
        reference: Float[Array, "reference_rows feat"] | None = None,
        mask: Bool[Array, " rows"] | None = None,
        reference_mask: Bool[Array, " reference_rows"] | None = None,
    ) -> Float[Array, "rows feat"]:
        """Applies the constant.

        Args:
            x: Features of nodes or edges.
            reference: What the variance of the result should equal that of; None for 1.
            mask: Real rows of `x`; only looked at while fitting, as the next.
            reference_mask: Real rows of `reference`; None if those are `mask`.

        Returns:
            ``x`` times the constant.
        """
        factor = self.param(SCALE_FACTOR, nn.initializers.ones, (), jnp.float32)
        x = x * jax.lax.stop_gradient(factor).astype(x.dtype)
        if self.is_mutable_collection(OBSERVED) and not self.is_initializing():
            wanted = jnp.ones((), x.dtype)
            if reference is not None:
                wanted = _variance(
                    reference, mask if reference_mask is None else reference_mask
                )
            rows = jnp.sum(mask) if mask is not None else x.shape[0]
            self.sow(OBSERVED, "sums", jnp.stack([_variance(x, mask), wanted, 1.0]) * rows)
        return x


def _variance(
    x: Float[Array, "rows feat"], mask: Bool[Array, " rows"] | None
) -> Float[Array, ""]:
    """Variance over the rows, mean over the features."""
    weight = jnp.ones(x.shape[0]) if mask is None else mask
    weight = weight.astype(x.dtype)[:, None]
    rows = jnp.sum(weight)
    mean = jnp.sum(weight * x, axis=0) / rows
    return jnp.mean(
        jnp.sum(weight * (x - mean[None]) ** 2, axis=0) / jnp.maximum(rows - 1, 1.0)
    )
