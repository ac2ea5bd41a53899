"""Studies: their cells, what they refuse, how they are run, their tables."""

import json
import os
import subprocess
import sys

import ase
import numpy as np
import pytest
import yaml
from conftest import REPOSITORY

from ewald_jax.typing import InputError

STUDIES = sorted((REPOSITORY / "experiments/configs/study").glob("*.yaml"))


@pytest.fixture
def scripts(monkeypatch):
    """The scripts of experiments/ by name."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "experiments"))
    before = set(sys.modules)
    import accuracy
    import cells
    import prepare
    import run
    import runner
    import studies

    yield {m.__name__: m for m in (accuracy, cells, prepare, run, runner, studies)}
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(
            str(REPOSITORY / "experiments")
        ):
            del sys.modules[name]


def written(path, **changes):
    values = {
        "about": "a test",
        "data": ["dimers"],
        "models": {"schnet_small": {}},
        "variants": {"baseline": {"seeds": 2}, "voxel": {"seeds": [0, 5]}},
    }
    path.write_text(yaml.safe_dump(values | changes))
    return str(path)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_composes(scripts, path):
    study = scripts["studies"].load_study(path.stem)
    cells = study.cells()
    assert path.read_text().startswith("# ") and len(cells) > 5
    for cell in cells:
        config = cell.config()
        assert (config.model.ewald is None) == (
            cell.variant in ("baseline", "embeddings", "cutoff", "atomic")
        )
        if path.stem.startswith("paper") and cell.variant == "radial":
            assert config.model.ewald.scheme == "radial"
            assert config.model.ewald.num_hidden == (0 if "painn" in cell.model else 3)


def test_cells_come_seed_by_seed(scripts, tmp_path):
    study = scripts["studies"].load_study(written(tmp_path / "s.yaml"))
    names = [cell.name for cell in study.cells()]
    assert names == [
        "dimers-schnet_small-baseline-seed0",
        "dimers-schnet_small-voxel-seed0",
        "dimers-schnet_small-baseline-seed1",
        "dimers-schnet_small-voxel-seed5",
    ]
    assert study.baseline == "baseline"


def test_settings_of_a_model_with_a_variant_come_last(scripts, tmp_path):
    models = {
        "schnet_small": {
            "set": ["model.cutoff=4.5"],
            "variants": {"near": ["model.cutoff=3.5"]},
            "without": ["voxel"],
        }
    }
    variants = {
        "baseline": {"seeds": 1},
        "near": {"seeds": 1, "source": "baseline"},
        "voxel": {"seeds": 1},
    }
    changes = {"set": ["model.cutoff=4.0"], "models": models, "variants": variants}
    study = scripts["studies"].load_study(written(tmp_path / "s.yaml", **changes))
    cutoffs = {cell.variant: cell.config().model.cutoff for cell in study.cells()}
    assert cutoffs == {"baseline": 4.5, "near": 3.5}
    overridden = study.cells(["model.cutoff=6.0"])
    assert {cell.config().model.cutoff for cell in overridden} == {6.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"variants": {"baseline": {"seeds": [1, 1]}}},
            "is there twice; give each name and seed once",
        ),
        ({"models": {"schnett_small": {}}}, "did you mean 'schnet_small'?"),
        ({"variants": {"voxels": {"seeds": 1}}}, "did you mean 'voxel'?"),
        ({"data": ["dimer"]}, "there is no data 'dimer'"),
        ({"modells": {}}, "did you mean 'study.models'?"),
        ({"variants": {"baseline": {"seeds": 0}}}, "seeds must be at least 1"),
        ({"variants": {"baseline": {"seeds": [-1]}}}, "seeds must be numbers from 0"),
        ({"variants": {}}, "variants is empty"),
        ({"variants": {"a/b": {"seeds": 1}}}, "expected letters, digits"),
        ({"set": ["train.seed=3"]}, "train.seed is the cell's"),
        ({"models": {"schnet_small": {"without": ["x"]}}}, "the study has no variant 'x'"),
    ],
)
def test_mistakes_in_a_study(scripts, tmp_path, changes, words):
    path = written(tmp_path / "s.yaml", **changes)
    with pytest.raises(InputError) as error:
        for cell in scripts["studies"].load_study(path).cells():
            cell.config()
    assert words in str(error.value)


def test_missing_data_say_what_to_download(scripts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cell = scripts["cells"].Cell("oe62", "schnet_small", "baseline", 0)
    with pytest.raises(InputError) as error:
        scripts["cells"].run_cell(cell, tmp_path / "runs", progress=False)
    for words in ("runs/data/df_62k.json", "mediaTUM", "387 MB", "CC BY-SA 4.0"):
        assert words in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_every_data_set_from_elsewhere_has_a_source(scripts):
    configs = scripts["cells"].CONFIGS
    sources = yaml.safe_load((configs / "sources.yaml").read_text())
    elsewhere = {
        path.stem
        for path in configs.glob("data/*.yaml")
        if "runs/data/" in path.read_text()
    }
    assert elsewhere <= set(sources)


def test_systems_apart_have_no_unknown_elements(scripts):
    formulas = ["AuO", "AuH", "PtO", "PtH", "CuH", "CuO", "ZnO", "AuCu", "PtCu", "OH"]
    frames = [ase.Atoms(text, info={"system": text}) for text in formulas for _ in range(3)]
    parts = scripts["prepare"].known_split(frames, seed=0)
    systems = {part: {atoms.info["system"] for atoms in of} for part, of in parts.items()}
    assert {part: len(of) for part, of in systems.items()} == {
        "train": 7,
        "test": 2,
        "val": 1,
    }
    assert sum(map(len, parts.values())) == len(frames)
    known = {n for atoms in parts["train"] for n in atoms.numbers}
    assert {n for part in ("test", "val") for a in parts[part] for n in a.numbers} <= known
    assert "ZnO" in systems["train"]


def test_conformations_of_a_molecule_have_its_number(scripts, tmp_path):
    z = np.repeat([[6, 1, 1], [8, 1, 0]], 10, axis=0)
    np.savez(tmp_path / "a.npz", z=z, E=np.arange(20.0))
    scripts["prepare"].write_qm7x(tmp_path / "a.npz", tmp_path)
    made = np.load(tmp_path / "qm7x_2500.npz", allow_pickle=False)
    assert made["molecule"].tolist() == [0] * 10 + [1] * 10
    np.testing.assert_array_equal(made["E"], np.arange(20.0))
    np.savez(tmp_path / "a.npz", z=z[5:], E=np.arange(15.0))
    with pytest.raises(InputError, match="expected ten conformations"):
        scripts["prepare"].write_qm7x(tmp_path / "a.npz", tmp_path)


def result(data, model, variant, seed, energy, forces=None, charged=None):
    test = {"energy_mae": energy} | ({} if forces is None else {"forces_mae": forces})
    metrics = {"val": test, "test": test}
    if charged is not None:
        metrics["sapt10k_charged"] = {"energy_mae": charged}
    return {
        "data": data, "model": model, "variant": variant, "seed": seed, "metrics": metrics,
        "parameters": 10, "seconds_per_step": 0.1,
    }  # fmt: skip


def test_improvements_compare_the_same_seeds(scripts):
    accuracy = scripts["accuracy"]
    done = [
        result("sapt10k", "a", "baseline", 0, 1.0, charged=4.0),
        result("sapt10k", "a", "baseline", 1, 3.0, charged=4.0),
        result("sapt10k", "a", "voxel", 0, 0.5, charged=3.0),
        result("sapt10k", "a", "voxel", 1, 2.4, charged=1.0),
        result("sapt10k", "a", "cutoff", 0, 0.9, charged=4.0),
        result("sapt10k", "b", "baseline", 0, 2.0, charged=4.0),
        result("sapt10k", "b", "voxel", 0, 1.0, charged=4.0),
    ]
    found = accuracy.improvements(done, "baseline", "energy_mae")
    assert found["sapt10k", "a", "voxel"] == pytest.approx((1 - 2.9 / 4, 0.2, 0.5))
    assert found["sapt10k", "a", "cutoff"].value == pytest.approx(0.1)
    mean = (1 - 2.9 / 4 + 0.5) / 2
    assert found["sapt10k", "mean", "voxel"] == pytest.approx((mean, 0.275, 0.5))
    assert ("sapt10k", "mean", "cutoff") not in found
    assert found["sapt10k_charged", "a", "voxel"].value == pytest.approx(0.5)
    columns, rows = accuracy.accuracy_table(done, "baseline")
    assert {len(row) for row in rows} == {len(columns)}
    line = ["sapt10k", "a", "voxel", "2", "1450.0 ± 1343.5", "28 %", "-", "", "10"]
    assert line in rows
    means = [row for row in rows if row[1] == "mean of 2"]
    assert means[0][5] == "39 % (28 to 50)"


def test_a_study_that_chooses_settings_shows_validation_errors(scripts, tmp_path):
    studies = scripts["studies"]
    assert studies.load_study("accuracy_sapt10k").errors == "test errors"
    study = studies.load_study("settings_sapt10k")
    assert study.errors == "validation errors"
    row = result("sapt10k", "a", "baseline", 0, 1.0)
    row["metrics"] = {"val": {"energy_mae": 2.0}, "test": {"energy_mae": 1.0}}
    _, rows = scripts["accuracy"].accuracy_table([study.shown(row)], "baseline")
    assert rows[0][4] == "2000.0"
    (tmp_path / "x.yaml").write_text(
        "about: x\ndata: [sapt10k]\nsplit: val\nalso: [sapt10k_charged]\n"
        "models: {schnet_small: {}}\nvariants: {baseline: {seeds: 1}}\n"
    )
    with pytest.raises(
        InputError, match=r"x\.yaml.*split is val, but also names data sets"
    ):
        studies.load_study(str(tmp_path / "x.yaml"))


def test_pictures_of_a_study(scripts, tmp_path):
    done = [
        result("d", model, variant, seed, error, error)
        for model in ("a", "b")
        for variant, error in (("baseline", 1.0), ("voxel", 0.7))
        for seed in (0, 1)
    ]
    scripts["accuracy"].plot_accuracy(done, "baseline", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert not scripts["accuracy"].plot_accuracy(done[:1], "baseline", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()
    many = [result("d", "a", f"v{n}", 0, 1 - n / 20) for n in range(12)]
    assert scripts["accuracy"].plot_accuracy(many, "v0", tmp_path / "many.png")


def test_failures_are_collected_and_the_others_run(scripts, tmp_path, capfd):
    runner = scripts["runner"]
    programs = {
        "good": "open('good', 'w')",
        "bad": "import sys; print('a'); sys.exit('error: the reason')",
        "last": "import os; open('last', 'w').write(str(len(os.sched_getaffinity(0))))",
    }
    jobs = [
        runner.Job(
            name,
            [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {program}"],
            tmp_path / f"{name}.log",
            tmp_path / name / "metrics.jsonl",
        )
        for name, program in programs.items()
    ]
    runner.run_local(jobs, 2, interval=0.02)
    assert {job.name: job.state for job in jobs} == {
        "good": "done", "bad": "failed", "last": "done",
    }  # fmt: skip
    assert jobs[1].reason == jobs[1].progress() == "the reason"
    cores = len(os.sched_getaffinity(0))
    assert int((tmp_path / "last").read_text()) in (max(cores // 2, 1), (cores + 1) // 2)
    assert (tmp_path / "good").exists()
    assert "bad: failed" in capfd.readouterr().err


def test_interruption_reaches_every_process(scripts, tmp_path, monkeypatch):
    runner = scripts["runner"]
    program = (
        "import sys, time\ntry:\n    open(sys.argv[1], 'w'); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    sys.exit(130)"
    )
    jobs = [
        runner.Job(
            str(n),
            [sys.executable, "-c", program, str(tmp_path / f"started{n}")],
            tmp_path / f"{n}.log",
            tmp_path / "none",
        )
        for n in range(3)
    ]

    def sleep(_):
        if all((tmp_path / f"started{n}").exists() for n in range(2)):
            raise KeyboardInterrupt

    monkeypatch.setattr(runner.time, "sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        runner.run_local(jobs, 2)
    assert [job.state for job in jobs] == ["stopped", "stopped", "waiting"]


def test_progress_is_the_last_epoch(scripts, tmp_path):
    job = scripts["runner"].Job("x", [], tmp_path / "log", tmp_path / "metrics.jsonl")
    assert job.progress() == ""
    for unreadable in ('{"val_loss": null, "step": 1}', "[]", "{"):
        job.metrics.write_text(unreadable)
        assert job.progress() == ""
    lines = [{"step": 5, "val_loss": 2.0}, {"step": 10, "val_loss": 0.51234}]
    job.metrics.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert job.progress() == "step 10, validation loss 0.5123"


def test_cluster_jobs_go_through_submitit(scripts, tmp_path):
    pytest.importorskip("submitit")
    runner = scripts["runner"]
    program = f"open({str(tmp_path / 'ran')!r}, 'w').write('yes')"
    job = runner.Job("x", [sys.executable, "-c", program], tmp_path / "l", tmp_path / "m")
    # In a process of its own: submitit leaves files open.
    program = (
        "import pathlib, runner\n"
        f"job = runner.Job('x', {job.command!r}, None, None)\n"
        f"folder = pathlib.Path({str(tmp_path / 'cluster')!r})\n"
        "[(name, job)] = runner.submit([job], folder, {'cluster': 'debug'})\n"
        "job.result()\n"
        # Where its time is up, it goes on in a new job.
        "command = job.submission().function\n"
        "assert command.checkpoint().function is command"
    )
    folder = REPOSITORY / "experiments"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=folder)
    assert (tmp_path / "ran").read_text() == "yes"
    with pytest.raises(InputError, match="--slurm: submitit says"):
        runner.submit([job], tmp_path / "cluster", {"cluster": "debug", "no_such_thing": 1})


def test_the_list_says_why_a_cell_has_no_result(scripts, tmp_path, monkeypatch, capsys):
    run, runs = scripts["run"], tmp_path / "runs"
    path = written(tmp_path / "s.yaml")
    study = scripts["studies"].load_study(path)
    first, second, third, _ = study.cells()

    def broken(cell, folder, **options):
        raise InputError("the sample\nis broken") if cell is first else KeyboardInterrupt

    monkeypatch.setattr(run, "run_cell", broken)
    for cell, kind in ((first, InputError), (second, KeyboardInterrupt)):
        with pytest.raises(kind):
            run.train_cell(study, "s", cell, runs, tmp_path / "results")
    (runs / "s" / third.name).mkdir()
    history = '{"step": 5, "val_loss": 2.0}\n'
    (runs / "s" / third.name / "metrics.jsonl").write_text(history)
    states = [run._state(cell, None, runs / "s") for cell in (first, second, third)]
    assert states == [
        "failed: the sample is broken",
        "missing",
        "begun: step 5, validation loss 2",
    ]
    # It is said until it is tried again.
    monkeypatch.setattr(run, "run_cell", lambda *args, **options: {"metrics": {}})
    run.train_cell(study, "s", first, runs, tmp_path / "results")
    assert run._state(first, None, runs / "s") == "missing"
    assert run._state(first, {}, runs / "s") == "done"


def test_a_seed_given_twice_is_refused(scripts, tmp_path):
    studies = scripts["studies"]
    cells = studies.load_study(written(tmp_path / "s.yaml")).cells()
    with pytest.raises(InputError, match="--seed 0 is given twice"):
        studies.chosen(cells, (), (0, 0))


def test_damaged_and_incomplete_results(scripts, tmp_path):
    studies = scripts["studies"]
    cell = studies.load_study(written(tmp_path / "s.yaml")).cells()[0]
    path = tmp_path / "r.json"
    values = {"config": cell.config().to_dict(), "metrics": {"test": {}}}
    for text in ("{", "[]", '{"config": 3}'):
        path.write_text(text)
        with pytest.raises(InputError, match="r.json"):
            studies.result_of(path, cell)
    path.write_text(json.dumps(values))
    assert studies.result_of(path, cell) == values
    assert studies.result_of(path, cell, ["sapt10k_charged"]) is None
    values["config"]["train"]["epochs"] = 99
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"other settings \(train.epochs\)"):
        studies.result_of(path, cell)


def test_data_without_a_test_split_are_validated(scripts):
    done = [result("d", "a", v, 0, e) for v, e in (("baseline", 2.0), ("voxel", 1.0))]
    for row in done:
        del row["metrics"]["test"]
    _, rows = scripts["accuracy"].accuracy_table(done, "baseline")
    assert rows[1][4:6] == ["1000.0", "50 %"]


def test_folders_of_another_budget_and_cells_in_training(scripts, tmp_path):
    cells = scripts["cells"]
    cell = cells.Cell("dimers", "schnet_small", "baseline", 0)
    config = cell.config(["optim.schedule=step", "optim.milestones=[1]"])
    (tmp_path / cell.name).mkdir()
    (tmp_path / cell.name / "config.json").write_text(json.dumps(config.to_dict()))
    other = ["optim.schedule=step", "optim.milestones=[1]", "train.epochs=77"]
    with pytest.raises(InputError, match="another budget: train.epochs is 10 there and 77"):
        cells.run_cell(cell, tmp_path, other, progress=False)
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / f"{cell.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="is being trained by another process"):
            cells.run_cell(cell, tmp_path, progress=False)


@pytest.mark.configs
def test_a_deleted_result_is_computed_again_alone(scripts, tmp_path):
    run = scripts["run"]
    tiny = [
        "data.limit=500",
        "data.limit_eval=4",
        "train.max_steps=2",
        "train.batch_size=3",
        "model.hidden_channels=8",
        "model.num_filters=8",
        "model.num_interactions=1",
        "train.tensorboard=false",
    ]
    variants = {"baseline": {"seeds": 2}}
    study = written(tmp_path / "s.yaml", set=tiny, variants=variants)
    folders = {"runs": tmp_path / "runs", "results": tmp_path / "results"}
    described = scripts["studies"].load_study(study)
    for cell in described.cells():
        run.train_cell(described, "s", cell, *folders.values())
    files = sorted((tmp_path / "results/s").glob("*.json"))
    before = {path: (path.read_text(), path.stat().st_mtime_ns) for path in files}
    assert len(files) == 2
    files[0].unlink()
    run.main(study, **folders)
    after = json.loads(files[0].read_text())
    expected = json.loads(before[files[0]][0])
    assert np.isfinite(after["metrics"]["test"]["energy_mae"])
    assert after["metrics"] == expected["metrics"] and after["config"] == expected["config"]
    for path in files[1:]:
        assert (path.read_text(), path.stat().st_mtime_ns) == before[path]
    assert (tmp_path / "results/s/table.md").read_text().startswith("| data | model |")
    with pytest.raises(InputError, match="has the result of other settings"):
        changed = described.cells(["optim.lr=1e-5"])[0]
        scripts["studies"].result_of(files[0], changed)
