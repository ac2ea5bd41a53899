r"""GPU-hours and memory of every published training, predicted before anyone pays for them.

    python experiments/hours.py [PART-OF-NAME]... && python experiments/report.py
    python experiments/hours.py --measured step_on_a_gpu.json

For each of the 36 published runs, and each model with the radial filter, the training step is
compiled, not run, at the published batch size: 41-atom molecules and energies for OE62, 66-atom
slabs and forces for OC20 (made up; `analysis.made_up`). A step is said to take the longer of

- the operations that XLA counts, at `efficiency` of the device's float32 peak, and
- the bytes that it counts, at the device's bandwidth,

and a training as long as its steps. The device is an NVIDIA A100 unless options say otherwise:
19.5 TFLOP/s in float32 without tensor cores, which our float32 products do not use, and 1.555
TB/s (NVIDIA A100 datasheet, 40 GB SXM). The efficiency of 0.5 is an assumption: the steps of
published sizes in ``results/steps_*.json`` reach 0.41 to 0.78 of the rate of a matrix product,
on a CPU core. Not in it: launching kernels, which small batches wait for, reading data,
evaluation, compilation. Counts and buffers are those of the program that XLA makes for the
present device, a CPU if there is no other; one for a GPU is fused in other ways.

The hours of the reference, PyTorch on one A100, from the notebooks of its repository
(arthurkosmala/EwaldMP), stand beside the prediction. Seconds that ``ewald-jax benchmark step
--json`` measured on a GPU replace the prediction of their rows, in proportion to the structures
of a step.

Counts take a compilation each. They are kept in ``results/hours.json`` as they come, and taken
from there while the settings of a run are the same.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from cells import HERE
from hours_table import COLUMNS, plot_hours, table_rows
from published import ATOMS, REFERENCE_HOURS, Run, num_steps, published_runs
from steps import named

from ewald_jax.analysis.plots import save_figure
from ewald_jax.cli.common import command, note, print_table
from ewald_jax.config import Config
from ewald_jax.train.files import read_json, write_json
from ewald_jax.typing import InputError


@dataclasses.dataclass(frozen=True)
class Device:
    """What a step runs on.

    Attributes:
        name: For people.
        tflops: Peak of float32 operations, 1e12 per second.
        tbytes: Memory bandwidth, 1e12 bytes per second.
        efficiency: Part of the peak that the operations of a step reach.
    """

    name: str
    tflops: float
    tbytes: float
    efficiency: float

    def __post_init__(self):
        """Refuses figures that give no time."""
        for name in ("tflops", "tbytes", "efficiency"):
            value = getattr(self, name)
            if not 0 < value < math.inf or (name == "efficiency" and value > 1):
                most = " of at most 1" if name == "efficiency" else ""
                raise InputError(f"--{name} is {value}, expected a positive number{most}")

    def step_seconds(self, gflop: float, gbytes: float) -> tuple[float, str]:
        """Time of a step and what it is the time of: ``operations`` or ``bytes``."""
        operations = 1e-3 * gflop / (self.efficiency * self.tflops)
        transfer = 1e-3 * gbytes / self.tbytes
        return max((operations, "operations"), (transfer, "bytes"))


class Measured(NamedTuple):
    """Seconds of a training step for each of its structures, and the GPU."""

    seconds: float
    device: str


def settings_of(config: Config) -> dict[str, Any]:
    """All of a config that the counts follow from, as plain values."""
    values = config.to_dict()
    batch = {"batch_size": values["train"]["batch_size"]}
    return {key: values[key] for key in ("model", "loss", "optim")} | {"train": batch}


def same_settings(row: Mapping[str, Any], run: Run) -> bool:
    """Whether the counts of a row are those of the run as its configs are now."""
    try:
        # Settings that are younger than the row had their default values.
        then = Config.from_dict({**row["settings"], "data": {"name": "dimers"}})
    except InputError:
        return False
    return settings_of(then) == settings_of(run.config)


def counted(run: Run) -> dict[str, Any]:
    """Compiles the training step of a run, and counts."""
    import jax

    from ewald_jax.analysis.made_up import alkanes, slabs
    from ewald_jax.analysis.step_counts import count_step

    config = run.config
    made = (slabs if run.data == "oc20" else alkanes)(config.train.batch_size)
    counts = count_step(config.model, made, config.loss, config.optim)
    compiled = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    return counts.to_dict() | compiled


def predicted(
    run: Run, counts: Mapping[str, Any], device: Device, measured: Measured | None = None
) -> dict[str, Any]:
    """Hours of a run from its counts, or from a measurement.

    Args:
        run: The training.
        counts: Of `counted`.
        device: What it is predicted for.
        measured: Of its step on a GPU, if there is one.

    Returns:
        ``steps``, ``step_seconds``, what they are the time of (``limit``), ``hours``,
        ``memory_gb``, and ``reference_hours``, None where none are known.
    """
    config = run.config
    steps = num_steps(config, run.data)
    if measured is None:
        seconds, limit = device.step_seconds(counts["gflop"], counts["gbytes"])
    else:
        seconds = measured.seconds * config.train.batch_size
        limit = f"measured, {measured.device}"
    return {
        "steps": steps,
        "step_seconds": seconds,
        "limit": limit,
        "hours": steps * seconds / 3600,
        "memory_gb": counts["state_gb"] + counts["buffers_gb"],
        "reference_hours": REFERENCE_HOURS[run.data][run.model].get(run.variant),
    }


def read_measured(paths: Sequence[Path], runs: Sequence[Run]) -> dict[str, Measured]:
    """Measurements by the name of the run.

    Args:
        paths: What ``ewald-jax benchmark step --json`` printed on a GPU.
        runs: Those that there are.

    Raises:
        InputError: Naming the file, if it is something else, was measured on a CPU, with
            another loss or size than the counts, or of no published run.
    """
    known = {(f"{run.model}_{run.data}", run.path.stem): run for run in runs}
    found: dict[str, Measured] = {}
    for path in paths:
        study = read_json(path) if path.exists() else None
        try:
            device, number = study["device"], study["structures"]
            shape = {"forces": study["forces"], "atoms": study["atoms"]}
            steps = {step["name"]: step["seconds"] / number for step in study["steps"]}
            config = study["config"]
        except (TypeError, KeyError):
            raise InputError(
                f"{path}: expected what `ewald-jax benchmark step --json` prints"
            ) from None
        if device == "cpu":
            raise InputError(f"{path}: was measured on a CPU, expected a GPU")
        for variant, seconds in steps.items():
            run = known.get((config, variant))
            if run is None:
                raise InputError(
                    f"{path}: {config} with {variant} is no published run, expected one such "
                    "as painn_oe62 with painn_oe62_voxel"
                )
            forces = run.config.loss.needs_forces
            if shape != {"forces": forces, "atoms": ATOMS[run.data]}:
                raise InputError(
                    f"{path}: expected structures of {ATOMS[run.data]} atoms and a loss with"
                    f"{'' if forces else 'out'} forces for {config}"
                )
            found[run.name] = Measured(seconds, device)
    return found


def read_counts(path: Path, runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Counts of a results file by name of the run, of those whose settings are the same.

    Raises:
        InputError: If it is no such file.
    """
    study = read_json(path) if path.exists() else {"trainings": []}
    try:
        found = {row["name"]: row for row in study["trainings"]}
        return {
            run.name: found[run.name]["counts"]
            for run in runs
            if run.name in found and same_settings(found[run.name], run)
        }
    except (TypeError, KeyError):
        raise InputError(f"{path}: expected what experiments/hours.py writes") from None


