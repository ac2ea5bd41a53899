"""Sums over triplets, which the models do in tables, against loops over all triplets."""

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structures import (
    assert_close,
    generic_crystal,
    generic_molecule,
    quick_compilation,  # noqa: F401
)

import ewald_jax
from ewald_jax import ops
from ewald_jax.models.dimenet_blocks import Interaction
from ewald_jax.models.gemnet_blocks import EdgeGraph, Shared, TripletInteraction
from ewald_jax.nn.angles import receiver_cosines, triplet_cosines

pytestmark = pytest.mark.usefixtures("quick_compilation")


def lone_atom():
    """An atom whose neighbors are its own images."""
    atoms = ase.build.bulk("Cu", a=3.6)
    atoms.set_cell(atoms.cell.array * [[1.0, 1.03, 0.98]], scale_atoms=True)
    return atoms


def ions():
    """Two atoms that see themselves and each other in several cells."""
    atoms = ase.build.bulk("NaCl", "rocksalt", a=4.2)
    atoms.rattle(0.05, seed=4)
    return atoms


STRUCTURES = {
    "molecule": ([generic_molecule()], {"cutoff": 2.5}),
    "nearest three": ([generic_molecule()], {"cutoff": 2.5, "max_neighbors": 3}),
    "crystal": ([generic_crystal()], {"cutoff": 3.1}),
    "own images": ([lone_atom()], {"cutoff": 2.7}),
    "ions": ([ions()], {"cutoff": 3.2}),
    "no neighbors": ([ase.Atoms("He2", [[0, 0, 0], [0, 0, 9.0]])], {"cutoff": 4.0}),
    "one pair": ([ase.Atoms("He2", [[0, 0, 0], [0, 0, 2.0]])], {"cutoff": 4.0}),
    "several": (
        [generic_molecule(), lone_atom(), ase.Atoms("He"), ions()],
        {"cutoff": 2.8},
    ),
}
# An unpadded batch without a single edge cannot be gathered from.
every_structure = pytest.mark.parametrize(
    "case, pad", [(case, pad) for case in STRUCTURES for pad in (True, False)]
)


class Naive:
    """Edges of a batch as plain lists, and what loops over pairs of them find."""

    def __init__(self, case, name, pad):
        structures, config = STRUCTURES[case]
        model = ewald_jax.build_model(name, **config)
        self.batch = batch = ewald_jax.batch_from_atoms(structures, model, pad=pad)
        graph = batch.graph
        owner = np.repeat(np.arange(len(graph.n_edge)), graph.n_edge)
        cells, positions = graph.globals["cell"][owner], graph.nodes["positions"]
        shifts = np.einsum("ea,eax->ex", graph.edges["shifts"], cells)
        self.vectors = positions[graph.senders] + shifts - positions[graph.receivers]
        self.distances = np.linalg.norm(self.vectors, axis=1)
        real = int(sum(graph.n_edge[: len(structures)]))
        self.edges = list(
            zip(
                graph.senders[:real].tolist(),
                graph.receivers[:real].tolist(),
                map(tuple, graph.edges["shifts"][:real].tolist()),
                strict=True,
            )
        )
        self.units = self.vectors[:real] / self.distances[:real, None]

    def is_reverse(self, a, b):
        (i, j, shift), (k, l, other) = self.edges[a], self.edges[b]
        return (i, j) == (l, k) and shift == tuple(-n for n in other)

    def through(self):
        """Cosines of k -> j -> i, by the numbers of both edges; i may be an image of k."""
        return {
            (a, b): self.units[a] @ self.units[b]
            for a, (_, end, _) in enumerate(self.edges)
            for b, (start, _, _) in enumerate(self.edges)
            if end == start and not self.is_reverse(a, b)
        }

    def into(self):
        """Cosines of b -> a <- c, by the numbers of both edges."""
        return {
            (a, b): self.units[a] @ self.units[b]
            for a, (_, end, _) in enumerate(self.edges)
            for b, (_, other_end, _) in enumerate(self.edges)
            if end == other_end and a != b
        }

    def random(self, *shape, seed=0):
        """Features of all edges, those of padding too."""
        rng = np.random.default_rng(seed)
        return rng.normal(size=(len(self.vectors), *shape))


