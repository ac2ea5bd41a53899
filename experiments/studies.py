"""Studies: which models are trained with which variants on which data, from how many seeds.

``configs/study/NAME.yaml`` is one table of results. Its cells are models x variants x data x
seeds, in the order of the seeds, so that a study that is stopped has whole tables of few seeds.
"""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from cells import CONFIGS, Cell, check_once, config_path, read_result

from ewald_jax.checked import Sources, construct, flatten
from ewald_jax.typing import InputError


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """A model of a study.

    Attributes:
        set: ``key=value`` for all its cells.
        variants: Variant to ``key=value`` for the model with this variant alone.
        without: Variants that the model has no cell of.
    """

    set: tuple[str, ...] = ()
    variants: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    without: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class VariantEntry:
    """A variant of a study.

    Attributes:
        seeds: How many, 0, 1, ..., or which.
        source: Variant config to start from; "" is the one of the same name.
        set: ``key=value`` for all its cells.
    """

    seeds: int | tuple[int, ...]
    source: str = ""
    set: tuple[str, ...] = ()

    def __post_init__(self):
        """Refuses no seeds, and negative ones."""
        if isinstance(self.seeds, int):
            if self.seeds < 1:
                raise InputError(f"seeds must be at least 1, not {self.seeds}")
        elif not self.seeds or min(self.seeds) < 0:
            raise InputError(f"seeds must be numbers from 0, not {list(self.seeds)}")


@dataclasses.dataclass(frozen=True)
class Study:
    """A table of results; the first variant is what the others are compared with.

    Attributes:
        about: A sentence for people.
        data: Data configs.
        models: Model config to its settings.
        variants: Variants.
        also: Data configs whose test split is measured, too.
        set: ``key=value`` for every cell.
        split: Whose errors the table shows: "test", or "val" for a study that chooses settings.
    """

    about: str
    data: tuple[str, ...]
    models: Mapping[str, ModelEntry]
    variants: Mapping[str, VariantEntry]
    also: tuple[str, ...] = ()
    set: tuple[str, ...] = ()
    split: Literal["test", "val"] = "test"

    def __post_init__(self):
        """Refuses a study without cells, and variants whose names are no names of files."""
        for name in ("data", "models", "variants"):
            if not getattr(self, name):
                raise InputError(f"{name} is empty, expected at least one")
        for name in self.variants:
            if not re.fullmatch(r"[\w.+-]+", name):
                raise InputError(
                    f"variants has {name!r}, expected letters, digits, . _ + -"
                )
        if self.split == "val" and self.also:
            raise InputError(
                "split is val, but also names data sets, which are for testing"
            )

    @property
    def baseline(self) -> str:
        """The first variant."""
        return next(iter(self.variants))

    @property
    def errors(self) -> str:
        """What the table shows, in words."""
        return "test errors" if self.split == "test" else "validation errors"

    def shown(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """A result with the errors that the table shows, and no others."""
        if self.split == "test":
            return dict(result)
        return {**result, "metrics": {self.split: result["metrics"][self.split]}}

    def cells(self, overrides: Sequence[str] = ()) -> list[Cell]:
        """All cells, the first seed of each first.

        Raises:
            InputError: For an unknown model, variant or data set, or a seed given twice.
        """
        if any(text.startswith("train.seed=") for text in (*self.set, *overrides)):
            raise InputError(
                "train.seed is the cell's; choose seeds in the study or by --seed"
            )
        found = sorted(self._cells(tuple(overrides)), key=lambda pair: pair[0])
        cells = [cell for _, cell in found]
        check_once(cells)
        return cells

    def _cells(self, overrides: tuple[str, ...]) -> Iterator[tuple[int, Cell]]:
        for data in self.data:
            config_path("data", data)
            for model, entry in self.models.items():
                config_path("model", model)
                for name in (*entry.variants, *entry.without):
                    if name not in self.variants:
                        raise InputError(
                            f"the study has no variant {name!r}, which its model {model!r} "
                            f"has settings for, expected one of {list(self.variants)}"
                        )
                for variant, settings in self.variants.items():
                    if variant in entry.without:
                        continue
                    own = entry.variants.get(variant, ())
                    every = (*self.set, *entry.set, *settings.set, *own, *overrides)
                    seeds = settings.seeds
                    chosen = range(seeds) if isinstance(seeds, int) else seeds
                    for place, seed in enumerate(chosen):
                        yield (
                            place,
                            Cell(data, model, variant, seed, settings.source, every),
                        )


def load_study(name: str) -> Study:
    """A study by its name, or from the path of a YAML file.

    Raises:
        InputError: If there is none, or something in it does not fit.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = config_path("study", name)
    if not path.exists():
        raise InputError(f"{path} does not exist, expected a file of a study")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    known = [f"study.{field.name}" for field in dataclasses.fields(Study)]
    sources = Sources({"study": str(path)}, tuple(known))
    return construct(Study, values, "study", sources)


def study_names() -> list[str]:
    """Studies of the repository."""
    return sorted(path.stem for path in (CONFIGS / "study").glob("*.yaml"))


def result_path(results: Path, study: str, cell: Cell) -> Path:
    """Where the result of a cell is kept."""
    return results / study / f"{cell.name}.json"


def result_of(path: Path, cell: Cell, also: Sequence[str] = ()) -> dict[str, Any] | None:
    """The result of a cell, None if there is none yet, or none on one of the sets `also`.

    Raises:
        InputError: If the file is damaged, or has the result of other settings.
    """
    if not path.exists():
        return None
    values, theirs = read_result(path)
    ours = cell.config().to_dict()
    if theirs != ours:
        keys = sorted({*flatten(theirs), *flatten(ours)})
        differ = ", ".join(key for key in keys if _at(theirs, key) != _at(ours, key))
        raise InputError(
            f"{path} has the result of other settings ({differ}); delete it to compute it "
            "again, or name another folder by --results"
        )
    return values if set(also) <= set(values["metrics"]) else None


def chosen(cells: Sequence[Cell], parts: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """The cells whose names have one of the parts, and which have one of the seeds.

    Raises:
        InputError: If a part or a seed is that of no cell, or a seed is given twice.
    """
    for seed in seeds:
        if list(seeds).count(seed) > 1:
            raise InputError(f"--seed {seed} is given twice")
        if all(cell.seed != seed for cell in cells):
            known = sorted({cell.seed for cell in cells})
            raise InputError(f"--seed {seed} is that of no cell, expected one of {known}")
    for part in parts:
        if all(part not in cell.name for cell in cells):
            names = sorted({word for c in cells for word in (c.data, c.model, c.variant)})
            near = difflib.get_close_matches(part, names, n=1, cutoff=0.0)
            raise InputError(f"no cell has {part!r} in its name; did you mean {near[0]!r}?")
    return [
        cell
        for cell in cells
        if (not parts or any(part in cell.name for part in parts))
        and (not seeds or cell.seed in seeds)
    ]


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values
