"""Messages on a mesh: against the exact sum, finite differences, and their own error bound."""

import functools
import re

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate
from jax.test_util import check_grads
from structures import assert_close, quick_compilation, random_cell, transformed  # noqa: F401
from tiny import drawn, tiny

import ewald_jax
from ewald_jax import kspace
from ewald_jax.calculator import EwaldCalculator
from ewald_jax.graph.waves import mesh_fits
from ewald_jax.kspace import bspline, convolution, mesh, mesh_rule, windows
from ewald_jax.models import neighborhood
from ewald_jax.nn import cfconv
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.typing import InputError

pytestmark = pytest.mark.usefixtures("x64", "quick_compilation")

K_CUTOFF, NUM_RBF, CHANNELS = 1.1, 5, ("coulomb", "dispersion")


def cell_of(size=13.0):
    return random_cell(np.random.default_rng(3), size=size, skew=0.3)


def exact_message(h, positions, cell, down):
    """The direct sum with k = 0, one filter [basis, heads] for each head of the features."""
    indices = kspace.lattice_sphere(np.asarray(cell), K_CUTOFF)
    indices = np.concatenate([[[0, 0, 0]], indices])
    kvecs = kspace.lattice_kvecs(indices, cell)
    square = jnp.sum(kvecs**2, axis=-1)
    basis = kspace.channel_basis(square / K_CUTOFF**2, NUM_RBF, CHANNELS)
    twice = np.where(indices.any(axis=1), 2.0, 1.0)[:, None]
    filters = jnp.repeat(basis @ down * twice, h.shape[1] // down.shape[1], axis=1)
    scale = 6 * np.pi**2 / (K_CUTOFF**3 * jnp.abs(kspace.cell_volume(cell)))
    return kspace.ewald_message(h, positions, kvecs, filters, prefactor=scale)


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="num_waves")
def message_on(shape, order, h, positions, cell, down, num_waves=None):
    """With all waves of the grid, or only the first ones along its first axis."""
    indices = tuple(jnp.asarray(np.round(n * np.fft.fftfreq(n)), int) for n in shape)
    num_waves = num_waves or shape[0] // 2 + 1
    basis = kspace.mesh_basis(indices, cell, K_CUTOFF, NUM_RBF, CHANNELS, order, num_waves)
    places = kspace.grid_places(kspace.fractional(positions, cell), shape)
    filters = jnp.moveaxis(basis @ down, -1, 0)
    return kspace.mesh_message(h, *places, filters, order, shape[0])


# -- functions -------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [2, 4, 5, 8])
def test_weights_are_those_of_cardinal_b_splines(order):
    offset = np.array([0.0, 0.1, 0.5, 0.93, 1.0])
    spline = scipy.interpolate.BSpline.basis_element(
        np.arange(order + 1), extrapolate=False
    )
    places = np.minimum(offset[:, None] + np.arange(order)[::-1], order - 1e-13)
    found = bspline.spline_weights(jnp.asarray(offset), order)
    np.testing.assert_allclose(found, spline(places), atol=1e-12)
    np.testing.assert_allclose(np.sum(found, axis=1), 1)
    tables = bspline.spline_tables(jnp.asarray(offset), order, 3)
    assert tables.shape == (5, 4, order)
    np.testing.assert_allclose(tables[:, 0], found)
    weights, inside = lambda x: bspline.spline_weights(x, order), jnp.asarray(offset[1:-1])
    for degree in (1, 2, 3):  # also of degrees that have only zeros
        weights = jax.jacfwd(weights)
        expected = jax.vmap(weights)(inside)
        np.testing.assert_allclose(tables[1:-1, degree], expected, atol=1e-12)


