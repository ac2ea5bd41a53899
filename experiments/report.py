"""Put the tables of ``experiments/results/*.json`` into the two READMEs.

    python experiments/report.py

Every table stands between ``<!-- table NAME -->`` and ``<!-- end NAME -->``, where NAME is a
results file; what is between them is never typed.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from accuracy import accuracy_table
from cells import HERE
from compare import COLUMNS, summarise, table_rows
from hours_table import hours_table
from long_range_table import long_range_table
from precision import precision_table
from studies import load_study, result_of, result_path, study_names
from tables import markdown as _markdown
from tables import spread as _spread
from tables import variant_name

from ewald_jax.cli.common import command
from ewald_jax.cli.measuring import in_words

READMES = (HERE / "README.md", HERE.parent / "README.md")


def markdown_table(study: Mapping[str, Any]) -> str:
    """The table of one study, with its overrides and the machine."""
    # Seeds of a study run for hours beside other work: `make demo` and the benchmarks time.
    shown = [place for place, name in enumerate(COLUMNS) if name != "ms per step"]
    rows = [COLUMNS, ["---"] * len(COLUMNS), *table_rows(summarise(study["cells"]))]
    lines = ["| " + " | ".join(row[place] for place in shown) + " |" for row in rows]
    machine = study["cells"][0]["machine"]
    versions = ", ".join(sorted({cell["machine"]["jax"] for cell in study["cells"]}))
    overrides = " ".join(f"`{text}`" for text in study["overrides"])
    lines += [
        "",
        f"Test errors, mean ± standard deviation over seeds; {machine['cores']} cores of "
        f"{machine['processor']}, JAX {versions}{overrides and '; with ' + overrides}.",
    ]
    return "\n".join(lines)


def study_table(name: str) -> str | None:
    """The table of a study of ``configs/study``; None without results."""
    study, results = load_study(name), HERE / "results"
    every = study.cells()
    found = [
        result_of(result_path(results, name, cell), cell, study.also) for cell in every
    ]
    cells = [study.shown(result) for result in found if result is not None]
    if not cells:
        return None
    machines = dict.fromkeys(
        f"{c['machine']['cores']} cores of {c['machine']['processor']}" for c in cells
    )
    note = (
        f"{len(cells)} of {len(every)} cells. {study.errors.capitalize()}, mean ± "
        "standard deviation over seeds; smaller than the baseline's of the same seeds, and for "
        f"means over models from the least to the most; {'; '.join(machines)}."
    )
    columns, rows = accuracy_table(cells, study.baseline)
    return _markdown(columns, rows, note)


def block_table(study: Mapping[str, Any]) -> str:
    """The table of `ewald-jax benchmark kspace --json`."""
    columns = (
        "atoms, wave vectors, features",
        "forward (ms)",
        "GFLOP/s",
        "/ matrix product",
        "with gradient (ms)",
        "GFLOP/s",
        "/ matrix product",
        "memory, with gradient (MB)",
    )
    rows = [
        (
            f"{block['nodes']:,}, {block['kvecs']}, {block['features']}",
            _spread(block["seconds"], block["seconds_spread"]),
            f"{block['gflops']:.0f}",
            f"{block['fraction']:.2f}",
            _spread(block["gradient_seconds"], block["gradient_spread"]),
            f"{block['gradient_gflops']:.0f}",
            f"{block['gradient_fraction']:.2f}",
            f"{block['compiled_mb']:.0f}, {block['gradient_mb']:.0f}",
        )
        for block in study["blocks"]
    ]
    rate = max(block["matmul_gflops"] for block in study["blocks"])
    note = f"On {in_words(study)}; matrix products of 2048^3 reached {rate:.0f} GFLOP/s."
    return _markdown(columns, rows, note)


def scaling_table(study: Mapping[str, Any]) -> str:
    """The table of `ewald-jax benchmark scaling --json`."""
    columns = ("atoms", "sum", "waves", "time (s)", "µs per atom", "memory (GB)")
    rows = [
        (
            f"{row['atoms']:,}",
            f"{row['sum']} (auto)" if row["chosen"] else row["sum"],
            f"{row['kvecs']:,} vectors"
            if row["kvecs"]
            else " x ".join(map(str, row["mesh"])),
            _spread(row["seconds"], row["seconds_spread"], 1),
            f"{row['microseconds_per_atom']:.0f}",
            f"{row['compiled_gb'] if row['resident_gb'] is None else row['resident_gb']:.2f}",
        )
        for row in study["timings"]
    ]
    notes = [
        f"{study['model']['name']}, {study['features']} features, on {in_words(study)}."
    ]
    if study["crossover"] is not None:
        notes.append(f"The mesh is faster from {study['crossover']:,.0f} atoms.")
    if study["flatness"] is not None:
        notes.append(f"Its time per atom varies by a factor of {study['flatness']:.2f}.")
    notes += [f"{sentence[0].upper()}{sentence[1:]}." for sentence in study["left_out"]]
    return _markdown(columns, rows, " ".join(notes))


def peers_table(study: Mapping[str, Any]) -> str:
    """The table of `ewald-jax benchmark peers --json`."""
    columns = (
        "what",
        "atoms, wave vectors, features",
        "package",
        "time (ms)",
        "ratio",
        "with gradient (ms)",
        "ratio",
        "difference",
    )
    names = {"sum": "k-space sum", "block": "Ewald block", "step": "training step"}
    rows = [
        (
            names[row["part"]],
            f"{row['atoms']:,}, {row['kvecs'] or 'its own'}, {row['features']}",
            f"{row['name']} {row['version']}".strip(),
            row["note"]
            if row["seconds"] is None
            else _spread(row["seconds"], row["seconds_spread"]),
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
            ""
            if row["gradient_seconds"] is None
            else _spread(row["gradient_seconds"], row["gradient_spread"]),
            "" if row["gradient_ratio"] is None else f"{row['gradient_ratio']:.2f}",
            f"{row['difference']:.0e}" if row["difference"] else "",
        )
        for row in study["rows"]
    ]
    return _markdown(columns, rows, f"On {in_words(study)}.")


def step_table(runs: Sequence[Mapping[str, Any]], resident: bool = True) -> str:
    """The table of several `ewald-jax benchmark step --json`.

    Args:
        runs: What they said.
        resident: Whether memory is the measured peak, where there is one; else it is that of
            XLA's buffers, for processes that keep memory, of which a step may take none anew.
    """
    # Results from before predictions were timed have none.
    inference = any("inference_ms" in step for run in runs for step in run["steps"])
    columns = (
        "model",
        "structures x atoms",
        "loss",
        "variant",
        "parameters",
        "compilation (s)",
        "step (s)",
        "ratio",
        *["inference (ms per structure)"] * inference,
        "GFLOP, GB",
        "at the rate of a product (s)",
        "memory (GB)" if resident else "buffers (MB)",
    )
    rows = []
    for run in runs:
        loss = "energy, forces" if run["forces"] else "energy"
        for step in run["steps"]:
            memory = f"{step['compiled_mb']:.0f}"
            if resident:
                memory = f"{(step['resident_mb'] or step['compiled_mb']) / 1e3:.2f}"
            cells = (
                run["config"],
                # Results from before this was an option had molecules of 41 atoms.
                f"{run['structures']} x {run.get('atoms', 41)}",
                loss,
                variant_name(step["name"]),
                f"{step['parameters']:,}",
                f"{step['compile_seconds']:.0f}",
                _spread(step["seconds"], step["seconds_spread"], 1),
                f"{step['ratio']:.2f}",
                *[_inference(step)] * inference,
                *_limits(step),
                memory,
            )
            rows.append(cells)
    return _markdown(columns, rows, f"On {runs[0]['device']}.")


def _inference(step: Mapping[str, Any]) -> str:
    if step.get("inference_ms") is None:
        return ""
    return _spread(step["inference_ms"], step["inference_ms_spread"], 1)


def _limits(step: Mapping[str, Any]) -> tuple[str, str]:
    """What XLA counts of a step, and the time of its operations alone."""
    if "gflop" not in step:  # a result from before they were counted
        return "", ""
    counts = f"{step['gflop']:.3g}, {step['gbytes']:.2g}"
    return counts, f"{step['limit_seconds']:.2g}"


def filled(text: str, tables: Mapping[str, str]) -> str:
    """`text` with every table between its marks replaced."""
    for name, table in tables.items():
        marks = re.compile(
            rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)",
            re.S,
        )
        text = marks.sub(lambda m, t=table: m.group(1) + t + "\n" + m.group(2), text)
    return text


@command
def main() -> None:
    """Fills the READMEs."""
    studies = {
        p.stem: json.loads(p.read_text()) for p in sorted(HERE.glob("results/*.json"))
    }
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, study in studies.items():
        if "steps" in study:
            group = "costs" if name.startswith("costs_") else "steps"
            groups.setdefault(group, []).append(study)
    tables = {name: step_table(runs, name != "costs") for name, runs in groups.items()}
    kinds = {
        "cells": markdown_table,
        "blocks": block_table,
        "timings": scaling_table,
        "rows": peers_table,
        "models": precision_table,
        "trainings": hours_table,
        "long_range": long_range_table,
    }
    for name, study in studies.items():
        for key, table in kinds.items():
            if key in study:
                tables[name] = table(study)
    for name in study_names():
        if (table := study_table(name)) is not None:
            tables[name] = table
    for readme in READMES:
        readme.write_text(filled(readme.read_text(), tables))
    sys.stdout.write(f"tables: {', '.join(tables) or 'no results yet'}\n")


if __name__ == "__main__":
    typer.run(main)
