"""The `radial` sums: against loops, integrals by scipy, and each other."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
from jax.test_util import check_grads
from structures import assert_close, quick_compilation, random_cell, rotation  # noqa: F401

from ewald_jax import kspace
from ewald_jax.kspace import quadrature
from ewald_jax.kspace.channels import mirrored_gaussians
from ewald_jax.typing import InputError

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

K_CUTOFF = 1.1
NUM_RBF = 8
RULE = kspace.WaveRule(K_CUTOFF, 1 / (NUM_RBF - 1))
CHANNELS = ("coulomb", "dispersion")
PBC = {
    "crystal": [True, True, True],
    "slab": [True, False, True],
    "wire": [False, True, False],
    "molecule": [False, False, False],
}


def basis_of(k, channels=()):
    return np.asarray(
        kspace.channel_basis(jnp.asarray(k**2 / K_CUTOFF**2), NUM_RBF, channels)
    )


def radial_message(h, positions, cell, pbc, weights, rule=RULE, channels=()):
    """The message of the filter ``basis @ weights``, as the Ewald block computes it."""
    h, positions, weights = (jnp.asarray(x, float) for x in (h, positions, weights))
    cell, pbc = jnp.asarray(cell, float), jnp.asarray(pbc)
    found = kspace.wave_set(np.asarray(positions), np.asarray(cell), np.asarray(pbc), rule)
    if found.num_quad:
        x, w = kspace.radial_nodes(found.num_quad)
        basis = kspace.channel_basis(jnp.asarray(x**2), NUM_RBF, channels)
        phi = (basis * w[:, None]) @ weights
        between = positions[:, None] - positions[None]
        square = jnp.sum(between**2, axis=-1)
        kernel = kspace.pair_kernel(square, (rule.k_cutoff * jnp.asarray(x)) ** 2, phi)
        return kspace.pair_message(h, kernel)
    boundary = kspace.boundary_cell(cell, pbc)
    vectors = kspace.wave_vectors(*found[:4], boundary, pbc, rule.k_cutoff)
    basis = kspace.channel_basis(vectors.square / rule.k_cutoff**2, NUM_RBF, channels)
    coulomb = NUM_RBF + channels.index("coulomb") if "coulomb" in channels else None
    basis = kspace.plane_basis(basis, vectors, coulomb)
    centred = positions - jnp.mean(positions, axis=0, keepdims=True)
    scaled = kspace.scaled_positions(centred, boundary, pbc)
    atoms = jnp.ones(len(positions), bool)
    table, planes = kspace.plane_phases(scaled, vectors, atoms)
    if coulomb is None:
        table, planes = kspace.turn_phases(scaled, vectors.coordinates), None
    filter = (basis * vectors.weights[:, None]) @ weights
    return kspace.message_from_phases(h, table, filter, planes=planes)


class Inputs:
    """A few atoms with features of two channels, and a filter for each."""

    def __init__(self, nodes=5, size=4.0, seed=0, channels=()):
        rng = np.random.default_rng(seed)
        self.h = rng.normal(size=(nodes, 2))
        self.positions = rng.normal(size=(nodes, 3)) * size / 2
        self.cell = random_cell(rng, size=6.0, skew=0.3)
        self.weights = rng.normal(size=(NUM_RBF + len(channels), 2))
        self.channels = channels

    def message(self, pbc, positions=None, cell=None, h=None, rule=RULE):
        return np.asarray(
            radial_message(
                self.h if h is None else h,
                self.positions if positions is None else positions,
                self.cell if cell is None else cell,
                pbc,
                self.weights,
                rule,
                self.channels,
            )
        )

    def filter(self, k):
        return basis_of(np.asarray(k, float), self.channels) @ self.weights


# -- functions -------------------------------------------------------------------------------


@pytest.mark.parametrize("order", range(4))
def test_bessel_ratio(order):
    x = np.concatenate([np.linspace(1e-3, 2.5, 100), np.linspace(2.5, 300, 999)])
    expected = scipy.special.spherical_jn(order, x) / x**order
    found = kspace.bessel_ratio(jnp.asarray(x**2), order)
    np.testing.assert_allclose(found, expected, atol=3e-15)
    single = kspace.bessel_ratio(jnp.asarray(x[x < 30] ** 2, jnp.float32), order)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, expected[x < 30], atol=1e-6)


def test_derivatives_of_bessel_ratio():
    s = jnp.asarray([0.0, 1e-12, 0.3, 3.999, 4.001, 70.0])
    check_grads(kspace.bessel_ratio, (s,), order=3, eps=1e-4, rtol=1e-5, atol=1e-8)
    slope = jax.grad(lambda x: jnp.sum(kspace.bessel_ratio(jnp.sum(x**2))))(jnp.zeros(3))
    np.testing.assert_array_equal(slope, 0)


def test_channels_have_a_self_message_of_one():
    for column in (-2, -1):
        kernel = lambda k, c=column: (
            3 / K_CUTOFF**3 * k**2 * basis_of(np.array([k]), CHANNELS)[0, c]
        )
        value, _ = scipy.integrate.quad(kernel, 1e-9, K_CUTOFF, limit=200, epsabs=1e-12)
        np.testing.assert_allclose(value, 1, atol=1e-8)


def test_tails_of_the_channels():
    """r K(r) is constant for Coulomb, r^6 K(r) for dispersion; Gaussians end."""
    r = np.array([60.0, 80.0, 110.0])
    x, w = kspace.radial_nodes(quadrature.num_radial(K_CUTOFF, 1 / (NUM_RBF - 1), 110.0))
    basis = basis_of(K_CUTOFF * x, CHANNELS) * w[:, None]
    kernel = np.asarray(kspace.pair_kernel(r**2, (K_CUTOFF * x) ** 2, basis))
    np.testing.assert_allclose(r * kernel[:, -2], r[0] * kernel[0, -2], rtol=1e-6)
    near = np.array([4.0, 8.0, 16.0])
    smeared = np.asarray(kspace.pair_kernel(near**2, (K_CUTOFF * x) ** 2, basis))[:, -2]
    expected = scipy.special.erf(K_CUTOFF / 4 * near) * r[0] * kernel[0, -2]
    np.testing.assert_allclose(near * smeared, expected, rtol=0.01)
    # The envelope ends with a jump of its third derivative: a tail of r^-5, cut from both.
    plain = kernel[:, -1] - kernel[0, -1] * (r[0] / r) ** 6
    assert np.max(np.abs(plain)) < 1e-8
    assert np.max(np.abs(kernel[:, :NUM_RBF])) < 1e-6


def test_envelope_ends_smoothly():
    k = jnp.asarray([K_CUTOFF * (1 - 1e-4), K_CUTOFF, K_CUTOFF * 1.1])
    values = mirrored_gaussians(k**2 / K_CUTOFF**2, NUM_RBF)
    assert np.max(np.abs(values[0])) < 1e-9 and not np.asarray(values[1:]).any()


@pytest.mark.parametrize("reach", [0.0, 7.0, 40.0, 200.0])
@pytest.mark.parametrize("num_rbf", [2, 6, 16, 32])
def test_radial_quadrature_reaches_its_error(num_rbf, reach):
    r = np.linspace(0, reach, 23)

    @jax.jit
    def kernel_of(x, w):
        basis = kspace.channel_basis(x**2, num_rbf, CHANNELS)
        return kspace.pair_kernel(r**2, (K_CUTOFF * x) ** 2, basis * w[:, None])

    def kernel(num):
        return np.asarray(kernel_of(*kspace.radial_nodes(num)))

    num = quadrature.num_radial(K_CUTOFF, 1 / (num_rbf - 1), reach)
    np.testing.assert_allclose(kernel(num), kernel(2 * num + 50), atol=1e-10)


def test_half_sphere_integrates_plane_waves():
    for turns in (0.0, 3.0, 40.0):
        points, weights = quadrature.half_sphere(quadrature.num_angular(turns))
        np.testing.assert_allclose(np.sum(weights), 2 * np.pi)
        r = turns * rotation(3)
        found = 2 * np.cos(r @ points.T) @ weights / (4 * np.pi)
        np.testing.assert_allclose(found, np.sinc(turns / np.pi), atol=1e-11)


# -- sums ------------------------------------------------------------------------------------


def test_crystal_is_the_sum_over_its_reciprocal_lattice():
    inputs = Inputs()
    reciprocal = 2 * np.pi * np.linalg.inv(inputs.cell).T
    volume = abs(np.linalg.det(inputs.cell))
    expected = np.zeros_like(inputs.h)
    for n in itertools.product(range(-6, 7), repeat=3):
        k = np.asarray(n) @ reciprocal
        if np.linalg.norm(k) >= K_CUTOFF:
            continue
        assert max(np.abs(n)) < 6
        phi = inputs.filter(np.linalg.norm(k))
        phases = np.exp(1j * inputs.positions @ k)
        expected += (phases[:, None] * (phases.conj() @ inputs.h)).real * phi
    expected *= 6 * np.pi**2 / (K_CUTOFF**3 * volume)
    assert_close(inputs.message(PBC["crystal"]), expected, 1e-12)


def test_molecule_is_its_integral():
    inputs = Inputs(nodes=3)
    r = np.linalg.norm(inputs.positions[:, None] - inputs.positions, axis=-1)
    expected = np.zeros_like(inputs.h)
    for i, j, f in itertools.product(range(3), range(3), range(2)):
        kernel = lambda k, i=i, j=j, f=f: (
            k**2 * inputs.filter(k)[f] * np.sinc(k * r[i, j] / np.pi)
        )
        value, _ = scipy.integrate.quad(kernel, 0, K_CUTOFF, limit=200)
        expected[i, f] += 3 / K_CUTOFF**3 * value * inputs.h[j, f]
    assert_close(inputs.message(PBC["molecule"]), expected, 1e-9)
    direct = kspace.open_message(
        jnp.asarray(inputs.h),
        jnp.asarray(inputs.positions),
        lambda k: jnp.asarray(inputs.filter(np.asarray(k))),
        K_CUTOFF,
    )
    assert_close(direct, expected, 1e-9)


@pytest.mark.parametrize("size", [4.0, 25.0])
@pytest.mark.parametrize("channels", [(), CHANNELS])
def test_sphere_is_the_pair_form(size, channels):
    inputs = Inputs(nodes=7, size=size, channels=channels)
    by_pairs = inputs.message(PBC["molecule"])
    sphere = kspace.WaveRule(RULE.k_cutoff, RULE.width, max_pair_nodes=0)
    assert_close(inputs.message(PBC["molecule"], rule=sphere), by_pairs, 1e-9)


@pytest.mark.parametrize("kind", ["slab", "wire"])
def test_open_directions_are_the_limit_of_large_cells(kind):
    """An integral in the open directions against a sum with vectors 120 Å long."""
    inputs = Inputs(channels=("dispersion",) if kind == "wire" else ())
    found = inputs.message(PBC[kind])
    cell = np.asarray(
        kspace.boundary_cell(jnp.asarray(inputs.cell), jnp.asarray(PBC[kind]))
    )
    errors = []
    for length in (40.0, 120.0):
        grown = cell.copy()
        grown[sum(PBC[kind]) :] *= length
        boxed = inputs.message(PBC["crystal"], cell=grown)
        errors.append(np.max(np.abs(boxed - found)) / np.max(np.abs(found)))
    assert errors[1] < (1e-4 if kind == "wire" else 1e-5) and errors[1] < 0.1 * errors[0]


def test_a_growing_box_becomes_a_molecule():
    inputs = Inputs()
    found = inputs.message(PBC["molecule"])
    errors = [
        np.max(np.abs(inputs.message(PBC["crystal"], cell=size * np.eye(3)) - found))
        for size in (20.0, 40.0, 80.0)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2] and errors[2] < 1e-5


@pytest.mark.parametrize("kind", PBC)
@pytest.mark.parametrize("channels", [(), CHANNELS])
def test_a_filter_of_one_has_a_unit_self_message(kind, channels):
    """For sums over large cells, and for integrals whatever the cell."""
    if kind == "wire" and channels:
        return
    cell = 45.0 * np.eye(3) if kind == "crystal" else 30.0 * np.eye(3)
    rule = kspace.WaveRule(1.0, 1.0)
    found = kspace.wave_set(np.zeros((1, 3)), cell, np.asarray(PBC[kind]), rule)
    if found.num_quad:
        total = np.sum(kspace.radial_nodes(found.num_quad)[1])
        np.testing.assert_allclose(total, 1, rtol=1e-12)
        return
    pbc = jnp.asarray(PBC[kind])
    boundary = kspace.boundary_cell(jnp.asarray(cell), pbc)
    vectors = kspace.wave_vectors(*found[:4], boundary, pbc, 1.0)
    weights = jnp.where(vectors.square > 0, vectors.weights, 0.0)
    if kind == "crystal":
        weights = vectors.weights
    np.testing.assert_allclose(jnp.sum(weights), 1, rtol=0.05)


@pytest.mark.parametrize("kind", PBC)
def test_symmetries(kind):
    channels = () if kind == "wire" else CHANNELS
    inputs, pbc = Inputs(channels=channels), np.asarray(PBC[kind])
    expected = inputs.message(pbc)
    for matrix in (rotation(4), np.diag([1.0, -1.0, 1.0])):
        turned = inputs.message(pbc, inputs.positions @ matrix, inputs.cell @ matrix)
        assert_close(turned, expected, 1e-9, "rotation")
    moved = inputs.positions + [30.0, -7.0, 12.0]
    assert_close(inputs.message(pbc, moved), expected, 1e-10, "translation")
    shifts = np.random.default_rng(1).integers(-3, 4, (5, 3)) * pbc
    moved = inputs.positions + shifts @ inputs.cell
    assert_close(inputs.message(pbc, moved), expected, 1e-10, "lattice shifts")
    order = np.array([3, 1, 4, 0, 2])
    permuted = inputs.message(pbc, inputs.positions[order], h=inputs.h[order])
    assert_close(permuted, expected[order], 1e-11, "permutation")


@pytest.mark.parametrize("kind", ["crystal", "slab", "wire"])
def test_supercells_and_lattice_bases(kind):
    channels = () if kind == "wire" else CHANNELS
    inputs, pbc = Inputs(channels=channels), np.asarray(PBC[kind])
    expected = inputs.message(pbc)
    for repeats in ((2, 1, 1), (1, 3, 2), (2, 2, 2)):
        repeats = np.where(pbc, repeats, 1)
        images = np.array(list(itertools.product(*map(range, repeats)))) @ inputs.cell
        positions = (images[:, None] + inputs.positions).reshape(-1, 3)
        found = inputs.message(
            pbc,
            positions,
            inputs.cell * repeats[:, None],
            np.tile(inputs.h, (len(images), 1)),
        )
        assert_close(found, np.tile(expected, (len(images), 1)), 1e-10, f"{repeats}")
    axes = np.flatnonzero(pbc)
    changes = [np.eye(3, dtype=int) for _ in range(3)]
    changes[0][axes[0], axes[0]] = -1
    if len(axes) > 1:
        changes[1][axes[0], axes[1]] = 1
        changes[2][axes[0], axes[1]] = -2
    for change in changes:
        assert_close(inputs.message(pbc, cell=change @ inputs.cell), expected, 1e-10)
    cyclic = np.roll(np.arange(3), 1)
    found = inputs.message(pbc[cyclic], cell=inputs.cell[cyclic])
    assert_close(found, expected, 1e-10, "cyclic")


def test_vacuum_does_not_matter():
    inputs = Inputs(channels=CHANNELS)
    pbc, expected = np.array(PBC["slab"]), None
    for vacuum in (5.0, 17.0, 60.0):
        cell = inputs.cell.copy()
        cell[1] *= vacuum
        expected = inputs.message(pbc, cell=cell) if expected is None else expected
        assert_close(inputs.message(pbc, cell=cell), expected, 1e-12)


# -- the Coulomb channel ---------------------------------------------------------------------


def test_coulomb_in_a_slab_is_the_integral_along_the_normal():
    """Two charges without their mean, with the part in the plane by loops."""
    area, z = np.linalg.norm(np.cross([5.0, 0, 0], [1.0, 6.0, 0])), 3.7
    cell = np.array([[5.0, 0, 0], [1.0, 6.0, 0], [0, 0, 9.0]])
    positions = np.array([[0, 0, 0], [0.7, 1.9, z]])
    weights = np.zeros((NUM_RBF + 1, 1))
    weights[-1] = 1
    pbc = [True, True, False]
    matrix = np.stack(
        [
            radial_message(
                h[:, None], positions, cell, pbc, weights, channels=("coulomb",)
            )[:, 0]
            for h in np.eye(2)
        ]
    )
    reciprocal = 2 * np.pi * np.linalg.inv(cell).T
    factor = 6 * np.pi**2 / (K_CUTOFF**3 * area * 2 * np.pi)
    value = lambda k: basis_of(np.array([k]), ("coulomb",))[0, -1]
    expected, without_mean = np.zeros((2, 2)), np.eye(2) - 0.5
    for n in itertools.product(range(-2, 3), repeat=2):
        k = n @ reciprocal[:2]
        length = np.linalg.norm(k)
        if length >= K_CUTOFF:
            continue
        for i, j in itertools.product(range(2), repeat=2):
            dz = positions[i, 2] - positions[j, 2]
            phase = np.cos(k[:2] @ (positions[i] - positions[j])[:2])
            if length > 0:
                top = np.sqrt(K_CUTOFF**2 - length**2)
                kernel = lambda q, dz=dz, length=length: (
                    value(np.hypot(length, q)) * np.cos(q * dz)
                )
                part = scipy.integrate.quad(kernel, 0, top, limit=400, epsabs=1e-11)[0]
            else:
                # (cos - 1) / k^2 has no divergence.
                kernel = lambda q, dz=dz: value(q) * (np.cos(q * dz) - 1)
                part = scipy.integrate.quad(
                    kernel, 1e-7, K_CUTOFF, limit=400, epsabs=1e-11
                )[0]
                part = part * without_mean[j]
                expected[i] += 2 * factor * part * phase
                continue
            expected[i, j] += 2 * factor * part * phase
    np.testing.assert_allclose(matrix, expected, rtol=1e-6)


def test_coulomb_of_a_plane_grows_linearly():
    """Between two charged planes the field is constant; a uniform charge is none."""
    cell = np.diag([4.0, 4.0, 10.0])
    weights = np.zeros((NUM_RBF + 1, 1))
    weights[-1] = 1
    steps = []
    for z in (60.0, 120.0, 180.0):
        positions = np.array([[0, 0, 0], [0, 0, z]])
        h = np.array([[3.0], [1.0]])
        pbc = [True, True, False]
        found = radial_message(h, positions, cell, pbc, weights, channels=("coulomb",))
        steps.append(found[0, 0] - found[1, 0])
    np.testing.assert_allclose(steps[2] - steps[1], steps[1] - steps[0], rtol=1e-6)
    assert steps[1] - steps[0] > 0


def test_coulomb_in_a_crystal_leaves_out_the_background():
    """The average potential over the cell is zero."""
    weights = np.zeros((NUM_RBF + 1, 1))
    weights[-1] = 1
    points = np.stack(np.meshgrid(*[np.arange(6) / 6] * 3, indexing="ij"), -1).reshape(
        -1, 3
    )
    cell = np.diag([5.0, 6.0, 7.0])
    positions = np.concatenate([[[0.3, 0.2, 0.1]], points @ cell])
    h = np.zeros((len(positions), 1))
    h[0] = 1
    message = radial_message(h, positions, cell, [True] * 3, weights, channels=("coulomb",))
    np.testing.assert_allclose(np.mean(message[1:]), 0, atol=1e-12)
    assert np.ptp(message[1:]) > 0.01


# -- derivatives -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PBC)
def test_derivatives_by_positions_and_cell(kind):
    inputs = Inputs(nodes=3, channels=() if kind == "wire" else CHANNELS)
    pbc = jnp.asarray(PBC[kind])
    rng = np.random.default_rng(5)
    along = rng.normal(size=(3, 3))
    found = kspace.wave_set(inputs.positions, inputs.cell, np.asarray(PBC[kind]), RULE)

    @jax.jit
    def energy(t, positions):
        strain = jnp.eye(3) + t * along
        cell = jnp.asarray(inputs.cell) @ strain
        return jnp.sum(fixed_message(inputs, found, positions @ strain, cell, pbc) ** 2)

    positions = jnp.asarray(inputs.positions)
    check_grads(energy, (0.0, positions), order=2, eps=1e-4, rtol=2e-5)


def fixed_message(inputs, found, positions, cell, pbc):
    """As `radial_message`, with wave vectors chosen before."""
    weights, h = jnp.asarray(inputs.weights), jnp.asarray(inputs.h)
    if found.num_quad:
        x, w = kspace.radial_nodes(found.num_quad)
        basis = kspace.channel_basis(jnp.asarray(x**2), NUM_RBF, inputs.channels)
        square = jnp.sum((positions[:, None] - positions[None]) ** 2, axis=-1)
        kernel = kspace.pair_kernel(
            square, (K_CUTOFF * x) ** 2, basis * w[:, None] @ weights
        )
        return kspace.pair_message(h, kernel)
    boundary = kspace.boundary_cell(cell, pbc)
    vectors = kspace.wave_vectors(*found[:4], boundary, pbc, K_CUTOFF)
    basis = kspace.channel_basis(vectors.square / K_CUTOFF**2, NUM_RBF, inputs.channels)
    basis = kspace.plane_basis(
        basis, vectors, NUM_RBF if "coulomb" in inputs.channels else None
    )
    scaled = kspace.scaled_positions(positions, boundary, pbc)
    table, planes = kspace.plane_phases(scaled, vectors, jnp.ones(len(h), bool))
    filter = (basis * vectors.weights[:, None]) @ weights
    return kspace.message_from_phases(h, table, filter, planes=planes)


# -- refusals --------------------------------------------------------------------------------


def test_too_many_wave_vectors_are_refused():
    cell = 30.0 * np.eye(3)
    rule = kspace.WaveRule(5.0, 0.1, max_kvecs=1000)
    with pytest.raises(
        InputError, match=r"needs \d+ wave vectors for ewald.k_cutoff = 5.0"
    ):
        kspace.wave_set(np.zeros((1, 3)), cell, np.ones(3, bool), rule)
    huge = kspace.WaveRule(500.0, 0.1, max_kvecs=1000)
    with pytest.raises(InputError, match=r"needs \d{8,} wave vectors"):
        kspace.wave_set(np.zeros((1, 3)), cell, np.ones(3, bool), huge)
    skewed = np.array([[3.0, 0, 0], [1e4, 3.0, 0], [0, 1e4, 3.0]])
    with pytest.raises(InputError, match="so skewed"):
        kspace.wave_set(np.zeros((1, 3)), skewed, np.ones(3, bool), RULE)
    slab = np.array([True, True, False])
    dense = kspace.WaveRule(20.0, 0.1)
    with pytest.raises(InputError, match=r"needs \d{6,} wave vectors"):
        kspace.wave_set(np.array([[0, 0, 0], [0, 0, 15.0]]), cell, slab, dense)
    far = np.array([[0.0, 0, 0], [0, 0, 1e5]])
    with pytest.raises(
        InputError, match=r"extends over 1e\+05 Å and needs \d+ radial nodes"
    ):
        kspace.wave_set(far, cell, np.zeros(3, bool), RULE)
    spread = np.array([[0.0, 0, 0], [900.0, 0, 0]])
    sphere = kspace.WaveRule(2.0, 0.1, max_pair_nodes=1)
    with pytest.raises(InputError, match="expected at most ewald.max_kvecs = 65536"):
        kspace.wave_set(spread, cell, np.zeros(3, bool), sphere)


def test_open_message_says_what_it_needs():
    h, positions = jnp.ones((2, 1)), jnp.zeros((2, 3))
    with pytest.raises(InputError, match="k_cutoff must be larger than 0"):
        kspace.open_message(h, positions, jnp.ones_like, 0.0)
    with pytest.raises(InputError, match="needs num_nodes under jit"):
        jax.jit(lambda x: kspace.open_message(h, x, jnp.ones_like, 1.0))(positions)
    message = jax.jit(lambda x: kspace.open_message(h, x, jnp.ones_like, 1.0, num_nodes=20))
    np.testing.assert_allclose(message(positions), 2, rtol=1e-12)
