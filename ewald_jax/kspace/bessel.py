r"""sinc and its derivatives as functions of the squared argument, smooth everywhere.

A kernel that depends on a distance only through ``r**2`` needs no square root, no unit vector
and no case for ``r = 0``: every derivative by positions exists and is exact, of an atom with
itself too.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from ewald_jax.kspace.turns import sine_of_turns
from ewald_jax.typing import Array, Float

_TERMS = 14
"""Of the power series for s < 4; the first one left out is below 1e-17."""

_NEAR = 4.0
"""Above it the recurrence in the order loses two digits at most for the first four orders."""


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def bessel_ratio(s: Float[Array, "*batch"], order: int = 0) -> Float[Array, "*batch"]:
    r"""Spherical Bessel functions over powers of their argument, by the square of it.

    .. math:: \lambda_n(s) = j_n(\sqrt s)\, s^{-n/2}, \qquad
        \lambda_0(s) = \mathrm{sinc}\sqrt s, \qquad \lambda_n' = -\tfrac12 \lambda_{n+1}

    Args:
        s: Squared arguments, >= 0.
        order: n, at least 0.

    Returns:
        Values; derivatives of every order come from the recurrence above.
    """
    near = s < _NEAR
    small, large = jnp.where(near, s, 0.0), jnp.where(near, _NEAR, s)
    series = jnp.zeros_like(s)
    for coefficient in reversed(_coefficients(order)):
        series = series * small + coefficient
    root = jnp.sqrt(large)
    turns = root / (2 * math.pi)
    value = sine_of_turns(turns) / root
    if order > 0:
        before = sine_of_turns(turns - jnp.round(turns) + 0.25)
        for n in range(order):
            # lambda_{n+1} = ((2n + 1) lambda_n - lambda_{n-1}) / s, with lambda_{-1} = cos.
            before, value = value, ((2 * n + 1) * value - before) / large
    return jnp.where(near, series, value)


def _coefficients(order: int) -> list[float]:
    """Of the power series: 1 / (2n + 1)!!, and what each term is times the one before."""
    terms = [1 / math.prod(range(1, 2 * order + 2, 2))]
    for m in range(1, _TERMS + 1):
        terms.append(-terms[-1] / (2 * m * (2 * (order + m) + 1)))
    return terms


@bessel_ratio.defjvp
def _bessel_ratio_jvp(order, primals, tangents):
    (s,), (tangent,) = primals, tangents
    return bessel_ratio(s, order), -0.5 * bessel_ratio(s, order + 1) * tangent
