"""Trained models as files that jax runs without this package (`jax.export`, StableHLO).

::

    model.npz         the compiled functions, the weights, what `load_exported` has to know
    model.json        the same in words: units, conventions, elements, inputs
    load_exported.py  30 lines that need jax and numpy alone

One file serves structures of any size, since numbers of atoms, edges and wave vectors are
symbols in it. Neighbors and wave vectors are found inside (`exported_graph`). The functions are
portable StableHLO (`jax.export.Exported.mlir_module_serialized`), for which jax promises six
months of compatibility: a format for use, not for archives.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ase.data import chemical_symbols
from jax.flatten_util import ravel_pytree

from ewald_jax.data.statistics import Statistics
from ewald_jax.interop import load_exported
from ewald_jax.interop.exported import (
    BOUNDARIES,
    Arrays,
    example_arrays,
    exported_functions,
    functions_by_boundary,
    lowered,
    symbolic_shapes,
)
from ewald_jax.models import model_to_config, neighborhood
from ewald_jax.train.files import write_json, writing
from ewald_jax.typing import InputError, PyTree

PLATFORMS = ("cpu", "cuda", "tpu")
MODEL, DESCRIPTION, LOADER = "model.npz", "model.json", "load_exported.py"


def export(
    model: nn.Module,
    params: PyTree,
    statistics: Statistics,
    output: str | Path,
    dtype: str = "float32",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes a model that jax alone can evaluate; see the module's table.

    Args:
        model: From `build_model` or `load_checkpoint`.
        params: Its parameters.
        statistics: Scale and reference energies of the training data, and its elements.
        output: Folder to write; may not exist.
        dtype: ``float32``, or ``float64``, which needs ``JAX_ENABLE_X64=1`` where it is used.
        overwrite: Replace an exported model that is there.

    Returns:
        What model.json says.

    Raises:
        InputError: If the model cannot be exported, the folder is in use, or cannot be written;
            nothing half-written stays behind.
    """
    output = Path(output)
    check_output(output, overwrite)
    if dtype not in ("float32", "float64"):
        raise InputError(f"dtype must be 'float32' or 'float64', not {dtype!r}")
    names = functions_by_boundary(model)
    with jax.enable_x64(dtype == "float64"):
        weights, unravel = ravel_pytree(params)
        examples = example_arrays(np.dtype(dtype), np.asarray(weights))
        functions = exported_functions(model, unravel, statistics.scale)
        codes = {
            name: lowered(function, examples, PLATFORMS).mlir_module_serialized
            for name, function in functions.items()
        }
    elements = _elements(model, statistics)
    about = describe(model, statistics, elements, examples)
    arrays = {
        "on": np.array(PLATFORMS),
        "names": np.array(names),
        "shapes": np.array(symbolic_shapes(examples.weights)),
        "types": np.array([str(array.dtype) for array in examples[:4]]),
        "elements": np.array(elements),
        "references": np.array(statistics.reference_energies),
        "mean": np.array(statistics.mean),
        **{f"like_{i}": array for i, array in enumerate(examples)},
        **{name: np.frombuffer(code, np.uint8) for name, code in codes.items()},
    }
    publish(output, arrays, about)
    return about


def check_output(output: Path, overwrite: bool) -> None:
    """Refuses a folder that `export` would not write to.

    Raises:
        InputError: If it is in use, or there is no folder to make it in.
    """
    if not output.absolute().parent.is_dir():
        raise InputError(f"there is no folder {output.parent} to write {output.name} into")
    if output.exists() and not output.is_dir():
        raise InputError(f"the output folder {output} is a file")
    held = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if held and not overwrite:
        raise InputError(
            f"the output folder {output} exists and is not empty; use --overwrite to replace "
            "the exported model in it, or another folder"
        )
    others = held - {MODEL, DESCRIPTION, LOADER, "__pycache__"}
    if others:
        raise InputError(
            f"cannot overwrite {output}: it holds {sorted(others)[0]}, which no export has "
            "written; expected an exported model and nothing else"
        )


