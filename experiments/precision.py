"""What bfloat16 and TF32 do to the packaged models, against float64.

    python experiments/precision.py && python experiments/report.py

One process for each model, `ewald-jax benchmark precision`, on the test split of its own data.
Writes ``results/precision.json``.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MODELS = ("dimers", "dimers-painn", "slabs")


def precision_table(study: Mapping[str, Any]) -> str:
    """The table of several `ewald-jax benchmark precision --json`."""
    runs = study["models"]
    columns = (
        "model",
        "structures",
        "precision",
        "energy: mean, largest difference from float64 (meV/atom)",
        "forces: mean, largest (meV/Å)",
        "energy MAE (meV/atom)",
        "force MAE (meV/Å)",
        "training step / float32",
    )
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for run in runs:
        for result in run["precisions"]:
            cells = (
                run["checkpoint"].removeprefix("pretrained:"),
                str(run["structures"]),
                result["precision"],
                f"{result['energy_error']:.2g}, {result['energy_error_max']:.2g}",
                f"{result['forces_error']:.2g}, {result['forces_error_max']:.2g}",
                f"{result['energy_mae']:.2f}",
                f"{result['forces_mae']:.1f}",
                f"{result['step_ratio']:.2f} ± {result['step_ratio_spread'] / 2:.1g}",
            )
            lines.append("| " + " | ".join(cells) + " |")
    first = runs[0]
    lines += ["", f"On {first['device']}; steps of {first['batch_size']} structures."]
    return "\n".join(lines)


def measure(model: str) -> dict[str, Any]:
    """One benchmark, in a process of its own."""
    program = Path(sys.executable).with_name("ewald-jax")
    command = [program, "benchmark", "precision", f"pretrained:{model}", "--json"]
    sys.stderr.write(f"{model}\n")
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def main() -> None:
    """All packaged models."""
    text = json.dumps({"models": [measure(model) for model in MODELS]}, indent=2)
    (HERE / "results" / "precision.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
