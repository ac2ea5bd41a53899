"""The script that compares the runs of a study in bins of a long-range contribution."""

import json
import os
import sys

import ase.io
import jax
import numpy as np
import pytest
import typer
from conftest import REPOSITORY
from structures import quick_compilation  # noqa: F401
from tiny import drawn, tiny

from ewald_jax import batch_from_atoms
from ewald_jax.config import Config
from ewald_jax.data import Statistics
from ewald_jax.models import model_to_config
from ewald_jax.train import OptimConfig, create_state, evaluate, make_optimizer
from ewald_jax.train.checkpoint import save_checkpoint
from ewald_jax.train.description import write_description
from ewald_jax.train.files import write_json
from ewald_jax.typing import InputError

SCRIPTS = ("compare", "long_range", "long_range_table", "precision", "report", "study_runs")


@pytest.fixture
def scripts(monkeypatch):
    """The scripts of experiments/ as modules."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "experiments"))
    import long_range
    import report
    import study_runs

    yield long_range, study_runs, report
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def helium(count=40):
    """Pairs of atoms with a component of SAPT that grows with their number."""
    return [
        ase.Atoms("He2", [[0, 0, 0], [0, 0, 3 + 0.01 * i]], info={"disp": -float(i + 1)})
        for i in range(count)
    ]


def result(data, variant, seed, **train):
    config = {"model": {"name": "schnet"}, "data": {"name": "dimers"}, "train": train}
    names = {"data": data, "model": "m", "variant": variant, "seed": seed}
    return {**names, "config": Config.from_dict(config).to_dict()}


@pytest.fixture
def study(scripts, tmp_path, monkeypatch):
    """Runs of two data sets whose errors are made up; the folder of all studies."""
    long_range, *_ = scripts
    cells = [("sapt", v, s) for v in ("baseline", "voxel") for s in (0, 1)]
    for cell in [*cells, ("sapt_less_disp", "baseline", 0)]:
        data, variant, seed = cell
        folder = tmp_path / "runs" / "mine" / f"{data}-m-{variant}-seed{seed}"
        folder.mkdir(parents=True)
        write_json(folder / "result.json", result(*cell))
    (tmp_path / "runs/mine/sapt-m-atomic-seed0/checkpoints").mkdir(parents=True)

    def errors(run):
        size = np.arange(1, 41) / 40
        gain = {"baseline": 0.0, "voxel": 0.5}[run.variant] * size
        return (1 if run.data == "sapt" else 0.5) * (1 - gain) * (1 + 0.1 * run.seed)

    monkeypatch.setattr(long_range, "run_errors", errors)
    monkeypatch.setattr(long_range, "tested", lambda run: (helium(), range(40)))
    named = lambda atoms, indices: (atoms, [f"a.extxyz: structure {i}" for i in indices])
    monkeypatch.setattr(long_range, "structures_with_info", named)
    return tmp_path / "runs"


def test_a_study_in_bins(scripts, study, tmp_path, capsys):
    long_range, _, report = scripts
    options = {"runs": study, "samples": 200, "results": tmp_path / "results"}
    long_range.main("mine", contribution=["disp"], **options)
    out, err = capsys.readouterr()
    assert "mine: sapt-m-atomic-seed0 is not finished and left out" in err
    values = json.loads((tmp_path / "results/long_range_mine.json").read_text())
    voxel, without = values["long_range"]
    assert (voxel["variant"], without["variant"]) == ("voxel", "baseline of sapt_less_disp")
    assert voxel["count"] == [8] * 5
    # Means of 1 to 8 and of 33 to 40, of 40.
    np.testing.assert_allclose(voxel["improvement"][0], 0.5 * 4.5 / 40)
    np.testing.assert_allclose(voxel["improvement"][4], 0.5 * 36.5 / 40)
    np.testing.assert_allclose(voxel["baseline_mae"], 1.05)
    # One seed of 0.5 against two with 1.05 in the mean.
    np.testing.assert_allclose(without["improvement"], 1 - 0.5 / 1.05)
    assert (tmp_path / "results/long_range_mine.png").read_bytes().startswith(b"\x89PNG")
    table = report.long_range_table(values)
    assert "| sapt, m | disp | MAE of baseline (meV) | 1050 | 1050 |" in table
    assert "| sapt, m | disp | voxel | 25.6 [" in table and "voxel" in out
    bars = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert bars == {11}


def test_a_study_beside_another(scripts, study, tmp_path):
    long_range, _, report = scripts
    (study / "more").mkdir()
    name = "sapt_less_disp-m-baseline-seed0"
    (study / "mine" / name).rename(study / "more" / name)
    options = {"runs": study, "samples": 100, "results": tmp_path, "contribution": ["disp"]}
    for beside, variants in (
        (None, ["voxel"]),
        (["more"], ["voxel", "baseline of sapt_less_disp"]),
    ):
        long_range.main("mine", beside=beside, **options)
        rows = json.loads((tmp_path / "long_range_mine.json").read_text())["long_range"]
        assert [row["variant"] for row in rows] == variants
    table = report.long_range_table(
        json.loads((tmp_path / "long_range_mine.json").read_text())
    )
    assert table.endswith("; beside it runs of `more`.")


def test_contributions_with_a_distance_of_their_own(scripts, study, tmp_path):
    pytest.importorskip("dftd3")
    long_range, *_ = scripts
    options = {"runs": study, "samples": 100, "results": tmp_path}
    long_range.main("mine", contribution=["d3", "d3:3.2"], bins=2, **options)
    rows = json.loads((tmp_path / "long_range_mine.json").read_text())["long_range"]
    assert [row["beyond"] for row in rows] == [0, 0, 3.2, 3.2]
    # The farther half has the smaller energies, of which nothing is taken off.
    assert rows[2]["size"][0] == 0
    assert 0.9 < rows[2]["size"][1] / rows[0]["size"][0] <= 1


def refused(capsys, main, *arguments, **options):
    """The sentence on stderr."""
    with pytest.raises(typer.Exit) as stopped:
        main(*arguments, **options)
    assert stopped.value.exit_code == 2
    return capsys.readouterr().err


def test_studies_that_cannot_be_compared(scripts, study, tmp_path, capsys, monkeypatch):
    long_range, *_ = scripts

    def sentence(name="mine", **options):
        return refused(
            capsys, long_range.main, name, runs=study, results=tmp_path / "out", **options
        )

    assert "yours is not there, expected the runs of a study: python" in sentence("yours")
    message = "mine has no finished run of sapt with m and the variant 'none', expected one"
    assert message in sentence(baseline="none")
    message = "a.extxyz: structure 0 has no 'elst' beside it, expected the SAPT component"
    assert message in sentence(contribution=["elst"])
    assert "beyond is 5.0 Å, expected 0 for disp" in sentence(contribution=["disp:5"])
    assert "--contribution is 'd3:x', expected a dist" in sentence(contribution=["d3:x"])
    assert "the contribution is 'd5', expected one of" in sentence(contribution=["d5"])
    assert "50 bins of 40 structures" in sentence(contribution=["disp"], bins=50)
    fewer = lambda run: (helium(40 if run.data == "sapt" else 39), range(40))
    monkeypatch.setattr(long_range, "tested", fewer)
    message = "sapt_less_disp does not have a.extxyz: structure 39 in the same place"
    assert message in sentence(contribution=["disp"])
    (study / "empty").mkdir()
    assert "empty has no finished run, expected folders with result.json" in sentence(
        "empty"
    )
    other = study / "other/sapt-m-voxel-seed0"
    other.mkdir(parents=True)
    write_json(other / "result.json", result("sapt", "voxel", 1))
    assert "seed1 are the same run" in sentence(beside=["other"])
    write_json(other / "result.json", result("sapt", "voxel", 2, epochs=7))
    assert "trained with different train.epochs: 7 and" in sentence(beside=["other"])
    write_json(other / "result.json", result("sapt", "voxel", 2, log_every=7))
    assert "trained with" not in sentence(contribution=["elst"], beside=["other"])
    (study / "mine/sapt-m-voxel-seed0/result.json").write_text('{"data": "sapt"}')
    assert "seed0/result.json lacks one of data, model, variant, seed, con" in sentence()
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("quick_compilation")
def test_errors_are_kept_until_the_checkpoint_or_the_data_change(
    scripts, tmp_path, monkeypatch
):
    _, study_runs, _ = scripts
    files = {name: tmp_path / f"{name}.extxyz" for name in ("train", "val", "test")}
    for number, path in enumerate(files.values()):
        frames = helium(5)[number:]
        for energy, atoms in enumerate(frames):
            atoms.info["energy"] = 0.1 * energy
        ase.io.write(path, frames)
    model = tiny("schnet", cutoff=4.0)
    data = {**{name: str(path) for name, path in files.items()}, "cache_dir": "none"}
    config = Config.from_dict({"model": model_to_config(model), "data": data})
    statistics = Statistics((0.0, 0.0, -1.0, *[0.0] * 116), 0.25, 2.0, (2,))
    folder = tmp_path / "runs" / "sapt-m-voxel-seed0"
    folder.mkdir(parents=True)
    write_json(
        folder / "result.json", result("sapt", "voxel", 0) | {"config": config.to_dict()}
    )
    write_description(folder, config.to_dict(), statistics)

    def save(seed):
        params = drawn(model, batch_from_atoms(helium(2), model), seed)
        state = create_state(
            params, make_optimizer(OptimConfig(), 1), jax.random.key(0), False
        )
        save_checkpoint(folder, "best", state, {"step": 1})
        return params

    params = save(0)
    (run,) = study_runs.find_runs(folder.parent)
    errors = study_runs.run_errors(run, batch_size=2)
    dataset, indices = study_runs.tested(run)
    metrics = evaluate(model, params, dataset, indices, statistics=statistics, batch_size=2)
    assert np.abs(errors).mean() == pytest.approx(metrics["energy_mae"], rel=1e-5)
    assert errors.shape == (3,) and np.ptp(errors) > 0
    structures, names = study_runs.structures_with_info(dataset, indices)
    assert structures[2].info["disp"] == -5 and names[2] == f"{files['test']}: structure 2"
    np.testing.assert_allclose(structures[0].positions, helium(5)[2].positions)

    computed = []
    monkeypatch.setattr(
        study_runs, "energy_errors", lambda *_: computed.append(1) or np.zeros(3)
    )
    np.testing.assert_array_equal(study_runs.run_errors(run), errors)
    assert not computed
    save(1)
    assert not study_runs.run_errors(run).any() and len(computed) == 1
    assert not study_runs.run_errors(run).any() and len(computed) == 1
    os.utime(files["test"], (1, 1))
    study_runs.run_errors(run)
    assert len(computed) == 2
    (folder / "errors.json").write_text("{")
    with pytest.raises(InputError, match="errors.json: is not valid JSON"):
        study_runs.run_errors(run)
