"""Compilation, step time and memory of all four models, baseline and Ewald.

    python experiments/steps.py [PART-OF-NAME] && python experiments/report.py

One process for each model and size, `ewald-jax benchmark step`: on 8 molecules of 41 atoms, at
the paper's sizes for OE62 also on 64 (of GemNet-T 18 GB, and more where processes keep their
memory: ``GLIBC_TUNABLES=glibc.malloc.arena_max=8`` keeps none), for the two models of the data
sets of molecules on 16 of 17 atoms, as those sets have them, and at the paper's sizes for OC20
on 8 slabs of 66 atoms; baseline and Ewald take turns within it. Writes
``results/steps_*.json``; "Ewald" is the paper's scheme, "radial" ours.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from cells import HERE, variant_path

from ewald_jax.cli.common import command
from ewald_jax.train.files import write_text
from ewald_jax.typing import InputError

MODELS = ("schnet", "painn", "dimenetpp", "gemnet_t")


def named(names: Iterable[str], parts: Sequence[str]) -> list[str]:
    """Those names that have all parts in them.

    Raises:
        InputError: If there are none.
    """
    names = list(names)
    found = [name for name in names if all(part in name for part in parts)]
    if not found:
        raise InputError(
            f"no name has {' and '.join(parts)} in it, expected parts of names such as "
            f"{names[0]}"
        )
    return found


def variant_files(model: str, variants: Iterable[str]) -> dict[str, Path]:
    """The files of those variants that there are for a model."""
    paths = {}
    for variant in variants:
        with contextlib.suppress(InputError):
            paths[variant] = variant_path(model, variant)
    return paths


def measure(name: str, model: str, variants: tuple[str, ...], *options: str) -> None:
    """Runs one benchmark and keeps its JSON, if the command line asks for it.

    Args:
        name: Of the results file.
        model: Name of a model config.
        variants: Beside the baseline; those that the model has no file for are left out.
        *options: Of `ewald-jax benchmark step`.

    Raises:
        InputError: If the benchmark fails; what it said is above. Nothing is written then.
    """
    if not all(part in name for part in sys.argv[1:]):
        return
    config, program = HERE / "configs", Path(sys.executable).with_name("ewald-jax")
    paths = variant_files(model, ("baseline", *variants)).values()
    words = [program, "benchmark", "step", config / "model" / f"{model}.yaml", *options]
    for path in paths:
        words += ["--variant", path]
    sys.stderr.write(f"{name}\n")
    done = subprocess.run([*words, "--json"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError(f"{name}: the benchmark ended with exit code {done.returncode}")
    write_text(HERE / "results" / f"{name}.json", done.stdout)


@command
def main() -> None:
    """Small sizes with forces, then the published ones as trained, and with forces."""
    for model in MODELS:
        measure(f"steps_small_{model}", f"{model}_small", ("voxel", "radial"))
    for model in ("schnet", "painn"):
        few = ("--carbons", "5", "--batch-size", "16", "--repeats", "15")
        measure(f"steps_dimers_{model}", f"{model}_small", ("voxel", "radial"), *few)
    for model in MODELS:
        for forces, end in (("none", ""), ("l2", "_forces")):
            variants = ("voxel", f"{model}_radial")
            name = f"steps_oe62_{model}{end}"
            measure(name, f"{model}_oe62", variants, f"loss.forces={forces}")
        variants = ("lattice", f"{model}_radial")
        measure(
            f"steps_oc20_{model}", f"{model}_oc20", variants, "--slab", "--repeats", "3"
        )
    # Last: a machine may not have the memory.
    many = ("--batch-size", "64", "--repeats", "3", "loss.forces=none")
    for model in MODELS:
        variants = ("voxel", f"{model}_radial")
        measure(f"steps_oe62_{model}_64", f"{model}_oe62", variants, *many)


if __name__ == "__main__":
    main()
