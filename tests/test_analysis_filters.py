"""Learned filters: what is shown is what the network multiplies with."""

import ase
import jax.numpy as jnp
import numpy as np
import pytest
from structures import quick_compilation  # noqa: F401
from tiny import drawn, tiny

import ewald_jax
from ewald_jax.analysis import filter_parts, kernel_parts, plot_filters
from ewald_jax.nn.ewald_geometry import kspace_geometry
from ewald_jax.typing import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")

RADIAL = {"k_cutoff": 1.5, "num_k_rbf": 6, "bottleneck": 3}


@pytest.fixture(scope="module")
def trained():
    """A model with weights of every part, and three atoms in a row."""
    model = tiny("schnet", ewald=RADIAL, cutoff=4.0)
    atoms = ase.Atoms("HOC", [[0.0, 0, 0], [2.5, 0, 0], [11.0, 0, 0]])
    batch = ewald_jax.batch_from_atoms([atoms], model, pad=False)
    return model, drawn(model, batch), atoms, batch


def test_kernels_are_those_of_the_network(trained):
    model, params, atoms, batch = trained
    kspace = kspace_geometry(model.ewald, batch)
    variables = {"params": params["ewald_filter"]}
    table = ewald_jax.EwaldFilter(model.ewald).apply(variables, kspace).kernel
    distance = np.abs(atoms.positions[:, None, 0] - atoms.positions[None, :, 0])
    parts = kernel_parts(model.ewald, params, distance.reshape(-1))
    assert set(parts) == {"gaussians", "coulomb", "dispersion"}
    expected = sum(parts.values()).reshape(3, 3, 3)
    np.testing.assert_allclose(table[0], expected, atol=2e-6 * np.abs(expected).max())


def test_filters_are_their_kernels_integrands(trained):
    model, params, *_ = trained
    x, weights = ewald_jax.kspace.radial_nodes(40)
    phi = filter_parts(model.ewald, params, model.ewald.k_cutoff * x)
    kernels = kernel_parts(model.ewald, params["ewald_filter"], np.zeros(1))
    for name, kernel in kernels.items():
        np.testing.assert_allclose(weights @ phi[name], kernel[0], rtol=1e-7)


def test_tails_are_those_of_physics(trained):
    model, params, *_ = trained
    r = np.geomspace(12.0, 80.0, 40)
    parts = kernel_parts(model.ewald, params, r)
    # The end at the cutoff leaves a ripple on the dispersion, a tenth of it.
    for name, power, within in (("coulomb", -1, 1e-3), ("dispersion", -6, 0.15)):
        slopes = np.polyfit(np.log(r), np.log(np.abs(parts[name])), 1)[0]
        np.testing.assert_allclose(slopes, power, atol=within)
    assert np.abs(parts["gaussians"][r > 40]).max() < 1e-2 * np.abs(parts["coulomb"]).min()


def test_precision_does_not_depend_on_the_switch(trained):
    model, params, *_ = trained
    before = jnp.zeros(1).dtype
    parts = kernel_parts(model.ewald, params, np.linspace(0, 9, 5))
    assert {part.dtype for part in parts.values()} == {np.dtype(np.float64)}
    assert jnp.zeros(1).dtype == before


def test_figure_has_a_line_for_each_head_and_part(trained):
    model, params, *_ = trained
    figure = plot_filters(model.ewald, params, cutoff=4.0, num_points=20)
    titles = [axis.get_title() for axis in figure.axes[:4]]
    assert titles == ["whole filter", "gaussians", "coulomb", "dispersion"]
    whole, *parts = (
        [line.get_ydata() for line in axis.get_lines()[1:4]] for axis in figure.axes[4:]
    )
    np.testing.assert_allclose(whole, np.sum(parts, axis=0), atol=1e-12)


def test_what_has_no_such_filter_is_refused(trained):
    model, params, *_ = trained
    with pytest.raises(InputError, match="none, expected 'radial'"):
        filter_parts(None, params, np.ones(1))
    with pytest.raises(InputError, match="'voxel', expected 'radial'"):
        filter_parts(ewald_jax.EwaldConfig("voxel"), params, np.ones(1))
    with pytest.raises(
        InputError, match=r"no 'down' of the Ewald filter, expected \(6, 3\)"
    ):
        filter_parts(model.ewald, {"embedding": np.ones(3)}, np.ones(1))
    other = ewald_jax.EwaldConfig(k_cutoff=1.5, num_k_rbf=6, bottleneck=4)
    with pytest.raises(InputError, match=r"have \(6, 3\) 'down'"):
        kernel_parts(other, params, np.ones(1))