through, into = jax.jit(triplet_cosines), jax.jit(receiver_cosines)


def listed(cosine, exists, first, second):
    """The dense table as a dictionary like those of the loops."""
    found, cosine = {}, np.asarray(cosine)
    for node, a, b in np.argwhere(np.asarray(exists)):
        key = int(first[node, a]), int(second[node, b])
        assert key not in found
        found[key] = float(cosine[node, a, b])
    return found


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, cosine in expected.items():
        assert found[key] == pytest.approx(cosine, abs=1e-14)


@every_structure
def test_triplet_cosines(case, pad, x64):
    naive = Naive(case, "dimenetpp", pad)
    tables = naive.batch.triplets
    cosine, exists = through(naive.vectors, naive.distances, tables)
    expected = naive.through()
    same(listed(cosine, exists, tables.in_edges, tables.out_edges), expected)
    assert np.all(np.isfinite(cosine))
    if case in ("no neighbors", "one pair"):
        assert not expected
    elif case == "own images":  # twelve neighbors, and not back along the same bond
        assert len(expected) == 12 * 11
    else:
        assert len(expected) > 20


@every_structure
def test_receiver_cosines(case, pad, x64):
    naive = Naive(case, "gemnet_t", pad)
    tables = naive.batch.triplets
    cosine, exists = into(naive.vectors, naive.distances, tables)
    expected = naive.into()
    same(listed(cosine, exists, tables.in_edges, tables.in_edges), expected)
    assert np.all(np.isfinite(cosine))
    if case == "own images":
        assert len(expected) == 12 * 11


def test_atoms_in_a_row(x64):
    """Both vectors of a chain point the same way; both edges into its middle, opposite.

    Called outside jit, with numpy tables.
    """
    atoms = ase.Atoms("CO2", [[0.0, 0, 0], [1.2, 0, 0], [-1.2, 0, 0]])
    model = ewald_jax.build_model("dimenetpp", cutoff=2.0)
    batch = ewald_jax.batch_from_atoms([atoms], model, pad=False)
    vectors = ops.edge_vectors(batch.graph)
    geometry = vectors, ops.safe_norm(vectors), batch.triplets
    cosine, exists = triplet_cosines(*geometry)
    np.testing.assert_allclose(cosine[exists], [1.0, 1.0])
    cosine, exists = receiver_cosines(*geometry)
    np.testing.assert_allclose(cosine[exists], [-1.0, -1.0])


def test_angles_are_differentiable_with_padding(debug_nans):
    naive = Naive("several", "dimenetpp", True)

    def total(vectors):
        distances = ops.safe_norm(vectors)
        for function in (triplet_cosines, receiver_cosines):
            cosine, exists = function(vectors, distances, naive.batch.triplets)
            yield jnp.sum(jnp.where(exists, cosine, 0.0) ** 2)

    slope = jax.jit(jax.grad(lambda vectors: sum(total(vectors))))(naive.vectors)
    assert np.all(np.isfinite(slope)) and np.abs(slope).max() > 1e-3
    assert not np.any(slope[len(naive.edges) :])


# -- the sums of the models ------------------------------------------------------------------


def silu(x):
    return x / (1 + np.exp(-x))


def scaled_silu(x):
    return silu(x) / 0.6


def applied(module, *inputs):
    """Output and parameters as float64, every scalar and bias away from its start."""

    @jax.jit
    def run(key):
        params = module.init(key, *inputs)["params"]
        params = jax.tree.map(
            lambda p: p.astype(float) + (0.3 if p.ndim < 2 else 0.0), params
        )
        return params, module.apply({"params": params}, *inputs)

    params, out = run(jax.random.key(0))
    return np.asarray(out), jax.tree.map(np.asarray, params)


