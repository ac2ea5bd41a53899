"""One structure as a batch that is made on the device, from positions, a box and pairs.

Everything that does not move (species, wave vectors, sizes) is chosen once on the host, with
room for the structure to grow; the rest is computed from what a step of a simulation has.
"""

import dataclasses
from typing import Any, NamedTuple

import ase
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ewald_jax import kspace as ks
from ewald_jax import ops
from ewald_jax.graph import batch_graphs, structure_from_atoms
from ewald_jax.graph.budgets import exact_budget
from ewald_jax.graph.schema import CELL, POSITIONS, SHIFTS, Batch
from ewald_jax.graph.waves import with_waves
from ewald_jax.kspace.waves import MARGIN, diameter
from ewald_jax.models import check_structure, neighborhood
from ewald_jax.typing import Array, Bool, Float, InputError, Int

_ROUNDING = 1e-6
"""Relative; a cell of exactly twice the cutoff is large enough."""


class Template(NamedTuple):
    """What stays of a structure while it moves.

    Attributes:
        batch: The structure and one node of padding; its edges are of no use.
        cell: [3, 3] rows are lattice vectors, Å, when the template was made.
        periodic: Whether it is a crystal, not a molecule.
        cutoff: Å.
        max_stretch: Largest factor by which directions of the box may grow; None without wave
            vectors that depend on it.
        max_extent: Å, twice the largest distance of an atom from the mean that the quadrature
            of a molecule is made for; None without one.
    """

    batch: Batch
    cell: np.ndarray
    periodic: bool
    cutoff: float
    max_stretch: float | None
    max_extent: float | None


