"""Parity with the PyTorch reference, from the arrays in `tests/reference` (see its README)."""

import functools

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structures import assert_close, quick_compilation, reference  # noqa: F401

import ewald_jax
from ewald_jax import kspace, ops
from ewald_jax.interop.torch_names import ewald_block_rules
from ewald_jax.interop.torch_reference import take_rules
from ewald_jax.nn.ewald import EwaldBlock, LowRank
from ewald_jax.nn.ewald_config import EwaldConfig
from ewald_jax.nn.ewald_geometry import KSpace
from ewald_jax.nn.layers import ResidualLayer

pytestmark = pytest.mark.usefixtures("quick_compilation")

BLOCKS = [
    f"ewald_block_{boundary}_{size}"
    for boundary in ("aperiodic", "pbc")
    for size in ("nh0", "nh3_scaled")
]
VOXELS = [("0.4", "0.2", "48"), ("0.6", "0.2", "128"), ("0.8", "0.2", "128")]
VOXELS += [("1.0", "0.2", "128")]


@functools.cache
def load(name):
    return reference(name)


# -- helpers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", ["113", "225", "555"])
def test_half_box_has_the_reference_order(bounds):
    expected = load("helpers")[f"kset_{bounds}/k"]
    np.testing.assert_array_equal(kspace.half_box(*(int(n) for n in bounds)), expected)


@pytest.mark.parametrize("k_cutoff, delta_k, num_rbf", VOXELS)
def test_voxel_grid_and_radial_basis(k_cutoff, delta_k, num_rbf, x64):
    data, name = load("helpers"), f"voxel_{k_cutoff}_{delta_k}_{num_rbf}"
    k_cutoff, num_rbf = float(k_cutoff), int(num_rbf)
    grid = kspace.voxel_grid(k_cutoff, float(delta_k), float32_prune=True)
    np.testing.assert_allclose(grid, data[f"{name}/k_grid_f64"], rtol=0, atol=1e-15)
    for bits, tolerance in (("f64", 1e-12), ("f32", 1e-5)):
        norm = jnp.linalg.norm(jnp.asarray(data[f"{name}/k_grid_{bits}"]), axis=-1)
        basis = kspace.radial_basis(norm, k_cutoff, num_rbf)
        assert basis.dtype == norm.dtype
        assert_close(basis, data[f"{name}/k_rbf_{bits}"], tolerance)


@pytest.mark.parametrize("bits, tolerance", [("f64", 1e-14), ("f32", 1e-6)])
def test_reciprocal_cells(bits, tolerance, x64):
    data = load("helpers")
    cells = jnp.asarray(data["x_to_k_cell/cells"], data[f"x_to_k_cell/vol_{bits}"].dtype)
    volumes = kspace.cell_volume(cells)
    assert volumes[-1] < 0 < volumes[0]  # the last one is left-handed
    assert_close(volumes, data[f"x_to_k_cell/vol_{bits}"], tolerance)
    for cell, expected in zip(cells, data[f"x_to_k_cell/k_cell_{bits}"], strict=True):
        assert_close(kspace.reciprocal_cell(cell), expected, tolerance)
        assert_close(cell @ expected.T, 2 * np.pi * np.eye(3), 100 * tolerance)


def test_svd_frame_and_its_derivative(x64):
    data = load("helpers")
    batch, g = data["pos_svd/batch"], data["pos_svd/g"]
    index, slot = dense_layout(batch)
    counts = np.bincount(batch)
    # Ascending here, descending there; molecules below three atoms are not turned.
    flip = (counts >= 3)[batch][:, None]

    @jax.jit
    def square(positions):
        dense = ops.to_dense(positions, index)
        framed = kspace.svd_frame(dense, index < len(batch), min_nodes=3)
        out = ops.from_dense(framed, slot) ** 2
        return jnp.where(flip, out[:, ::-1], out)

    positions = jnp.asarray(data["pos_svd/pos"])
    out, pullback = jax.vjp(square, positions)
    np.testing.assert_allclose(out, data["pos_svd/out_f64"] ** 2, atol=1e-11)
    assert_close(pullback(jnp.asarray(g))[0], data["pos_svd/grad_sum_g_out2_f64"], 1e-10)
    assert_close(square(positions.astype(jnp.float32)), data["pos_svd/out_f32"] ** 2, 1e-4)


