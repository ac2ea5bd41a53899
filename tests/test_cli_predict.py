"""`predict` as a stream: what it holds at a time, shows, and leaves when it is stopped."""

import functools
import io
import sys
import weakref

import ase.io
import pytest
import rich.console
from commands import run, succeed

from ewald_jax.cli.common import progress_bar


@pytest.fixture
def frames(monkeypatch):
    """Replaces the structures of a file by what a test makes."""

    def replace(make):
        # The package's attribute of that name is the verb, not the module.
        module = sys.modules["ewald_jax.cli.predict"]
        monkeypatch.setattr(module, "read_frames", lambda path: make())

    return replace


def test_memory_is_that_of_a_batch(workplace, frames, tmp_path):
    atoms = ase.io.read(workplace / "all.extxyz")
    made, most = [], []

    def many():
        for _ in range(60):
            copy = atoms.copy()
            made.append(weakref.ref(copy))
            most.append(sum(one() is not None for one in made))
            yield copy

    frames(many)
    output = tmp_path / "out.extxyz"
    arguments = (workplace / "run", workplace / "all.extxyz", "-o", output, "-b", 4)
    succeed("predict", *arguments)
    assert len(ase.io.read(output, ":")) == 60
    # The batch before is let go of while the next is read.
    assert max(most) <= 2 * 4 + 1


def test_ctrl_c_says_what_is_left(workplace, frames, tmp_path):
    atoms = ase.io.read(workplace / "all.extxyz")

    def stopped():
        yield from (atoms.copy() for _ in range(5))
        raise KeyboardInterrupt

    frames(stopped)
    output = tmp_path / "out.extxyz"
    arguments = ("predict", workplace / "run", workplace / "all.extxyz", "-o", output)
    result = run(*arguments, "-b", 2)
    assert result.exit_code == 130
    assert result.stderr.strip() == f"error: interrupted; {output} is not written"
    assert list(tmp_path.iterdir()) == []
    output.write_text("precious")
    result = run(*arguments, "-b", 2, "--overwrite")
    assert result.stderr.strip() == f"error: interrupted; {output} is as it was"
    assert output.read_text() == "precious" and len(list(tmp_path.iterdir())) == 1


def test_a_bar_counts_where_nobody_knows_the_end(monkeypatch):
    shown = io.StringIO()
    terminal = functools.partial(
        rich.console.Console, file=shown, force_terminal=True, width=80
    )
    monkeypatch.setattr(rich.console, "Console", lambda stderr: terminal())
    with progress_bar("structures", True) as advance:
        advance(7, None)
    assert "structures" in shown.getvalue() and "7/?" in shown.getvalue()
    before = len(shown.getvalue())
    with progress_bar("structures", False) as advance:
        advance(7, None)
    assert len(shown.getvalue()) == before