def describe(
    model: nn.Module, statistics: Statistics, elements: list[int], examples: Arrays
) -> dict[str, Any]:
    """What a user of an exported model has to know, plain values.

    Args:
        model: That is exported.
        statistics: Of its training data.
        elements: Atomic numbers that it takes.
        examples: Arrays like those that the functions are called with.
    """
    needed, names = neighborhood(model), functions_by_boundary(model)
    shapes = symbolic_shapes(examples.weights)
    settings = model_to_config(model)
    return {
        "model": settings,
        "scheme": None if model.ewald is None else model.ewald.scheme,
        "boundaries": {b: n for b, n in zip(BOUNDARIES, names, strict=True) if n},
        "cutoff": needed.cutoff,
        "k_cutoff": None if needed.waves is None else needed.waves.k_cutoff,
        "max_neighbors": needed.max_neighbors,
        "elements": [chemical_symbols[z] for z in elements],
        "reference_energies": statistics.to_dict()["reference_energies"],
        "mean": statistics.mean,
        "scale": statistics.scale,
        "units": {"length": "Å", "energy": "eV", "forces": "eV/Å", "stress": "eV/Å^3"},
        "conventions": {
            "cell": "rows are lattice vectors",
            "energy": "mean + sum over atoms of (energies of atoms + reference_energies), "
            "summed in float64",
            "forces": "of a force head" if _is_direct(model) else "-dE/dx",
            "stress": "dE/dstrain / volume, tension positive, of the periodic directions; "
            "zero without any",
        },
        "dtype": str(examples.positions.dtype),
        "x64": "needs JAX_ENABLE_X64=1" if examples.positions.dtype == np.float64 else "",
        "platforms": list(PLATFORMS),
        "jax": jax.__version__,
        "inputs": {
            field: {"shape": f"({shape})", "dtype": str(array.dtype), "is": meaning}
            for (field, meaning), shape, array in zip(
                _INPUTS.items(), shapes, examples, strict=True
            )
        },
        "outputs": {
            "sites": "(n) energies of atoms without references, eV",
            "forces": "(n, 3) eV/Å",
            "stress": "(3, 3) eV/Å^3",
            "sizes": "(3) lengths of edges, waves and nodes that the structure needs; the "
            "function 'sizes' gives them alone",
        },
    }


_INPUTS: Mapping[str, str] = {
    "species": "atomic numbers",
    "positions": "Å",
    "cell": "rows are lattice vectors, Å; those of open directions may be zero",
    "pbc": "not 0 along periodic lattice vectors",
    "weights": "like_4 of model.npz",
    "edges": "length alone: room for edges, at least sizes[0]",
    "waves": "length alone: room for wave vectors, at least sizes[1]",
    "nodes": "length alone: quadrature nodes, sizes[2]",
}


def _is_direct(model: nn.Module) -> bool:
    return bool(getattr(model, "direct_forces", False))


def _elements(model: nn.Module, statistics: Statistics) -> list[int]:
    """Those of the training data; all that the model has weights for if nobody knows."""
    known = getattr(model, "max_atomic_number", model.num_elements - 1)
    return list(statistics.species) or list(range(1, known + 1))


def publish(output: Path, arrays: Mapping[str, np.ndarray], about: dict) -> None:
    """Writes a folder and the loader into it, whole: by one rename of a sibling.

    Args:
        output: Replaced if it exists.
        arrays: Of `MODEL`.
        about: Plain values of `DESCRIPTION`.

    Raises:
        InputError: If it cannot be written; a folder that was there is then as it was.
    """
    place = output.with_name(f".{output.name}.{os.getpid()}.unfinished")
    before = output.with_name(f".{output.name}.{os.getpid()}.replaced")
    with writing(f"the exported model {output}"):
        try:
            place.mkdir()
            with open(place / MODEL, "wb") as file:
                np.savez_compressed(file, **arrays)
            write_json(place / DESCRIPTION, about)
            shutil.copyfile(load_exported.__file__, place / LOADER)
            if output.is_dir():
                os.replace(output, before)
            os.replace(place, output)
        except BaseException:
            if before.is_dir() and not output.exists():
                os.replace(before, output)
            raise
        finally:
            for folder in (place, before):
                shutil.rmtree(folder, ignore_errors=True)