@pytest.fixture(params=["one by one", "in blocks"])
def taken(request, monkeypatch):
    """How atoms and planes are taken: as on CPUs, and as on accelerators."""
    if request.param == "in blocks":
        monkeypatch.setattr(windows, "_BLOCK", 7 * 4**3 * 2)
        monkeypatch.setattr(
            jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args)
        )


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("shape", [(7, 6, 9), (4, 6, 4)], ids=["large", "least"])
def test_spreading_and_gathering_of_all_derivatives(shape, degree, taken, rng):
    """Against sums over each atom's points; each other's transpose."""
    order, parts = 4, windows.parts_of(degree)
    points = tuple(n + order - 1 for n in shape)
    scaled = np.concatenate([rng.uniform(-3, 3, (40, 3)), [[0, -1e-18, 1 - 1e-17]]])
    first, offset = kspace.grid_places(jnp.asarray(scaled), shape)
    tables = np.asarray(bspline.spline_tables(offset, order, degree))
    h = jnp.asarray(rng.normal(size=(41, len(parts), 2)))
    grid = jnp.asarray(rng.normal(size=(*points, 2)))
    spread = windows.spread_parts(points, order, degree, first, offset, h)
    gathered = windows.gather_parts(points, order, degree, first, offset, grid)
    expected = np.zeros((*points, 2))
    for node in range(41):
        window = tuple(slice(int(n), int(n) + order) for n in first[node])
        for place, part in enumerate(parts):
            sides = (tables[node, a, n] for a, n in enumerate(part))
            weights = np.einsum("x,y,z->xyz", *sides)[..., None]
            expected[window] += weights * np.asarray(h[node, place])
            value = np.sum(weights * np.asarray(grid)[window], axis=(0, 1, 2))
            np.testing.assert_allclose(gathered[node, place], value, atol=1e-12)
    assert_close(spread, expected, 1e-13)
    np.testing.assert_allclose(jnp.sum(spread * grid), jnp.sum(h * gathered))
    if degree == 0:
        assert_close(jnp.sum(spread, axis=(0, 1, 2)), jnp.sum(h, axis=(0, 1)), 1e-12)
        assert_close(windows.spread(points, order, first, offset, h[:, 0]), spread, 1e-13)
        found = windows.gather(order, first, offset, grid)
        assert_close(found, gathered[:, 0], 1e-13)


@pytest.mark.parametrize("degree", [0, 1])
def test_derivatives_of_spreading_and_gathering(degree, taken, rng):
    order, shape, count = 4, (4, 6, 5), len(windows.parts_of(degree))
    first, offset = kspace.grid_places(jnp.asarray(rng.uniform(size=(5, 3))), shape)
    points = tuple(n + order - 1 for n in shape)
    h = jnp.asarray(rng.normal(size=(5, count, 2)))
    grid = jnp.asarray(rng.normal(size=(*points, 2)))
    spread = lambda *args: windows.spread_parts(points, order, degree, first, *args)
    gather = lambda *args: windows.gather_parts(points, order, degree, first, *args)
    offset = 0.1 + 0.8 * offset  # not across grid points
    check_grads(spread, (offset, h), 2, ["rev"])
    check_grads(gather, (offset, grid), 2, ["rev"])


