"""Strict settings for the whole suite, and the structures that many tests share.

The settings are made here, before any array exists: no implicit rank promotion, and two
host devices so that data parallelism is tested without an accelerator. Warnings are errors
(`setup.cfg`).
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import ase
import ase.build
import hypothesis
import jax
import numpy as np
import pytest
from ase.constraints import FixAtoms

# Half of the suite is XLA at compilation, and without LLVM's optimisations, as most tests are
# compiled, its older emitters take half the time of the new ones (with them more). A flag that
# a later XLA does not know would end the process, so another one tries it; workers find it set.
QUICK = "--xla_cpu_use_fusion_emitters=false"
if "XLA_FLAGS" not in os.environ:
    trial = [sys.executable, "-c", "import jax; jax.numpy.zeros(1)"]
    if (
        subprocess.run(trial, env=os.environ | {"XLA_FLAGS": QUICK}, check=False).returncode
        == 0
    ):
        os.environ["XLA_FLAGS"] = QUICK

# Small programs run once are ready sooner without optimisations, here and in the commands that
# tests start; what they compute stays the same.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
jax.config.update(
    "jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 2)

# Compilation makes the first example of a property slow, and a suite that draws new
# examples each time fails for reasons that nobody changed.
hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, max_examples=25
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

# Shells start background jobs with Ctrl-C ignored, and children inherit it: the tests that
# interrupt trainings would wait in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent


# Files whose tests compare numbers, which no version of Python changes.
NUMERICS = (
    "test_basis",
    "test_contract",
    "test_direct_forces",
    "test_double_backward",
    "test_experiments_configs",
    "test_frame",
    "test_interop",
    "test_layers",
    "test_madelung",
    "test_models",
    "test_reference",
    "test_samples",
    "test_scales",
    "test_train_losses",
    "test_train_optim",
    "test_train_sharding",
    "test_triplet",
)


def pytest_collection_modifyitems(items):
    """Which tests run in one process when several do (`-n 2 --dist loadgroup`).

    Those of a file share what they compile, those of the contract share it by case, and
    trainings of configs share nothing.
    """
    for item in items:
        if item.path.stem.startswith(NUMERICS):
            item.add_marker(pytest.mark.numerics)
        group, params = item.path.stem, getattr(item, "callspec", None)
        if params is not None and isinstance(params.params.get("case"), tuple):
            group += f"-{params.params['case']}"
        elif params is not None and item.get_closest_marker("configs"):
            group = item.nodeid
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session", autouse=True)
def graph_cache(tmp_path_factory):
    """Tests share a cache of graphs, and leave the user's alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EWALD_JAX_CACHE", str(tmp_path_factory.mktemp("graph_cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def forget_compilations():
    """Of no use to other files, and thousands of them use up a process's memory maps."""
    yield
    jax.clear_caches()


def _restoring(name, value):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    yield
    jax.config.update(name, before)


@pytest.fixture
def x64():
    """Float64 for one test, in every thread (the loader's too)."""
    yield from _restoring("jax_enable_x64", True)


@pytest.fixture
def debug_nans():
    """Any NaN made on the device raises, for one test."""
    yield from _restoring("jax_debug_nans", True)


@pytest.fixture
def key():
    """A random key, the same in every test."""
    return jax.random.key(0)


@pytest.fixture
def rng():
    """A numpy generator, the same in every test."""
    return np.random.default_rng(0)


@pytest.fixture
def molecule():
    """Ethanol off its equilibrium: open boundaries, no symmetry, 9 atoms."""
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.fixture
def crystal():
    """Rock salt in a sheared, rattled conventional cell: fully periodic, 8 atoms."""
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    shear = np.array([[1.0, 0.03, -0.02], [0.0, 1.02, 0.04], [0.01, 0.0, 0.97]])
    atoms.set_cell(atoms.cell[:] @ shear, scale_atoms=True)
    atoms.rattle(0.05, seed=2)
    return atoms


@pytest.fixture
def slab():
    """CO on two layers of copper, the lower one fixed: periodic in the plane, 10 atoms."""
    atoms = ase.build.fcc111("Cu", size=(2, 2, 2), vacuum=6.0)
    ase.build.add_adsorbate(atoms, ase.build.molecule("CO"), 1.9, "bridge", mol_index=1)
    atoms.set_constraint(FixAtoms(mask=atoms.get_tags() == 2))
    atoms.rattle(0.03, seed=3)
    return atoms


@pytest.fixture(scope="session")
def real_data():
    """Finds published data sets; a test that needs one is skipped where it is not."""
    named = os.environ.get("EWALD_JAX_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"

    def find(name):
        path = folder / name
        if not path.exists():
            pytest.skip(
                f"needs the published data set {name}, too large to come with the code: set "
                f"EWALD_JAX_DATA to a folder that holds it (now {folder})"
            )
        return path

    return find


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with structures, a config, and a checkpoint that the command line trained."""
    from commands import make_workplace

    return make_workplace(tmp_path_factory.mktemp("cli"))
