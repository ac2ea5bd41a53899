"""The study and demo scripts: resumable cells, honest tables, a picture."""

import json
import sys

import numpy as np
import pytest
import typer
from conftest import REPOSITORY

from ewald_jax.typing import InputError

TINY = (
    # Enough for every element to be among them.
    "data.limit=500",
    "data.limit_eval=4",
    "train.max_steps=2",
    "train.batch_size=3",
    "model.hidden_channels=8",
    "model.num_filters=8",
    "model.num_interactions=1",
    "train.tensorboard=false",
)


@pytest.fixture
def scripts(monkeypatch):
    """The scripts of experiments/ as modules."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "experiments"))
    import compare
    import demo
    import report

    yield compare, demo, report
    for name in [m for m, module in sys.modules.items() if _of_scripts(module)]:
        del sys.modules[name]


def _of_scripts(module):
    return str(getattr(module, "__file__", "")).startswith(str(REPOSITORY / "experiments"))


def _result(variant, seed, error, data="dimers"):
    return {
        "data": data, "model": "m", "variant": variant, "seed": seed,
        "metrics": {"test": {"energy_mae": error, "forces_mae": 2 * error}},
        "parameters": 1234, "seconds_per_step": 0.01, "seconds": 60.0,
        "machine": {"cores": 2, "processor": "P", "jax": "1"},
    }  # fmt: skip


def test_summary_is_mean_spread_and_ratio_to_the_first_variant(scripts):
    compare, _, report = scripts
    results = [_result("baseline", 0, 0.3), _result("baseline", 1, 0.5)]
    results += [_result("voxel", 0, 0.1), _result("voxel", 1, 0.1)]
    rows = compare.summarise(results)
    assert [row["variant"] for row in rows] == ["baseline", "voxel"]
    assert rows[0]["energy_mae"] == pytest.approx(0.4)
    assert rows[0]["energy_mae_spread"] == pytest.approx(np.std([0.3, 0.5], ddof=1))
    assert rows[1]["ratio"] == pytest.approx(0.25)
    table = report.markdown_table({"cells": results, "overrides": ["a=1"]})
    assert "| dimers | baseline | 2 | 400.0 ± 141.4 | 1.00 |" in table
    assert "; with `a=1`." in table


def test_other_test_sets_have_rows_of_their_own(scripts):
    compare, *_ = scripts
    results = [_result("baseline", 0, 0.4), _result("voxel", 0, 0.1)]
    for result, error in zip(results, (0.8, 0.6), strict=True):
        result["metrics"]["sapt10k_charged"] = {"energy_mae": error}
    rows = compare.summarise(results)
    assert [(row["data"], row["variant"]) for row in rows] == [
        ("dimers", "baseline"),
        ("dimers", "voxel"),
        ("sapt10k_charged", "baseline"),
        ("sapt10k_charged", "voxel"),
    ]
    assert [row["ratio"] for row in rows] == pytest.approx([1, 0.25, 1, 0.75])


def test_report_fills_only_between_the_marks(scripts):
    *_, report = scripts
    text = "a\n<!-- table x -->\nold\n<!-- end x -->\nb\n<!-- table y -->\n<!-- end y -->\n"
    once = report.filled(text, {"x": "new", "z": "unused"})
    assert once == text.replace("old", "new")
    assert report.filled(once, {"x": "new"}) == once


@pytest.mark.configs
def test_finished_cells_are_not_trained_again(scripts, tmp_path, monkeypatch):
    compare, *_ = scripts
    cell = compare.Cell("dimers", "schnet_small", "voxel", 3)
    first = compare.run_cell(cell, tmp_path, TINY, progress=False)
    assert first["config"]["train"]["seed"] == 3
    assert first["metrics"]["test"]["energy_mae"] > 0
    monkeypatch.setattr(
        sys.modules["cells"], "note", lambda _: pytest.fail("trained again")
    )
    assert compare.run_cell(cell, tmp_path, TINY, progress=False) == first
    monkeypatch.undo()
    # A cell of other settings is refused, not mixed in.
    with pytest.raises(InputError):
        compare.run_cell(cell, tmp_path, [*TINY, "optim.lr=1e-5"], progress=False)


@pytest.mark.parametrize(
    "variants, words",
    [
        (["voxel", "voxel"], "is there twice"),
        (["baseline", "voxl"], "did you mean 'voxel'"),
    ],
)
def test_all_cells_are_checked_before_one_is_trained(
    scripts, tmp_path, capsys, variants, words
):
    compare, _, _ = scripts
    with pytest.raises(typer.Exit) as stop:
        compare.main(
            variant=variants, output=tmp_path / "runs", results=tmp_path / "results"
        )
    assert stop.value.exit_code == 2 and words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.configs
def test_demo_ends_with_a_table_and_a_picture(scripts, tmp_path, capsys):
    _, demo, _ = scripts
    demo.main(list(TINY), output=tmp_path)
    out = capsys.readouterr().out
    assert "baseline" in out and "radial" in out and "dimers_far" in out
    assert (tmp_path / "binding_curves.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads(
        (tmp_path / "dimers-schnet_small-radial-seed0/result.json").read_text()
    )
    assert result["machine"]["cores"] >= 1


def test_tables_of_benchmarks(scripts):
    *_, report = scripts
    timed = {
        "seconds": 0.5,
        "seconds_spread": 0.02,
        "compiled_gb": 0.3,
        "resident_gb": None,
    }
    known = {"atoms": 1000, "chosen": True, "microseconds_per_atom": 500.0}
    row = {"sum": "direct", "kvecs": 1560, "mesh": [0, 0, 0]} | timed | known
    where = {"device": "cpu", "cores": 1, "clock": "processor"}
    study = {"timings": [row], "features": 64, "model": {"name": "schnet"}} | where
    study |= {"crossover": 2618.4, "flatness": 1.35, "left_out": ["9 atoms are left out"]}
    table = report.scaling_table(study)
    line = "| 1,000 | direct (auto) | 1,560 vectors | 0.5 ± 0.01 | 500 | 0.30 |"
    assert line in table.splitlines()
    assert table.endswith(
        "schnet, 64 features, on cpu, one core, processor time. The mesh is faster from 2,618 "
        "atoms. Its time per atom varies by a factor of 1.35. 9 atoms are left out."
    )

    empty = dict.fromkeys(("ratio", "gradient_seconds", "gradient_ratio", "difference"))
    row = {"part": "step", "name": "Lorem", "version": "0.2", "atoms": 64, "kvecs": 0}
    row |= {"features": 8, "seconds": None, "note": "not installed: pip install x"} | empty
    table = report.peers_table({"rows": [row]} | where | {"cores": 2, "clock": "wall"})
    line = "| training step | 64, its own, 8 | Lorem 0.2 | not installed: pip install x |  |  |"
    assert line in table and table.endswith("On cpu, 2 cores.")
    assert len({row.count("|") for row in table.splitlines() if row.startswith("|")}) == 1
