"""Layers, settings, the Ewald block's memory, and models by name."""

import dataclasses
import json

import ase.build
import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from structures import generic_crystal, generic_molecule

import ewald_jax
from ewald_jax.models import MODELS, SchNet, model_to_config
from ewald_jax.nn.basis import cosine_cutoff
from ewald_jax.nn.ewald import EwaldBlock, EwaldFilter, LowRank
from ewald_jax.nn.ewald_config import SCHEMES, EwaldConfig, check_boundary, host_kvecs
from ewald_jax.nn.ewald_geometry import kspace_geometry
from ewald_jax.nn.layers import (
    ResidualLayer,
    ScaledDense,
    he_orthogonal,
    scaled_silu,
    shifted_softplus,
)
from ewald_jax.typing import InputError

# -- layers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (128, 32), (32, 128), (8, 64), (31, 8)])
def test_he_orthogonal_statistics(shape, key):
    kernel = np.asarray(he_orthogonal(key, shape))
    assert kernel.shape == shape and kernel.dtype == np.float32
    np.testing.assert_allclose(kernel.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(kernel.var(axis=0, ddof=1) * shape[0], 1, rtol=1e-3)
    if shape[0] >= shape[1]:  # orthogonal but for the standardisation
        gram = kernel.T @ kernel * shape[0] / (shape[0] - 1)
        assert np.std(gram - np.eye(shape[1])) < 2 / shape[0]


def test_he_orthogonal_of_one_input_is_not_zero(key):
    kernel = np.asarray(he_orthogonal(key, (1, 64)))
    assert kernel.shape == (1, 64)
    np.testing.assert_allclose(np.mean(kernel**2), 1, rtol=1e-5)


def test_he_orthogonal_follows_its_key(key):
    same, other = he_orthogonal(key, (8, 8)), he_orthogonal(jax.random.key(1), (8, 8))
    np.testing.assert_array_equal(he_orthogonal(key, (8, 8)), same)
    assert np.abs(same - other).max() > 0.1


def test_activations_keep_the_scale(key):
    x = jax.random.normal(key, (100_000,))
    assert 0.95 < jnp.mean(scaled_silu(x) ** 2) < 1.05
    assert scaled_silu(0.0) == 0 and abs(shifted_softplus(0.0)) < 1e-7
    np.testing.assert_allclose(scaled_silu(1.0), 1 / (1 + np.exp(-1.0)) / 0.6, rtol=1e-6)


def test_layers_keep_the_variance_roughly(key):
    x = jax.random.normal(key, (2000, 64))
    for layer in (ScaledDense(64), ResidualLayer()):
        y, params = layer.init_with_output(key, x)
        assert 0.5 < jnp.mean(y**2) < 2.0
        for _ in range(4):  # and over depth
            y = layer.apply(params, y)
        assert 0.1 < jnp.mean(y**2) < 10.0


def test_residual_layer_adds_to_its_input(key):
    x = jax.random.normal(key, (5, 8))
    params = ResidualLayer().init(key, x)
    zero = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_allclose(ResidualLayer().apply(zero, x), x / np.sqrt(2), rtol=1e-6)


def test_cosine_cutoff(x64):
    f = lambda d: cosine_cutoff(d, 4.0)
    slope = jax.grad(f)
    assert f(0.0) == 1 and f(2.0) == pytest.approx(0.5) and f(4.0) == 0 and f(9.0) == 0
    assert abs(f(4 - 1e-6)) < 1e-12
    assert abs(slope(4 - 1e-6)) < 1e-5 and slope(4.0) == 0 and slope(9.0) == 0
    # Continuous slope, but its own slope steps: what SchNet's cutoff is.
    np.testing.assert_allclose(jax.grad(slope)(4 - 1e-6), np.pi**2 / 32, rtol=1e-5)


# -- settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"scheme": "radail"}, "scheme must be one of .*not 'radail'"),
        ({"blocks": (0, 0)}, "blocks must be different numbers"),
        ({"blocks": (-1,)}, "blocks must be different numbers"),
        ({"sinc": "exakt"}, "sinc must be 'exact' or 'normalized', not 'exakt'"),
        ({"bottleneck": 0}, "bottleneck must be >= 1"),
        ({"num_hidden": -1}, "num_hidden >= 0"),
        ({"num_k_rbf": 1}, "num_k_rbf must be >= 2, not 1"),
        ({"scheme": "lattice", "num_k": (1, 1)}, "num_k must be three integers"),
        ({"scheme": "lattice", "num_k": 3}, "num_k must be three integers"),
        ({"scheme": "lattice", "num_k": (1.5, 1, 1)}, "num_k must be three integers"),
        ({"scheme": "lattice", "num_k": (0, 0, 0)}, "index box"),
        ({"scheme": "lattice", "num_k": (-1, 1, 1)}, "index box"),
        ({"scheme": "voxel", "k_cutoff": 0.1}, "must not be larger than k_cutoff"),
        ({"scheme": "voxel", "k_cutoff": float("nan")}, "k_cutoff must be finite"),
        ({"scheme": "voxel", "delta_k": -0.2}, "must be > 0"),
    ],
)
def test_settings_out_of_range_are_refused(fields, expected):
    with pytest.raises(InputError, match=expected):
        EwaldConfig(**fields)
    # Some are refused as ill-typed before they get there.
    with pytest.raises(InputError, match="ewald"):
        ewald_jax.build_model("schnet", ewald=fields)


