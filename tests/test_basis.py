"""Radial and angular bases against scipy, e3nn_jax and numerical integrals."""

import functools

import e3nn_jax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from structures import assert_close, quick_compilation  # noqa: F401

from ewald_jax.nn.basis import (
    SineBasis,
    enveloped_gaussians,
    gaussian_rbf,
    legendre_basis,
    polynomial_envelope,
    spherical_bessel,
    spherical_bessel_basis,
)
from ewald_jax.typing import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")

ORDERS = range(8)
CUTOFF = 5.0


def around_everything(order):
    """From 0 up, densely near 0 and on both sides of where series and recurrence meet."""
    switch = order + 1.0
    near_zero = [0.0, *np.logspace(-12, 0, 25)]
    near_switch = switch + np.concatenate(
        [sign * np.logspace(-15, -1, 15) for sign in (1, -1)]
    )
    return np.concatenate([near_zero, near_switch, [switch], np.linspace(0, 60, 601)])


def derivatives(function, x, highest):
    """Value and derivatives of an elementwise function, from one compilation."""

    def with_slope(function):
        return lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1]

    functions = [function]
    for _ in range(highest):
        functions.append(with_slope(functions[-1]))
    return jax.jit(lambda x: [function(x) for function in functions])(x)


# -- spherical Bessel functions --------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
def test_spherical_bessel_is_scipys(order, x64):
    x = around_everything(order)
    function = functools.partial(spherical_bessel, order)
    value, slope, curvature = derivatives(function, x, 2)
    assert value.dtype == slope.dtype == np.float64
    j, dj = special.spherical_jn(order, x), special.spherical_jn(order, x, derivative=True)
    assert_close(value, j, 1e-13, "value")
    assert_close(slope, dj, 1e-12, "slope")
    # From the differential equation of j_l; away from zero, where its terms cancel.
    away = x > 0.3
    x, j, dj = x[away], j[away], dj[away]
    expected = (order * (order + 1) / x**2 - 1) * j - 2 / x * dj
    assert_close(curvature[away], expected, 1e-11, "curvature")


@pytest.mark.parametrize("order", [0, 1, 2, 3, 7])
def test_spherical_bessel_has_finite_derivatives_at_zero(order, debug_nans):
    function = functools.partial(spherical_bessel, order)
    expected = {0: (1, 0, -1 / 3, 0), 1: (0, 1 / 3, 0, -1 / 5), 2: (0, 0, 2 / 15, 0)}
    expected |= {3: (0, 0, 0, 6 / 105)}
    values = derivatives(function, jnp.zeros(()), 3)
    np.testing.assert_allclose(values, expected.get(order, (0,) * 4), atol=1e-7)
    gradient = jax.grad(function)(jnp.zeros(()))
    np.testing.assert_allclose(gradient, values[1], atol=1e-7)


@pytest.mark.parametrize("order", ORDERS)
def test_spherical_bessel_in_float32(order):
    x = around_everything(order).astype(np.float32)
    x = x[x < 40]
    function = functools.partial(spherical_bessel, order)
    value, slope = derivatives(function, x, 1)
    assert value.dtype == slope.dtype == np.float32
    x = x.astype(np.float64)
    # Where the recurrence starts it amplifies rounding a little more for each order.
    factor = 1 if order < 4 else 4
    expected = special.spherical_jn(order, x)
    assert_close(value, expected, factor * 3e-7, "value")
    expected = special.spherical_jn(order, x, derivative=True)
    assert_close(slope, expected, factor * 5e-7, "slope")


def test_spherical_bessel_of_any_shape():
    x = jnp.linspace(0.1, 9.0, 6).reshape(2, 3)
    function = jax.jit(functools.partial(spherical_bessel, 3))
    value = function(x)
    assert value.shape == (2, 3)
    np.testing.assert_allclose(value.ravel(), function(x.ravel()), rtol=1e-6)


# -- Legendre functions ----------------------------------------------------------------------


def test_legendre_basis_is_scipys(x64):
    num = 8
    cosine = np.concatenate([np.linspace(-1, 1, 201), [-1 + 1e-12, 1 - 1e-12]])
    basis = functools.partial(legendre_basis, num_spherical=num)
    value = jax.jit(basis)(cosine)
    slope = jax.jit(jax.vmap(jax.jacfwd(basis)))(cosine)
    for order in range(num):
        factor = np.sqrt((2 * order + 1) / (4 * np.pi))
        function = special.legendre(order)
        expected = factor * special.eval_legendre(order, cosine)
        assert_close(value[:, order], expected, 1e-14, f"P_{order}")
        np.testing.assert_allclose(
            slope[:, order], factor * np.polyval(function.deriv(), cosine), atol=1e-10
        )


