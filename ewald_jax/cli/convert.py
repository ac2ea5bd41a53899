"""`ewald-jax data convert`: the graphs of a training's data, once, by all cores."""

import time
from typing import Annotated, Any

import typer

from ewald_jax.cli.common import (
    AsJson,
    Progress,
    command,
    note,
    print_json,
    print_table,
    progress_bar,
)
from ewald_jax.cli.sources import composed_config, note_skipped, note_units
from ewald_jax.typing import InputError


@command
def convert(
    configs: Annotated[
        list[str],
        typer.Argument(metavar="CONFIG... [KEY=VALUE]...", help="As for train."),
    ],
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: all cores.")] = 0,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Build the graphs that `train` with the same configs would, and fit its statistics.

    Graphs go into the cache (data.cache_dir), a file at a time; what is there already is not
    built again, and after an interruption the same command goes on with the files that are
    missing. A changed file or setting makes new graphs.
    """
    from ewald_jax.data.base import load_dataset, source_files
    from ewald_jax.data.cache import cache_directory
    from ewald_jax.data.fitting import dataset_statistics
    from ewald_jax.data.parallel import available_cores
    from ewald_jax.data.splits import split_dataset
    from ewald_jax.models import neighborhood

    config, _ = composed_config(configs, "convert")
    folder = cache_directory(config.data.cache_dir)
    if folder is None:
        raise InputError(
            "the cache is switched off (data.cache_dir: none), expected a folder"
        )
    started = time.perf_counter()
    dataset = load_dataset(
        config.data,
        neighborhood(config.model),
        progress,
        workers=workers or available_cores(),
    )
    seconds = time.perf_counter() - started
    with progress_bar("wave vectors", progress and not as_json) as advance:
        dataset.count_waves(advance)  # kept in the cache for the training
    splits = split_dataset(config.data, dataset)
    summary: dict[str, Any] = {
        "cache": str(folder),
        "files": len(source_files(config.data)),
        "structures": len(dataset),
        "atoms": int(dataset.n_node.sum()),
        "edges": int(dataset.n_edge.sum()),
        "labels": list(dataset.labels),
        "splits": {name: len(part) for name, part in splits.items()},
        "skipped": dataset.skipped,
        "seconds": seconds,
    }
    if "energy" in dataset.labels:
        fitted = dataset_statistics(dataset, splits["train"], config.data.statistics)
        summary["statistics"] = fitted.to_dict()
    if as_json:
        print_json(summary)
        return
    facts = ("files", "structures", "atoms", "edges")
    rows = [(key, f"{summary[key]:,}") for key in facts]
    rows.append(("labels", ", ".join(summary["labels"]) or "none"))
    rows += [(f"{name} split", f"{count:,}") for name, count in summary["splits"].items()]
    if "statistics" in summary:
        found = summary["statistics"]
        rows.append(("mean, scale", f"{found['mean']:.6g}, {found['scale']:.6g} eV"))
        energies = [(s, e) for s, e in found["reference_energies"].items() if e]
        if energies:
            rows.append(("reference, eV", ", ".join(f"{s} {e:.4f}" for s, e in energies)))
    print_table("", ("", str(folder)), rows)
    note_skipped(dataset)
    note_units(dataset, config.data)
    note(f"{len(dataset) / max(seconds, 1e-9):,.0f} structures/s, {seconds:.1f} s")
