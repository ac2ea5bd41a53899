"""What all Ewald blocks of a model share: phases, distances and the basis of the filters.

Computed once per step, inside the differentiated function.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jraph

from ewald_jax import kspace as ks
from ewald_jax import ops
from ewald_jax.graph.schema import Batch
from ewald_jax.nn.ewald_config import EwaldConfig, host_kvecs
from ewald_jax.typing import Array, Float, InputError, Int


class PairSpace(NamedTuple):
    """Molecules of the `radial` scheme, see `kspace.open`.

    Attributes:
        square: [pairs] squared distances of the pairs i < j, Å^2.
        index: [rows, slots, slots] place of each pair in `square`; ``pairs`` for an atom with
            itself, beyond for empty slots and atoms of different molecules.
        nodes: [rows, slots] node of each slot.
        node_slot: [nodes] slot of each node.
        k_square: [quad] squared wave numbers of the quadrature, 1/Å^2.
        basis: [quad, basis] of the filters, times the weights of the quadrature.
    """

    square: Float[Array, " pairs"]
    index: Int[Array, "rows slots slots"]
    nodes: Int[Array, "rows slots"]
    node_slot: Int[Array, " nodes"]
    k_square: Float[Array, " quad"]
    basis: Float[Array, "quad basis"]


class MeshSpace(NamedTuple):
    """Crystals of the `radial` scheme on a mesh, see `kspace.mesh`.

    Attributes:
        nodes: [rows, slots] node of each slot: as in the dense layout, in another order.
        node_slot: [nodes] slot of each node.
        first: [rows, slots, 3] lowest grid point of each atom's window.
        offset: [rows, slots, 3] of each atom from the grid point below it.
        basis: [rows, num_waves, k2, k3, basis] of the filters.
        size: [k1] waves along the first axis, of which `basis` has those within the cutoff.
    """

    nodes: Int[Array, "rows slots"]
    node_slot: Int[Array, " nodes"]
    first: Int[Array, "rows slots 3"]
    offset: Float[Array, "rows slots 3"]
    basis: Float[Array, "rows num_waves k2 k3 basis"]
    size: Int[Array, " k1"]


class KSpace(NamedTuple):
    """Everything that the blocks share, computed once per step.

    Attributes:
        phases: [rows, slots, 2 kvecs], see `kspace.sums.phases`; no wave vectors if the batch
            has molecules in pair form only.
        basis: [kvecs, basis] of radial filters, [rows, kvecs, basis] with the weights of the
            wave vectors for the `radial` scheme, None for free tables.
        dense_index: [rows, slots] node of each slot.
        node_slot: [nodes] slot of each node.
        pairs: Molecules in pair form, None if there are none.
        planes: [rows, 2 kvecs] of the plane waves in slabs, None without a Coulomb channel.
        mesh: Crystals on a mesh, None if there are none.
    """

    phases: Float[Array, "rows slots two_kvecs"]
    basis: Float[Array, "*rows kvecs basis"] | None
    dense_index: Int[Array, "rows slots"]
    node_slot: Int[Array, " nodes"]
    pairs: PairSpace | None = None
    planes: ks.PlaneSums | None = None
    mesh: MeshSpace | None = None


def kspace_geometry(config: EwaldConfig, batch: Batch) -> KSpace:
    """Phases and filter basis of a batch; differentiable in positions and cells.

    Args:
        config: Settings.
        batch: Structures; all periodic for "lattice", all open for "voxel" (see
            `check_boundary`; here, under jit, it cannot be checked); for "radial" any, with
            the wave vectors of `config.waves`.

    Returns:
        The geometry for the blocks.

    Raises:
        InputError: If the wave vectors are missing.
    """
    graph, index = batch.graph, batch.dense_index
    rows, slots = index.shape
    positions = graph.nodes["positions"]
    node_slot = ops.node_slots(graph, rows, slots)
    dense = ops.to_dense(positions, index)
    mask = ops.slot_mask(index, positions.shape[0])
    if config.scheme == "lattice":
        scaled = ks.fractional(dense, graph.globals["cell"][:rows])
        indices = host_kvecs(config)
        table = jax.vmap(lambda s: ks.lattice_phases(s, indices))(scaled)
        return KSpace(table, None, index, node_slot)
    if config.scheme == "radial":
        table, planes, basis, pairs = _radial(config, batch, dense, mask)
        mesh = None if batch.mesh is None else _mesh(config, batch, dense, mask)
        return KSpace(table, basis, index, node_slot, pairs, planes, mesh)
    kvecs = jnp.asarray(host_kvecs(config), positions.dtype)
    framed = ks.svd_frame(dense, mask, config.min_frame_nodes)
    damping = ks.sinc_damping(framed, config.delta_k, config.sinc)
    table = jax.vmap(ks.phases, (0, None, 0))(framed, kvecs, damping)
    basis = ks.radial_basis(
        jnp.linalg.norm(kvecs, axis=-1), config.k_cutoff, config.num_k_rbf
    )
    return KSpace(table, basis, index, node_slot)


def _radial(
    config: EwaldConfig, batch: Batch, dense: Array, mask: Array
) -> tuple[Array, ks.PlaneSums | None, Array, PairSpace | None]:
    waves = batch.waves
    if waves is None:
        raise InputError(
            "the batch has no wave vectors, which ewald scheme 'radial' needs; build it with "
            "ewald_jax.batch_from_atoms, or with the model's neighborhood "
            "(ewald_jax.models.neighborhood)"
        )
    rows, k_cutoff = len(dense), config.k_cutoff
    options = (config.num_k_rbf, config.channels)
    coulomb = (
        config.num_k_rbf + config.channels.index("coulomb")
        if "coulomb" in config.channels
        else None
    )

    def of_structure(positions, mask, cell, pbc, indices, directions, nodes, weights):
        boundary = ks.boundary_cell(cell, pbc)
        vectors = ks.wave_vectors(
            indices, directions, nodes, weights, boundary, pbc, k_cutoff
        )
        scaled = ks.scaled_positions(positions, boundary, pbc)
        if coulomb is None:
            table, planes = ks.turn_phases(scaled, vectors.coordinates), None
        else:
            table, planes = ks.plane_phases(scaled, vectors, mask)
        basis = ks.channel_basis(vectors.square / k_cutoff**2, *options)
        basis = ks.plane_basis(basis, vectors, coulomb)
        return table, planes, basis * vectors.weights[:, None]

    cell, pbc = graph_rows(batch, "cell", rows), graph_rows(batch, "pbc", rows)
    table, planes, basis = jax.vmap(of_structure)(
        ks.centre(dense, mask), mask, cell, jnp.asarray(pbc), *waves[:4]
    )
    if waves.quad_nodes.shape[0] == 0:
        return table, planes, basis, None
    x = jnp.asarray(waves.quad_nodes)
    in_pairs = ks.channel_basis(x**2, *options) * waves.quad_weights[:, None]
    graph, nodes = batch.graph, jnp.asarray(waves.pair_index)
    positions = graph.nodes["positions"]
    between = positions[waves.senders] - positions[waves.receivers]
    pairs = PairSpace(
        jnp.sum(between**2, axis=-1),
        pair_places(graph, nodes, between.shape[0]),
        nodes,
        slots_of(nodes, positions.shape[0]),
        (k_cutoff * x) ** 2,
        in_pairs,
    )
    return table, planes, basis, pairs


def _mesh(config: EwaldConfig, batch: Batch, dense: Array, mask: Array) -> MeshSpace:
    """Places and filters of crystals, which all rows are."""
    indices = batch.mesh
    num_waves = ks.waves_within(len(indices[0]), config.grid_spacing, config.k_cutoff)

    # Of the filters' many exponentials only the values are kept.
    @jax.checkpoint
    def basis_of(cell):
        options = (config.k_cutoff, config.num_k_rbf, config.channels, config.mesh_order)
        return ks.mesh_basis(indices, cell, *options, num_waves)

    def places_of(positions, mask, cell, nodes):
        scaled = ks.fractional(ks.centre(positions, mask), cell)
        places = ks.sorting(scaled, shape)
        return nodes[places], *ks.grid_places(scaled[places], shape)

    shape, cell = tuple(map(len, indices)), graph_rows(batch, "cell", len(dense))
    nodes, first, offset = jax.vmap(places_of)(dense, mask, cell, batch.dense_index)
    node_slot = slots_of(nodes, len(batch.graph.nodes["positions"]))
    return MeshSpace(nodes, node_slot, first, offset, jax.vmap(basis_of)(cell), indices[0])


def slots_of(nodes: Int[Array, "rows slots"], n_node: int) -> Int[Array, " nodes"]:
    """Flat slot of each node; ``rows * slots`` for one without."""
    slots = jnp.full(n_node, nodes.size).at[nodes.reshape(-1)]
    return slots.set(jnp.arange(nodes.size), mode="drop")


def pair_places(
    graph: jraph.GraphsTuple, nodes: Int[Array, "rows slots"], num_pairs: int
) -> Int[Array, "rows slots slots"]:
    """Where the pairs i < j of molecules, one molecule after the other, go in a dense layout.

    Args:
        graph: The structures.
        nodes: Node of each slot; molecules in order of their pairs have ascending nodes.
        num_pairs: Length of the list of pairs.

    Returns:
        See `PairSpace.index`.
    """
    owner = ops.node_graph_index(graph)
    listed = jnp.zeros(owner.shape[0], bool).at[nodes.reshape(-1)].set(True, mode="drop")
    n = jnp.asarray(graph.n_node)
    first_node = jnp.cumsum(n) - n
    # Of each molecule, if its pairs are listed.
    has_pairs = ops.gather(listed, jnp.where(n > 0, first_node, listed.shape[0]))
    count = jnp.where(has_pairs, n * (n - 1) // 2, 0)
    first_pair = jnp.cumsum(count) - count
    molecule = ops.gather(owner, nodes, fill=-1)
    local = nodes - first_node[molecule]
    same = (molecule[:, :, None] == molecule[:, None, :]) & (molecule[:, :, None] >= 0)
    low = jnp.minimum(local[:, :, None], local[:, None, :])
    high = jnp.maximum(local[:, :, None], local[:, None, :])
    size = n[molecule][:, :, None]
    place = first_pair[molecule][:, :, None] + low * (2 * size - low - 1) // 2
    place = place + high - low - 1
    place = jnp.where(low == high, num_pairs, place)
    return jnp.where(same, place, num_pairs + 1)


def graph_rows(batch: Batch, key: str, rows: int) -> Array:
    """A global of the structures that take part in k-space sums."""
    return batch.graph.globals[key][:rows]