@pytest.mark.parametrize("halo, long", [(0, False), (4, False), (4, True)])
@pytest.mark.parametrize("num_waves", [1, 3, 4])
@pytest.mark.parametrize("shape", [(6, 5, 4), (7, 4, 5)], ids=["even", "odd"])
def test_the_convolution_and_its_derivatives(
    shape, num_waves, halo, long, taken, rng, monkeypatch
):
    """On a grid whose last points are the first ones again."""
    if long:  # with fast transforms along the first axis, too
        monkeypatch.setattr(convolution, "_PRODUCTS", 5)
    grid = jnp.asarray(rng.normal(size=(*(n + halo for n in shape), 2)))
    points = np.ix_(*(np.arange(n + halo) % n for n in shape))
    period = np.zeros((*shape, 2))
    np.add.at(period, points, grid)
    filter = rng.normal(size=(num_waves, *shape[1:]))
    whole = np.zeros((shape[0] // 2 + 1, *shape[1:], 1))
    whole[:num_waves, ..., 0] = filter
    # The last axis is the halved one.
    axes, size = (2, 1, 0), shape[::-1]
    expected = np.fft.irfftn(np.fft.rfftn(period, size, axes) * whole, size, axes)
    convolve = functools.partial(convolution.convolve, halo)
    assert_close(convolve(grid, jnp.asarray(filter)), expected[points], 1e-13)
    check_grads(convolve, (grid, jnp.asarray(filter)), 2, ["rev"])


# -- the error -------------------------------------------------------------------------------


def test_error_is_within_the_bound_and_falls_as_promised(rng):
    nodes, cell = 12, cell_of()
    positions = jnp.asarray(rng.uniform(size=(nodes, 3)) @ cell)
    # A feature from each atom: the message is the matrix between atoms. The first half of them
    # has a filter of Gaussians, the other one also of the channels.
    h, down = jnp.eye(nodes), jnp.asarray(rng.normal(size=(NUM_RBF + 2, 2)))
    down = down.at[NUM_RBF:, 0].set(0)
    exact = np.asarray(exact_message(h, positions, jnp.asarray(cell), down))
    # The bound is for filters as large as the envelope; channels have their self-message.
    x = np.linspace(0.01, 0.99, 99)
    values = kspace.channel_basis(jnp.asarray(x**2), NUM_RBF, CHANNELS) @ down[:, 0]
    envelope = 1 - 10 * x**6 + 15 * x**8 - 6 * x**10
    scales = np.max(np.abs(values) / envelope), np.max(np.abs(exact[:, nodes // 2 :]))
    for order, spacings in {4: (2.2, 1.6, 1.1), 6: (2.2, 1.1), 8: (1.6, 1.1)}.items():
        before = None
        for spacing in spacings:
            rule = kspace.MeshRule(order, spacing * mesh_rule.MARGIN)
            shape = mesh_rule.mesh_shape(cell, rule)
            num_waves = kspace.waves_within(shape[0], rule.spacing, K_CUTOFF)
            message = message_on(
                shape, order, h, positions, jnp.asarray(cell), down, num_waves=num_waves
            )
            actual = np.max(np.linalg.norm(cell, axis=1) / shape)
            both = np.split(np.abs(message - exact), 2, axis=1)
            errors = [np.max(e) / scale for e, scale in zip(both, scales, strict=True)]
            assert actual <= spacing
            assert max(errors) < kspace.mesh_error(order, actual, K_CUTOFF)
            if before is not None:
                finer = (before[0] / actual) ** order
                assert max(errors) < 3 * max(before[1]) / finer
            before = actual, errors
    assert max(errors) < 1e-7


def test_waves_within_the_cutoff_are_all_there(rng):
    """Also of a cell that has grown as far as it may; others are left out."""
    for spacing in (0.8, 1.3):
        rule = kspace.MeshRule(6, spacing)
        for _ in range(10):
            cell = random_cell(rng, size=9.0, skew=0.4)
            size = mesh_rule.mesh_shape(cell, rule)[0]
            grown = kspace.lattice_sphere(0.9999 * mesh_rule.MARGIN * cell, 2.0)
            num_waves = kspace.waves_within(size, spacing, 2.0)
            assert np.max(np.abs(grown[:, 0])) < num_waves < size // 2 + 1
    assert kspace.waves_within(8, np.pi, 2.0) == 5


def test_bound_and_spacing_agree():
    for order in (4, 6, 9):
        errors = [kspace.mesh_error(order, h, 2.0) for h in (0.4, 0.8, 1.2, 1.5)]
        assert np.all(np.diff(errors) > 0)
        assert 1 < errors[1] / errors[0] / 2**order < 3
        assert kspace.mesh_error(order, np.pi / 2, 2.0) == np.inf
        for accuracy in (1e-2, 1e-4):
            spacing = kspace.mesh_spacing(order, accuracy, 2.0)
            assert kspace.mesh_error(order, spacing, 2.0) <= accuracy
            assert kspace.mesh_error(order, 1.002 * spacing, 2.0) > accuracy


# -- derivatives -----------------------------------------------------------------------------


def test_derivatives_by_everything_are_exact(rng, monkeypatch):
    """First and second, against finite differences; two blocks of features for each head."""
    monkeypatch.setattr(mesh, "_FEATURES", 1)
    nodes, cell, shape, order = 3, cell_of(6.0), (6, 7, 8), 4
    h, down = rng.normal(size=(nodes, 4)), rng.normal(size=(NUM_RBF + 2, 2))
    positions = rng.uniform(size=(nodes, 3)) @ cell

    def energy(h, positions, cell, down):
        message = message_on(shape, order, h, positions, cell, down)
        return jnp.sum(jnp.tanh(message + h) ** 2)

    def slope(*args):
        """Forces, virial and all else, each in a random direction."""
        slopes = jax.grad(energy, argnums=(0, 1, 2, 3))(*args)
        return sum(jnp.sum(jnp.sin(7 * i + x) * x) for i, x in enumerate(slopes))

    args = tuple(jnp.asarray(x) for x in (h, positions, cell, down))
    for function in (jax.jit(energy), jax.jit(slope)):
        found = jax.jit(jax.grad(function, argnums=(0, 1, 2, 3)))(*args)
        for which, (x, g) in enumerate(zip(args, found, strict=True)):
            direction = rng.normal(size=x.shape)
            ends = [
                function(*args[:which], x + step * direction, *args[which + 1 :])
                for step in (1e-5, -1e-5)
            ]
            expected = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose(jnp.sum(g * direction), expected, rtol=1e-6)


def test_forces_take_no_grid_twice(rng, monkeypatch):
    """The slopes at the atoms are kept, and what only parameters need is left out."""
    monkeypatch.setattr(mesh, "_FEATURES", 1)  # in a loop, in which nothing can be merged
    shape, order, down = (5, 5, 5), 4, jnp.ones((NUM_RBF + 2, 1))
    h, positions = jnp.asarray(rng.normal(size=(3, 4))), jnp.zeros((3, 3))

    def energy(positions):
        args = h, positions, jnp.asarray(cell_of(6.0)), down
        return jnp.sum(message_on.__wrapped__(shape, order, *args) ** 2)

    def counts():
        text = jax.jit(jax.grad(energy)).lower(positions).compile().as_text()
        spreadings = re.findall(r"= f64\[8,8,8,1\]\S* dynamic-update-slice\(", text)
        return text.count("fft_type=FFT"), len(spreadings)

    assert counts() == (2, 2)
    monkeypatch.setattr(mesh, "_KEPT", None)
    assert counts() == (3, 3)


# -- the model -------------------------------------------------------------------------------


@functools.cache
def crystal(repeats=2):
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True) * (repeats, 1, 1)
    shear = np.array([[1.0, 0.03, -0.02], [0.0, 1.02, 0.04], [0.01, 0.0, 0.97]])
    atoms = transformed(atoms, shear)
    atoms.rattle(0.1, seed=2)
    return atoms


def model_of(sum, **fields):
    settings = {"k_cutoff": 2.0, "num_k_rbf": 5, "bottleneck": 3} | fields
    return tiny("schnet", cutoff=3.5, ewald=EwaldConfig(sum=sum, **settings))


@functools.cache
def evaluate(sum, dtype="float64", **fields):
    model = model_of(sum, **fields)
    batch = ewald_jax.batch_from_atoms([crystal(), crystal(1)], model)
    params = drawn(model, batch)
    if dtype != "float64":
        cast = lambda x: x.astype(dtype) if x.dtype == np.float64 else x
        batch, params = jax.tree.map(cast, (batch, params))
    return ewald_jax.predict(model, params, batch, stress=True)


@pytest.mark.parametrize("accuracy", [1e-2, 1e-6])
def test_energies_forces_and_stress_are_those_of_the_direct_sum(accuracy):
    exact, found = (
        evaluate("direct"),
        evaluate("mesh", mesh_accuracy=accuracy, mesh_order=8),
    )
    for name in ("energy", "forces", "stress"):
        assert_close(getattr(found, name), getattr(exact, name), accuracy, name)
    assert np.max(np.abs(found.forces - exact.forces)) > 0


def test_float32():
    exact, found = evaluate("direct"), evaluate("mesh", "float32", mesh_accuracy=1e-5)
    assert found.forces.dtype == jnp.float32
    for name in ("energy", "forces", "stress"):
        assert_close(getattr(found, name), getattr(exact, name), 3e-5, name)


def test_a_loss_of_forces_has_its_derivatives(rng):
    model = model_of("mesh", mesh_order=5)
    batch = ewald_jax.batch_from_atoms([crystal(1)], model)
    params = drawn(model, batch)

    @jax.jit
    def loss(params):
        out = ewald_jax.potential.model_outputs(model, params, batch, True, True)
        return jnp.sum(jnp.sin(out.forces)) + 50 * jnp.sum(out.stress**2)

    slopes = jax.jit(jax.grad(loss))(params)
    for name in ("ewald_filter", "embedding", "ewald_0"):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params[name])
        moved = [
            params
            | {name: jax.tree.map(lambda x, d, s=s: x + s * d, params[name], direction)}
            for s in (1e-5, -1e-5)
        ]
        expected = (loss(moved[0]) - loss(moved[1])) / 2e-5
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), slopes[name], direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), expected, rtol=1e-6)


