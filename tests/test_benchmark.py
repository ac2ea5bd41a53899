"""Benchmarks: what they say is what was measured, and what cannot be measured is said."""

import json
import sys

import numpy as np
import pytest
from commands import refuse, run, succeed

from ewald_jax.analysis import benchmark_peers, benchmark_scaling, peers
from ewald_jax.analysis.benchmark_plots import plot_bars, plot_ratios, plot_scaling
from ewald_jax.analysis.benchmark_scaling import ScalingTiming, crossover, time_scaling
from ewald_jax.analysis.made_up import ionic_crystal
from ewald_jax.analysis.peers_torch import SumProblem, from_potentials
from ewald_jax.kspace import half_box
from ewald_jax.models import build_model
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.typing import InputError

PEERS = ("torch", "torchpme", "jaxpme", "lorem", "marathon")


@pytest.fixture
def alone(monkeypatch):
    """None of the other packages can be imported."""
    for name in PEERS:
        monkeypatch.setitem(sys.modules, name, None)


def timing(atoms, name, seconds, **more):
    known = {
        "atoms": atoms, "edges": 1, "sum": name, "kvecs": 1, "mesh": (0, 0, 0),
        "chosen": False, "compile_seconds": 1.0, "seconds": seconds,
        "seconds_spread": 0.1 * seconds, "microseconds_per_atom": 1e6 * seconds / atoms,
        "compiled_gb": 0.1, "resident_gb": 0.2,
    }  # fmt: skip
    return ScalingTiming(**known | more)


@pytest.mark.parametrize("number", [8, 30, 216])
def test_crystals_of_any_size_have_one_density(number):
    crystal = ionic_crystal(number, density=0.05)
    assert len(crystal) == number and crystal.pbc.all()
    assert number / crystal.get_volume() == pytest.approx(0.05)
    distances = crystal.get_all_distances(mic=True) + 100 * np.eye(number)
    side = np.ceil(round(number ** (1 / 3), 9))
    assert distances.min() > 0.5 * crystal.cell.lengths()[0] / side
    assert set(crystal.numbers) == {11, 17}
    assert np.any(ionic_crystal(number, seed=1).positions != crystal.positions)


def test_crossover_by_hand():
    atoms = (500, 1000, 4000)
    timings = [timing(n, "direct", 1e-6 * n**2) for n in atoms]
    timings += [timing(n, "mesh", 2e-3 * n) for n in atoms]
    # Straight lines between logarithms are exact for powers.
    assert crossover(timings) == pytest.approx(2000)
    assert crossover(timings[:2] + timings[3:5]) is None  # the direct sum is faster in all
    assert crossover(timings[:3]) is None


class Compiled:
    """What a compiled evaluation says of itself; it computes nothing."""

    output_size_in_bytes = argument_size_in_bytes = 0

    def __init__(self, model, params, batch):
        sizes = {"direct": 10**10, "mesh": 10**9}
        self.temp_size_in_bytes = sizes[model.ewald.sum]

    def memory_analysis(self):
        return self

    def __call__(self, params, batch):
        return np.zeros(1)


def test_what_does_not_fit_is_left_out_before_it_runs(monkeypatch):
    monkeypatch.setattr(benchmark_scaling, "_compiled", Compiled)
    model = build_model(
        "schnet", hidden_channels=2, num_interactions=1, ewald=EwaldConfig()
    )
    lines = []
    found = time_scaling(model, [60], repeats=2, memory_limit=5 * 10**9, tell=lines.append)
    (kept,), (sentence,) = found.timings, found.left_out
    assert (kept.sum, kept.kvecs, kept.compiled_gb) == ("mesh", 0, 1.0) and min(
        kept.mesh
    ) > 6
    assert not kept.chosen  # so few atoms are summed directly
    for words in (
        "60 atoms with the direct sum",
        "10 GB",
        "at most 5 GB",
        "ewald.sum=mesh",
    ):
        assert words in sentence
    assert lines[:2] == ["60 atoms, direct: compiling", "60 atoms, mesh: compiling"]
    assert found.crossover is None and found.flatness == 1
    with pytest.raises(InputError, match="60 atoms with the direct sum are left out"):
        time_scaling(model, [60], ["auto"], memory_limit=5 * 10**9)