CASES = ["nearest three", "several"]
FEATURES, DOWN, BASIS, SPHERICAL, RADIAL = 6, 5, 4, 3, 2


@pytest.mark.parametrize("case", CASES)
def test_sum_of_dimenetpp(case, x64):
    naive = Naive(case, "dimenetpp", True)
    tables = naive.batch.triplets
    x, rbf, radial = (
        naive.random(*shape, seed=seed)
        for seed, shape in enumerate([(FEATURES,), (RADIAL,), (SPHERICAL, RADIAL)])
    )
    cosine, exists = through(naive.vectors, naive.distances, tables)
    # Any functions of the angle do.
    powers = np.arange(1, SPHERICAL + 1)
    cosine, exists = (np.swapaxes(np.asarray(x), 1, 2) for x in (cosine, exists))
    harmonics = [np.where(exists, cosine**power, 0.0) for power in powers]
    module = Interaction(DOWN, BASIS, num_before_skip=0, num_after_skip=0)
    out, w = applied(module, x, rbf, radial, harmonics, tables)

    def dense(name, x):
        return x @ w[name]["kernel"] + w[name].get("bias", 0.0)

    x_kj = silu(dense("lin_kj", x)) * dense("rbf_1", dense("rbf_0", rbf))
    x_kj = silu(dense("down", x_kj))
    total = np.zeros((len(x), DOWN))
    for (kj, ji), angle in naive.through().items():
        sbf = (angle**powers)[:, None] * radial[kj]
        total[ji] += x_kj[kj] * (w["sbf_1"].T @ (w["sbf_0"].T @ sbf.ravel()))
    h = silu(dense("lin_ji", x)) + silu(dense("up", total))
    expected = silu(dense("lin", h)) + x
    real = len(naive.edges)
    assert_close(out[:real], expected[:real], 1e-13)
    without = silu(dense("lin", silu(dense("lin_ji", x)))) + x
    assert np.abs(without - expected)[:real].max() > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_sum_of_gemnet(case, x64):
    naive = Naive(case, "gemnet_t", True)
    tables, graph = naive.batch.triplets, naive.batch.graph
    m, rbf, basis = (
        naive.random(*shape, seed=seed)
        for seed, shape in enumerate([(FEATURES,), (RADIAL,), (BASIS, SPHERICAL)])
    )
    cosine, exists = into(naive.vectors, naive.distances, tables)
    powers = np.arange(1, SPHERICAL + 1)
    cosine, exists = np.asarray(cosine)[..., None], np.asarray(exists)[..., None]
    harmonics = np.where(exists, cosine**powers, 0.0)
    edges = EdgeGraph(graph.senders, graph.receivers, ops.node_mask(graph))
    module = TripletInteraction(down=DOWN, bilinear=7)
    shared = Shared(edges, tables, harmonics, basis, rbf, rbf, rbf)
    out, w = applied(module, m, shared)

    def dense(name, x):
        return scaled_silu(x @ w[name]["kernel"])

    scales = [w[name]["scale_factor"] for name in ("scale_rbf", "scale_sum")]
    assert scales == pytest.approx([1.3, 1.3])
    x = dense("dense", m) * (rbf @ w["rbf"]["kernel"]) * 1.3
    x = dense("down", x)
    y = np.zeros((len(m), 7))
    for (ba, ca), angle in naive.into().items():
        for s, power in enumerate(powers):
            for i in range(BASIS):
                weight = basis[ca, i, s] * angle**power
                y[ca] += weight * (x[ba] @ w["bilinear"][:, i])
    y *= 1.3
    real = range(len(naive.edges))
    partner = [next(b for b in real if naive.is_reverse(a, b)) for a in real]
    expected = dense("up_forward", y)[real] + dense("up_backward", y)[partner]
    assert_close(out[real], expected / np.sqrt(2), 1e-13)