# -- choice ----------------------------------------------------------------------------------


def water_like(nodes):
    """Positions and cell at 0.05 atoms per cubic Å."""
    size = (nodes / 0.05) ** (1 / 3)
    return np.random.default_rng(0).uniform(size=(nodes, 3)) * size, size * np.eye(3)


def test_large_crystals_alone_take_the_mesh():
    model = model_of("auto")
    for alone, nodes, on_mesh in ((True, 200, False), (True, 60_000, True)):
        found = kspace.wave_set(
            *water_like(nodes), np.ones(3), neighborhood(model, alone).waves
        )
        assert any(found.mesh) == on_mesh and (len(found.nodes) == 0) == on_mesh
    slab = kspace.wave_set(*water_like(500), [1, 1, 0], neighborhood(model, True).waves)
    assert not any(slab.mesh)
    for sum, alone in (("direct", True), ("auto", False)):
        assert neighborhood(model_of(sum), alone).waves.mesh is None
    assert neighborhood(model_of("mesh")).waves.mesh.always


def test_where_the_mesh_begins_to_pay():
    rule = EwaldConfig(scheme="radial", k_cutoff=2.0).wave_rule(alone=True)
    for nodes, on_mesh in ((700, False), (1500, True)):
        found = kspace.wave_set(*water_like(nodes), np.ones(3), rule)
        assert any(found.mesh) == on_mesh