def test_scaling_on_the_command_line(tmp_path):
    sizes = ("hidden_channels=4", "num_filters=4", "num_interactions=1", "num_gaussians=4")
    tiny = [f"model.{size}" for size in sizes]
    picture = tmp_path / "scaling.png"
    options = ("--atoms", "40", "--repeats", "2", "--picture", picture, "--json")
    result = succeed("benchmark", "scaling", *tiny, *options)
    said = json.loads(result.stdout)
    assert picture.stat().st_size > 1000 and "40 atoms, mesh: compiling" in result.stderr
    assert said["features"] == 4 and said["model"]["ewald"]["scheme"] == "radial"
    direct, mesh = said["timings"]
    assert (direct["sum"], direct["chosen"]) == ("direct", True)
    assert (mesh["sum"], mesh["chosen"], mesh["kvecs"]) == ("mesh", False, 0)
    # Half of the sphere of wave vectors: V k_c^3 / (12 pi^2).
    assert direct["kvecs"] == pytest.approx(800 * 8 / (12 * np.pi**2), rel=0.2)
    assert mesh["seconds"] > 0 and mesh["compiled_gb"] > 0
    assert direct["microseconds_per_atom"] == pytest.approx(1e6 * direct["seconds"] / 40)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("scaling", "--atoms", "1000,x"), "--atoms is '1000,x'"),
        (("scaling", "--atoms", "0"), "whole numbers >= 1"),
        (("scaling", "--sum", "fast"), "the sum 'fast' is unknown"),
        (("scaling", "--picture", "a.txt"), "expected that of a picture"),
        (("scaling", "model.ewald=null"), "expected 'radial'"),
        (("scaling", "model.width=3"), "width"),
        (("scaling", "--atoms", "9", "--memory", "1e-6"), "expected at most 1e-06 GB"),
        (("scaling", "--memory", "inf"), "--memory is inf, expected a finite number"),
        (("peers", "--num-k", "1,2"), "--num-k is '1,2'"),
        (("peers", "--parts", "sums"), "the part 'sums' is unknown"),
        (("peers", "--nodes", ""), "--nodes is ''"),
        (("kspace", "--nodes", "4,"), "--nodes is '4,'"),
        (("kspace", "--picture", "."), "is a directory"),
    ],
)
def test_mistakes_are_one_sentence(arguments, words):
    assert words in refuse("benchmark", *arguments)


def test_peers_that_are_not_installed_have_a_row(alone, monkeypatch, tmp_path):
    class Step:
        def __init__(self, model, structures, loss):
            assert len(structures) == 4 and loss.needs_forces

        def run(self):
            return np.zeros(1)

    monkeypatch.setattr(peers, "PreparedStep", Step)
    few = ("--nodes", "20", "--num-k", "1,1,1", "--features", "8", "--repeats", "2")
    picture = tmp_path / "peers.png"
    result = succeed("benchmark", "peers", *few, "--picture", picture, "--json")
    rows = {(row["part"], row["name"]): row for row in json.loads(result.stdout)["rows"]}
    assert picture.stat().st_size > 1000
    for part in ("sum", "block"):
        ours = rows[part, "ewald_jax"]
        assert (ours["atoms"], ours["kvecs"], ours["ratio"]) == (20, 13, 1.0)
        assert ours["seconds"] > 0 and ours["gradient_seconds"] > 0
    notes = {row["name"]: row["note"] for row in rows.values() if row["seconds"] is None}
    assert notes == {
        "jax-pme": "not installed: pip install jax-pme",
        "torch-pme": "not installed: pip install torch-pme",
        "plain PyTorch": "not installed: pip install torch",
        "PyTorch, matrix products": "not installed: pip install torch",
        "lorem-jax: Lorem": "not installed: pip install lorem-jax",
    }
    table = succeed("benchmark", "peers", *few, "--parts", "step", "--no-progress")
    assert "pip install lorem-jax" in table.stdout and not table.stderr


def test_a_peer_that_disagrees_shows(monkeypatch):
    def contender(name, value):
        calls = peers.Calls(lambda: value, lambda: value)
        return peers.Contender(name, "", (), lambda: calls)

    def two(number, num_k, features):
        return [
            contender("ours", np.array([3.0, 4.0])),
            contender("b", np.array([3.0, 3.5])),
        ]

    monkeypatch.setattr(benchmark_peers, "sum_contenders", two)
    ours, other = benchmark_peers.time_peers([2], repeats=1, parts=["sum"])
    assert ours.difference == 0
    assert other.difference == pytest.approx(0.5 / np.sqrt(12.5))


