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

from compare import COLUMNS, HERE, summarise, table_rows
from precision import precision_table

READMES = (HERE / "README.md", HERE.parent / "README.md")


def markdown_table(study: Mapping[str, Any]) -> str:
    """The table of one study, with its overrides and the machine."""
    # Seeds of a study run for hours beside other work: `make demo` and the benchmarks time.
    shown = [place for place, name in enumerate(COLUMNS) if name != "ms per step"]
    rows = [COLUMNS, ["---"] * len(COLUMNS), *table_rows(summarise(study["cells"]))]
    lines = ["| " + " | ".join(row[place] for place in shown) + " |" for row in rows]
    machine = study["cells"][0]["machine"]
    overrides = " ".join(f"`{text}`" for text in study["overrides"])
    lines += [
        "",
        f"Test errors, mean ± standard deviation over seeds; {machine['cores']} cores of "
        f"{machine['processor']}, JAX {machine['jax']}{overrides and '; with ' + overrides}.",
    ]
    return "\n".join(lines)


def block_table(timing: Mapping[str, Any]) -> str:
    """The table of `ewald-jax benchmark kspace --json`."""
    rows = {
        "atoms, wave vectors, features": "{nodes}, {kvecs}, {features}",
        "forward pass (ms)": f"{1e3 * timing['seconds']:.1f}",
        "rate, the two sums counted (GFLOP/s)": "{gflops:.0f}",
        "2048^3 float32 matrix product, same run (GFLOP/s)": "{matmul_gflops:.0f}",
        "ratio": "{fraction:.2f}",
        "memory above the inputs: buffers that XLA reserves (MB)": "{compiled_mb:.0f}",
    }
    lines = ["| Ewald block | |", "|---|---|"]
    lines += [f"| {name} | {value.format(**timing)} |" for name, value in rows.items()]
    return "\n".join(lines)


def step_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """The table of several `ewald-jax benchmark step --json`."""
    columns = (
        "model",
        "molecules x atoms",
        "loss",
        "variant",
        "parameters",
        "compilation (s)",
        "step (s)",
        "ratio",
        "memory (GB)",
    )
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for run in runs:
        loss = "energy, forces" if run["forces"] else "energy"
        for step in run["steps"]:
            memory = (
                step["compiled_mb"] if step["resident_mb"] is None else step["resident_mb"]
            )
            cells = (
                run["config"],
                # Results from before this was an option had molecules of 41 atoms.
                f"{run['structures']} x {run.get('atoms', 41)}",
                loss,
                _variant(step["name"]),
                f"{step['parameters']:,}",
                f"{step['compile_seconds']:.0f}",
                f"{step['seconds']:.3g} ± {step['seconds_spread'] / 2:.1g}",
                f"{step['ratio']:.2f}",
                f"{memory / 1e3:.2f}",
            )
            lines.append("| " + " | ".join(cells) + " |")
    first = runs[0]
    lines += ["", f"On {first['device']}."]
    return "\n".join(lines)


def _variant(name: str) -> str:
    kind = name.rpartition("_")[2]
    return "Ewald" if kind == "voxel" else kind


def filled(text: str, tables: Mapping[str, str]) -> str:
    """`text` with every table between its marks replaced."""
    for name, table in tables.items():
        marks = re.compile(
            rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)",
            re.S,
        )
        text = marks.sub(lambda m, t=table: m.group(1) + t + "\n" + m.group(2), text)
    return text


def main() -> None:
    """Fills the READMEs."""
    studies = {
        p.stem: json.loads(p.read_text()) for p in sorted(HERE.glob("results/*.json"))
    }
    steps = [study for study in studies.values() if "steps" in study]
    tables = {"steps": step_table(steps)} if steps else {}
    for name, study in studies.items():
        if "cells" in study:
            tables[name] = markdown_table(study)
        elif "models" in study:
            tables[name] = precision_table(study["models"])
        elif "steps" not in study:
            tables[name] = block_table(study)
    for readme in READMES:
        readme.write_text(filled(readme.read_text(), tables))
    sys.stdout.write(f"tables: {', '.join(tables) or 'no results yet'}\n")


if __name__ == "__main__":
    main()
