"""Scale factors: fitted to data, held by the optimiser, written and read."""

import functools
import json
from pathlib import Path

import ase.build
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import refuse, succeed
from structures import quick_compilation  # noqa: F401

import ewald_jax
from ewald_jax import potential
from ewald_jax.nn.scaling import OBSERVED, ScaleFactor
from ewald_jax.train import scales
from ewald_jax.train.optim import OptimConfig, make_optimizer
from ewald_jax.typing import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = {
    "painn": {"hidden_channels": 8, "num_layers": 3, "num_rbf": 4},
    "gemnet_t": {
        "emb_size_atom": 16,
        "emb_size_edge": 16,
        "emb_size_trip": 8,
        "emb_size_rbf": 8,
        "emb_size_cbf": 8,
        "emb_size_bil_trip": 8,
        "num_blocks": 2,
        "num_radial": 8,
    },
}


def molecules(seed):
    structures = [ase.build.molecule(name) for name in ("CH3CH2OH", "C6H6", "CH3COOH")]
    for atoms in structures:
        atoms.rattle(0.05, seed=seed)
    return structures


@functools.cache
def built(name):
    model = ewald_jax.build_model(
        name,
        **SMALL[name],
        cutoff=4.0,
        ewald={"scheme": "voxel", "k_cutoff": 0.4, "num_k_rbf": 8},
    )
    batches = [ewald_jax.batch_from_atoms(molecules(seed), model) for seed in range(2)]
    return model, ewald_jax.init_params(model, jax.random.key(0), batches[0]), batches


@pytest.fixture(params=SMALL)
def small(request):
    """A model, random parameters, two batches."""
    return built(request.param)


def observed(model, params, batches):
    sums = [scales._observe(model, params, batch) for batch in batches]
    return jax.tree.map(lambda *x: np.sum(x, axis=0), *sums)


def test_fitted_factors_keep_the_variance(small):
    model, params, batches = small
    factors = scales.fit_scales(model, params, batches)
    assert set(factors) == set(scales.scale_factors(params)) and len(factors) >= 3
    fitted = scales.with_scale_factors(params, factors)
    for place, (found, wanted, rows) in observed(model, fitted, batches).items():
        assert found / wanted == pytest.approx(1, rel=0.01), place
        assert rows > 0
    before = observed(model, params, batches)
    worst = max(abs(np.log(found / wanted)) for found, wanted, _ in before.values())
    assert worst > 0.5  # there was something to do


def test_padding_changes_no_factor(small):
    model, params, batches = small
    bare = [ewald_jax.batch_from_atoms(molecules(n), model, pad=False) for n in range(2)]
    padded = scales.fit_scales(model, params, batches)
    for place, value in scales.fit_scales(model, params, bare).items():
        assert value == pytest.approx(padded[place], rel=2e-3)


def test_a_factor_is_observed_against_its_reference():
    rng = np.random.default_rng(0)
    x, reference = rng.normal(size=(6, 4)), 3 * rng.normal(size=(9, 4))
    mask, reference_mask = np.arange(6) < 5, np.arange(9) < 7

    class One(nn.Module):
        @nn.compact
        def __call__(self):
            arguments = map(jnp.asarray, (x, reference, mask, reference_mask))
            return ScaleFactor(name="scale")(*arguments)

    params = {"scale": {"scale_factor": jnp.asarray(2.0)}}
    out, state = One().apply({"params": params}, mutable=[OBSERVED])
    np.testing.assert_allclose(out, 2 * x, rtol=1e-6)
    found, wanted, rows = state[OBSERVED]["scale"]["sums"][0]
    assert rows == 5
    np.testing.assert_allclose(found / rows, np.var(2 * x[:5], axis=0, ddof=1).mean(), 1e-5)
    expected = np.var(reference[:7], axis=0, ddof=1).mean()
    np.testing.assert_allclose(wanted / rows, expected, 1e-5)


def test_models_without_factors_have_nothing_to_fit(key):
    model = ewald_jax.build_model("schnet", hidden_channels=8, num_filters=8)
    batch = ewald_jax.batch_from_atoms(molecules(0), model)
    assert scales.fit_scales(model, ewald_jax.init_params(model, key, batch), [batch]) == {}