def test_settings_are_plain_and_hashable():
    from_list = EwaldConfig(scheme="lattice", num_k=[1, 1, 3])
    assert from_list == EwaldConfig(scheme="lattice", num_k=(1, 1, 3))
    assert hash(from_list) == hash(EwaldConfig(scheme="lattice", num_k=(1, 1, 3)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        from_list.bottleneck = 3
    published = EwaldConfig.as_published(k_cutoff=0.4)
    assert (published.sinc, published.float32_prune) == ("normalized", True)
    assert published.min_frame_nodes == 3


BOUNDARIES = {
    "open": [False] * 3,
    "wire": [False, False, True],
    "slab": [True, True, False],
    "crystal": [True] * 3,
}


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("scheme, fits", [("lattice", "crystal"), ("voxel", "open")])
def test_boundaries_that_a_scheme_lacks_are_refused(scheme, fits, boundary):
    pbc, config = np.array(BOUNDARIES[boundary]), EwaldConfig(scheme=scheme)
    check_boundary(None, pbc)
    if boundary == fits:
        check_boundary(config, pbc)
        return
    with pytest.raises(InputError) as error:
        check_boundary(config, pbc)
    assert str(pbc.tolist()) in str(error.value) and f"'{scheme}'" in str(error.value)
    model = ewald_jax.build_model("schnet", ewald=config)
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.pbc = pbc
    with pytest.raises(InputError, match=rf"structure 0 has pbc \[.*{scheme}"):
        ewald_jax.batch_from_atoms([atoms], model)


# -- the Ewald block -------------------------------------------------------------------------


def sub_jaxprs(value):
    if isinstance(value, jax.extend.core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, jax.extend.core.Jaxpr):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from sub_jaxprs(item)


def intermediates(jaxpr):
    """Shapes of everything that is computed, inner functions included."""
    for equation in jaxpr.eqns:
        for out in equation.outvars:
            yield out.aval.shape
        for value in equation.params.values():
            for inner in sub_jaxprs(value):
                yield from intermediates(inner)


def test_the_walk_sees_inner_functions():
    inner = jax.jit(lambda x: jnp.sum(jax.vmap(lambda row: jnp.outer(row, row))(x)))
    shapes = list(
        intermediates(jax.make_jaxpr(lambda x: inner(x) + 1)(jnp.ones((3, 5))).jaxpr)
    )
    assert (3, 5, 5) in shapes


@pytest.mark.parametrize(
    "scheme, k_cutoff, periodic",
    [
        ("lattice", 0.4, True),
        ("voxel", 0.4, False),
        ("radial", 2.0, True),
        ("radial", 1.0, False),
    ],
)
def test_nothing_of_size_nodes_kvecs_features_is_formed(scheme, k_cutoff, periodic, key):
    features = 32
    config = EwaldConfig(scheme=scheme, num_k=(1, 1, 3), k_cutoff=k_cutoff, bottleneck=4)
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.6, cubic=True).repeat((2, 2, 1))
    atoms.pbc = periodic
    model = ewald_jax.build_model("schnet", cutoff=2.0, ewald=config)
    batch = ewald_jax.batch_from_atoms([atoms], model, pad=False)

    def init(key):
        h, geometry = jnp.ones((len(atoms), features)), kspace_geometry(config, batch)
        low_rank, filter_params = EwaldFilter(config).init_with_output(key, geometry)
        block_params = EwaldBlock(config).init(key, h, geometry, low_rank)
        positions = jnp.asarray(batch.graph.nodes["positions"])
        return (h, positions, filter_params, block_params), geometry.phases

    arguments, phases = jax.eval_shape(init, key)

    def loss(h, positions, filter_params, block_params):
        graph = batch.graph._replace(nodes={**batch.graph.nodes, "positions": positions})
        geometry = kspace_geometry(config, batch._replace(graph=graph))
        low_rank = EwaldFilter(config).apply(filter_params, geometry)
        return jnp.sum(EwaldBlock(config).apply(block_params, h, geometry, low_rank) ** 2)

    kvecs = phases.shape[-1] // 2
    # Pairs of atoms stand for the wave vectors of a molecule.
    in_pairs = scheme == "radial" and not periodic
    factors = len(atoms) if in_pairs else kvecs
    limit = len(atoms) * factors * features
    for function in (loss, jax.grad(loss, argnums=(0, 1, 2, 3))):
        shapes = list(intermediates(jax.make_jaxpr(function)(*arguments).jaxpr))
        assert len(shapes) > 50
        largest = max(shapes, key=np.prod)
        # Nothing beyond cosines and sines, [nodes, 2 kvecs], and a small factor; of pairs one
        # sinc for each node of the quadrature.
        allowed = 4 * len(atoms) * max(2 * factors, features)
        if in_pairs:
            allowed = batch.waves.senders.size * batch.waves.quad_nodes.size
        assert np.prod(largest) <= allowed < limit, largest


def test_scale_factor_multiplies_the_message(key):
    config = EwaldConfig(scheme="voxel", k_cutoff=0.4, num_k_rbf=8)
    model = ewald_jax.build_model("schnet", ewald=config)
    batch = ewald_jax.batch_from_atoms([ase.build.molecule("H2O")], model)
    block = EwaldBlock(config, scaled=True)
    h = jax.random.normal(key, (16, 8))

    @jax.jit
    def run(key):
        geometry = kspace_geometry(config, batch)
        low_rank, _ = EwaldFilter(config).init_with_output(key, geometry)
        params = block.init(key, h, geometry, low_rank)["params"]
        halved = {"params": {**params, "scale_sum": {"scale_factor": jnp.float32(0.5)}}}
        half = block.apply(halved, h, geometry, low_rank)
        return (
            params,
            half,
            block.apply(
                {"params": params}, h, geometry, jax.tree.map(lambda x: x / 2, low_rank)
            ),
        )

    params, half, same = run(key)
    factor = params["scale_sum"]["scale_factor"]
    assert factor.shape == () and factor == 1
    assert np.abs(half).max() > 1e-4
    np.testing.assert_allclose(half, same, atol=1e-7)


def test_num_hidden_of_the_block_overrides_the_settings(key):
    config = EwaldConfig(scheme="voxel", k_cutoff=0.4, num_k_rbf=8, num_hidden=1)
    model = ewald_jax.build_model("schnet", ewald=config)
    batch = ewald_jax.batch_from_atoms([ase.build.molecule("H2O")], model)

    def names(num_hidden):
        def init(key):
            geometry = kspace_geometry(config, batch)
            low_rank = LowRank(jnp.zeros((geometry.basis.shape[0], config.bottleneck)))
            block = EwaldBlock(config, num_hidden=num_hidden)
            return block.init(key, jnp.ones((16, 8)), geometry, low_rank)

        return {n for n in jax.eval_shape(init, key)["params"] if n.startswith("hidden")}

    assert names(None) == {"hidden_0"}
    assert names(0) == set() and names(2) == {"hidden_0", "hidden_1"}


# -- models by name --------------------------------------------------------------------------


def test_build_model_names_the_nearest():
    with pytest.raises(InputError, match="unknown model 'shnet'; did you mean 'schnet'"):
        ewald_jax.build_model("shnet")
    with pytest.raises(InputError, match="unknown model 'xyzzy'; it is one of .*'schnet'"):
        ewald_jax.build_model("xyzzy")
    for fields, sentence in (
        ({"hiden_channels": 8}, "did you mean 'model.hidden_channels'"),
        ({"ewald": {"kcutoff": 0.4}}, "did you mean 'model.ewald.k_cutoff'"),
        ({"ewald": "voxel"}, "'model.ewald': expected a mapping or null, got 'voxel'"),
        ({"cutoff": "six"}, "'model.cutoff': expected a number, got 'six'"),
        ({"num_filters": "3"}, "'model.num_filters': expected an integer, got '3'"),
        ({"hidden_channels": 0}, "model.hidden_channels must be at least 2, not 0"),
        ({"num_interactions": -1}, "model.num_interactions must be at least 1, not -1"),
        ({"cutoff": -1.0}, "model.cutoff must be a length above 0 Å, not -1"),
        ({"ewald": {"k_cutoff": float("inf")}}, "ewald.k_cutoff must be finite"),
        ({"ewald": {"prefactor": float("inf")}}, "ewald.prefactor must be finite"),
    ):
        with pytest.raises(InputError, match=sentence):
            ewald_jax.build_model("schnet", **fields)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ewald", [None, *SCHEMES])
def test_model_to_config_round_trip(name, ewald):
    config = ewald and EwaldConfig(scheme=ewald, num_k=(2, 1, 0), bottleneck=3)
    model = ewald_jax.build_model(name, cutoff=3.5, ewald=config)
    values = json.loads(json.dumps(model_to_config(model)))
    assert values["name"] == name and values["cutoff"] == 3.5
    again = ewald_jax.build_model(**values)
    assert again == model and hash(again) == hash(model)


@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_fields_that_everything_relies_on(name):
    model = ewald_jax.build_model(name)
    fields = set(model_to_config(model))
    assert {"cutoff", "max_neighbors", "num_elements", "ewald"} <= fields
    assert model.ewald is None and model.max_neighbors is None
    assert isinstance(MODELS[name].needs_triplets, bool)


class Outside(SchNet):
    """A model that is not in `MODELS`."""


class NotAModel:
    pass


def test_models_elsewhere_have_a_dotted_path():
    path = f"{__name__}.Outside"
    model = ewald_jax.build_model(path, hidden_channels=8, ewald={"bottleneck": 2})
    assert type(model) is Outside and model.ewald == EwaldConfig(bottleneck=2)
    values = model_to_config(model)
    assert values["name"] == path
    assert ewald_jax.build_model(**values) == model
    with pytest.raises(InputError, match="not a flax module class"):
        ewald_jax.build_model(f"{__name__}.NotAModel")
    with pytest.raises(InputError, match="cannot import the model .*Missing"):
        ewald_jax.build_model(f"{__name__}.Missing")
    with pytest.raises(InputError, match="cannot import the model 'no_such_module.Model'"):
        ewald_jax.build_model("no_such_module.Model")


def test_dense_layers_in_the_package_have_no_dtype_of_their_own(key, x64):
    """Weights are stored in float32; features keep the type of the positions."""
    for dtype in (jnp.float32, jnp.float64):
        for layer in (ScaledDense(4), ResidualLayer(), nn.Dense(4)):
            x = jax.ShapeDtypeStruct((3, 4), dtype)
            y, params = jax.eval_shape(layer.init_with_output, key, x)
            assert y.dtype == dtype
            assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_ewald_messages_beside_some_interactions_only(key):
    batch = ewald_jax.batch_from_atoms([generic_molecule()], SchNet())
    for blocks, there in ((None, {0, 1, 2}), ((0, 2), {0, 2})):
        config = EwaldConfig("voxel", num_k_rbf=4, blocks=blocks)
        model = SchNet(hidden_channels=8, num_interactions=3, ewald=config)
        shapes = jax.eval_shape(lambda m=model: ewald_jax.init_params(m, key, batch))
        names = {f"ewald_{i}" for i in range(3)} & set(shapes)
        assert names == {f"ewald_{i}" for i in there}
    with pytest.raises(InputError, match="has 3, but the model has 3 interactions"):
        SchNet(num_interactions=3, ewald=EwaldConfig(blocks=(3,)))


def test_k_zero_has_the_phase_one():
    """So that its part of the message is its filter times the sum of the features."""
    for scheme in ("lattice", "voxel"):
        without, having = (host_kvecs(EwaldConfig(scheme, zero_k=z)) for z in (False, True))
        np.testing.assert_array_equal(having[1:], without)
        assert not having[0].any() and having.dtype == without.dtype
    config = EwaldConfig("lattice", num_k=(1, 1, 1), zero_k=True)
    batch = ewald_jax.batch_from_atoms([generic_crystal()], SchNet(ewald=config), pad=False)
    cosines, sines = jnp.split(kspace_geometry(config, batch).phases[0], 2, axis=-1)
    np.testing.assert_array_equal(cosines[:, 0], 1)
    np.testing.assert_array_equal(sines[:, 0], 0)
    assert np.ptp(cosines[:, 1]) > 0.1
    with pytest.raises(InputError, match="radial always has k = 0"):
        EwaldConfig("radial", zero_k=True)
