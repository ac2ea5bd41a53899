"""The config of a data set, and how its files become one."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import ase

from ewald_jax.data import samples
from ewald_jax.data.cache import (
    cache_directory,
    cached_store,
    find_store,
    store_from_atoms,
)
from ewald_jax.data.dataset import GraphDataset
from ewald_jax.data.dispersion import parse_dispersion
from ewald_jax.data.expand import expand_path, kinds_of_files
from ewald_jax.data.file_units import unit_factor
from ewald_jax.data.labels import LABELS, LabelOptions
from ewald_jax.data.packed import OpenMaps
from ewald_jax.data.parallel import file_progress, for_each
from ewald_jax.data.readers import READERS
from ewald_jax.data.reading import NothingWholeError
from ewald_jax.data.statistics import StatisticsConfig
from ewald_jax.data.store import GraphStore
from ewald_jax.graph.neighborhood import Neighborhood
from ewald_jax.typing import InputError

ROLES = ("train", "val", "test")

_WORTH_PROCESSES = 2**21
"""Bytes of files to read from which on it pays to start processes, which takes seconds."""


@dataclass(frozen=True)
class DataConfig:
    """Where structures come from, which labels count, and how they are split.

    Give one of `name`, `path`, or `train` (with `val` and `test`).

    Attributes:
        name: A sample set of the package.
        path: A file, a folder of files, or a pattern such as ``data/*.extxyz.xz``.
        train: Files of the training split, like `path`.
        val: Files of the validation split; without them, `val_size` of the training files.
        test: Files of the test split; without them there is none.
        kind: Reader of the files, a key of `READERS`; "" chooses it by the file's name. Frames
            beside OC20's text files are ``oc20_s2ef``, with adsorption energies; ``extxyz``
            reads their total ones.
        energy_key: Key of the energy in the file.
        forces_key: Key of the forces in the file.
        stress_key: Key of the stress in the file.
        labels: Labels that every structure must have; others are ignored. Empty asks for the
            energy, and takes forces and stress where the first structure has them.
        energy_unit: Unit of energies in the file, such as ``kcal/mol``.
        length_unit: Unit of lengths in the file.
        on_error: ``raise`` stops at a broken structure, ``skip`` leaves it out and says so, or
            the rest of a file that cannot be read on; only if nothing is left it stops, too.
        subtract: Dispersion to take off energies (forces, stress), such as ``PBE0-D3(BJ)``
            or ``PBE-D3(zero)-ATM``, computed by dftd3; predictions are then without it, too.
        split: ``random``, ``key``, ``oe62``, or a split of the sample set; "" is the sample
            set's own or else ``random``. Not used with `train`. ``oe62`` is the paper's of
            OE62: structures in the order of pandas' ``sample(frac=1, random_state=42)``,
            whatever `split_seed`, the last for testing, those before for validation, those
            before for training; a `val_size` or `test_size` left at its default is the
            paper's share, 6000 or 5489 of 61489.
        split_key: For ``key``: metadata key whose equal values stay together.
        split_seed: Seed of the shuffle.
        train_size: Share (below 1) or number of training structures; 0 is all the rest.
        val_size: Share or number of validation structures.
        test_size: Share or number of test structures.
        limit: At most so many training structures, after the shuffle; 0 is no limit.
        limit_eval: The same for validation and test structures.
        cache_dir: Folder of cached graphs; "" is the user's, "none" is no cache.
        statistics: Reference energies and normalisation.
    """

    name: str = ""
    path: str = ""
    train: str = ""
    val: str = ""
    test: str = ""
    kind: str = ""
    energy_key: str = "energy"
    forces_key: str = "forces"
    stress_key: str = "stress"
    labels: tuple[str, ...] = ()
    energy_unit: str = "eV"
    length_unit: str = "Angstrom"
    on_error: str = "raise"
    subtract: str = ""
    split: str = ""
    split_key: str = ""
    split_seed: int = 0
    train_size: float = 0.0
    val_size: float = 0.1
    test_size: float = 0.1
    limit: int = 0
    limit_eval: int = 0
    cache_dir: str = ""
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)

    def __post_init__(self):
        """Checks what can be checked without looking at files.

        Raises:
            InputError: If fields contradict each other or are out of range.
        """
        given = [key for key in ("name", "path", "train") if getattr(self, key)]
        if len(given) > 1:
            raise InputError(
                f"data.{given[0]} and data.{given[1]} are both set, expected one of them"
            )
        if self.name and self.name not in samples.SAMPLES:
            raise InputError(
                f"data.name is {self.name!r}, expected one of {', '.join(samples.SAMPLES)}"
            )
        if (self.val or self.test) and not self.train:
            raise InputError("data.val and data.test need data.train beside them")
        unknown = set(self.labels) - set(LABELS)
        if unknown:
            raise InputError(
                f"data.labels has {min(unknown)!r}, expected some of {', '.join(LABELS)}"
            )
        if self.on_error not in ("raise", "skip"):
            raise InputError(
                f"data.on_error is {self.on_error!r}, expected 'raise' or 'skip'"
            )
        unit_factor(self.energy_unit, "energy")
        unit_factor(self.length_unit, "length")
        if self.subtract:
            parse_dispersion(self.subtract)
        for role in ROLES:
            size = getattr(self, f"{role}_size")
            if size < 0 or (size >= 1 and size != int(size)):
                raise InputError(
                    f"data.{role}_size is {size}, expected a share below 1 or a whole number"
                )
        if self.limit < 0 or self.limit_eval < 0:
            raise InputError("data.limit and data.limit_eval must be 0 or more")
        if (self.split == "key") != bool(self.split_key):
            raise InputError("data.split: key and data.split_key go together")

    @property
    def label_options(self) -> LabelOptions:
        """Which labels to read, as the readers take it."""
        return LabelOptions(
            self.energy_key,
            self.forces_key,
            self.stress_key,
            tuple(self.labels) or None,
            self.energy_unit,
            self.length_unit,
            self.on_error,
            self.subtract,
        )


def load_dataset(
    config: DataConfig,
    neighborhood: Neighborhood | float,
    progress: bool = False,
    labelled: bool = True,
    workers: int = 1,
) -> GraphDataset:
    """Reads the files of a config into one data set, through the cache.

    Args:
        config: Which files and labels.
        neighborhood: Which edges (`models.neighborhood` says what a model needs); a number is
            a cutoff, Å, that keeps all neighbors.
        progress: Show a progress bar on stderr while graphs are built.
        labelled: Read labels; False ignores those there are.
        workers: Processes that build graphs which are not in the cache yet, a file to each.

    Raises:
        InputError: If there is nothing to read, or it is broken; names file and structure.
            `LabelMissingError` if the first structure of a file lacks a label.
    """
    files = source_files(config)
    options = config.label_options
    if not labelled:
        options = options._replace(labels=())
    maps = OpenMaps()
    kinds = kinds_of_files([path for _, path in files], config.kind, labelled)
    jobs = [
        (path, kind, options, neighborhood, config.cache_dir)
        for (_, path), kind in zip(files, kinds, strict=True)
    ]
    found: list[GraphStore | None] = [None] * len(jobs)
    if workers > 1 and len(jobs) > 1 and cache_directory(config.cache_dir):
        found = [find_store(path, READERS[kind], *rest, maps) for path, kind, *rest in jobs]
        missing = [job for job, store in zip(jobs, found, strict=True) if store is None]
        _build_together(missing, workers, progress)
    stores, roles, left_out = [], [], []
    for (role, _), (path, kind, *rest), store in zip(files, jobs, found, strict=True):
        try:
            store = store or cached_store(
                path, READERS[kind], *rest, progress, _worth(path, workers), maps
            )
        except NothingWholeError as error:
            left_out += error.skipped
        else:
            stores.append(store)
            roles.append(role)
    if not stores:
        raise NothingWholeError("the data set", left_out)
    cache = cache_directory(config.cache_dir)
    return GraphDataset(stores, neighborhood, roles, cache, left_out)


def _build_together(missing: list[tuple], workers: int, progress: bool) -> None:
    """A file to each process; a few that are left over get all processes one by one."""
    left = len(missing) % workers
    files = missing[: len(missing) - (left if 2 * left <= workers else 0)]
    if len(files) < 2 or sum(job[0].stat().st_size for job in files) < _WORTH_PROCESSES:
        return
    with file_progress(len(files), progress) as advance:
        for_each(_build_one, files, workers, advance)


def _worth(path: Path, workers: int) -> int:
    """Processes that one file is worth."""
    known = path.is_file() and path.stat().st_size >= _WORTH_PROCESSES
    return workers if known else 1


def _build_one(path: Path, kind: str, *rest) -> int:
    try:
        return len(cached_store(path, READERS[kind], *rest))
    except NothingWholeError:  # whoever reads the file again is told
        return 0


def source_files(config: DataConfig) -> list[tuple[str, Path]]:
    """The files of a config in the order of the data set, each with its role or "".

    Raises:
        InputError: If there is nothing to read, or two roles have the same file.
    """
    files = [
        (role, path)
        for role, value in _sources(config).items()
        for path in expand_path(value, config.kind)
    ]
    seen: dict[Path, str] = {}
    for role, path in files:
        if (other := seen.setdefault(path.resolve(), role)) != role:
            raise InputError(
                f"{path} is in data.{other} and in data.{role}, expected different files: "
                "what is trained on tells nothing about what is not"
            )
    return files


def dataset_from_atoms(
    structures: Iterable[ase.Atoms],
    neighborhood: Neighborhood | float,
    options: LabelOptions | None = None,
    source: str = "structures",
) -> GraphDataset:
    """A data set of structures in memory.

    Args:
        structures: At least one; labels from a calculator that holds results, or `info`.
        neighborhood: Which edges (`models.neighborhood` says what a model needs); a number is
            a cutoff, Å, that keeps all neighbors.
        options: Which labels to read, ``LabelOptions(labels=())`` for none.
        source: What error messages call the list.

    Raises:
        InputError: If a structure is broken or labels are missing.
    """
    store = store_from_atoms(structures, source, options or LabelOptions(), neighborhood)
    return GraphDataset([store], neighborhood)


def _sources(config: DataConfig) -> dict[str, str]:
    if config.name:
        return {"": str(samples.sample_path(config.name))}
    if config.path:
        return {"": config.path}
    if config.train:
        return {role: getattr(config, role) for role in ROLES if getattr(config, role)}
    raise InputError("data has no source, expected data.name, data.path or data.train")