def test_our_side_of_the_sum_is_the_potential_of_the_others():
    number, features, num_k = 12, 3, (1, 2, 1)
    ours = peers.sum_contenders(number, num_k, features)[0].prepare()
    crystal = ionic_crystal(number)
    cell, x = crystal.cell[:], crystal.positions
    h = np.random.default_rng(1).normal(size=(number, features))
    kvecs = half_box(*num_k) @ (2 * np.pi * np.linalg.inv(cell).T)
    # A Gaussian's potential summed over all wave vectors, less its own and the background's.
    whole = np.concatenate([kvecs, -kvecs])
    square = np.sum(whole**2, axis=1)
    filter = 4 * np.pi * np.exp(-square / 2) / square / crystal.get_volume()
    pairs = np.cos((x[:, None] - x[None]) @ whole.T) @ filter
    background = 2 * np.pi / crystal.get_volume() * h.sum(axis=0)
    potentials = (pairs @ h - np.sqrt(2 / np.pi) * h - background) / 2
    message = from_potentials(SumProblem(h, x, cell, kvecs, 1.0), potentials, 1.0)
    np.testing.assert_allclose(ours.message(ours.forward()), message, rtol=1e-4, atol=1e-5)


def test_steps_and_inference_of_variants(tmp_path):
    model = tmp_path / "toy.yaml"
    model.write_text("model: {name: test_train_toy.Toy}\nloss: {forces: l2}")
    variants = []
    for width in (8, 16):
        path = tmp_path / f"toy_{width}.yaml"
        path.write_text(f"model: {{hidden_channels: {width}}}")
        variants += ["--variant", path]
    few = ("--batch-size", "2", "--carbons", "1", "--repeats", "2")
    said = json.loads(succeed("benchmark", "step", model, *variants, *few, "--json").stdout)
    assert (said["config"], said["structures"], said["atoms"]) == ("toy", 2, 5)
    assert said["forces"]
    small, large = said["steps"]
    assert (small["name"], large["name"], small["ratio"]) == ("toy_8", "toy_16", 1)
    assert small["parameters"] < large["parameters"] and small["gflop"] < large["gflop"]
    for step in (small, large):
        assert step["inference_ms"] > 0 and step["inference_ms_spread"] >= 0


def test_several_blocks_and_their_picture(tmp_path):
    picture = tmp_path / "rates.svg"
    few = ("--nodes", "20,30", "--num-k", "1,1,1", "--features", "4", "--repeats", "2")
    result = succeed("benchmark", "kspace", *few, "--picture", picture, "--json")
    blocks = json.loads(result.stdout)["blocks"]
    assert [block["nodes"] for block in blocks] == [20, 30]
    for block in blocks:
        counted = 24e-9 * block["nodes"] * 13 * 4 / block["gradient_seconds"]
        assert block["gradient_gflops"] == pytest.approx(counted)
        share = counted / block["matmul_gflops"]
        assert block["gradient_fraction"] == pytest.approx(share)
    assert "<svg" in picture.read_text()


def test_pictures_show_what_they_were_given():
    rows = [timing(n, s, 1e-3 * n) for n in (100, 1000) for s in ("direct", "mesh")]
    figure = plot_scaling([vars(row) for row in rows], 300.0, "a title")
    of_time, of_memory = figure.axes
    assert of_time.get_xscale() == of_time.get_yscale() == of_memory.get_yscale() == "log"
    assert any(line.get_xdata()[0] == 300 for line in of_time.lines)
    assert any("300" in text.get_text() for text in of_time.texts)
    assert len(of_memory.lines) == 4
    # Memory that could not be measured is no point.
    blind = [vars(timing(n, "mesh", 1.0, resident_gb=None)) for n in (100, 1000)]
    assert len(plot_scaling(blind, None).axes[1].lines) == 1

    figure = plot_bars({"baseline": (1.0, 0.1), "Ewald": (1.5, 0.2)}, "ratio")
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == [1.0, 1.5]

    groups = {
        "sum": {"a": {"forward": (1.0, 0.1)}, "b": {"forward": (0.5, 0.1)}},
        "step": {},
    }
    groups["step"] = {"c": {"forward": (3.0, 0.1), "gradient": (4.0, 0.1)}}
    figure = plot_ratios(groups, "ratio")
    assert [axis.get_title() for axis in figure.axes] == ["sum", "step"]
    assert [text.get_text() for text in figure.axes[1].texts] == ["3", "4"]


def test_the_loader_has_its_old_name_too():
    listed = succeed("benchmark", "--help").stdout
    assert " loader" in listed and " data " not in listed
    assert run("benchmark", "data", "--help").exit_code == 0