def study_of(
    runs: Sequence[Run],
    counts: Mapping[str, Mapping[str, Any]],
    device: Device,
    measured: Mapping[str, Measured],
) -> dict[str, Any]:
    """What is written: device, and a row for each run that has counts."""
    rows = []
    for run in runs:
        if run.name in counts:
            known = {"name": run.name, "data": run.data, "model": run.model}
            known |= {"variant": run.variant, "settings": settings_of(run.config)}
            own = counts[run.name]
            predictions = predicted(run, own, device, measured.get(run.name))
            rows.append(known | predictions | {"counts": dict(own)})
    return {"device": dataclasses.asdict(device), "trainings": rows}


@command
def main(
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PART-OF-NAME]...", help="Which to count."),
    ] = None,
    tflops: Annotated[float, typer.Option(help="Float32 peak, TFLOP/s.")] = 19.5,
    tbytes: Annotated[float, typer.Option(help="Bandwidth, TB/s.")] = 1.555,
    efficiency: Annotated[
        float, typer.Option(help="Part of the peak that is reached.")
    ] = 0.5,
    device: Annotated[
        str, typer.Option(help="Name of the device.")
    ] = "NVIDIA A100 (40 GB)",
    measured: Annotated[
        list[Path] | None, typer.Option(help="JSON of `benchmark step` on a GPU.")
    ] = None,
    results: Annotated[Path, typer.Option(help="Where results go.")] = HERE / "results",
) -> None:
    """Count what is not counted yet, predict the hours of all, print and draw them."""
    runs = published_runs()
    chosen = named([run.name for run in runs], parts or ())
    on_gpu = read_measured(measured or (), runs)
    figures = Device(device, tflops, tbytes, efficiency)
    file = results / "hours.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    counts = read_counts(file, runs)
    for run in runs:
        if run.name in chosen and run.name not in counts:
            note(run.name)
            counts[run.name] = counted(run)
            write_json(file, study_of(runs, counts, figures, on_gpu))
    study = study_of(runs, counts, figures, on_gpu)
    write_json(file, study)
    print_table(device, COLUMNS, table_rows(study["trainings"]))
    picture = save_figure(plot_hours(study), results / "hours.png")
    note(f"results are in {file}, the picture is in {picture}")


if __name__ == "__main__":
    typer.run(main)
