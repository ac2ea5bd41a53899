"""Data: readers, labels, statistics, splits, cached graphs and batches."""

from ewald_jax.data.ase_files import read_structures
from ewald_jax.data.base import (
    READERS,
    DataConfig,
    GraphDataset,
    dataset_from_atoms,
    load_dataset,
)
from ewald_jax.data.cache import cache_directory
from ewald_jax.data.fitting import dataset_statistics, fit_statistics
from ewald_jax.data.labels import LabelOptions, structure_targets
from ewald_jax.data.loader import Loader
from ewald_jax.data.reading import Reader
from ewald_jax.data.splits import group_split, random_split, split_dataset
from ewald_jax.data.statistics import Statistics, StatisticsConfig
from ewald_jax.data.store import Sample
from ewald_jax.data.structure_info import metadata

__all__ = [
    "READERS",
    "DataConfig",
    "GraphDataset",
    "LabelOptions",
    "Loader",
    "Reader",
    "Sample",
    "Statistics",
    "StatisticsConfig",
    "cache_directory",
    "dataset_from_atoms",
    "dataset_statistics",
    "fit_statistics",
    "group_split",
    "load_dataset",
    "metadata",
    "random_split",
    "read_structures",
    "split_dataset",
    "structure_targets",
]