def test_mesh_is_fine_enough_and_of_quick_sizes():
    rule = neighborhood(model_of("mesh", mesh_spacing=0.7)).waves
    cell = cell_of(40.0)
    shape = np.array(kspace.wave_set(np.zeros((9, 3)), cell, np.ones(3), rule).mesh)
    lengths = np.linalg.norm(cell, axis=1)
    assert np.all(mesh_rule.MARGIN * lengths / shape <= 0.7)
    assert np.all(lengths / shape > 0.5)
    for size in shape:
        for factor in (2, 3, 5, 7, 11):
            while size % factor == 0:
                size //= factor
        assert size == 1


def test_a_changing_cell_costs_no_compilation():
    model = model_of("mesh", mesh_order=5, mesh_accuracy=0.05, k_cutoff=1.0)
    atoms = crystal(1).copy()
    params = drawn(model, ewald_jax.batch_from_atoms([atoms], model))
    atoms.calc = EwaldCalculator(model, params, skin=1.0)
    energies = []
    for stretch in (1.0, 1.01, 0.99, 1.03, 1.055):
        strained = transformed(atoms, stretch * np.eye(3))
        strained.calc = atoms.calc
        energies.append(strained.get_potential_energy())
    assert atoms.calc.compilations == 1 and len(set(energies)) == 5
    # The waves of the first cell do for the one that grew.
    fresh = transformed(atoms, 1.03 * np.eye(3))
    fresh.calc = EwaldCalculator(model, params)
    np.testing.assert_allclose(energies[3], fresh.get_potential_energy(), rtol=1e-4)
    largest = max(energies) - min(energies)
    assert abs(energies[3] - fresh.get_potential_energy()) < 0.01 * largest


