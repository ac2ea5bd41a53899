"""Data parallelism: the devices share the structures of a step.

Batches of one shape are stacked along a new leading axis, which is spread over the devices.
The step adds up sums and counts over that axis before it divides, so that the loss and its
gradient are those of one device with all the structures.
"""

import contextlib
from collections.abc import Generator, Sequence

import jax
import numpy as np

from ewald_jax.graph.schema import CELL, Batch
from ewald_jax.typing import InputError, PyTree

AXIS = "data"


def data_mesh(devices: int) -> jax.sharding.Mesh | None:
    """The first `devices` devices in a row; None for one, which needs no mesh.

    Raises:
        InputError: If there are not so many.
    """
    if devices == 1:
        return None
    found = jax.devices()
    if devices > len(found):
        raise InputError(f"train.devices is {devices}, but JAX sees {len(found)}")
    return jax.make_mesh(
        (devices,), (AXIS,), (jax.sharding.AxisType.Auto,), devices=found[:devices]
    )


def spread_over(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Sharding of stacked batches."""
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))


def same_on(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Sharding of what every device has."""
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def replicate(tree: PyTree, mesh: jax.sharding.Mesh | None) -> PyTree:
    """Copies a tree to every device of the mesh; None leaves it as it is."""
    return tree if mesh is None else jax.device_put(tree, same_on(mesh))


def stacked(
    batches: Generator[Batch, None, None], devices: int
) -> Generator[Batch, None, None]:
    """Groups of batches along a new leading axis; empty ones fill up the last group.

    Args:
        batches: Of one shape, numpy arrays.
        devices: Batches in a group.

    Yields:
        Batches whose arrays are [devices, ...].
    """
    with contextlib.closing(batches):
        group: list[Batch] = []
        for batch in batches:
            group.append(batch)
            if len(group) == devices:
                yield _stack(group)
                group = []
        if group:
            yield _stack(group + [empty_like(group[0])] * (devices - len(group)))


def empty_like(batch: Batch) -> Batch:
    """A batch of the same shape that is all padding."""
    empty = jax.tree.map(np.zeros_like, batch)
    graph = empty.graph
    nodes, edges = len(graph.nodes["species"]), len(graph.senders)
    graph.n_node[0], graph.n_edge[0] = nodes, edges
    graph.globals[CELL][:] = np.eye(3)
    empty.dense_index[:] = nodes
    if empty.waves is not None:
        empty.waves.pair_index[:] = nodes
    if empty.triplets is not None:
        in_edges, out_edges, in_slot, out_slot, reverse = empty.triplets
        in_edges[:], out_edges[:], reverse[:] = edges, edges, edges
        in_slot[:], out_slot[:] = in_edges.size, out_edges.size
    return empty


def _stack(batches: Sequence[Batch]) -> Batch:
    return jax.tree.map(lambda *arrays: np.stack(arrays), *batches)
