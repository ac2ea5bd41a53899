"""The published trainings: which there are, how long they are, what the reference took."""

from dataclasses import dataclass
from pathlib import Path

from cells import CONFIGS
from steps import MODELS, variant_files

from ewald_jax.config import Config, load_config
from ewald_jax.train.prepare import count_steps

STRUCTURES = {"oe62": 50_000, "oc20": 2_000_000}
"""Published numbers of training structures."""

ATOMS = {"oe62": 41, "oc20": 66}
"""Of the structures that stand for them (`analysis.made_up`); OC20's own slabs have more."""

REFERENCE_HOURS = {
    "oe62": {
        "schnet": {"baseline": 1, "embeddings": 1.5, "cutoff": 1, "ewald": 4},
        "painn": {"baseline": 10, "embeddings": 10, "cutoff": 12, "ewald": 14.5},
        "dimenetpp": {"baseline": 16, "embeddings": 19, "cutoff": 22, "ewald": 22},
        "gemnet_t": {"baseline": 32, "embeddings": 32, "cutoff": 42, "ewald": 42},
    },
    "oc20": {
        "schnet": {"baseline": 28, "cutoff": 70, "ewald": 66},
        "painn": {"baseline": 59, "cutoff": 79, "ewald": 65},
        "dimenetpp": {"baseline": 144, "cutoff": 159, "ewald": 156},
        "gemnet_t": {"baseline": 242, "cutoff": 268, "ewald": 266},
    },
}
"""Training on one A100, from the notebooks of the reference's repository."""


@dataclass(frozen=True)
class Run:
    """One published training.

    Attributes:
        data: ``oe62`` or ``oc20``.
        model: One of `MODELS`.
        variant: ``baseline``, ``embeddings``, ``cutoff``, ``atomic``, ``ewald`` or ``radial``.
        path: File of the variant.
    """

    data: str
    model: str
    variant: str
    path: Path

    @property
    def name(self) -> str:
        """Like ``oe62_painn_ewald``."""
        return f"{self.data}_{self.model}_{self.variant}"

    @property
    def config(self) -> Config:
        """Of model and variant; the data play no part."""
        model = CONFIGS / "model" / f"{self.model}_{self.data}.yaml"
        return load_config([model, self.path], ["data.name=dimers"])


def published_runs() -> list[Run]:
    """All of them: those of the paper, and ours with the radial filter."""
    runs = []
    for data, scheme in (("oe62", "voxel"), ("oc20", "lattice")):
        for model in MODELS:
            kinds = ("baseline", "embeddings", "cutoff", "atomic", scheme, "radial")
            files = variant_files(f"{model}_{data}", kinds)
            for kind, path in files.items():
                name = "ewald" if kind == scheme else kind
                runs.append(Run(data, model, name, path))
    return runs


def num_steps(config: Config, data: str) -> int:
    """Steps of the whole training on as many structures as published."""
    return count_steps(config.train, -(-STRUCTURES[data] // config.train.batch_size))
