"""What each variant of the small models costs: parameters, step, inference, memory.

    python experiments/costs.py [PART-OF-NAME]... && python experiments/report.py

For each model one process, `ewald-jax benchmark step`, on the shapes of SAPT10k (32 molecules
of 17 atoms, energies only), and one on those of OC20 (8 slabs of 66 atoms, with forces):
baseline, larger embeddings, larger cutoff, atom-to-atom block, the paper's scheme and radial
take turns within it. Writes ``results/costs_*.json``, keeps those that have all variants
(delete one to measure it again), and draws ``results/costs_molecules.png`` and
``results/costs_slabs.png`` from them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from steps import HERE, MODELS, measure, named, variant_files
from tables import variant_name

from ewald_jax.analysis.benchmark_plots import plot_ratios
from ewald_jax.analysis.plots import save_figure
from ewald_jax.cli.common import command, note
from ewald_jax.train.files import read_json

SHAPES = {
    "molecules": (
        ("embeddings", "cutoff", "atomic", "fine_voxel", "radial"),
        ("--carbons", "5", "--batch-size", "32", "--repeats", "9", "loss.forces=none"),
    ),
    "slabs": (
        ("embeddings", "cutoff", "atomic", "lattice", "radial"),
        ("--slab", "--batch-size", "8", "--repeats", "5"),
    ),
}
"""Variants and options of the benchmark for each kind of structures."""


def name_of(kind: str, model: str) -> str:
    """Of the results file."""
    return f"costs_{kind}_{model}"


def is_complete(path: Path, model: str, variants: Sequence[str]) -> bool:
    """Whether a results file has all variants that there are for a model by now."""
    if not path.exists():
        return False
    files = variant_files(model, ("baseline", *variants)).values()
    return [step["name"] for step in read_json(path)["steps"]] == [p.stem for p in files]


def picture_of(kind: str, runs: Mapping[str, Mapping[str, Any]]) -> Any:
    """A panel for each model: time of step and inference over that of the baseline.

    Args:
        kind: Of structures, for the title.
        runs: What the benchmark said, by model.
    """
    groups = {model: _ratios(run["steps"]) for model, run in runs.items()}
    first = next(iter(runs.values()))
    loss = "energies and forces" if first["forces"] else "energies"
    title = (
        f"{first['structures']} {kind} of {first['atoms']} atoms, {loss}, {first['device']}"
    )
    return plot_ratios(groups, "time / time of the baseline", title)


def _ratios(
    steps: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, tuple[float, float]]]:
    """Name and parameters of each but the first -> kind -> (ratio, interquartile range)."""
    baseline, *others = steps
    times = {"training step": "seconds", "inference": "inference_ms"}
    return {
        f"{variant_name(step['name'])}, {step['parameters'] / 1e3:,.0f} k": {
            kind: (step[key] / baseline[key], step[f"{key}_spread"] / baseline[key])
            for kind, key in times.items()
            if step.get(key) is not None
        }
        for step in others
    }


@command
def main(
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PART-OF-NAME]...", help="Which to measure."),
    ] = None,
) -> None:
    """Measures what is not complete, and draws all that is there."""
    results = HERE / "results"
    cases = {name_of(kind, m): (kind, m) for kind in SHAPES for m in MODELS}
    for name in named(cases, parts or ()):
        kind, model = cases[name]
        variants, options = SHAPES[kind]
        if is_complete(results / f"{name}.json", f"{model}_small", variants):
            note(f"{name}: there already")
        else:
            measure(name, f"{model}_small", variants, *options)
    for kind in SHAPES:
        paths = {model: results / f"{name_of(kind, model)}.json" for model in MODELS}
        runs = {model: read_json(path) for model, path in paths.items() if path.exists()}
        if runs:
            picture = save_figure(picture_of(kind, runs), results / f"costs_{kind}.png")
            note(f"the picture is in {picture}")


if __name__ == "__main__":
    typer.run(main)
