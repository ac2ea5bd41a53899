"""Costs and predicted hours: the arithmetic, what is kept, and what is refused."""

import json
import sys

import pytest
import typer
from conftest import REPOSITORY
from typer.testing import CliRunner

from ewald_jax.analysis.made_up import alkanes
from ewald_jax.analysis.step_counts import count_step
from ewald_jax.models import build_model
from ewald_jax.train.losses import LossConfig
from ewald_jax.train.optim import OptimConfig

SCRIPTS = (
    *("accuracy", "cells", "compare", "costs", "hours", "hours_table", "precision"),
    *("published", "report", "steps", "studies", "tables"),
)


@pytest.fixture
def script(monkeypatch):
    """A function that imports a script of experiments/ by its name."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "experiments"))
    yield __import__
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def run(main, *arguments):
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(main, *arguments):
    """The one sentence of a mistake."""
    result = run(main, *arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    (line,) = result.stderr.strip().splitlines()
    return line


def timed(name, seconds, inference=None, **more):
    values = {
        "name": name, "parameters": 64_577, "nodes": 34, "edges": 5, "compile_seconds": 4.0,
        "seconds": seconds, "seconds_spread": 0.002, "ratio": seconds / 0.01, "gflop": 1.5,
        "gbytes": 0.9, "limit_seconds": 0.001, "compiled_mb": 40.0, "resident_mb": None,
    }  # fmt: skip
    if inference is not None:
        values |= {"inference_ms": inference, "inference_ms_spread": 0.02}
    return values | more


def study(*steps, **more):
    known = {"config": "schnet_small", "forces": False, "structures": 2, "atoms": 17}
    return known | {"device": "cpu", "steps": list(steps)} | more


COUNTS = {
    "parameters": 100, "nodes": 328, "edges": 9, "compile_seconds": 3.0, "gflop": 39.0,
    "gbytes": 1.555, "state_gb": 0.5, "buffers_gb": 1.25, "jax": "1", "device": "cpu",
}  # fmt: skip


@pytest.fixture
def hours(script, monkeypatch):
    """The script, whose compilations say the same and are listed in `asked`."""
    module = script("hours")
    monkeypatch.setattr(module, "asked", [], raising=False)

    def counted(run):
        module.asked.append(run.name)
        return dict(COUNTS)

    monkeypatch.setattr(module, "counted", counted)
    return module


# -- costs -----------------------------------------------------------------------------------


def test_a_variant_without_a_file_is_left_out(script):
    steps = script("steps")
    found = steps.variant_files("painn_oc20", ("baseline", "embeddings", "cutoff"))
    assert {name: path.stem for name, path in found.items()} == {
        "baseline": "baseline",
        "cutoff": "painn_oc20_cutoff",
    }


def test_inference_is_in_the_table_where_it_was_timed(script):
    report = script("report")
    old, new = study(timed("baseline", 0.01)), study(timed("voxel", 0.02, inference=0.25))
    table = report.step_table([old, new])
    assert "inference (ms per structure)" in table.splitlines()[0]
    assert "| Ewald | 64,577 | 4 | 0.02 ± 0.001 | 2.00 | 0.25 ± 0.01 | 1.5, 0.9 |" in table
    assert "| baseline | 64,577 | 4 | 0.01 ± 0.001 | 1.00 |  | 1.5, 0.9 |" in table
    assert "inference" not in report.step_table([old])
    # The buffers of 40 MB, of which a process that keeps memory had 1 MB to get.
    kept = study(timed("baseline", 0.01, resident_mb=1.0))
    assert report.step_table([kept]).splitlines()[2].endswith("| 0.00 |")
    assert report.step_table([kept], resident=False).splitlines()[2].endswith("| 40 |")


def test_the_picture_of_costs_shows_ratios(script):
    run = study(
        timed("baseline", 0.01, inference=0.2), timed("x_atomic", 0.03, inference=0.5)
    )
    figure = script("costs").picture_of("molecules", {"schnet": run})
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["atomic, 65 k"]
    assert [text.get_text() for text in axis.texts] == ["3", "2.5"]


def test_costs_that_are_complete_are_not_measured_again(script, monkeypatch, tmp_path):
    costs = script("costs")
    measured = []
    monkeypatch.setattr(costs, "HERE", tmp_path)
    monkeypatch.setattr(costs, "measure", lambda name, *_, **__: measured.append(name))
    (tmp_path / "results").mkdir()
    files = script("steps").variant_files("schnet_small", costs.SHAPES["slabs"][0])
    names = ["baseline", *(path.stem for path in files.values())]
    assert names[-3:] == ["atomic", "lattice", "radial"]
    for model, some in (("schnet", names), ("painn", names[:-1])):
        steps = [timed(name, 1.0, 2.0) for name in some]
        kept = tmp_path / "results" / f"costs_slabs_{model}.json"
        kept.write_text(json.dumps(study(*steps)))
    result = run(costs.main, "slabs")
    assert result.exit_code == 0, result.output
    assert measured == [
        f"costs_slabs_{model}" for model in ("painn", "dimenetpp", "gemnet_t")
    ]
    assert (tmp_path / "results" / "costs_slabs.png").stat().st_size > 1000
    assert "no name has water in it" in refused(costs.main, "water")


# -- hours -----------------------------------------------------------------------------------


def test_the_slower_of_operations_and_bytes(hours):
    device = hours.Device("d", tflops=10.0, tbytes=2.0, efficiency=0.5)
    assert device.step_seconds(100.0, 1.0) == (pytest.approx(0.02), "operations")
    assert device.step_seconds(100.0, 100.0) == (pytest.approx(0.05), "bytes")


def test_all_published_runs_and_their_steps(hours):
    runs = {run.name: run for run in hours.published_runs()}
    radial = [name for name in runs if name.endswith("radial")]
    assert len(runs) - len(radial) == 36 and len(radial) == 8
    assert runs["oc20_painn_radial"].path.stem == "painn_radial"
    assert runs["oc20_painn_ewald"].path.stem == "painn_oc20_lattice"
    steps = {name: hours.num_steps(run.config, run.data) for name, run in runs.items()}
    # 50,000 molecules, 250 epochs of batches of 64; 25 epochs of 2,000,000 in batches of 16,
    # which end before the 3.6 million steps that are allowed.
    assert steps["oe62_schnet_ewald"] == 250 * 782
    assert steps["oc20_gemnet_t_cutoff"] == 3_125_000


def test_hours_of_a_training_by_hand(hours):
    (run,) = (run for run in hours.published_runs() if run.name == "oe62_painn_ewald")
    device = hours.Device("d", tflops=19.5, tbytes=1.555, efficiency=0.5)
    row = hours.predicted(run, COUNTS, device)
    assert row["step_seconds"] == pytest.approx(0.004) and row["limit"] == "operations"
    assert row["hours"] == pytest.approx(1_250_000 * 0.004 / 3600)
    assert (row["reference_hours"], row["memory_gb"]) == (14.5, 1.75)
    # Batches of 8, as published, from the time of one structure.
    measured = hours.Measured(seconds=0.001, device="GPU")
    row = hours.predicted(run, COUNTS, device, measured)
    assert row["step_seconds"] == pytest.approx(0.008) and row["limit"] == "measured, GPU"


def test_counts_are_kept_while_settings_are_the_same(hours, tmp_path, script):
    first = run(hours.main, "oe62_painn", "--results", tmp_path)
    assert first.exit_code == 0, first.output
    names = [
        f"oe62_painn_{kind}" for kind in ("baseline", "embeddings", "cutoff", "atomic")
    ]
    names += ["oe62_painn_ewald", "oe62_painn_radial"]
    assert hours.asked == names
    file = tmp_path / "hours.json"
    said = json.loads(file.read_text())
    # One run has gone, and one was counted with other settings.
    said["trainings"][1]["settings"]["optim"]["amsgrad"] = False
    said["trainings"] = said["trainings"][:-1]
    file.write_text(json.dumps(said))
    hours.asked.clear()
    assert run(hours.main, "oe62_painn", "--results", tmp_path).exit_code == 0
    assert hours.asked == ["oe62_painn_embeddings", "oe62_painn_radial"]
    # Another device needs no compilation.
    hours.asked.clear()
    other = ("--tflops", "39", "--device", "twice", "--results", tmp_path)
    assert run(hours.main, "oe62_painn", *other).exit_code == 0
    again = json.loads(file.read_text())
    assert not hours.asked and again["device"]["name"] == "twice"
    assert again["trainings"][0]["hours"] == pytest.approx(
        said["trainings"][0]["hours"] / 2
    )
    assert (tmp_path / "hours.png").stat().st_size > 1000
    table = script("report").hours_table(again)
    assert (
        "| oe62 | painn | baseline | 100 | 1,250,000 | 39, 1.6 | 2.0 | operations |"
        in table
    )
    assert table.endswith("on one A100. Median of predicted over theirs: 0.06.")


def test_measured_steps_replace_predictions(hours, tmp_path):
    gpu = {"device": "GPU", "config": "painn_oe62", "atoms": 41, "structures": 4}
    file = tmp_path / "step.json"
    file.write_text(json.dumps(study(timed("painn_oe62_voxel", 0.008), **gpu)))
    ask = ("oe62_painn_ewald", "--results", tmp_path, "--measured", file)
    assert run(hours.main, *ask).exit_code == 0
    (row,) = json.loads((tmp_path / "hours.json").read_text())["trainings"]
    assert row["step_seconds"] == pytest.approx(0.016) and row["limit"] == "measured, GPU"

    def refusal(content):
        file.write_text(json.dumps(content))
        return refused(hours.main, *ask)

    step = timed("painn_oe62_voxel", 0.008)
    assert "measured on a CPU" in refusal(study(step, **gpu | {"device": "cpu"}))
    assert "without forces" in refusal(study(step, **gpu | {"forces": True}))
    assert "of 41 atoms" in refusal(study(step, **gpu | {"atoms": 17}))
    assert "is no published run" in refusal(study(timed("voxel", 0.008), **gpu))
    assert f"{file}: expected what `ewald-jax benchmark step" in refusal({"steps": 3})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("oe62", "gemnet_q"), "no name has oe62 and gemnet_q in it"),
        (("--efficiency", "1.5"), "--efficiency is 1.5, expected a positive number of at"),
        (("--tbytes", "nan"), "--tbytes is nan, expected a positive number"),
        (("--measured", "none.json"), "none.json: expected what `ewald-jax benchmark"),
    ],
)
def test_mistakes_are_one_sentence(hours, tmp_path, arguments, words):
    assert words in refused(hours.main, *arguments, "--results", tmp_path)
    assert not hours.asked and not list(tmp_path.iterdir())


def test_results_of_something_else_are_refused(hours, tmp_path):
    (tmp_path / "hours.json").write_text("[1]")
    line = refused(hours.main, "--results", tmp_path)
    assert "hours.json: expected what experiments/hours.py writes" in line


def test_counts_of_a_step_that_is_never_run():
    model = build_model("test_train_toy.Toy")
    optim = OptimConfig(lr=1e-3)
    counts = count_step(model, alkanes(2, carbons=1), LossConfig(forces="none"), optim)
    assert (counts.nodes, counts.edges) == (10, 40)
    assert counts.gflop > 0 and counts.gbytes > 0 and counts.buffers_gb > 0
    # Parameters, and the two moments of Adam, float32, beside the batch.
    assert counts.state_gb > 3 * 4e-9 * counts.parameters
