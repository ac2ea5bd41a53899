"""Every shipped config: each combination composes and builds, and each trains for two steps."""

import lzma
from pathlib import Path

import ase
import jax
import numpy as np
import pytest
from structures import quick_compilation  # noqa: F401
from tiny import drawn

from ewald_jax import batch_from_atoms, init_params
from ewald_jax.config import Config, load_config
from ewald_jax.data import Loader, dataset_statistics, load_dataset, split_dataset
from ewald_jax.data.extxyz import split_frames
from ewald_jax.data.samples import sample_path
from ewald_jax.models import neighborhood
from ewald_jax.nn.ewald_config import check_boundary
from ewald_jax.train import create_state, fit
from ewald_jax.train.optim import make_optimizer
from ewald_jax.train.state import count_parameters
from ewald_jax.train.step import make_train_step
from ewald_jax.typing import InputError

CONFIGS = Path(__file__).resolve().parent.parent / "experiments" / "configs"
DATA, MODELS, VARIANTS = (
    sorted((CONFIGS / folder).glob("*.yaml")) for folder in ("data", "model", "variant")
)
# Data sets that the repository does not have (experiments/prepare.py writes their files).
ELSEWHERE = [path for path in DATA if ": runs/data/" in path.read_text()]
DATA = [path for path in DATA if path not in ELSEWHERE]
# Models of the paper's own data sets, which are not in the repository: a sample set with the
# same boundaries and labels stands in for them.
STAND_IN = {"oe62": "dimers", "oc20": "slabs"}
PERIODIC = {"dimers": False, "slabs": True}


FAMILIES = ("schnet", "painn", "dimenetpp", "gemnet_t")


def is_plainest(model, variant):
    """The one combination that other splits of the same data are tried with."""
    return (model.stem, variant.stem) == ("schnet_small", "baseline")


TINY = (
    "data.limit=4",
    "data.limit_eval=2",
    "train.batch_size=2",
    "train.max_steps=2",
    "train.max_buckets=1",
    "train.tensorboard=false",
)


AS_DRAWN = ("train.scales=none",)


def combinations():
    """(data, model, variant) of every combination that has a meaning."""
    for model in MODELS:
        for data in DATA:
            for variant in VARIANTS:
                if _belong_together(data, model, variant):
                    yield pytest.param(
                        data, model, variant, id=f"{data.stem}-{model.stem}-{variant.stem}"
                    )


def _belong_together(data, model, variant):
    family, _, of_paper = model.stem.rpartition("_")
    if variant.stem in (f"{name}_radial" for name in FAMILIES):
        # Both published sizes of a model take its radial block.
        wanted = (f"{family}_radial", STAND_IN.get(of_paper))
        return (variant.stem, data.stem) == wanted
    if data.stem not in (
        STAND_IN.get(of_paper),
        data.stem if of_paper == "small" else None,
    ):
        return False
    # A variant made for one model is called after it, and stands in for the general one; the
    # paper's models take no other.
    special = {path.stem for path in MODELS if variant.stem.startswith(path.stem)}
    wanted = [{model.stem}, set()] if of_paper == "small" else [{model.stem}]
    if variant.stem != "baseline" and special not in wanted:
        return False
    if variant.with_name(f"{model.stem}_{variant.name}").exists():
        return False
    if of_paper == "small":
        # Each of these files once more with every model would train for minutes.
        kind = variant.stem.removeprefix(f"{model.stem}_")
        plain = kind in ("atomic", "baseline", "cutoff")
        plain |= kind == "radial" and data.stem == "dimers"
        plain |= kind == "radial_plain"
        others = plain and model.stem != "schnet_small"
        if others or not (data.stem in PERIODIC or is_plainest(model, variant)):
            return False
    ewald = load_config([data, model, variant]).model.ewald
    try:
        check_boundary(ewald, [PERIODIC[load_config([data, model]).data.name]] * 3)
    except InputError:
        return False
    return True


COMBINATIONS = list(combinations())


def test_there_are_configs_of_every_kind():
    assert len(DATA) >= 3 and len(MODELS) >= 3 and len(VARIANTS) >= 3
    used = {path for entry in COMBINATIONS for path in entry.values}
    assert used == {*DATA, *MODELS, *VARIANTS}, "a config that no test trains"


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_every_combination_composes(model):
    """With every data set and every variant that is not made for another model."""
    stems = [path.stem for path in MODELS]
    for variant in VARIANTS:
        special = [stem for stem in stems if variant.stem.startswith(stem)]
        special += [
            f"{family}_{size}"
            for family in FAMILIES
            for size in ("oe62", "oc20")
            if variant.stem == f"{family}_radial"
        ]
        for data in (*DATA, *ELSEWHERE) if special in ([], [model.stem]) else ():
            config = load_config([data, model, variant])
            assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "path", [*DATA, *ELSEWHERE, *MODELS, *VARIANTS], ids=lambda path: path.stem
)
def test_every_config_says_what_it_is(path):
    assert path.read_text().startswith("# ")


