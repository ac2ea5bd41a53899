"""A model as one function of plain arrays of one structure, ready for `jax.export`.

Structures of all sizes share it: numbers of atoms, edges and wave vectors are symbols. Room for
edges and the like is the length of an array without content, which ``sizes`` says for a
structure.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jax import export

from ewald_jax import kspace as ks
from ewald_jax import ops
from ewald_jax.graph.schema import Batch, Edges, Waves
from ewald_jax.interop.exported_graph import (
    Frame,
    find_edges,
    framed,
    lattice_indices,
    quadrature_nodes,
    required_sizes,
)
from ewald_jax.models import neighborhood
from ewald_jax.potential import site_outputs
from ewald_jax.typing import Array, Float, InputError, Int

BOUNDARIES = ("open", "wire", "slab", "crystal")
"""By the number of periodic directions."""


class Arrays(NamedTuple):
    """What an exported function is called with.

    Attributes:
        species: [n] atomic numbers, in the type of the positions.
        positions: [n, 3] Å.
        cell: [3, 3] rows are lattice vectors, Å; rows of open directions may be zero.
        pbc: [3] int32, not 0 along periodic lattice vectors.
        weights: [weights] all parameters.
        edges: [e] bool, for its length alone, as the next two.
        waves: [k]
        nodes: [q]
    """

    species: Float[Array, " n"]
    positions: Float[Array, "n 3"]
    cell: Float[Array, "3 3"]
    pbc: Int[Array, " 3"]
    weights: Float[Array, " weights"]
    edges: Array
    waves: Array
    nodes: Array


Function = Callable[..., tuple[Array, Array, Array, Array]]


def exported_functions(
    model: nn.Module, unravel: Callable, scale: float
) -> dict[str, Function]:
    """The functions of a model: the sizes of a structure, and its outputs.

    All take the arrays of `Arrays` and return four arrays like the first four of them: energies
    of atoms (eV, without reference energies), forces (eV/Å), stress (eV/Å^3, of the periodic
    directions; zero where there is none), sizes. Those of ``sizes`` are zero but for the last:
    the lengths of edges, waves and nodes, at least.

    Args:
        model: From `build_model`.
        unravel: Makes parameters of a vector.
        scale: eV per model unit.

    Returns:
        By name: "sizes", and those of `functions_by_boundary`.

    Raises:
        InputError: As `functions_by_boundary`.
    """
    named = {"sizes": partial(_sizes, model)}
    for name in {*functions_by_boundary(model)} - {""}:
        named[name] = partial(_outputs, model, unravel, scale, name)
    return named


def functions_by_boundary(model: nn.Module) -> tuple[str, str, str, str]:
    """Which function of a model is that of 0, 1, 2 and 3 periodic directions; "" for none.

    Raises:
        InputError: If the model cannot be exported.
    """
    needed = neighborhood(model)
    if needed.triplets:
        raise InputError(
            f"{type(model).__name__} has tables of angles, which the exported function does "
            "not build; expected SchNet, PaiNN or a model like them"
        )
    if model.ewald is None:
        return ("any",) * 4
    if model.ewald.scheme == "voxel":
        raise InputError(
            "ewald scheme 'voxel' turns molecules into their principal axes, which jax cannot "
            "export for any number of atoms; expected scheme 'radial' or 'lattice', or none"
        )
    # Wires are the one case that would need a quadrature of circles too.
    open_, _, slab, crystal = BOUNDARIES
    radial = model.ewald.scheme == "radial"
    return (open_, "", slab, crystal) if radial else ("", "", "", crystal)


def _sizes(model: nn.Module, *arrays: Array) -> tuple[Array, Array, Array, Array]:
    given = Arrays(*arrays)
    frame = framed(given.positions, given.cell, given.pbc != 0)
    nothing = (0 * array for array in given[:3])
    return *nothing, required_sizes(frame, neighborhood(model))


def _outputs(
    model: nn.Module, unravel: Callable, scale: float, boundary: str, *arrays: Array
) -> tuple[Array, Array, Array, Array]:
    given, rules = Arrays(*arrays), neighborhood(model)
    frame = framed(given.positions, given.cell, given.pbc != 0)
    slots = given.edges.shape[0]
    edges = find_edges(frame, slots, rules.cutoff, rules.max_neighbors, rules.symmetric)
    far = None
    if rules.far_cutoff is not None:
        far = find_edges(frame, slots, rules.far_cutoff, rules.far_max_neighbors)
    waves = None if rules.waves is None else _waves(given, frame, rules.waves, boundary)
    batch = _batch(given, frame, edges, far, waves)
    sites, out = site_outputs(
        model, unravel(given.weights), batch, forces=True, stress=boundary != "open"
    )
    sizes = required_sizes(frame, rules)
    stress = jnp.zeros_like(given.cell)
    if out.stress is not None:
        stress = _physical_stress(given, frame, out.stress[0])
    return sites[:-1] * scale, out.forces[:-1] * scale, stress * scale, sizes


def _batch(
    given: Arrays, frame: Frame, edges: Edges, far: Edges | None, waves: Waves | None
) -> Batch:
    """A batch of the structure and one node of padding."""
    n, dtype = given.species.shape[0], frame.positions.dtype
    no_edges = jnp.zeros((), jnp.int32)
    graph = jraph.GraphsTuple(
        nodes={
            "positions": jnp.concatenate([frame.positions, jnp.zeros((1, 3), dtype)]),
            "species": jnp.concatenate(
                [given.species.astype(jnp.int32), jnp.zeros(1, jnp.int32)]
            ),
        },
        edges={"shifts": edges.shifts},
        senders=edges.senders,
        receivers=edges.receivers,
        globals={
            "cell": jnp.stack([frame.cell, jnp.eye(3, dtype=dtype)]),
            "pbc": jnp.stack([frame.periodic, jnp.zeros(3, bool)]),
        },
        n_node=jnp.stack([jnp.asarray(n, jnp.int32), jnp.asarray(1, jnp.int32)]),
        n_edge=jnp.stack([jnp.asarray(edges.senders.shape[0], jnp.int32), no_edges]),
    )
    return Batch(graph, jnp.arange(n, dtype=jnp.int32)[None], {}, None, far, waves)


def _waves(given: Arrays, frame: Frame, rule: ks.WaveRule, boundary: str) -> Waves:
    """As `kspace.waves.wave_set`, with as many nodes at each lattice vector of a slab."""
    n, dtype = given.species.shape[0], frame.positions.dtype
    x, w = quadrature_nodes(given.nodes.shape[0], dtype)
    no_index, no_direction, none = (
        np.zeros((0, 3), np.int32),
        np.zeros((0, 3)),
        np.zeros(0),
    )
    vectors = [jnp.asarray(part) for part in (no_index, no_direction, none, none)]
    quad, pairs = (jnp.zeros(0, dtype),) * 2, (jnp.zeros(0, jnp.int32),) * 2
    pair_index = jnp.zeros((0, n), jnp.int32)
    if boundary == "open":
        quad = ((x + 1) / 2, 1.5 * w * ((x + 1) / 2) ** 2)
        pairs = _pairs(n)
        pair_index = jnp.arange(n, dtype=jnp.int32)[None]
    else:
        indices = lattice_indices(frame, rule.k_cutoff, given.waves.shape[0])
        first = jnp.arange(given.waves.shape[0]) == 0
        once = jnp.where(first, 1.0, 2.0).astype(dtype)
        vectors = [indices, jnp.zeros(indices.shape, dtype), 0 * once, once]
        if boundary == "slab":
            vectors = _slab_vectors(indices, first, once, x, w)
    vectors = [v.astype(dtype) if i else v for i, v in enumerate(vectors)]
    return Waves(*(v[None] for v in vectors), pair_index, *pairs, *quad)


def _slab_vectors(
    indices: Array, first: Array, once: Array, x: Array, w: Array
) -> list[Array]:
    """Lattice vectors of the plane times nodes along the normal, see `kspace.waves`."""
    shape = (indices.shape[0], x.shape[0])
    nodes = jnp.where(first[:, None], (x[None] + 1) / 2, x[None])
    weights = once[:, None] * w[None] / (2 * jnp.pi)
    normal = jnp.asarray([[0.0, 0.0, 1.0]], x.dtype)
    # Plane waves twice, the second time for the Coulomb channel.
    both = [jnp.concatenate([v.reshape(-1), v[0]]) for v in (nodes, weights)]
    up = jnp.ones(shape, x.dtype).reshape(-1)
    sides = jnp.concatenate([up, -jnp.ones(x.shape[0], x.dtype)])
    tiled = jnp.broadcast_to(indices[:, None], (*shape, 3)).reshape(-1, 3)
    tiled = jnp.concatenate([tiled, jnp.zeros((x.shape[0], 3), jnp.int32)])
    return [tiled, sides[:, None] * normal, *both]


def _pairs(n: int) -> tuple[Array, Array]:
    """First and second atoms of the pairs i < j, in order; as many slots as n^2 / 2."""
    size, nodes = n * n // 2, jnp.arange(n, dtype=jnp.int32)
    i, j = nodes[:, None], nodes[None]
    place = i * (2 * jnp.asarray(n, jnp.int32) - i - 1) // 2 + j - i - 1
    place = jnp.where(i < j, place, size)
    nobody = jnp.zeros(size, jnp.int32) + jnp.asarray(n, jnp.int32)
    return tuple(nobody.at[place].set(end, mode="drop") for end in (i, j))


def _physical_stress(given: Arrays, frame: Frame, stress: Array) -> Array:
    """Stress of the periodic directions by the volume of the whole cell, else zero."""
    volume = jnp.abs(ks.cell_volume(given.cell))
    defined = jnp.any(frame.periodic) & (volume > 1e-6)
    share = jnp.abs(ks.cell_volume(frame.cell)) / jnp.where(defined, volume, 1.0)
    normals = jnp.where(frame.periodic[:, None], 0.0, frame.cell)
    eye = jnp.eye(3, dtype=stress.dtype)
    within = eye - jnp.sum(normals[:, :, None] * normals[:, None, :], axis=0)
    kept = ops.full_matmul(ops.full_matmul(within, stress), within)
    return jnp.where(defined, share * kept, 0.0)


def example_arrays(dtype: np.dtype, weights: np.ndarray) -> Arrays:
    """Arrays of the right types, of one atom; the weights are those given."""
    one = np.zeros(1, bool)
    return Arrays(
        np.ones(1, dtype),
        np.zeros((1, 3), dtype),
        np.zeros((3, 3), dtype),
        np.zeros(3, np.int32),
        weights,
        *(one,) * 3,
    )


def symbolic_shapes(weights: np.ndarray) -> list[str]:
    """Shapes of the arrays of `Arrays`, in jax's words."""
    return ["n", "n, 3", "3, 3", "3", str(len(weights)), "e", "k", "q"]


def lowered(
    function: Function, examples: Arrays, platforms: tuple[str, ...]
) -> export.Exported:
    """The function as StableHLO, of symbolic sizes.

    Args:
        function: Of `exported_functions`.
        examples: From `example_arrays`.
        platforms: Where it shall run, in jax's words.
    """
    shapes = symbolic_shapes(examples.weights)
    specs = export.symbolic_args_specs(tuple(examples), shapes)
    # All arguments: the loader knows the calling convention without being told.
    jitted = jax.jit(lambda *arrays: function(*arrays), keep_unused=True)
    return export.export(jitted, platforms=platforms)(*specs)
