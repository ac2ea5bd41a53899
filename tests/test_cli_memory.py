"""Memory that a process of the command line keeps."""

import subprocess
import sys

import pytest

from ewald_jax.cli.memory import keep_memory

PROGRAM = """
import resource
import numpy as np
from ewald_jax.cli.memory import keep_memory
print(keep_memory())
np.ones(2**24)  # 128 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**environment):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment
    )
    assert not done.returncode, done.stderr
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc, which Linux has")
def test_freed_memory_is_kept_for_the_next_array():
    # Of the environment nothing is passed on but what a test asks for.
    kept, faults = run()
    assert kept and faults < 1000
    kept, faults = run(GLIBC_TUNABLES="glibc.malloc.arena_max=4")
    assert not kept
    # Large pages, where the system hands them out unasked, are 512 small ones.
    assert faults >= 5 * 64


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_"])
def test_settings_of_the_environment_are_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "4")
    assert not keep_memory()
