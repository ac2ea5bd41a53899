"""Figures and benchmarks: what they show is what they were given."""

import time

import matplotlib.figure
import numpy as np
import pytest

from ewald_jax.analysis import (
    Curve,
    binned_means,
    plot_binding_curves,
    plot_parity,
    plot_training,
    save_figure,
)
from ewald_jax.analysis.benchmark import interleaved, time_block


@pytest.fixture
def curves():
    distance = np.linspace(2.0, 12.0, 7)
    predictions = {"short": np.zeros(7), "long": -1 / distance}
    return [Curve(f"pair {i}", distance, -1.1 / distance, predictions) for i in range(4)]


def test_binned_means_by_hand():
    means, counts = binned_means(
        np.array([0.5, 1.5, 1.7, 9.0]),
        np.array([1.0, 2.0, 4.0, 7.0]),
        np.array([0, 1, 2, 3]),
    )
    np.testing.assert_allclose(means, [1.0, 3.0, np.nan])
    np.testing.assert_array_equal(counts, [1, 2, 0])


def test_binding_curves_show_reference_models_and_cutoff(curves):
    errors = {"short": (np.array([1.0, 8.0]), np.array([0.1, 0.2]))}
    figure = plot_binding_curves(curves, errors, cutoff=5.0, reference_name="xTB")
    assert isinstance(figure, matplotlib.figure.Figure)
    axes = [axis for axis in figure.axes if axis.axison]
    assert len(axes) == 5
    first = {line.get_label(): line.get_ydata() for line in axes[0].get_lines()}
    np.testing.assert_array_equal(first["long"], curves[0].predictions["long"])
    np.testing.assert_array_equal(first["xTB"], curves[0].reference)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["short", "long", "xTB", "beyond the 5 Å cutoff"]


def test_training_curves_skip_metrics_that_are_not_there():
    history = [{"step": 1, "val_energy_mae": 0.5}, {"step": 2, "val_energy_mae": 0.2}]
    figure = plot_training({"run": history})
    assert len(figure.axes) == 1
    line = figure.axes[0].get_lines()[0]
    np.testing.assert_array_equal(line.get_ydata(), [0.5, 0.2])
    assert "eV" in figure.axes[0].get_ylabel()


def test_parity_plot_states_the_error():
    figure = plot_parity(
        {"a": (np.array([0.0, 1.0]), np.array([0.5, 1.5]))}, "energy", "eV"
    )
    assert "0.5 eV" in figure.axes[0].get_title()


def test_saving_replaces_only_with_a_complete_file(tmp_path, curves, monkeypatch):
    path = save_figure(
        plot_binding_curves(curves), tmp_path / "deep" / "picture.png", dpi=40
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    figure = plot_binding_curves(curves)
    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["picture.png"]


def test_block_timing_is_consistent():
    timing = time_block(nodes=50, num_k=(1, 1, 1), features=8, repeats=2)
    assert (timing.nodes, timing.kvecs, timing.features) == (50, 13, 8)
    assert timing.seconds > 0
    assert timing.gflops == pytest.approx(8e-9 * 50 * 13 * 8 / timing.seconds)
    assert timing.fraction == pytest.approx(timing.gflops / timing.matmul_gflops)
    assert timing.gradient_seconds > 0 and timing.gradient_mb > 0
    # Two phase tables of 50 x 26 floats, features and messages: far below a megabyte,
    # and [nodes, kvecs, features] never exists.
    assert 0 < timing.compiled_mb < 1


def test_interleaved_calls_in_turn():
    order = []
    seconds = interleaved((lambda: order.append("a"), lambda: order.append("b")), 3)
    assert order == ["a", "b"] * 4
    assert seconds.shape == (2, 3)


def test_processor_time_does_not_wait():
    wait = (lambda: time.sleep(0.05),)
    assert interleaved(wait, 1) >= 0.05
    assert interleaved(wait, 1, clock="processor") < 0.03
