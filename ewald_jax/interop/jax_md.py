"""Models in jax-md: an energy function and its neighbor list, for simulations on the device.

A hundred steps at constant temperature, compiled as one loop::

    from jax_md import simulate, space

    model, params, _, statistics = ewald_jax.load_checkpoint("runs/nacl")
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(2)
    box, start = jnp.asarray(atoms.cell.array.T), jnp.asarray(atoms.positions)
    neighbor_fn, energy_fn = jax_md_neighbor_list(model, params, atoms, statistics)
    _, shift_fn = space.periodic_general(box, fractional_coordinates=False)
    init_fn, step_fn = simulate.nvt_nose_hoover(energy_fn, shift_fn, units.fs, 300 * units.kB)

    def step(_, carry):
        state, neighbors = carry
        neighbors = neighbors.update(state.position)
        return step_fn(state, neighbor=neighbors), neighbors

    neighbors = neighbor_fn.allocate(start)
    state = init_fn(jax.random.key(0), start, mass=atoms.get_masses(), neighbor=neighbors)
    state, neighbors = jax.lax.fori_loop(0, 100, step, (state, neighbors))
    assert not neighbors.did_buffer_overflow  # else allocate anew, and repeat the loop

Units are ASE's: Å, eV, atomic mass units, and so times in ``ase.units.fs`` and temperatures
times ``ase.units.kB``. jax-md's box has lattice vectors in columns: ``atoms.cell.array.T``.

Source: Schoenholz and Cubuk, "JAX, M.D." (NeurIPS 2020); the pair of functions is that of its
``energy.graph_network_neighbor_list``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import ase
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ewald_jax.data.statistics import Statistics
from ewald_jax.interop.jax_md_batch import (
    Space,
    box_matrix,
    heights,
    large_enough,
    moved_batch,
    nearest_images,
    row_products,
    template_of,
    within_limits,
)
from ewald_jax.models import neighborhood
from ewald_jax.potential import check_elements, model_outputs
from ewald_jax.typing import Array, Float, InputError, PyTree

_CELL_LIST_OVERFLOW = 2
"""jax-md's code of an error."""


