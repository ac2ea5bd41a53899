"""Memory that a process keeps."""

import os
import platform
import subprocess
import sys

import pytest

import ewald_jax.cli
from ewald_jax.memory import keep_memory

PROGRAM = """
import resource
import numpy as np
from ewald_jax.memory import keep_memory
print(keep_memory())
np.ones(2**24)  # 128 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(**settings):
    kept = {k: v for k, v in os.environ.items() if "MALLOC_" not in k}
    environment = {k: v for k, v in kept.items() if k != "GLIBC_TUNABLES"} | settings
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment
    )
    assert not done.returncode, done.stderr
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_freed_memory_is_kept_for_the_next_array():
    kept, faults = run()
    assert kept
    kept, more = run(GLIBC_TUNABLES="glibc.malloc.arena_max=4")
    # With large pages, where the system hands them out unasked, there are few in any case.
    assert not kept and faults <= more


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_"])
def test_settings_of_the_environment_are_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "4")
    assert not keep_memory()


def test_the_command_line_keeps_memory(monkeypatch):
    calls = []
    monkeypatch.setattr(ewald_jax.cli, "keep_memory", lambda: calls.append("memory"))
    monkeypatch.setattr(ewald_jax.cli, "app", lambda: calls.append("app"))
    ewald_jax.cli.main()
    assert calls == ["memory", "app"]