def test_legendre_basis_is_a_row_of_spherical_harmonics(x64):
    rng = np.random.default_rng(0)
    theta = rng.uniform(0, np.pi, 20)
    value = legendre_basis(jnp.cos(theta), 6)
    for order in range(6):
        expected = special.sph_harm_y(order, 0, theta, 0.0).real
        np.testing.assert_allclose(value[:, order], expected, atol=1e-14)


def test_legendre_basis_at_the_ends(debug_nans):
    """At straight and at zero angles the cosine has slopes of its own; these are finite."""
    num = 7
    orders = np.arange(num)
    factors = np.sqrt((2 * orders + 1) / (4 * np.pi))
    basis = functools.partial(legendre_basis, num_spherical=num)
    for end in (1.0, -1.0):
        value = basis(jnp.float32(end))
        np.testing.assert_allclose(value, factors * end**orders, rtol=1e-6)
        slope = jax.jacfwd(basis)(jnp.float32(end))
        expected = factors * end ** (orders + 1) * orders * (orders + 1) / 2
        np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("num", [1, 2, 3])
def test_legendre_basis_of_few_functions(num):
    cosine = jnp.linspace(-1, 1, 12).reshape(2, 3, 2)
    value = legendre_basis(cosine, num)
    assert value.shape == (2, 3, 2, num) and value.dtype == np.float32
    np.testing.assert_array_equal(value, legendre_basis(cosine, 5)[..., :num])


# -- sines -----------------------------------------------------------------------------------


def sines(num, exponent=5):
    module = SineBasis(num, CUTOFF, exponent)
    params = module.init(jax.random.key(0), jnp.ones(1))
    return lambda d: module.apply(params, d), params["params"]


def test_sine_basis_is_e3nns_times_the_envelope(x64):
    basis, params = sines(6)
    assert set(params) == {"frequencies"} and params["frequencies"].dtype == np.float32
    np.testing.assert_allclose(params["frequencies"], np.pi * np.arange(1, 7), rtol=1e-7)
    d = np.linspace(0.01, CUTOFF, 100)
    # Theirs is normalised over the distance, and has 1 / d in place of cutoff / d.
    with jax.numpy_rank_promotion("allow"):  # in their code
        theirs = jax.jit(e3nn_jax.bessel, static_argnums=(1, 2))(d, 6, CUTOFF)
    expected = np.asarray(theirs) * CUTOFF / np.sqrt(2 / CUTOFF)
    expected = expected * polynomial_envelope(d / CUTOFF, 6)[:, None]
    # Frequencies are stored in float32.
    assert_close(jax.jit(basis)(d), expected, 1e-7)


def test_sine_basis_follows_its_frequencies(x64):
    d, frequencies = np.linspace(0.01, CUTOFF, 50), np.array([0.3, 2.0, 11.0])
    value = SineBasis(3, CUTOFF, 4).apply({"params": {"frequencies": frequencies}}, d)
    x = d[:, None] / CUTOFF
    expected = np.sin(frequencies * x) / x * polynomial_envelope(x, 5)
    np.testing.assert_allclose(value, expected, atol=1e-13)


def test_sine_basis_at_small_distances(debug_nans):
    """Padding edges have length 0: the limit, and derivatives that are finite."""
    basis, params = sines(4)
    value, slope, curvature = derivatives(basis, jnp.array([0.0, 1e-12, 1e-6]), 2)
    limit = np.broadcast_to(params["frequencies"], (3, 4))
    np.testing.assert_allclose(value, limit, rtol=1e-6)
    np.testing.assert_allclose(slope, -(limit**3) / 3 * [[0], [0], [4e-8]], atol=1e-7)
    # sin(f x) / x is f - f^3 x^2 / 6.
    np.testing.assert_allclose(curvature, -(limit**3) / 3 / CUTOFF**2, rtol=1e-5)


# -- smooth to zero at the cutoff ------------------------------------------------------------

BASES = {
    "sines": lambda d: sines(4)[0](d),
    "spherical bessel": lambda d: spherical_bessel_basis(d, CUTOFF, 3, 2),
    "gaussians": lambda d: enveloped_gaussians(d, CUTOFF, 8),
}


