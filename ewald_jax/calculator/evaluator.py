"""One compiled function per shape, and a look at its memory before it runs."""

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from ewald_jax.graph.schema import Batch
from ewald_jax.potential import Prediction, site_outputs
from ewald_jax.typing import InputError, PyTree

# What other programs leave on Linux, and what its control groups (versions 2 and 1) let a
# container take of its machine.
_MEMORY = Path("/proc/meminfo")
_CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


class Evaluator:
    """Energies of atoms and of structures, forces and stress of batches.

    Attributes:
        memory_limit: Bytes that an evaluation may take.
        members: Networks of an ensemble; 1 for a single one.
    """

    def __init__(
        self,
        model: nn.Module,
        params: PyTree,
        memory_limit: int | None = None,
        members: int = 1,
    ):
        """Compiles nothing yet.

        Args:
            model: The network.
            params: Its parameters, with a leading axis of members if there are several.
            memory_limit: Bytes that an evaluation may take; None for what the device has.
            members: How many networks the parameters are of.
        """
        self._state = (model, params, memory_limit, members)
        self.members = members
        self._params = jax.device_put(params)
        self._compiled: dict[Any, Any] = {}
        self.memory_limit = device_memory() if memory_limit is None else memory_limit

    @property
    def compilations(self) -> int:
        """Shapes that have been compiled."""
        return len(self._compiled)

    def __call__(self, batch: Batch, stress: bool) -> tuple[np.ndarray, Prediction]:
        """As `site_outputs`, in numpy arrays with a leading axis of members; forces always.

        Args:
            batch: Padded, without labels.
            stress: Also compute stress.

        Raises:
            InputError: If it would take more memory than the limit.
        """
        leaves, treedef = jax.tree.flatten(batch)
        key = (stress, treedef, *((leaf.shape, leaf.dtype) for leaf in leaves))
        if key not in self._compiled:
            function = partial(site_outputs, self._state[0], forces=True, stress=stress)
            if self.members > 1:
                function = jax.vmap(function, in_axes=(0, None))
            compiled = jax.jit(function).lower(self._params, batch).compile()
            check_memory(needed_bytes(compiled), self.memory_limit, batch)
            self._compiled[key] = compiled
        found = jax.tree.map(np.asarray, self._compiled[key](self._params, batch))
        return found if self.members > 1 else jax.tree.map(lambda x: x[None], found)

    def __getstate__(self) -> tuple:
        """Compiled functions belong to a process."""
        return self._state

    def __setstate__(self, state: tuple) -> None:
        """Compiles again when needed."""
        self.__init__(*state)


def check_memory(needed: int, limit: int, batch: Batch) -> None:
    """Refuses an evaluation that is too large, before anything is allocated for it.

    Raises:
        InputError: With both sizes.
    """
    if needed > limit:
        atoms = int(np.count_nonzero(batch.graph.nodes["species"]))
        raise InputError(
            f"of {atoms} atoms with {len(batch.graph.senders)} edges needs about "
            f"{needed / 1e9:.3g} GB of memory, expected at most {limit / 1e9:.3g} GB"
        )


def device_memory() -> int:
    """Bytes of memory of the default device; for a CPU those free for this process."""
    stats = jax.devices()[0].memory_stats() or {}
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = _MEMORY.read_text() if _MEMORY.is_file() else ""
    if found := re.search(r"^MemAvailable: +(\d+) kB", text, re.M):
        machine = min(machine, int(found[1]) * 1024)
    for place in _CONTAINER_LIMITS:
        text = place.read_text().strip() if place.is_file() else ""
        machine = min(machine, int(text)) if text.isdecimal() else machine
    return int(stats.get("bytes_limit", machine))


def needed_bytes(compiled: Any) -> int:
    """What the compiler has planned; 0 where it does not say."""
    plan = compiled.memory_analysis()
    names = ("temp_size_in_bytes", "output_size_in_bytes", "argument_size_in_bytes")
    return sum(int(getattr(plan, name, 0)) for name in names)
