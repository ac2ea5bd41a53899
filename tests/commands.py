"""The command line in one process: what succeeds, what is refused, and a place to work in."""

import ase
import ase.io
from ase.calculators.singlepoint import SinglePointCalculator
from test_train_toy import toy_atoms
from typer.testing import CliRunner

from ewald_jax.cli import app

CONFIG = """
data: {path: PATH, val_size: 4, test_size: 4, cache_dir: none}
model: {name: test_train_toy.Toy}
optim: {lr: 1e-3}
train: {epochs: 2, batch_size: 8, max_buckets: 1, tensorboard: false}
"""


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refuse(*arguments):
    """The sentence of a refusal: one line on stderr, exit code 2, nothing else."""
    result = run(*arguments)
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.output
    return lines[0]


def write(path, frames):
    ase.io.write(path, frames, format="extxyz")
    return path


def labelled(atoms, **results):
    """The structure with other labels."""
    out = atoms.copy()
    values = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    values = {k: v for k, v in (values | results).items() if v is not None}
    out.calc = SinglePointCalculator(out, **values) if values else None
    return out


def make_workplace(folder):
    """A folder with structures, a config, and a checkpoint trained from them."""
    write(folder / "all.extxyz", [labelled(atoms) for atoms in toy_atoms(24)])
    config = folder / "toy.yaml"
    config.write_text(CONFIG.replace("PATH", str(folder / "all.extxyz")))
    result = succeed("train", config, "loss.forces=l2", "-o", folder / "run", "--json")
    (folder / "train.json").write_text(result.stdout)
    return folder