def test_single_atoms_cannot_be_fitted_to(small):
    model, params, _ = small
    batch = ewald_jax.batch_from_atoms([ase.Atoms("He")], model)
    with pytest.raises(InputError, match="nothing that varies"):
        scales.fit_scales(model, params, [batch])
    with pytest.raises(InputError, match="at least one batch"):
        scales.fit_scales(model, params, [])


def test_optimiser_holds_the_factors(small):
    model, params, batches = small
    tx = make_optimizer(OptimConfig(lr=0.1, weight_decay=0.5, clip_norm=1.0), 10)

    def loss(params):
        return jnp.sum(potential.model_outputs(model, params, batches[0]).energy ** 2)

    gradients = jax.jit(jax.grad(loss))(params)
    assert set(scales.scale_factors(gradients).values()) == {0.0}
    updates, _ = tx.update(gradients, tx.init(params), params)
    assert set(scales.scale_factors(updates).values()) == {0.0}
    assert np.any(jax.tree.leaves(updates)[0])


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda f: f.pop(min(f)), "missing"),
        (lambda f: f.update(other=1.0), "'other'"),
        (lambda f: f.update({min(f): 0.0}), "above 0"),
        (lambda f: f.update({min(f): "2"}), "above 0"),
        (lambda f: f.update({min(f): float("nan")}), "above 0"),
    ],
)
def test_factors_that_do_not_fit_are_refused(small, change, word, tmp_path):
    model, params, _ = small
    factors = scales.scale_factors(params)
    change(factors)
    path = tmp_path / "scales.json"
    path.write_text(json.dumps(factors))
    with pytest.raises(InputError, match=word) as caught:
        scales.initial_scales(str(path), model, params, [])
    assert str(path) in str(caught.value)


def test_missing_and_broken_files_are_named(small, tmp_path):
    model, params, _ = small
    for content in (None, "{", "[1, 2]"):
        path = tmp_path / "scales.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(InputError, match="scales.json"):
            scales.initial_scales(str(path), model, params, [])


# -- the command line ------------------------------------------------------------------------

FOLDER = Path(__file__).resolve().parent.parent / "experiments" / "configs"
CONFIGS = [FOLDER / "data" / "dimers.yaml", FOLDER / "model" / "gemnet_t_small.yaml"]
SETTINGS = [
    "data.limit=40",
    "data.limit_eval=4",
    "train.batch_size=8",
    "model.emb_size_atom=8",
    "model.emb_size_edge=8",
    "model.num_blocks=1",
]


def test_a_training_takes_the_factors_of_a_file(tmp_path):
    path = tmp_path / "scales.json"
    out = succeed("fit-scales", *CONFIGS, *SETTINGS, "-o", path, "--json")
    written = json.loads(path.read_text())
    assert json.loads(out.stdout)["scales"] == written and len(written) == 5

    directory = tmp_path / "run"
    steps = ("train.max_steps=1", "train.tensorboard=false", f"train.scales={path}")
    succeed("train", *CONFIGS, *SETTINGS, *steps, "-o", directory)
    _, params, _, _ = ewald_jax.load_checkpoint(directory)
    assert scales.scale_factors(params) == pytest.approx(written, rel=1e-6)
    assert str(path) in refuse("fit-scales", *CONFIGS, *SETTINGS, "-o", path)


def test_fitting_when_training_starts(small):
    model, params, batches = small
    fitted = scales.initial_scales("fit", model, params, batches)
    assert scales.scale_factors(fitted) == pytest.approx(
        scales.fit_scales(model, params, batches), rel=1e-5
    )
    assert scales.initial_scales("none", model, params, batches) is params


def test_models_without_factors_are_a_mistake(tmp_path):
    schnet = FOLDER / "model" / "schnet_small.yaml"
    path = tmp_path / "x.json"
    sentence = refuse("fit-scales", CONFIGS[0], schnet, "data.limit=8", "-o", path)
    assert "no scale factors" in sentence and not path.exists()
