"""An ASE calculator around a model: relaxations, dynamics and reaction paths."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import ase
import flax.linen as nn
import jax
import numpy as np
from ase.calculators.calculator import Calculator, all_changes

from ewald_jax.calculator.arguments import check_list, check_members, check_settings
from ewald_jax.calculator.capacity import Capacity, check_size
from ewald_jax.calculator.elements import ElementCheck
from ewald_jax.calculator.errors import SetupError, StructureError, raised_as
from ewald_jax.calculator.evaluator import Evaluator
from ewald_jax.calculator.results import SPREADS, results_of
from ewald_jax.data.statistics import Statistics
from ewald_jax.graph import (
    Budget,
    Structure,
    batch_graphs,
    check_atoms,
    coarse_budget,
    still_holds,
    structure_from_atoms,
    structure_from_list,
    verlet_list,
)
from ewald_jax.graph.verlet import VerletList
from ewald_jax.models import check_structure, neighborhood
from ewald_jax.pretrained import PREFIX
from ewald_jax.typing import PyTree

_NUM_LISTS = 16
"""Structures whose neighbor lists are kept: the images of a path share one calculator."""


class EwaldCalculator(Calculator):
    """Energy, forces, stress and energies of atoms for any boundary conditions.

    Everything is computed at once, in JAX's default float type: set ``JAX_ENABLE_X64=1`` for
    float64. Arrays are padded with room to grow, so that relaxations and dynamics compile
    once, and candidates of edges are searched again only after atoms have moved.

    Stress is that of the periodic directions, by the volume of the whole cell; the components
    along open directions are zero, and molecules and cells without a volume have none.

    One calculator may serve several `ase.Atoms`, also from several threads (the images of a
    reaction path): they take turns, and share compilations.

    Of an ensemble, all are means over its members, and ``energy_std`` (eV) and ``forces_std``
    [atoms, 3] (eV/Å), the standard deviations over them, say how far they disagree.

    Attributes:
        implemented_properties: ``energy``, ``free_energy`` (the same), ``energies``,
            ``forces``, ``stress``; of an ensemble also ``energy_std``, ``forces_std``.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
    ]
    # The networks see neither.
    ignored_changes: ClassVar[set[str]] = {"initial_charges", "initial_magmoms"}

    def __init__(
        self,
        model: nn.Module,
        params: PyTree,
        statistics: Statistics | None = None,
        *,
        skin: float = 0.5,
        slack: float = 0.2,
        strict: bool = False,
        memory_limit: int | None = None,
        members: int = 1,
        **options: Any,
    ):
        """Compiles nothing yet.

        Args:
            model: From `build_model` or `load_checkpoint`.
            params: Its parameters, of an ensemble with a leading axis of members.
            statistics: Scale, reference energies and elements of the training data; None
                leaves energies in model units, and elements unchecked.
            skin: Å; neighbors are searched again when an atom has moved by half of it.
            slack: Share by which edges, wave vectors and density may grow without a
                compilation.
            strict: Refuse elements that the training data did not have, in place of a
                warning.
            memory_limit: Bytes that an evaluation may take; None for what the device has.
            members: How many networks the parameters are of.
            **options: Of `ase.calculators.calculator.Calculator`.

        Raises:
            SetupError: If a setting is out of range, or the parameters are not of so many
                members (an ASE `CalculatorSetupError`).
        """
        check_settings(EwaldCalculator, options, {"skin": skin, "slack": slack})
        super().__init__(**options)
        self.model, self.statistics, self._skin = model, statistics, float(skin)
        self._check_elements = ElementCheck(statistics, strict)
        with raised_as(SetupError):
            self._neighborhood = neighborhood(model)
            self._alone = neighborhood(model, alone=True)
            check_members(members, params)
        if members > 1:
            self.implemented_properties = [*self.implemented_properties, *SPREADS]
        self._evaluator = Evaluator(model, params, memory_limit, members)
        self._capacity = Capacity(slack, self._neighborhood.triplets)
        self._lists, self._searches = [], 0
        self._lock = threading.RLock()

    @classmethod
    def from_checkpoint(
        cls, directory: str | Path, which: str = "best", **options: Any
    ) -> "EwaldCalculator":
        """The calculator of a directory that training has written.

        Args:
            directory: The output directory of a training, or ``pretrained:NAME``.
            which: ``best`` by validation or ``last``.
            **options: Of `EwaldCalculator`.

        Raises:
            SetupError: As `load_checkpoint` (an ASE `CalculatorSetupError`).
        """
        from ewald_jax.train.checkpoint import load_checkpoint
        from ewald_jax.train.description import members_of

        with raised_as(SetupError):
            model, params, config, statistics = load_checkpoint(directory, which)
        options.setdefault("members", members_of(config))
        return cls(model, params, statistics, **options)

    @classmethod
    def from_pretrained(cls, name: str, **options: Any) -> "EwaldCalculator":
        """The calculator of a model that comes with the package.

        Args:
            name: One of `ewald_jax.pretrained.PRETRAINED`; ``ewald_jax.pretrained.model_card``
                says what each has seen.
            **options: Of `EwaldCalculator`.

        Raises:
            SetupError: If there is no such model (an ASE `CalculatorSetupError`).
        """
        return cls.from_checkpoint(f"{PREFIX}{name}", **options)

    @property
    def compilations(self) -> int:
        """Shapes compiled since the calculator was made."""
        return self._evaluator.compilations

    @property
    def neighbor_searches(self) -> int:
        """Times that candidates of edges were searched."""
        return self._searches

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Computes all properties, whichever are asked for.

        Args:
            atoms: The structure.
            properties: As ASE has it.
            system_changes: As ASE has it.

        Raises:
            StructureError: If the structure is refused or too large, or the result not finite
                (an ASE `InputError`).
        """
        with self._lock:
            super().calculate(atoms, list(properties), list(system_changes))
            self.results = {}
            with raised_as(StructureError, "the structure "):
                self._check(self.atoms)
                listed = self._list(self.atoms)
                structure = structure_from_list(listed, self.atoms, _dtype())
                budget = self._capacity.budget(structure, listed, self.atoms)
                found = self._outputs([structure], budget, bool(self.atoms.pbc.any()))
                self.results = results_of(self.atoms, *found[0], self.statistics)

    def get_property(
        self, name: str, atoms: ase.Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """As ASE has it, one thread at a time: results are of the structure asked for."""
        with self._lock:
            return super().get_property(name, atoms, allow_calculation)

    def get_energy_std(self, atoms: ase.Atoms | None = None) -> float:
        """Standard deviation of the energy over the members of an ensemble, eV.

        Raises:
            PropertyNotImplementedError: For a single network (ASE's).
        """
        return self.get_property("energy_std", atoms)

    def get_forces_std(self, atoms: ase.Atoms | None = None) -> np.ndarray:
        """[atoms, 3] standard deviations of the forces, eV/Å; as `get_energy_std`."""
        return self.get_property("forces_std", atoms)

    def calculate_many(
        self, list_of_atoms: Sequence[ase.Atoms], batch_size: int = 16
    ) -> list[dict[str, Any]]:
        """Results of many structures, in batches.

        Args:
            list_of_atoms: Structures of any sizes and boundary conditions.
            batch_size: Structures at a time.

        Returns:
            What `results` holds after each single calculation.

        Raises:
            StructureError: If a structure is refused or too large, or a result not finite,
                naming its index (an ASE `InputError`).
        """
        check_list(list_of_atoms, batch_size)
        out = []
        for start in range(0, len(list_of_atoms), batch_size):
            chunk, structures = list_of_atoms[start : start + batch_size], []
            for index, atoms in enumerate(chunk, start):
                with raised_as(StructureError, f"structure {index} "):
                    self._check(atoms)
                    structures.append(
                        structure_from_atoms(atoms, self._neighborhood, _dtype())
                    )
            budget = coarse_budget(structures, batch_size, self._neighborhood.triplets)
            stress = any(atoms.pbc.any() for atoms in chunk)
            with (
                self._lock,
                raised_as(StructureError, f"a batch from structure {start} on "),
            ):
                found = self._outputs(structures, budget, stress)
            for index, (atoms, outputs) in enumerate(zip(chunk, found, strict=True), start):
                with raised_as(StructureError, f"structure {index} "):
                    out.append(results_of(atoms, *outputs, self.statistics))
        return out

    def __getstate__(self) -> dict[str, Any]:
        """Locks belong to a process."""
        return {key: value for key, value in vars(self).items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With a lock of its own."""
        vars(self).update(state, _lock=threading.RLock())

    def _list(self, atoms: ase.Atoms) -> VerletList:
        """A list that still holds if there is one, else a new one."""
        found = next((x for x in self._lists if still_holds(x, atoms)), None)
        if found is None:
            found = verlet_list(atoms, self._alone, self._skin)
            self._searches += 1
        # The least recently used one goes.
        others = [x for x in self._lists if x is not found]
        self._lists = [found, *others][:_NUM_LISTS]
        return found

    def _outputs(
        self, structures: Sequence[Structure], budget: Budget, stress: bool
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        """Energies of atoms, forces and stress of each structure by each member."""
        batch = batch_graphs(structures, budget=budget, neighborhood=self._neighborhood)
        sites, out = self._evaluator(batch, stress)
        ends = np.cumsum([int(structure.graph.n_node[0]) for structure in structures])
        parts = [np.split(values, ends, axis=1)[:-1] for values in (sites, out.forces)]
        stresses = [None] * len(ends)
        if out.stress is not None:
            stresses = np.swapaxes(out.stress, 0, 1)[: len(ends)]
        return list(zip(*parts, stresses, strict=True))

    def _check(self, atoms: ase.Atoms) -> None:
        check_atoms(atoms)
        check_structure(self.model, atoms.numbers, atoms.pbc)
        check_size(atoms, self._neighborhood, self._skin, self._evaluator.memory_limit)
        self._check_elements(atoms, stacklevel=3)


def _dtype() -> np.dtype:
    return jax.dtypes.canonicalize_dtype(np.float64)
