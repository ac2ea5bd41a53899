"""Where long-range messages help: improvement in bins of a long-range contribution.

    python experiments/long_range.py STUDY --contribution disp --contribution elst

STUDY is one that ``run.py`` or ``compare.py`` has trained into ``runs/STUDY``. The structures
of each test split are sorted by the size of a contribution to their energy, computed here (d3,
d4, charges) or taken from the data (the SAPT components elst, exch, ind, disp), and each
variant is compared with the baseline in bins of equal count. Errors of single structures are
kept in the folders of the runs. Where the study, or one named with ``--beside``, also has the
data without dispersion (sapt10k_less_disp beside sapt10k, oe62_d3 beside oe62), their runs
stand in the same bins: with the paper's "cheating" baseline, which need not learn it.

Writes ``results/long_range_STUDY.json`` and ``.png``; ``experiments/report.py`` has the table.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import ase
import numpy as np
import typer
from cells import HERE
from long_range_table import in_words, long_range_columns, long_range_rows
from study_runs import (
    Run,
    check_alike,
    find_runs,
    run_errors,
    structures_with_info,
    tested,
    unfinished,
)

from ewald_jax.analysis.long_range import KINDS, long_range_contributions
from ewald_jax.analysis.long_range_bins import (
    Improvement,
    binned_improvement,
    plot_improvement,
)
from ewald_jax.analysis.plots import save_figure
from ewald_jax.cli.common import command, note, print_table
from ewald_jax.train.files import write_json
from ewald_jax.typing import InputError

LESS = ("_less_disp", "_d3")
"""Ends of the names of data configs whose target has the dispersion taken off."""

Place = tuple[str, str, str, float]
PLACE = ("data", "model", "contribution", "beyond")
Groups = dict[tuple[str, str, str], list[Run]]


def grouped(runs: Sequence[Run], baseline: str) -> tuple[Groups, Groups]:
    """Runs by data, model and variant, the baselines and all others.

    Raises:
        InputError: If a data set and model have no baseline, or nothing to compare with it.
    """
    groups: Groups = {}
    for run in runs:
        groups.setdefault((run.data, run.model, run.variant), []).append(run)
    first = {
        key: group
        for key, group in groups.items()
        if key[2] == baseline and not _complete(key[0], groups)
    }
    others = {key: group for key, group in groups.items() if key not in first}
    for data, model, _ in others:
        whole = _complete(data, groups) or data
        if (whole, model, baseline) not in first:
            raise InputError(
                f"{runs[0].folder.parent} has no finished run of {whole} with {model} and the "
                f"variant {baseline!r}, expected one to compare with"
            )
    if not others:
        raise InputError(
            f"{runs[0].folder.parent} has no finished run but those of {baseline!r}, "
            "expected another variant to compare with it"
        )
    return first, others


def compared(
    runs: Sequence[Run],
    kinds: Sequence[tuple[str, float]],
    baseline: str = "baseline",
    bins: int = 5,
    samples: int = 2000,
) -> dict[Place, dict[str, Improvement]]:
    """Every variant of every data set and model in bins of every contribution.

    Args:
        runs: From `find_runs`.
        kinds: Contributions, each with the distance beyond which pairs count, Å.
        baseline: Variant to compare with.
        bins: Of equal count.
        samples: Of the bootstrap.

    Returns:
        (data, model, contribution, distance) -> name of a variant -> its improvement.

    Raises:
        InputError: As `grouped`; if the data do not have a contribution; if the data without
            dispersion are other structures.
    """
    first, others = grouped(runs, baseline)
    found = {}
    for data, model, _ in first:
        structures, names = structures_with_info(*tested(first[data, model, baseline][0]))
        beside = {
            key: group
            for key, group in others.items()
            if key[1] == model and data in (key[0], _complete(key[0], first))
        }
        for key, group in beside.items():
            if key[0] != data:
                _check_same(structures, names, key[0], group[0])
        # First what the data may not have: errors can take a while.
        values = {
            kind: long_range_contributions(structures, *kind, names) for kind in kinds
        }
        groups = {key: (first | others)[key] for key in [(data, model, baseline), *beside]}
        plain, *errors = (
            np.stack([run_errors(run) for run in group]) for group in groups.values()
        )
        for kind in kinds:
            found[data, model, *kind] = {
                _label(data, *key): binned_improvement(
                    values[kind], plain, theirs, bins, samples
                )
                for key, theirs in zip(beside, errors, strict=True)
            }
    return found


def as_json(
    found: Mapping[Place, Mapping[str, Improvement]], **settings: Any
) -> dict[str, Any]:
    """Plain values of `compared`, with the settings it was made with."""
    rows = [
        {
            **dict(zip(PLACE, key, strict=True)),
            "variant": variant,
            **{name: np.asarray(x).tolist() for name, x in improvement._asdict().items()},
        }
        for key, variants in found.items()
        for variant, improvement in variants.items()
    ]
    return {**settings, "long_range": rows}


def _kind(text: str, beyond: float) -> tuple[str, float]:
    """A contribution and its distance, of text such as ``d3`` or ``d3:5``."""
    kind, colon, distance = text.partition(":")
    try:
        return kind, float(distance) if colon else beyond
    except ValueError:
        raise InputError(
            f"--contribution is {text!r}, expected a distance in Å after the colon"
        ) from None


def _complete(data: str, groups: Mapping[tuple[str, str, str], Any]) -> str:
    """The data set of which another has the target less dispersion; "" if it is none."""
    whole = {data.removesuffix(end) for end in LESS} - {data}
    return next((name for name, *_ in groups if name in whole), "")


def _label(whole: str, data: str, _: str, variant: str) -> str:
    return variant if data == whole else f"{variant} of {data}"


def _check_same(
    structures: Sequence[ase.Atoms], names: Sequence[str], data: str, run: Run
) -> None:
    theirs, _ = structures_with_info(*tested(run))
    for ours, other, name in itertools.zip_longest(structures, theirs, names):
        same = (
            ours is not None
            and other is not None
            and np.array_equal(ours.numbers, other.numbers)
            and np.allclose(ours.positions, other.positions, atol=1e-6)
        )
        if not same:
            raise InputError(
                f"{data} does not have {name or 'as many structures'} in the same place of its "
                "test split, expected the structures of the whole data set in its order"
            )


@command
def main(
    study: Annotated[str, typer.Argument(help="Name of a study.")],
    beside: Annotated[
        list[str] | None, typer.Option(help="More studies, whose runs stand beside these.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where its runs are.")] = Path("runs"),
    contribution: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(KINDS)}; d3:5 is d3 beyond 5 Å. Default: d3."),
    ] = None,
    beyond: Annotated[
        float, typer.Option(min=0, help="Å, of those without a distance of their own.")
    ] = 0.0,
    bins: Annotated[int, typer.Option(min=2, help="Of equal count.")] = 5,
    baseline: Annotated[str, typer.Option(help="Variant to compare with.")] = "baseline",
    samples: Annotated[int, typer.Option(min=100, help="Of the bootstrap.")] = 2000,
    results: Annotated[Path, typer.Option(help="Where results go.")] = HERE / "results",
) -> None:
    """Compare in bins, write the numbers and the picture, print the table."""
    kinds = list(dict.fromkeys(_kind(text, beyond) for text in contribution or ["d3"]))
    found = []
    for name in (study, *(beside or ())):
        found += find_runs(runs / name)
        for run in unfinished(runs / name):
            note(f"{name}: {run} is not finished and left out")
    check_alike(found)
    tables = compared(found, kinds, baseline, bins, samples)
    values = as_json(
        tables, study=study, beside=beside or [], baseline=baseline, samples=samples
    )
    results.mkdir(parents=True, exist_ok=True)
    file = results / f"long_range_{study}.json"
    write_json(file, values)
    several = len({key[:2] for key in tables}) > 1
    panels = {
        in_words(kind, beyond) + (f", {data}, {model}" if several else ""): models
        for (data, model, kind, beyond), models in tables.items()
    }
    save_figure(plot_improvement(panels, study), file.with_suffix(".png"))
    title = f"{study}: improvement of the energy MAE over {baseline} (%)"
    print_table(title, long_range_columns(values), long_range_rows(values))
    note(f"results are in {file}, the picture beside it")


if __name__ == "__main__":
    typer.run(main)
