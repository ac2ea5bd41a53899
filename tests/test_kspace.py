"""The Fourier-space sums: against loops and their own symmetries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from structures import assert_close, quick_compilation, random_cell, rotation  # noqa: F401

from ewald_jax import kspace
from ewald_jax.kspace.damping import sinc
from ewald_jax.typing import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")

INDICES = kspace.half_box(1, 1, 2)


class Inputs:
    """Random features, positions, cell, filter and damping of one small structure."""

    def __init__(self, nodes=5, features=3, dtype=jnp.float64, seed=0):
        rng = np.random.default_rng(seed)

        def normal(*shape):
            return jnp.asarray(rng.normal(size=shape), dtype)

        self.h = normal(nodes, features)
        self.cell = jnp.asarray(random_cell(rng, size=5.0), dtype)
        self.positions = 3 * normal(nodes, 3)
        self.kvecs = kspace.lattice_kvecs(INDICES, self.cell)
        self.filter = normal(len(INDICES), features)
        self.node_damping = normal(nodes)
        self.damping = normal(nodes, len(INDICES))

    def message(self, **changes):
        names = ("h", "positions", "kvecs", "filter")
        arrays = {name: getattr(self, name) for name in names}
        return kspace.ewald_message(**arrays | changes)


def naive_message(h, positions, kvecs, filter, damping, prefactor):
    """The definition, atom by atom, wave vector by wave vector, channel by channel."""
    h, positions, kvecs, filter, damping = (
        np.asarray(x) for x in (h, positions, kvecs, filter, damping)
    )
    out = np.zeros(h.shape)
    for i in range(len(h)):
        for n, k in enumerate(kvecs):
            for f in range(h.shape[1]):
                total = 0.0j
                for j in range(len(h)):
                    total += damping[j, n] * h[j, f] * np.exp(-1j * k @ positions[j])
                wave = np.exp(1j * k @ positions[i])
                out[i, f] += damping[i, n] * filter[n, f] * (wave * total).real
    return prefactor * out


@pytest.mark.parametrize("weights", ["none", "node", "node and wave vector"])
def test_message_is_the_double_sum(weights, x64):
    x = Inputs()
    damping = {"none": None, "node": x.node_damping}.get(weights, x.damping)
    full = np.ones(x.damping.shape) if damping is None else np.asarray(damping)
    full = np.broadcast_to(full.reshape(len(x.h), -1), x.damping.shape)
    expected = naive_message(x.h, x.positions, x.kvecs, x.filter, full, 0.7)
    assert_close(x.message(damping=damping, prefactor=0.7), expected, 1e-13)


def test_structure_factor_is_the_sum(x64):
    x = Inputs()
    waves = np.exp(-1j * np.asarray(x.kvecs) @ np.asarray(x.positions).T)
    expected = (waves * np.asarray(x.damping).T) @ np.asarray(x.h)
    re, im = kspace.structure_factor(x.h, x.positions, x.kvecs, x.damping)
    assert_close(re, expected.real, 1e-13)
    assert_close(im, -expected.imag, 1e-13)


def test_half_of_the_wave_vectors_is_enough(x64):
    x = Inputs()
    both = {"kvecs": jnp.concatenate([x.kvecs, -x.kvecs])}
    both["filter"] = jnp.concatenate([x.filter, x.filter])
    assert_close(x.message(**both), 2 * x.message(), 1e-13)


def test_one_filter_for_all_channels(x64):
    # As many channels as cosines and sines: a filter without an axis for them would fit both.
    x = Inputs(features=2 * len(INDICES))
    shared = x.filter[:, :1]
    expanded = jnp.broadcast_to(shared, x.filter.shape)
    for filter in (shared, shared[:, 0]):
        assert_close(x.message(filter=filter), x.message(filter=expanded), 1e-14)


def test_lattice_phases_are_phases(x64):
    x = Inputs()
    fractional = kspace.fractional(x.positions, x.cell)
    assert_close(fractional @ x.cell, x.positions, 1e-13)
    for damping in (None, x.node_damping):
        ours = kspace.lattice_phases(fractional, INDICES, damping)
        expected = kspace.phases(x.positions, x.kvecs, damping)
        assert_close(ours, expected, 1e-13)
        message = kspace.message_from_phases(x.h, ours, x.filter)
        assert_close(message, x.message(damping=damping), 1e-12)


def test_moving_single_atoms_by_lattice_vectors_changes_nothing(x64):
    x = Inputs()
    shifts = np.random.default_rng(1).integers(-3, 4, size=x.positions.shape)
    moved = x.positions + shifts @ x.cell
    assert_close(x.message(positions=moved), x.message(), 1e-12)


def test_phases_of_integers(x64):
    x = Inputs()
    scaled = kspace.fractional(x.positions, x.cell)
    expected = kspace.lattice_phases(scaled, INDICES)
    assert_close(kspace.turn_phases(scaled, INDICES), expected, 1e-12)
    slope = jax.jacrev(lambda s: kspace.turn_phases(s, INDICES)[0, 0])(scaled)
    angle = 2 * np.pi * np.asarray(INDICES)[0] @ np.asarray(scaled)[0]
    assert_close(slope[0], -2 * np.pi * np.sin(angle) * np.asarray(INDICES)[0], 1e-11)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sines_of_turns_and_their_derivatives(dtype, x64):
    near = np.linspace(-1e-3, 1e-3, 7)
    turns = np.concatenate([np.linspace(-3.3, 4.1, 2001), near, [0.25, 0.5, 1e3 + 0.125]])
    turns = turns.astype(dtype)
    exact = 2 * np.pi * np.float64(turns - np.round(turns))
    sine, factor, tolerance = kspace.sine_of_turns, 1.0, 6 * np.finfo(dtype).eps
    for wanted in (np.sin(exact), np.cos(exact), -np.sin(exact), -np.cos(exact)):
        values = jax.vmap(sine)(turns)
        assert values.dtype == dtype
        # float32's turns are rounded once more a quarter ahead.
        np.testing.assert_allclose(values, factor * wanted, rtol=0, atol=factor * tolerance)
        sine, factor = jax.grad(sine), 2 * np.pi * factor
    small = kspace.sine_of_turns(near.astype(dtype))
    np.testing.assert_allclose(
        small, np.sin(2 * np.pi * near.astype(dtype)), rtol=tolerance
    )


def test_lattice_phases_far_outside_the_cell_in_float32():
    fractional = np.random.default_rng(0).uniform(-0.4, 0.4, (6, 3)).astype(np.float32)
    fractional = np.round(fractional * 1024) / np.float32(1024)  # exact after the shift
    near = kspace.lattice_phases(jnp.asarray(fractional), INDICES)
    far = kspace.lattice_phases(jnp.asarray(fractional + np.float32(1000)), INDICES)
    np.testing.assert_array_equal(near, far)


def test_translation(x64):
    x = Inputs()
    moved = x.positions + jnp.asarray([[0.3, -1.7, 2.2]])
    assert_close(x.message(positions=moved), x.message(), 1e-12)


def test_rotating_cell_and_positions_changes_nothing(x64):
    x, turn = Inputs(), rotation(3)
    for matrix in (turn, -turn):
        kvecs = kspace.lattice_kvecs(INDICES, x.cell @ matrix)
        assert_close(kvecs, x.kvecs @ matrix, 1e-13)
        turned = x.message(positions=x.positions @ matrix, kvecs=kvecs)
        assert_close(turned, x.message(), 1e-12)


def test_permutation(x64):
    x = Inputs()
    order = np.array([3, 0, 4, 1, 2])
    permuted = x.message(h=x.h[order], positions=x.positions[order])
    assert_close(permuted, x.message()[order], 1e-13)


def test_masked_nodes_take_no_part(x64):
    x = Inputs()
    masked = x.h.at[3:].set(0.0)
    alone = x.message(h=x.h[:3], positions=x.positions[:3])
    assert_close(x.message(h=masked)[:3], alone, 1e-13)


def test_vmap_is_the_loop(x64):
    several = [Inputs(seed=seed) for seed in range(3)]
    stacked = [jnp.stack([getattr(x, n) for x in several]) for n in ("h", "positions")]
    stacked.append(jnp.stack([x.kvecs for x in several]))
    filter, damping = several[0].filter, jnp.stack([x.node_damping for x in several])
    ours = jax.vmap(kspace.ewald_message, (0, 0, 0, None, 0))(*stacked, filter, damping)
    for row, x in zip(ours, several, strict=True):
        assert_close(row, x.message(filter=filter, damping=x.node_damping), 1e-13)


def test_message_is_linear_in_features_and_filter(x64):
    x, y = Inputs(), Inputs(seed=1)
    assert_close(x.message(h=x.h + 2 * y.h), x.message() + 2 * x.message(h=y.h), 1e-13)
    summed = x.message(filter=x.filter + 2 * y.filter)
    assert_close(summed, x.message() + 2 * x.message(filter=y.filter), 1e-13)


def test_derivatives_with_respect_to_everything(x64):
    x = Inputs(nodes=3, features=2)
    weights = Inputs(nodes=3, features=2, seed=5).h

    def through_kvecs(h, positions, cell, filter, damping):
        kvecs = kspace.lattice_kvecs(INDICES[:4], cell)
        message = kspace.ewald_message(h, positions, kvecs, filter[:4], damping)
        return jnp.sum(weights * message)

    def through_fractions(h, positions, cell, filter, damping):
        table = kspace.lattice_phases(
            kspace.fractional(positions, cell), INDICES[:4], damping
        )
        return jnp.sum(weights * kspace.message_from_phases(h, table, filter[:4]))

    arguments = (x.h, x.positions, x.cell, x.filter, x.node_damping)
    check_grads(
        jax.jit(through_kvecs), arguments, order=2, modes=["rev"], atol=1e-5, rtol=1e-3
    )
    every = tuple(range(len(arguments)))
    ours, expected = (
        jax.jit(jax.grad(f, every))(*arguments) for f in (through_fractions, through_kvecs)
    )
    for a, b in zip(ours, expected, strict=True):
        assert_close(a, b, 1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_is_kept(dtype, x64):
    x = Inputs(dtype=dtype)

    @jax.jit
    def everything(h, positions, cell, filter, damping):
        fractional = kspace.fractional(positions, cell)
        kvecs = kspace.lattice_kvecs(INDICES, cell)
        norm = jnp.linalg.norm(kvecs, axis=-1)
        volume = kspace.cell_volume(cell)
        message = kspace.ewald_message(h, positions, kvecs, filter, damping, prefactor=0.01)
        return {
            "ewald_message": message,
            "reciprocal_cell": kspace.reciprocal_cell(cell),
            "cell_volume": volume,
            "lattice_kvecs": kvecs,
            "fractional": fractional,
            "phases": kspace.phases(positions, kvecs, damping),
            "lattice_phases": kspace.lattice_phases(fractional, INDICES),
            "structure_factor": kspace.structure_factor(h, positions, kvecs),
            "exact": kspace.sinc_damping(positions, 0.2),
            "normalized": kspace.sinc_damping(positions, 0.2, "normalized"),
            "envelope": kspace.polynomial_envelope(norm),
            "gaussian_rbf": kspace.gaussian_rbf(norm, 0.0, 1.0, 4),
            "float32_centres": kspace.gaussian_rbf(norm, 0, 1, 4, float32_centres=True),
            "radial_basis": kspace.radial_basis(norm, 0.6, 8),
            "coulomb_filter": kspace.coulomb_filter(kvecs, volume, 0.5),
            "svd_frame": kspace.svd_frame(positions, jnp.ones(len(h), bool)),
        }

    results = jax.eval_shape(everything, x.h, x.positions, x.cell, x.filter, x.node_damping)
    for name, result in results.items():
        for array in jax.tree.leaves(result):
            assert array.dtype == dtype, name


# -- damping ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form, values",
    [("exact", (0.959, 0.841, 0.665)), ("normalized", (0.637, 0.0, -0.212))],
)
def test_sinc_damping_of_the_paper_and_of_the_reference(form, values, x64):
    along_x = jnp.zeros((3, 3)).at[:, 0].set(jnp.array([5.0, 10.0, 15.0]))
    damping = kspace.sinc_damping(along_x, 0.2, form)
    np.testing.assert_allclose(damping, values, atol=5e-4)


def test_exact_damping_is_the_average_over_a_voxel(x64):
    position, delta_k, k = np.array([3.0, -4.0, 7.0]), 0.2, np.array([0.4, 0.0, -0.2])
    centres = (np.arange(40) + 0.5) / 40 - 0.5
    offsets = np.stack(np.meshgrid(*3 * [delta_k * centres]), axis=-1).reshape(-1, 3)
    average = np.mean(np.exp(1j * (k + offsets) @ position))
    expected = np.exp(1j * k @ position) * kspace.sinc_damping(position, delta_k)
    np.testing.assert_allclose(average, expected, atol=1e-4)


def test_sinc_and_its_derivatives(x64):
    u = jnp.linspace(-12.0, 12.0, 2001)
    np.testing.assert_allclose(sinc(u), np.sinc(np.asarray(u) / np.pi), atol=1e-15)
    slope, curvature = jax.grad(sinc), jax.grad(jax.grad(sinc))
    around_one = [1 - 1e-12, 1 + 1e-12]
    u = np.array([0.0, 1e-12, 1e-6, 1e-3, *around_one])
    values = np.asarray(
        jax.jit(jax.vmap(lambda x: jnp.stack([sinc(x), slope(x), curvature(x)])))(u)
    )
    np.testing.assert_allclose(values[:4, 1], -u[:4] / 3, rtol=1e-6)
    np.testing.assert_allclose(values[:4, 2], -1 / 3, rtol=1e-6)
    # No step where the series takes over.
    np.testing.assert_allclose(values[4], values[5], atol=1e-11)


def test_slope_of_damping_near_the_plane_in_float32():
    # Where the out-of-plane coordinates of a planar molecule lie after rounding.
    x = jnp.array([1e-6, 1e-5, 1e-4])
    slope = jax.vmap(jax.grad(sinc))(x)
    np.testing.assert_allclose(slope, -x / 3, rtol=1e-5)


# -- sets of wave vectors --------------------------------------------------------------------


@pytest.mark.parametrize(
    "k_cutoff, exact, pruned",
    [(0.4, 16, 13), (0.6, 61, 61), (0.8, 128, 125), (1.0, 257, 257)],
)
def test_voxel_grid_sizes(k_cutoff, exact, pruned):
    grid = kspace.voxel_grid(k_cutoff, 0.2)
    assert len(grid) == exact
    assert len(kspace.voxel_grid(k_cutoff, 0.2, float32_prune=True)) == pruned
    norms = np.linalg.norm(grid, axis=1)
    assert norms.max() <= k_cutoff * (1 + 1e-12) and norms.min() > 0
    assert_a_half(np.rint(grid / 0.2).astype(int))


def assert_a_half(indices):
    """No index twice, none with its negative, lexicographic order."""
    both = np.concatenate([indices, -indices])
    assert len(np.unique(both, axis=0)) == len(both)
    assert sorted(indices.tolist()) == indices.tolist()


@given(st.tuples(*3 * [st.integers(0, 3)]))
def test_half_box_is_half_of_the_box(bounds):
    assume(max(bounds) > 0)
    indices = kspace.half_box(*bounds)
    sides = 2 * np.array(bounds) + 1
    assert indices.shape == ((np.prod(sides) - 1) // 2, 3)
    assert (np.abs(indices) <= bounds).all()
    assert_a_half(indices)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), k_cutoff=st.floats(0.5, 4.0))
def test_lattice_sphere_is_every_vector_within(seed, k_cutoff):
    cell = random_cell(np.random.default_rng(seed), size=3.0)
    reciprocal = 2 * np.pi * np.linalg.inv(cell).T
    # |k| >= smallest singular value * |n|: a bound independent of the one under test.
    bound = int(np.ceil(k_cutoff / np.linalg.svd(reciprocal)[1].min()))
    box = np.stack(np.meshgrid(*3 * [np.arange(-bound, bound + 1)]), -1).reshape(-1, 3)
    norms = np.linalg.norm(box @ reciprocal, axis=1)
    assume(np.min(np.abs(norms - k_cutoff)) > 1e-9)
    expected = box[(norms < k_cutoff) & box.any(axis=1)]
    indices = kspace.lattice_sphere(cell, k_cutoff)
    assert indices.shape == (len(expected) // 2, 3)
    assert_a_half(indices)
    both = np.concatenate([indices, -indices])
    assert sorted(both.tolist()) == sorted(expected.tolist())


def test_random_cells_are_left_and_right_handed():
    signs = {
        np.sign(np.linalg.det(random_cell(np.random.default_rng(s)))) for s in range(9)
    }
    assert signs == {-1.0, 1.0}


def test_reciprocal_cell_of_many_cells(x64):
    rng = np.random.default_rng(0)
    cells = np.stack([random_cell(rng) for _ in range(6)]).reshape(2, 3, 3, 3)
    expected = 2 * np.pi * np.swapaxes(np.linalg.inv(cells), -1, -2)
    assert_close(kspace.reciprocal_cell(jnp.asarray(cells)), expected, 1e-13)
    assert_close(kspace.cell_volume(jnp.asarray(cells)), np.linalg.det(cells), 1e-13)


@pytest.mark.parametrize(
    "call, expected",
    [
        (lambda: kspace.half_box(0, 0, 0), "index box"),
        (lambda: kspace.half_box(1, -1, 1), "index box"),
        (lambda: kspace.voxel_grid(0.1, 0.2), "must not be larger than k_cutoff"),
        (lambda: kspace.voxel_grid(0.4, 0.0), "must be > 0"),
        (lambda: kspace.voxel_grid(float("nan"), 0.2), "must be > 0"),
        (lambda: kspace.lattice_sphere(np.eye(3), 0.0), "k_cutoff"),
        (lambda: kspace.lattice_sphere(np.ones((3, 3)), 1.0), "singular"),
        (lambda: kspace.gaussian_rbf(jnp.ones(3), 0.0, 1.0, 1), "at least 2"),
    ],
)
def test_bad_input_is_refused(call, expected):
    with pytest.raises(InputError, match=expected):
        call()


def test_small_cells_may_have_no_wave_vector():
    assert kspace.lattice_sphere(np.eye(3), 1.0).shape == (0, 3)


# -- radial functions ------------------------------------------------------------------------


def test_gaussians(x64):
    basis = kspace.gaussian_rbf(jnp.linspace(0.0, 2.0, 5), 0.0, 2.0, 5)
    np.testing.assert_allclose(np.diag(basis), 1.0)
    np.testing.assert_allclose(np.diag(basis, 1), np.exp(-0.5))


def test_float32_centres_make_one_function_of_both_types(x64):
    x = jnp.asarray(np.linspace(0, 6, 50).astype(np.float32))
    single = kspace.gaussian_rbf(x, 0.0, 6.0, 50, float32_centres=True)
    double = kspace.gaussian_rbf(x.astype(jnp.float64), 0.0, 6.0, 50, float32_centres=True)
    np.testing.assert_allclose(single, double, atol=1e-6)


@pytest.mark.parametrize("exponent", [2, 5])
def test_envelope_ends_smoothly(exponent, x64):
    f = lambda x: kspace.polynomial_envelope(x, exponent)
    assert f(0.0) == 1 and f(1.0) == 0 and f(1.5) == 0

    @jax.jit
    @jax.vmap
    def derivatives(x):
        return jnp.stack([f(x), jax.grad(f)(x), jax.grad(jax.grad(f))(x)])

    at_zero, below, beyond = derivatives(jnp.array([0.0, 1 - 1e-5, 1.5]))
    assert np.isfinite(at_zero).all() and not beyond.any()
    assert (np.abs(below) < [1e-12, 1e-7, 3e-2 * exponent]).all()
    values = np.asarray(f(jnp.linspace(0.0, 1.2, 100)))
    assert (np.diff(values) <= 0).all()


def test_radial_basis_reaches_beyond_the_cutoff(x64):
    k = jnp.array([0.0, 0.6, 0.701, 0.851])
    for num_rbf, inside in ((128, [1, 1, 1, 0]), (48, [1, 1, 0, 0])):
        basis = jax.jit(kspace.radial_basis, static_argnums=(1, 2))(k, 0.6, num_rbf)
        np.testing.assert_array_equal(np.max(basis, axis=-1) > 1e-4, inside)
        assert not np.any(basis[3])


def test_low_rank_filter(x64):
    rng = np.random.default_rng(0)
    basis, down, up = (rng.normal(size=s) for s in ((5, 4), (4, 2), (2, 3)))
    assert_close(kspace.low_rank_filter(basis, down, up), basis @ down @ up, 1e-13)