# Counted by instantiating the paper's code with its own configs: baseline, embeddings, cutoff,
# atomic, ewald.
COUNTS = {
    "schnet_oe62": (2_753_025, 14_398_977, 2_753_025, 5_323_265, 12_206_977),
    "painn_oe62": (12_521_477, 15_727_109, 12_521_477, 15_091_717, 15_684_613),
    "dimenetpp_oe62": (2_755_462, 5_383_302, 2_755_462, 3_719_814, 4_749_958),
    "gemnet_t_oe62": (14_051_085, 16_096_461, 14_051_085, 14_994_189, 15_834_896),
    "schnet_oc20": (2_753_025, None, 2_753_025, 5_323_265, 12_206_841),
    "painn_oc20": (13_899_783, None, 13_899_783, 16_470_023, 17_062_143),
    "dimenetpp_oc20": (1_810_182, None, 1_810_182, 2_584_518, 2_974_606),
    "gemnet_t_oc20": (21_425_937, None, 21_425_937, 22_369_041, 23_209_892),
}
EWALD = {"oe62": "voxel", "oc20": "lattice"}
CELLS = [
    (model, variant, count)
    for model, counts in COUNTS.items()
    for variant, count in zip(
        (
            "baseline",
            f"{model}_embeddings",
            f"{model}_cutoff",
            f"{model}_atomic",
            f"{model}_{EWALD[model.rpartition('_')[2]]}",
        ),
        counts,
        strict=True,
    )
    if count is not None
]


def test_all_cells_of_the_paper_are_here():
    assert len(CELLS) == 36


@pytest.mark.parametrize(("model", "variant", "parameters"), CELLS)
def test_paper_models_have_the_paper_parameters(model, variant, parameters):
    paths = [DATA[0], CONFIGS / "model" / f"{model}.yaml"]
    config = load_config([*paths, CONFIGS / "variant" / f"{variant}.yaml"])
    periodic = model.endswith("oc20")
    atoms = ase.Atoms("HHe", [[0, 0, 0], [0, 0, 1]], cell=[5, 5, 5], pbc=periodic)
    batch = batch_from_atoms([atoms], config.model)
    params = jax.eval_shape(
        lambda key: init_params(config.model, key, batch), jax.random.key(0)
    )
    assert count_parameters(params) == parameters


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The smallest structures of each sample set: name -> path."""
    folder, paths = tmp_path_factory.mktemp("few"), {}
    for name in PERIODIC:
        with lzma.open(sample_path(name), "rt") as lines:
            frames = sorted(split_frames(lines), key=len)[:8]
        paths[name] = folder / f"{name}.extxyz"
        paths[name].write_text("".join(line for frame in frames for line in frame))
    return paths


@pytest.mark.configs
@pytest.mark.parametrize(("data", "model", "variant"), COMBINATIONS)
def test_trains_two_steps(data, model, variant, few, tmp_path, quick_compilation):  # noqa: F811
    """The plainest model on each data set; the others on a few structures of it.

    A whole set would be read and searched for neighbours anew for every cutoff, and only its
    config is tested by that. The model has the size its config says.
    """
    small = model.stem.endswith("small")
    # Initialisers, evaluations and checkpoints of each small model once; SchNet's are quick.
    whole = small and (data.stem == "dimers" or model.stem == "schnet_small")
    overrides = TINY if whole else (*TINY, *AS_DRAWN)
    if not is_plainest(model, variant):
        name = load_config([data, model]).data.name
        overrides += ("data.name=''", f"data.path={few[name]}", "data.split=random")
    config = load_config([data, model, variant], overrides)
    dataset = load_dataset(config.data, neighborhood(config.model))
    splits = split_dataset(config.data, dataset)
    statistics = dataset_statistics(dataset, splits["train"], config.data.statistics)
    if not whole:
        two_steps(config, dataset, splits["train"], statistics)
        return
    result = fit(
        config.model,
        dataset,
        {"train": splits["train"], "val": splits["val"][:2]},
        train=config.train,
        loss=config.loss,
        optim=config.optim,
        statistics=statistics,
        config=config.to_dict(),
        output_dir=tmp_path / "run",
        progress=False,
    )
    assert result.step == 2
    assert result.metrics["val"]["energy_mae"] >= 0


def two_steps(config, dataset, indices, statistics):
    """At full size, initialisers, evaluations and checkpoints take longer than all the rest."""
    dataset = dataset.suited_to(neighborhood(config.model))
    loader = Loader(dataset, indices[:1], 1, statistics=statistics, prefetch=0)
    (batch,) = loader.epoch()
    tx = make_optimizer(config.optim, 2)
    step = make_train_step(config.model, tx, config.loss, config.optim, statistics.scale)
    state = create_state(
        drawn(config.model, batch), tx, jax.random.key(0), ema=config.optim.ema_decay > 0
    )
    for _ in range(2):
        state, sums = step(state, batch)
    assert state.healthy and int(state.step) == 2
    assert all(np.isfinite(total) for total, _ in sums.values())