def dense_layout(batch):
    counts = np.bincount(batch)
    index = np.full((len(counts), counts.max()), len(batch))
    index[np.arange(counts.max())[None, :] < counts[:, None]] = np.arange(len(batch))
    slot = np.flatnonzero(index.reshape(-1) < len(batch))
    return index, slot


# -- the block -------------------------------------------------------------------------------


class Block:
    """One fixture of the block: its inputs, and our functions on them."""

    def __init__(self, name, dtype):
        self.data = data = load(name)
        self.num_hidden = int(data["num_hidden"])
        self.scaled = "w/ewald_scale_sum.scale_factor" in data
        self.config = EwaldConfig.as_published(
            scheme="lattice" if data["use_pbc"] else "voxel", num_hidden=self.num_hidden
        )
        self.index, self.slot = dense_layout(data["batch"])
        params, down = self.by_name("w")
        arrays = (data["h"], data["pos"], params, down)
        self.arguments = jax.tree.map(lambda x: jnp.asarray(x, dtype), arrays)

    def by_name(self, prefix):
        """Parameters (or their derivatives) of the block, and the shared down-projection."""

        arrays = {
            k[len(prefix) + 1 :]: self.data[k] for k in self.data if k.startswith(prefix)
        }
        params = take_rules(list(ewald_block_rules("", "", self.num_hidden)), arrays)
        if self.scaled and prefix == "w":  # its derivative was not written down
            factor = arrays["ewald_scale_sum.scale_factor"]
            params["scale_sum"] = {"scale_factor": factor}
        return params, arrays["down.linear.weight"].T

    def assert_derivatives(self, gradients, tolerance):
        data, (h, positions, params, down) = self.data, gradients
        assert_close(h, data["grad_h"], tolerance, "grad_h")
        assert_close(positions, data["grad_pos"], tolerance, "grad_pos")
        expected, expected_down = self.by_name("grad_w")
        assert_close(down, expected_down, tolerance, "grad down")
        params = {name: params[name] for name in params if name != "scale_sum"}
        close = functools.partial(assert_close, tolerance=tolerance)
        jax.tree.map(close, params, expected)  # also compares the names

    def geometry(self, positions):
        """Phases and basis as `kspace_geometry` makes them, without the frame."""
        data, dtype = self.data, positions.dtype
        dense = ops.to_dense(positions, self.index)
        if self.config.scheme == "lattice":
            cell = jnp.asarray(data["cell"], dtype)
            indices = kspace.half_box(*self.config.num_k)
            table = jax.vmap(lambda s: kspace.lattice_phases(s, indices))(
                kspace.fractional(dense, cell)
            )
            return KSpace(table, None, self.index, self.slot)
        damping = kspace.sinc_damping(dense, float(data["delta_k"]), self.config.sinc)
        table = jax.vmap(kspace.phases)(dense, jnp.asarray(data["k"], dtype), damping)
        basis = jnp.asarray(data["k_rbf_values"], dtype)
        return KSpace(table, basis, self.index, self.slot)

    def update(self, h, positions, params, down):
        geometry = self.geometry(positions)
        low_rank = down if geometry.basis is None else geometry.basis @ down
        block = EwaldBlock(self.config, scaled=self.scaled)
        return block.apply({"params": params}, h, geometry, LowRank(low_rank))

    def derivatives(self):
        @jax.jit
        def both(*arguments):
            out, pullback = jax.vjp(self.update, *arguments)
            return out, pullback(jnp.asarray(self.data["g"], out.dtype))

        return both(*self.arguments)

    def structures(self):
        """(nodes, wave vectors, weight of each node) of each structure."""
        data = self.data
        for row, kvecs in zip(self.index, data["k"], strict=True):
            nodes = row[row < len(data["h"])]
            damping = None
            if self.config.scheme == "voxel":
                damping = kspace.sinc_damping(
                    jnp.asarray(data["pos"][nodes]), float(data["delta_k"]), "normalized"
                )
            yield nodes, jnp.asarray(kvecs), damping


