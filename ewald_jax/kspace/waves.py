r"""Which wave vectors stand for a structure, whatever its boundary conditions (host side).

The `radial` message is one integral over k-space, of which each periodic direction makes a sum:

* crystal: the vectors of the reciprocal lattice, for large ones those of a grid
  (`kspace.mesh`);
* slab, wire: those of the periodic directions, each with an integral over the open ones;
* molecule: an integral over all directions, done in closed form between pairs of atoms
  (`kspace.open`), or, for large molecules, by quadrature of the sphere.

Integers, unit vectors and weights are chosen here with numpy; `kspace.boundary` turns them into
wave vectors on the device, so that derivatives by the cell are right. Of k and -k, which have
complex-conjugate structure factors, one is kept and counts twice.

Axes are counted with the periodic ones first, in all of these arrays.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ewald_jax.kspace.mesh_rule import MARGIN, MeshRule, check_shape, mesh_pays, mesh_shape
from ewald_jax.kspace.quadrature import (
    gauss_legendre,
    half_circle,
    half_sphere,
    num_angular,
    num_radial,
    num_stretched,
)
from ewald_jax.typing import Bool, Float, InputError, Int

_MAX_BOX = 4_000_000
"""Indices that are looked through at most; a search so large has hopelessly many results."""

_SMALL = 100_000
"""Nodes times wave vectors of structures that no mesh is faster for."""

_MAX_RADIAL = 2000
"""Nodes of a quadrature: enough for 5000 Å at a cutoff of 1.5 / Å."""

_EXACT_DIAMETER = 400
"""Atoms up to which all pairs are measured; beyond, twice the largest radius."""


@dataclass(frozen=True)
class WaveRule:
    """What decides the wave vectors of a structure.

    Attributes:
        k_cutoff: Largest |k|, 1/Å.
        width: Of the narrowest Gaussian of the filter, in units of the cutoff: what has to be
            resolved.
        max_pair_nodes: Molecules of more atoms take the quadrature of the sphere.
        max_kvecs: Structures that need more are refused.
        mesh: For crystals on a mesh; None for the direct sum.
    """

    k_cutoff: float
    width: float
    max_pair_nodes: int = 1024
    max_kvecs: int = 65536
    mesh: MeshRule | None = None


class WaveSet(NamedTuple):
    """The wave vectors of one structure.

    Attributes:
        indices: [kvecs, 3] int32 on the reciprocal lattice; 0 on open axes.
        directions: [kvecs, 3] unit vectors on the open axes; 0 on periodic ones.
        nodes: [kvecs] of the quadrature, see `boundary.wave_vectors`.
        weights: [kvecs] quadrature weights, twice for vectors that stand for two.
        num_quad: Radial nodes of the pair form, 0 where the other arrays are used.
        mesh: Shape of the grid, all 0 where the other arrays are used.
    """

    indices: Int[np.ndarray, "kvecs 3"]
    directions: Float[np.ndarray, "kvecs 3"]
    nodes: Float[np.ndarray, " kvecs"]
    weights: Float[np.ndarray, " kvecs"]
    num_quad: int = 0
    mesh: tuple[int, int, int] = (0, 0, 0)


def wave_set(
    positions: Float[np.ndarray, "nodes 3"],
    cell: Float[np.ndarray, "3 3"],
    pbc: Bool[np.ndarray, " 3"],
    rule: WaveRule,
    margin: float = 0.0,
) -> WaveSet:
    """Chooses the wave vectors of a structure.

    Args:
        positions: Å; only extents along open directions matter.
        cell: Rows are lattice vectors, Å; invertible.
        pbc: Periodic along each.
        rule: Cutoff and limits.
        margin: Å, by which the structure may grow along open directions and the set still be
            fine enough.

    Returns:
        The set; empty for a molecule in pair form and for a crystal on a mesh.

    Raises:
        InputError: If it, or its mesh, would be larger than the limit, with how many and what
            to lower.
    """
    cell, pbc = np.asarray(cell, np.float64), np.asarray(pbc, bool)
    order = axis_order(pbc)
    periodic = cell[order][: int(pbc.sum())]
    points = np.asarray(positions, np.float64)
    if len(periodic) == 3:
        shape = _mesh(periodic, len(points), rule)
        if shape is not None:
            return WaveSet(*_nothing(), mesh=shape)
        found = _crystal(periodic, rule)
    elif len(periodic) == 2:
        found = _slab(periodic, points, rule, margin)
    elif len(periodic) == 1:
        found = _wire(periodic, points, rule, margin)
    elif len(points) <= rule.max_pair_nodes:
        return WaveSet(*_nothing(), _num_radial(rule, diameter(points, rule) + margin))
    else:
        found = _molecule(points, rule, margin)
    _check_number(len(found.nodes), rule)
    return found


def axis_order(pbc: Bool[np.ndarray, " 3"]) -> Int[np.ndarray, " 3"]:
    """Axes with the periodic ones first."""
    return np.argsort(~np.asarray(pbc, bool), kind="stable")


def diameter(points: Float[np.ndarray, "nodes dim"], rule: WaveRule) -> float:
    """Largest distance between two points; an upper bound for many."""
    points = points - points.mean(axis=0)
    if len(points) > min(_EXACT_DIAMETER, rule.max_pair_nodes):
        return 2 * float(np.sqrt(np.max(np.sum(points**2, axis=1))))
    square = np.sum(points**2, axis=1)
    return float(
        np.sqrt(max(np.max(square[:, None] + square - 2 * points @ points.T), 0.0))
    )


def _nothing() -> tuple[np.ndarray, ...]:
    return np.zeros((0, 3), np.int32), np.zeros((0, 3)), np.zeros(0), np.zeros(0)


def _mesh(periodic: np.ndarray, n_node: int, rule: WaveRule) -> tuple[int, int, int] | None:
    """Shape of the grid, None where the direct sum is asked for or cheaper."""
    if rule.mesh is None:
        return None
    limit = rule.k_cutoff * MARGIN
    num_kvecs = abs(np.linalg.det(periodic)) * limit**3 / (12 * np.pi**2)
    if not rule.mesh.always and num_kvecs * n_node < _SMALL:
        return None
    shape = mesh_shape(periodic, rule.mesh)
    if not (rule.mesh.always or mesh_pays(n_node, num_kvecs, shape, rule.mesh.order)):
        return None
    check_shape(shape, rule.mesh)
    return shape


def _crystal(periodic: np.ndarray, rule: WaveRule) -> WaveSet:
    indices, _ = _half_lattice(periodic, rule)
    return _joined([_part([(0, 0, 0)], 0.0, 0.0, 1.0), _part(indices, 0.0, 0.0, 2.0)])


def _slab(
    periodic: np.ndarray, points: np.ndarray, rule: WaveRule, margin: float
) -> WaveSet:
    normal = np.cross(*periodic)
    reach = float(np.ptp(points @ (normal / np.linalg.norm(normal)))) + margin
    indices, lengths = _half_lattice(periodic, rule)
    up, down = (0.0, 0.0, 1.0), (0.0, 0.0, -1.0)
    x, w = gauss_legendre(_num_radial(rule, reach))
    counts = num_stretched(rule.k_cutoff, rule.width, reach, lengths, symmetric=True)
    _check_number(2 * len(x) + int(counts.sum()), rule)
    # Twice, the second time for the Coulomb channel, which is sent otherwise (`kspace.plane`).
    along = np.zeros((len(x), 3))
    parts = [_part(along, side, (x + 1) / 2, w) for side in (up, down)]
    for index, count in zip(indices, counts, strict=True):
        x, w = gauss_legendre(int(count))
        parts.append(_part(np.tile(index, (len(x), 1)), up, x, 2 * w))
    return _joined(parts, 2 * np.pi)


def _wire(
    periodic: np.ndarray, points: np.ndarray, rule: WaveRule, margin: float
) -> WaveSet:
    axis = periodic[0] / np.linalg.norm(periodic[0])
    reach = diameter(points - np.outer(points @ axis, axis), rule) + margin
    indices, lengths = _half_lattice(periodic, rule)
    cutoff, parts = rule.k_cutoff, []
    x, w = gauss_legendre(_num_radial(rule, reach))
    counts = num_stretched(cutoff, rule.width, reach, lengths, symmetric=False)
    # Circles have at least four vectors.
    _check_number(4 * int(counts.sum()), rule)
    for node, weight in zip((x + 1) / 2, w / 2, strict=True):
        circle = half_circle(num_angular(cutoff * node * reach))
        parts.append(_ring((0, 0, 0), circle, node, 2 * weight * np.pi / len(circle)))
    for index, length, count in zip(indices, lengths, counts, strict=True):
        x, w = gauss_legendre(int(count))
        limit = np.arccosh(max(cutoff / length, 1.0))
        for node, weight in zip((x + 1) / 2, w / 2, strict=True):
            half = half_circle(num_angular(length * np.sinh(node * limit) * reach))
            circle = np.concatenate([half, -half])
            parts.append(_ring(index, circle, node, 2 * weight * np.pi / len(half)))
    return _joined(parts, (2 * np.pi) ** 2)


def _molecule(points: np.ndarray, rule: WaveRule, margin: float) -> WaveSet:
    reach = diameter(points, rule) + margin
    x, w = gauss_legendre(_num_radial(rule, reach))
    degrees = [num_angular(rule.k_cutoff * (node + 1) / 2 * reach) for node in x]
    _check_number(sum((degree + 1) ** 2 // 4 for degree in degrees), rule)
    parts = []
    for node, weight, degree in zip((x + 1) / 2, w / 2, degrees, strict=True):
        sphere, areas = half_sphere(degree)
        parts.append(_part(np.zeros((len(areas), 3)), sphere, node, 2 * weight * areas))
    return _joined(parts, (2 * np.pi) ** 3)


def _num_radial(rule: WaveRule, reach: float) -> int:
    """Nodes of the integral over |k|, which are too many for absurd sizes only.

    Raises:
        InputError: With the extent, since no number of wave vectors says what is wrong.
    """
    num = num_radial(rule.k_cutoff, rule.width, reach)
    if num > _MAX_RADIAL:
        raise InputError(
            f"extends over {reach:.4g} Å and needs {num} radial nodes for ewald.k_cutoff = "
            f"{rule.k_cutoff}, expected at most {_MAX_RADIAL}; lower ewald.k_cutoff, or split "
            "the structure"
        )
    return num


def _part(indices, directions, nodes, weights) -> WaveSet:
    """Broadcasts to one row for each of `indices`."""
    indices = np.asarray(indices, np.int32).reshape(-1, 3)
    n = len(indices)
    return WaveSet(
        indices,
        np.broadcast_to(np.asarray(directions, np.float64), (n, 3)),
        np.broadcast_to(np.asarray(nodes, np.float64), (n,)),
        np.broadcast_to(np.asarray(weights, np.float64), (n,)),
    )


def _ring(index, circle: np.ndarray, node: float, weight: float) -> WaveSet:
    directions = np.concatenate([np.zeros((len(circle), 1)), circle], axis=1)
    return _part(np.tile(index, (len(circle), 1)), directions, node, weight)


def _joined(parts: list[WaveSet], divisor: float = 1.0) -> WaveSet:
    """All parts after one another; `divisor` is the 2 pi of each open direction."""
    indices, directions, nodes, weights = (
        np.concatenate([part[column] for part in parts]) for column in range(4)
    )
    return WaveSet(indices, directions, nodes, weights / divisor)


def _half_lattice(periodic: np.ndarray, rule: WaveRule) -> tuple[np.ndarray, np.ndarray]:
    """Half of the vectors within the cutoff, without 0: indices on three axes and |k|."""
    limit = rule.k_cutoff * MARGIN
    reciprocal = 2 * np.pi * np.linalg.pinv(periodic).T
    # |n_a| = |k . a_a| / 2 pi <= k |a_a| / 2 pi bounds the search exactly.
    bounds = np.floor(limit * np.linalg.norm(periodic, axis=1) / (2 * np.pi)).astype(int)
    size = np.prod(2.0 * bounds + 1)
    if size > _MAX_BOX:
        ball = {1: 2 * limit, 2: np.pi * limit**2, 3: 4 / 3 * np.pi * limit**3}[len(bounds)]
        zone = np.sqrt(np.linalg.det(reciprocal @ reciprocal.T))
        _check_number(int(ball / zone / 2), rule)
        raise InputError(
            f"has a cell so skewed that {size:.2g} lattice indices would be looked through; "
            "expected a reduced one (ase.build.niggli_reduce)"
        )
    box = np.stack(
        np.meshgrid(*(np.arange(-n, n + 1) for n in bounds), indexing="ij"), axis=-1
    ).reshape(-1, len(bounds))
    half = box[len(box) // 2 + 1 :]
    lengths = np.linalg.norm(half @ reciprocal, axis=1)
    kept = lengths < limit
    indices = np.zeros((int(kept.sum()), 3), np.int32)
    indices[:, : len(bounds)] = half[kept]
    return indices, lengths[kept]


def _check_number(count: int, rule: WaveRule) -> None:
    if count > rule.max_kvecs:
        raise InputError(
            f"needs {count} wave vectors for ewald.k_cutoff = {rule.k_cutoff}, expected at "
            f"most ewald.max_kvecs = {rule.max_kvecs}; lower the one or raise the other"
        )
