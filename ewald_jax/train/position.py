"""Where a training stands, between its steps and in its checkpoints."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ewald_jax.train.metrics import Sums
from ewald_jax.train.optim import Plateau


@dataclasses.dataclass
class Position:
    """Where a training stands: what a checkpoint keeps beside the arrays.

    Epoch and batch follow from the step, because each step takes one batch.

    Attributes:
        step: Steps taken.
        evaluation_due: Whether the evaluation after this step is still to be done.
        records: Evaluations done, lines of metrics.jsonl.
        best: Lowest monitored value so far (its negative, where more is better).
        plateau: State of the plateau rule.
        sums: Training sums since the last evaluation, over members for an ensemble.
        seconds: Seconds since the last evaluation.
    """

    step: int = 0
    evaluation_due: bool = False
    records: int = 0
    best: float | None = None
    plateau: Plateau = Plateau()
    sums: Sums = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        sums = {
            name: tuple(np.asarray(x).tolist() for x in pair)
            for name, pair in self.sums.items()
        }
        return {**values, "plateau": self.plateau._asdict(), "sums": sums}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Position":
        """The inverse of `to_dict`; other keys are ignored."""
        fields = {f.name: values[f.name] for f in dataclasses.fields(cls)}
        fields["plateau"] = Plateau(**values["plateau"])
        array = lambda x: np.asarray(x, np.float64) if isinstance(x, list) else x
        fields["sums"] = {
            name: tuple(array(x) for x in pair) for name, pair in values["sums"].items()
        }
        return cls(**fields)