@pytest.mark.parametrize("name", BLOCKS)
def test_block_intermediates(name, x64):
    block = Block(name, jnp.float64)
    data, (h, _, params, down) = block.data, block.arguments
    hres = jax.jit(ResidualLayer().apply)({"params": params["pre_residual"]}, h)
    assert_close(hres, data["hres"], 1e-10, "hres")
    if block.config.scheme == "lattice":
        np.testing.assert_array_equal(kspace.half_box(1, 1, 3), data["kset"])
        filter = down @ params["up"]
        kvecs = jnp.stack(
            [kspace.lattice_kvecs(data["kset"], jnp.asarray(c)) for c in data["cell"]]
        )
        assert_close(kvecs, data["k"], 1e-12, "kvecs")
    else:
        basis = jnp.asarray(data["k_rbf_values"])
        filter = kspace.low_rank_filter(basis, down, params["up"])
    assert_close(filter, data["kfilter"], 1e-10, "filter")
    for row, (nodes, kvecs, damping) in enumerate(block.structures()):
        arrays = jnp.asarray(data["hres"][nodes]), jnp.asarray(data["pos"][nodes]), kvecs
        if damping is not None:
            expected = np.repeat(np.asarray(damping)[:, None], len(kvecs), axis=1)
            assert_close(expected, data["damping"][nodes], 1e-10, "damping")
        else:
            np.testing.assert_array_equal(data["damping"], 1.0)
        re, im = kspace.structure_factor(*arrays, damping)
        assert_close(re, data["sf_real"][row], 1e-10, "sf_real")
        assert_close(im, data["sf_imag"][row], 1e-10, "sf_imag")
        message = kspace.ewald_message(*arrays, filter, damping, prefactor=0.01)
        assert_close(message, data["message"][nodes], 1e-10, "message")


@pytest.mark.parametrize("name", BLOCKS)
def test_block_and_all_derivatives(name, x64):
    block = Block(name, jnp.float64)
    out, gradients = block.derivatives()
    assert_close(out, block.data["h_update"], 1e-10, "h_update")
    block.assert_derivatives(gradients, 1e-10)


@pytest.mark.parametrize("name", BLOCKS[1::2])
def test_block_in_float32(name, x64):
    block = Block(name, jnp.float32)
    out, gradients = block.derivatives()
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((out, gradients)))
    assert_close(out, block.data["h_update"], 1e-5, "h_update")
    block.assert_derivatives(gradients, 1e-5)


# -- parameter counts of PAPER.md, section 1 -------------------------------------------------

SCHNET_PAPER = {"hidden_channels": 512, "num_filters": 256, "num_interactions": 4}
SCHNET_PAPER |= {"num_gaussians": 200, "cutoff": 6.0, "max_neighbors": 50}
OE62 = EwaldConfig.as_published(
    scheme="voxel", k_cutoff=0.4, num_k_rbf=48, bottleneck=8, num_hidden=3
)
OC20 = EwaldConfig.as_published(
    scheme="lattice", num_k=(1, 1, 3), bottleneck=8, num_hidden=3
)


@pytest.mark.parametrize(
    "changes, count",
    [
        ({}, 2_753_025),
        ({"hidden_channels": 1536}, 14_398_977),
        ({"cutoff": 12.0, "max_neighbors": 100}, 2_753_025),
        ({"ewald": OE62}, 12_206_977),
        ({"cutoff": 8.5, "max_neighbors": 140}, 2_753_025),
        ({"ewald": OC20}, 12_206_841),
    ],
    ids=["baseline", "embeddings", "cutoff", "ewald", "oc20-cutoff", "oc20-ewald"],
)
def test_parameter_counts(changes, count, key):
    model = ewald_jax.build_model("schnet", **SCHNET_PAPER | changes)
    periodic = model.ewald is not None and model.ewald.scheme == "lattice"
    atoms = ase.build.bulk("Cu", cubic=True) if periodic else ase.build.molecule("H2O")
    batch = ewald_jax.batch_from_atoms([atoms], model)
    shapes = jax.eval_shape(functools.partial(ewald_jax.init_params, model), key, batch)
    sizes = {name: total(tree) for name, tree in shapes.items()}
    assert sum(sizes.values()) == count
    if model.ewald is not None:
        part = sum(size for name, size in sizes.items() if name.startswith("ewald_"))
        assert part == count - 2_753_025


def total(tree):
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