def template_of(
    model: nn.Module, atoms: ase.Atoms, max_stretch: float, max_growth: float
) -> Template:
    """Chooses what stays (host side).

    Args:
        model: Without angles, far edges and limit of neighbors.
        atoms: A crystal or a molecule.
        max_stretch: Largest factor by which directions of the box may grow, at least 1.
        max_growth: Å, by which a molecule may grow, at least 0.

    Returns:
        The template, in JAX's default float type.

    Raises:
        InputError: As `batch_from_atoms`.
    """
    needed, periodic = neighborhood(model), bool(atoms.pbc.all())
    check_structure(model, atoms.numbers, atoms.pbc)
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    structure = structure_from_atoms(atoms, dataclasses.replace(needed, waves=None), dtype)
    graph, margin, extent = structure.graph, 0.0, None
    cell = np.asarray(graph.globals[CELL][0], np.float64)
    if needed.waves is not None:
        if not periodic:
            centred = atoms.positions - atoms.positions.mean(axis=0)
            radius = float(np.max(np.linalg.norm(centred, axis=1)))
            extent = 2 * radius + max_growth
            margin = extent - diameter(centred, needed.waves)
        # The set of a larger cell reaches further in k.
        stretched = graph.globals | {
            CELL: graph.globals[CELL] * max(max_stretch / MARGIN, 1)
        }
        larger = structure._replace(graph=graph._replace(globals=stretched))
        structure = structure._replace(waves=with_waves(larger, needed, margin).waves)
    budget = exact_budget([structure])._replace(n_node=len(atoms) + 1, n_graph=2)
    return Template(
        batch_graphs([structure], budget=budget),
        cell,
        periodic,
        needed.cutoff,
        None if needed.waves is None or not periodic else max_stretch,
        extent,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Space:
    """Coordinates of one structure: as jax-md has them, Cartesian, and fractional.

    Attributes:
        template: The structure.
        fractional: Whether jax-md's are fractional.
    """

    template: Template
    fractional: bool

    def cell(self, kwargs: dict[str, Any], dtype: Any) -> Float[Array, "3 3"]:
        """Rows are lattice vectors, of the box among the keywords if there is one."""
        if "new_box" in kwargs:
            raise InputError("new_box is not supported, expected box or perturbation")
        if "box" in kwargs and self.template.periodic:
            return box_matrix(kwargs["box"], dtype).T
        return jnp.asarray(self.template.cell, dtype)

    def cartesian(self, position: Array, cell: Array) -> Float[Array, "nodes 3"]:
        """Å; derivatives by fractional positions are Cartesian too, as jax-md has them."""
        if not (self.fractional and self.template.periodic):
            return position
        fixed = jax.lax.stop_gradient(position)
        return row_products(fixed, cell) + (position - fixed)

    def scaled(self, position: Array, cell: Array) -> Float[Array, "nodes 3"]:
        """Fractional coordinates, not differentiable; those of molecules are Cartesian."""
        position, cell = jax.lax.stop_gradient((position, cell))
        if self.fractional or not self.template.periodic:
            return position
        return ks.fractional(position, cell)

    def displacement(self, ra: Array, rb: Array, **kwargs: Any) -> Float[Array, " 3"]:
        """From one point to another, both as `scaled`, in Å; the nearest image."""
        if ra.shape != (3,):
            raise ValueError(f"points have three coordinates, not {ra.shape}")
        between = ra - rb
        if not self.template.periodic:
            return between
        cell = self.cell(kwargs, between.dtype)
        return row_products((between - jnp.round(between))[None], cell)[0]


def moved_batch(
    template: Template,
    positions: Float[Array, "nodes 3"],
    cell: Float[Array, "3 3"],
    senders: Int[Array, " edges"],
    receivers: Int[Array, " edges"],
    shifts: Int[Array, "edges 3"],
    skin: bool,
) -> Batch:
    """The batch of the structure as it is now (device); differentiable.

    Args:
        template: Of the structure.
        positions: Of its atoms, Å.
        cell: Rows are lattice vectors, Å.
        senders: Both directions of each pair; the number of atoms for padding.
        receivers: Ascending.
        shifts: Lattice translation of the sender.
        skin: Whether some pairs may be beyond the cutoff, to be left out.

    Returns:
        The batch, unlabelled.
    """
    graph, periodic = template.batch.graph, template.periodic
    pbc = jnp.asarray(graph.globals["pbc"])
    cells = jnp.stack([cell, jnp.eye(3, dtype=cell.dtype)])
    graph = graph._replace(
        nodes=graph.nodes | {POSITIONS: jnp.pad(positions, ((0, 1), (0, 0)))},
        edges={SHIFTS: shifts if periodic else jnp.zeros_like(shifts)},
        senders=senders,
        receivers=receivers,
        globals={CELL: cells, "pbc": pbc},
        n_node=jnp.asarray(graph.n_node),
        n_edge=jnp.array([senders.shape[0], 0], jnp.int32),
    )
    if skin:
        square = jnp.sum(ops.edge_vectors(graph) ** 2, axis=-1)
        kept = (square < template.cutoff**2) & (receivers < positions.shape[0])
        graph = _compressed(graph, kept)
    return template.batch._replace(graph=graph)


def _compressed(graph: Any, kept: Bool[Array, " edges"]) -> Any:
    """The kept edges first, in their order, and padding after them."""
    place = jnp.where(kept, jnp.cumsum(kept) - 1, kept.shape[0])
    padding = graph.nodes[POSITIONS].shape[0] - 1

    def moved(values: Array, fill: int) -> Array:
        return jnp.full_like(values, fill).at[place].set(values, mode="drop")

    return graph._replace(
        senders=moved(graph.senders, padding),
        receivers=moved(graph.receivers, padding),
        edges={SHIFTS: moved(graph.edges[SHIFTS], 0)},
    )


def nearest_images(
    scaled: Float[Array, "nodes 3"],
    senders: Int[Array, " edges"],
    receivers: Int[Array, " edges"],
) -> Int[Array, "edges 3"]:
    """Lattice translations of the senders to the images nearest to the receivers.

    Args:
        scaled: Fractional coordinates.
        senders: Past the end for padding.
        receivers: Likewise.

    Returns:
        The translations; 0 for padding.
    """
    between = ops.gather(scaled, senders) - ops.gather(scaled, receivers)
    return -jnp.round(between).astype(jnp.int32)


def within_limits(
    template: Template,
    positions: Float[Array, "nodes 3"],
    cell: Float[Array, "3 3"] | None,
    nearest: bool,
) -> Bool[Array, ""]:
    """Whether the structure is one that the template was made for (device).

    Args:
        template: Of the structure.
        positions: Å.
        cell: Rows are lattice vectors, Å; None for that of the template.
        nearest: Whether pairs are those of nearest images.
    """
    fine = jnp.bool_(True)
    if template.max_extent is not None:
        centred = positions - jnp.mean(positions, axis=0, keepdims=True)
        square = jnp.max(jnp.sum(centred**2, axis=-1))
        fine &= 4 * square <= template.max_extent**2
    if cell is None or not template.periodic:
        return fine
    if nearest:
        fine &= jnp.min(heights(cell)) >= 2 * template.cutoff * (1 - _ROUNDING)
    if template.max_stretch is not None:
        gradient = row_products(jnp.asarray(np.linalg.inv(template.cell), cell.dtype), cell)
        # The largest principal stretch is at most the norm that is quick to compute.
        strain = row_products(gradient, gradient.T)
        largest = jnp.max(jnp.sum(jnp.abs(strain), axis=1))
        fine &= largest < template.max_stretch**2
    return fine


def large_enough(template: Template) -> bool:
    """Whether nearest images are all neighbors there are (host)."""
    return bool(np.min(heights(template.cell)) >= 2 * template.cutoff * (1 - _ROUNDING))


def heights(cell: Float[Array, "3 3"]) -> Float[Array, " 3"]:
    """Distances between opposite faces, Å."""
    return 2 * jnp.pi / jnp.sqrt(jnp.sum(ks.reciprocal_cell(cell) ** 2, axis=-1))


def row_products(x: Float[Array, "rows 3"], matrix: Float[Array, "3 3"]) -> Array:
    """``x @ matrix`` in full precision on every accelerator."""
    return sum(x[:, a, None] * matrix[None, a] for a in range(3))


def box_matrix(box: Any, dtype: Any) -> Float[Array, "3 3"]:
    """The matrix that jax-md's numbers, vectors and matrices stand for."""
    box = jnp.asarray(box, dtype)
    return box if box.ndim == 2 else jnp.diag(jnp.broadcast_to(box, (3,)))