# -- refusals --------------------------------------------------------------------------------


def test_too_coarse_meshes_are_refused_with_one_that_does():
    for spacing, reason in (
        (1.6, "does not hold the filter"),
        (1.4, "has an error of up to"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            EwaldConfig(mesh_spacing=spacing)
        words = str(caught.value).split("expected at most ")[1]
        assert EwaldConfig(mesh_spacing=float(words.split(" Å")[0])).mesh_spacing > 0.9


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"sum": "fft"}, "ewald.sum must be one of"),
        ({"sum": "mesh", "scheme": "lattice"}, "needs ewald.scheme 'radial'"),
        ({"mesh_order": 3}, "from 4 to 10, not 3"),
        ({"mesh_accuracy": 0.0}, "mesh_accuracy must be larger than 0"),
        ({"mesh_spacing": -1.0}, "mesh_spacing must be larger than 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        EwaldConfig(**fields)


def test_batches_with_others_are_refused(molecule):
    with pytest.raises(InputError, match="structure 1 of the same batch has not"):
        ewald_jax.batch_from_atoms([crystal(1), molecule], model_of("mesh"))
    batch = ewald_jax.batch_from_atoms([molecule], model_of("mesh"))
    assert batch.mesh is None


def test_absurd_meshes_are_refused():
    rule = neighborhood(model_of("mesh")).waves
    with pytest.raises(InputError, match="needs a mesh of 1.* x 1.* x 1.* points"):
        kspace.wave_set(np.zeros((9, 3)), 1000 * np.eye(3), np.ones(3), rule)


def test_budgets_hold_meshes():
    model = model_of("mesh", mesh_order=4)
    small, large = (
        ewald_jax.graph.structure_from_atoms(crystal(n), neighborhood(model))
        for n in (1, 2)
    )
    budget = ewald_jax.graph.single_budget([small], slack=0.2)
    assert mesh_fits(budget, small) and not mesh_fits(budget, large)
    assert np.prod(budget.mesh) >= 1.2 * np.prod(small.waves.mesh)


@pytest.mark.parametrize("in_pairs", [False, True])
def test_convolutions_of_very_many_edges_go_in_blocks(in_pairs, rng, monkeypatch):
    """So that structures as large as the mesh allows fit the memory; to second order."""
    # Atoms are paired with their own images, too.
    model = tiny("schnet", cutoff=6.0)
    width, batch = 6, ewald_jax.batch_from_atoms([crystal(1)], model)
    graph, pairs = batch.graph, batch.pairs if in_pairs else None
    edges = len(graph.senders) if pairs is None else len(pairs.first)
    real_nodes = np.arange(len(graph.nodes["species"])) < graph.n_node[0]
    h, rbf = (
        jnp.asarray(rng.normal(size=(n, 5))) for n in (len(graph.nodes["species"]), edges)
    )
    weights = jnp.asarray(rng.normal(size=edges))
    module = cfconv.ContinuousFilterConvolution(width)
    rest = graph.senders, graph.receivers, pairs
    params = module.init(jax.random.key(0), h, rbf, weights, *rest)
    params = jax.tree.map(lambda x: x.astype(float), params)

    def slopes():
        def energy(*args):
            return jnp.sum(jnp.tanh(module.apply(*args, weights, *rest))[real_nodes])

        def total(*args):
            found = jax.tree.leaves(jax.grad(energy, argnums=(0, 1, 2))(*args))
            return sum(jnp.sum(jnp.sin(x)) for x in found)

        return jax.tree.leaves(jax.jit(jax.grad(total, argnums=(0, 1, 2)))(params, h, rbf))

    whole = slopes()
    monkeypatch.setattr(cfconv, "_LARGE", 4 * 50 * width)
    assert len(graph.senders) * width > cfconv._LARGE and edges % 50
    for one, other in zip(slopes(), whole, strict=True):
        assert_close(one, other, 1e-12)