def jax_md_neighbor_list(
    model: nn.Module,
    params: PyTree,
    atoms: ase.Atoms,
    statistics: Statistics | None = None,
    *,
    fractional_coordinates: bool = False,
    dr_threshold: float = 0.0,
    capacity_multiplier: float = 1.25,
    multi_image: bool | None = None,
    max_stretch: float = 1.1,
    max_growth: float = 10.0,
    reference_energies: bool = True,
) -> tuple[Any, Callable[..., Float[Array, ""]]]:
    """The pair that ``jax_md.simulate`` and ``jax_md.minimize`` take, for one structure.

    ``energy_fn(position, neighbor, box=..., perturbation=...)`` is the energy, eV, of jax-md's
    positions: Cartesian, Å, wrapped or not, or fractional. ``box`` (lattice vectors in columns,
    or jax-md's shorter forms) and ``perturbation`` are as in ``jax_md.space.periodic_general``,
    so that constant pressure and ``quantity.stress`` work (jax-md's sign: minus ours); other
    keywords are ignored. It is NaN, with its forces, where the structure has left what the
    wave vectors or the list were made for: more growth than below, or a box that shrank below
    twice the cutoff, unless with `multi_image`.

    Args:
        model: Without angles, ``atomic`` block, ``max_neighbors`` and ``direct_forces``.
        params: Its parameters.
        atoms: The structure: a crystal of any cell, or a molecule (``space.free``); jax-md has
            no slabs. Positions and cell are those that the simulation starts from, or near.
        statistics: Scale, reference energies and elements of the training data; None leaves
            model units.
        fractional_coordinates: Positions are fractional; forces are Cartesian all the same.
        dr_threshold: Å; with 0, as in jax-md, lists are made anew in each update, else when an
            atom has moved by half of it.
        capacity_multiplier: Room in the list, by factor.
        multi_image: List all images of each atom, in place of the nearest one as jax-md's usual
            lists do; for cells smaller than twice the cutoff. None for where it is needed.
        max_stretch: Factor by which directions of the box may grow.
        max_growth: Å, by which a molecule may grow.
        reference_energies: Add the constant of the statistics; without it, float32 has more
            digits for changes.

    Returns:
        ``neighbor_fn`` (``allocate``, ``update``) of jax-md's sparse format, and ``energy_fn``.

    Raises:
        InputError: If jax-md is missing, the model or the structure are not for it, or a number
            is out of range.
    """
    partition, custom_partition = _jax_md()
    _check_model(model)
    _check_structure(atoms, statistics)
    _check_numbers(
        ("dr_threshold", dr_threshold, 0),
        ("capacity_multiplier", capacity_multiplier, 1),
        ("max_stretch", max_stretch, 1),
        ("max_growth", max_growth, 0),
    )
    template = template_of(model, atoms, max_stretch, max_growth)
    small = template.periodic and not large_enough(template)
    if small and multi_image is False:
        raise InputError(
            f"the cell is {np.min(heights(template.cell)):.4g} Å across, expected at least "
            f"{2 * template.cutoff:g} Å, twice the cutoff, for lists of nearest images; take a "
            "supercell, or multi_image: true"
        )
    multi_image = small or (bool(multi_image) and template.periodic)
    space = Space(template, fractional_coordinates)
    # jax-md's cell lists are for boxes in its standard form.
    upright = np.allclose(template.cell, np.tril(template.cell), atol=1e-12)
    upright = upright and np.all(np.diag(template.cell) > 0)
    make = (
        custom_partition.neighbor_list_multi_image
        if multi_image
        else partition.neighbor_list
    )
    listed = make(
        space.displacement,
        jnp.asarray(template.cell.T),
        template.cutoff,
        dr_threshold=float(dr_threshold),
        capacity_multiplier=capacity_multiplier,
        disable_cell_list=not (template.periodic and upright),
        fractional_coordinates=template.periodic,
        format=partition.Sparse,
    )
    neighbor_fn = partition.NeighborListFns(
        *_anywhere(listed, space, float(dr_threshold), multi_image)
    )
    params = jax.tree.map(jnp.asarray, params)
    statistics = statistics or Statistics()
    constant = statistics.mean + float(statistics.reference(atoms.numbers))

    def energy_fn(position: Array, neighbor: Any, **kwargs: Any) -> Float[Array, ""]:
        position = jnp.asarray(position)
        cell = space.cell(kwargs, position.dtype)
        cartesian = space.cartesian(position, cell)
        edges = _edges(neighbor, space.scaled(position, cell))
        given = cell if "box" in kwargs else None
        fine = within_limits(template, cartesian, given, nearest=not multi_image)
        if "perturbation" in kwargs:
            strained = box_matrix(kwargs["perturbation"], position.dtype).T
            cartesian, cell = (row_products(x, strained) for x in (cartesian, cell))
        batch = moved_batch(template, cartesian, cell, *edges, skin=dr_threshold > 0)
        energy = model_outputs(model, params, batch).energy[0] * statistics.scale
        # A product: forces are to be NaN too.
        energy = energy * jnp.where(fine, 1.0, jnp.nan).astype(energy.dtype)
        return energy + constant if reference_energies else energy

    return neighbor_fn, energy_fn