@pytest.mark.parametrize("name", BASES)
def test_bases_end_smoothly_at_the_cutoff(name, x64):
    gap = 1e-3
    outside = [CUTOFF, CUTOFF + 1e-12, CUTOFF + 1, 100 * CUTOFF]
    d = np.array([CUTOFF / 2, CUTOFF - gap, CUTOFF - gap / 2, *outside])
    results = [np.abs(result) for result in derivatives(BASES[name], d, 2)]
    # The envelope is of the third order in the gap, and each derivative takes one.
    for order, result in zip((3, 2, 1), results, strict=True):
        assert not np.any(result[3:])
        size, half = result[1].max(), result[2].max()
        assert 0 < size < 1e3 * results[0][0].max() * gap**order
        assert half < 0.6**order * size


def test_spherical_bessel_basis_outside_makes_no_nan(debug_nans):
    d = jnp.array([0.5, CUTOFF - 1e-6, CUTOFF, CUTOFF + 1.0])
    total = lambda d: jnp.sum(spherical_bessel_basis(d, CUTOFF, 7, 6))
    slope = jax.jit(jax.grad(total))(d)
    assert np.all(np.isfinite(slope)) and not np.any(slope[2:])


def test_enveloped_gaussians(x64):
    d = np.concatenate([np.linspace(0, CUTOFF, 50), [CUTOFF + 0.1, 7.0, 1e6]])
    value = enveloped_gaussians(d, CUTOFF, 16, exponent=4)
    assert value.shape == (53, 16) and not np.any(value[49:])
    x = d[:49, None] / CUTOFF
    centres = np.linspace(0, 1, 16).astype(np.float32).astype(np.float64)
    expected = np.exp(-0.5 * ((x - centres) * 15) ** 2) * polynomial_envelope(x, 4)
    np.testing.assert_allclose(value[:49], expected, rtol=1e-12, atol=1e-300)
    with pytest.raises(InputError, match="at least 2"):
        gaussian_rbf(jnp.ones(3), 0.0, 1.0, 1)


# -- DimeNet's radial functions --------------------------------------------------------------


def radial_functions(x, num_spherical, num_radial):
    """``N_ln j_l(z_ln x)``: the basis without ``u(x) / x``."""
    run = jax.jit(spherical_bessel_basis, static_argnums=(1, 2, 3))
    basis = run(x, 1.0, num_spherical, num_radial)
    envelope = polynomial_envelope(x, 6) / x
    return np.asarray(basis) / np.asarray(envelope)[:, None, None]


def test_spherical_bessel_basis_is_orthonormal(x64):
    nodes, weights = np.polynomial.legendre.leggauss(120)
    # The quadrature stays away from 1, where the envelope vanishes.
    x, weights = (nodes + 1) / 2, weights / 2
    basis = radial_functions(x, 7, 6)
    for order in range(7):
        overlap = np.einsum("xm,xn,x->mn", *[basis[:, order]] * 2, weights * x**2)
        # The zeros and norms are those of float32 tables.
        np.testing.assert_allclose(overlap, np.eye(6), atol=1e-5)


def test_spherical_bessel_basis_is_scipys(x64):
    x = np.linspace(0.02, 0.98, 40)
    basis = radial_functions(x, 5, 4)
    assert basis.shape == (40, 5, 4)
    fine = np.linspace(0.1, 60, 60_000)
    for order in range(5):
        values = special.spherical_jn(order, fine)
        crossing = np.flatnonzero(values[:-1] * values[1:] < 0)[:4]
        step = fine[1] - fine[0]
        zeros = fine[crossing] + step * values[crossing] / (
            values[crossing] - values[crossing + 1]
        )
        norms = np.sqrt(2 / special.spherical_jn(order + 1, zeros) ** 2)
        expected = norms * special.spherical_jn(order, zeros * x[:, None])
        assert_close(basis[:, order], expected, 1e-5, f"l = {order}")


def test_spherical_bessel_basis_scales_with_the_cutoff(x64):
    x = np.linspace(0.1, 1.2, 12)
    run = jax.jit(spherical_bessel_basis, static_argnums=(1, 2, 3))
    actual, expected = run(x * CUTOFF, CUTOFF, 3, 2), run(x, 1.0, 3, 2)
    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)