def _anywhere(
    listed: Any, space: Space, dr_threshold: float, multi_image: bool
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``allocate`` and ``update`` of a list, for positions as jax-md has them, anywhere."""

    def inside(position: Array, kwargs: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
        """Fractional coordinates within the cell, and the box if there is one."""
        position = jnp.asarray(position)
        cell = space.cell(kwargs, position.dtype)
        scaled = space.scaled(position, cell)
        if not space.template.periodic:
            return scaled, {}
        if "box" in kwargs and dr_threshold > 0 and not multi_image:
            raise InputError(
                "a box at call time needs dr_threshold: 0, since jax-md's lists do not see "
                "that a box has changed"
            )
        return scaled - jnp.floor(scaled), {"box": cell.T} if "box" in kwargs else {}

    def allocate(position: Array, extra_capacity: int = 0, **kwargs: Any) -> Any:
        position, kwargs = inside(position, kwargs)
        found = listed.allocate(position, extra_capacity, **kwargs)
        if getattr(found, "cell_size", None) is not None:
            # Part of the key of compilations, for which an array will not do.
            found = dataclasses.replace(found, cell_size=float(found.cell_size))
        return dataclasses.replace(found, update_fn=update)

    def update(position: Array, neighbors: Any, **kwargs: Any) -> Any:
        theirs = dataclasses.replace(neighbors, update_fn=listed.update)
        position, kwargs = inside(position, kwargs)
        found = listed.update(position, theirs, **kwargs)
        if kwargs and getattr(found, "cell_list_fn", None) is not None:
            # jax-md reports it, but not as an overflow, for which users look.
            least = round(1 / found.cell_size) * space.template.cutoff * (1 - 1e-6)
            shrunk = jnp.min(heights(kwargs["box"].T)) < least
            error = found.error.update(_CELL_LIST_OVERFLOW, shrunk)
            found = dataclasses.replace(found, error=error)
        return dataclasses.replace(found, update_fn=update)

    return allocate, update


def _edges(neighbor: Any, scaled: Array) -> tuple[Array, Array, Array]:
    """Senders, receivers, ascending, and lattice translations of the senders."""
    if not hasattr(neighbor, "shifts"):
        # Both directions are listed, of which the second index is the sorted one.
        senders, receivers = neighbor.idx
        return senders, receivers, nearest_images(scaled, senders, receivers)
    receivers, senders = neighbor.idx
    # The list was made of atoms within the cell, which may have left it since.
    turns = jnp.round(scaled - neighbor.reference_position).astype(jnp.int32)
    turns = jnp.pad(turns, ((0, 1), (0, 0)))
    order = jnp.argsort(receivers)
    receivers, senders, shifts = receivers[order], senders[order], neighbor.shifts[order]
    return senders, receivers, shifts.astype(jnp.int32) + turns[receivers] - turns[senders]


def _jax_md() -> tuple[Any, Any]:
    try:
        from jax_md import custom_partition, partition
    except ImportError as error:
        raise InputError(
            f"jax-md is missing or broken ({error}), expected it installed: "
            "pip install 'ewald_jax[jax-md]'"
        ) from error
    return partition, custom_partition


def _check_model(model: nn.Module) -> None:
    """Refuses models whose inputs are made on the host."""
    needed, name = neighborhood(model), type(model).__name__
    if needed.triplets:
        raise InputError(
            f"{name} needs tables of angles, which are made on the host, expected a model "
            "without them for jax-md, such as schnet or painn"
        )
    if needed.far_cutoff is not None:
        raise InputError(
            "the model has an atomic block with edges of its own, expected atomic: null for "
            "jax-md, whose lists have one cutoff"
        )
    if needed.max_neighbors is not None:
        raise InputError(
            f"the model has max_neighbors: {needed.max_neighbors}, expected null for jax-md, "
            "whose lists have all neighbors"
        )
    if getattr(model, "direct_forces", False):
        raise InputError(
            f"{name} has direct_forces: true, expected false for jax-md, which takes forces as "
            "the derivative of the energy"
        )


def _check_structure(atoms: ase.Atoms, statistics: Statistics | None) -> None:
    if atoms.pbc.any() and not atoms.pbc.all():
        raise InputError(
            f"the structure has pbc {atoms.pbc.tolist()}, expected all or none for jax-md, "
            "which has no partly periodic space"
        )
    if statistics and statistics.species:
        check_elements(statistics, atoms.numbers, "the structure")


def _check_numbers(*numbers: tuple[str, float, float]) -> None:
    for name, value, least in numbers:
        if not (value >= least and np.isfinite(value)):
            raise InputError(f"{name} must be at least {least} and finite, not {value}")
