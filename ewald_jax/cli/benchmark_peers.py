"""`ewald-jax benchmark peers`: beside other packages, where they are installed."""

from typing import Annotated, Any

import typer

from ewald_jax.cli.common import (
    AsJson,
    BatchSize,
    Progress,
    command,
    note,
    print_json,
    print_table,
    split_numbers,
)
from ewald_jax.cli.measuring import (
    Clock,
    Features,
    NumK,
    Picture,
    check_drawable,
    in_words,
    index_box,
    keep_picture,
    machine,
)

_TITLES = {"sum": "k-space sum", "block": "Ewald block", "step": "training step"}


@command
def peers(
    nodes: Annotated[
        str, typer.Option(help="Atoms in one cell, of sum and block.")
    ] = "1000",
    num_k: NumK = "5,4,5",
    features: Features = 128,
    parts: Annotated[str, typer.Option(help="Of sum, block and step.")] = "sum,block,step",
    step_atoms: Annotated[int, typer.Option(min=2, help="Atoms of each crystal.")] = 64,
    batch_size: BatchSize = 4,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of each.")] = 5,
    clock: Clock = "wall",
    picture: Picture = None,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """The k-space sum of jax-pme and torch-pme, the block in PyTorch, a step of lorem-jax.

    Those that are installed, each in turn with this package, on the same atoms, wave vectors
    and channels. Ratios say how many times as long the others take.
    """
    from ewald_jax.analysis.benchmark_peers import time_peers

    numbers, box = split_numbers(nodes, "--nodes"), index_box(num_k)
    check_drawable(picture)
    timings = time_peers(
        numbers,
        box,
        features,
        repeats,
        [name.strip() for name in parts.split(",")],
        step_atoms,
        batch_size,
        note if progress else lambda line: None,
        clock,
    )
    rows, measured = [timing.to_dict() for timing in timings], machine(clock)
    if picture is not None:
        from ewald_jax.analysis.benchmark_plots import plot_ratios

        figure = plot_ratios(_ratios(rows), "time / time of ewald_jax", in_words(measured))
        keep_picture(figure, picture)
    if as_json:
        print_json({"rows": rows} | measured)
        return
    table = [
        (
            _TITLES[row["part"]],
            row["atoms"],
            row["kvecs"] or "",
            f"{row['name']} {row['version']}".strip(),
            _milliseconds(row, "seconds", "seconds_spread"),
            _ratio(row["ratio"]),
            _milliseconds(row, "gradient_seconds", "gradient_spread"),
            _ratio(row["gradient_ratio"]),
            "" if row["difference"] is None else f"{row['difference']:.1e}",
            row["note"],
        )
        for row in rows
    ]
    columns = (
        "part",
        "atoms",
        "vectors",
        "package",
        "ms",
        "ratio",
        "with gradient ms",
        "ratio",
    )
    title = f"{features} features, {in_words(measured)}"
    print_table(title, (*columns, "difference", ""), table)


def _group(row: dict[str, Any]) -> str:
    waves = f", {row['kvecs']} wave vectors" if row["kvecs"] else ""
    return (
        f"{_TITLES[row['part']]}, {row['atoms']} atoms{waves}, {row['features']} features"
    )


def _ratios(
    rows: list[dict[str, Any]],
) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
    """What `plot_ratios` draws: part and size, package, without and with gradient."""
    groups: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    kinds = (
        ("forward, or a step", "ratio", "seconds", "seconds_spread"),
        ("with gradient", "gradient_ratio", "gradient_seconds", "gradient_spread"),
    )
    for row in rows:
        for kind, ratio, seconds, spread in kinds:
            if row[ratio] is not None:
                width = row[ratio] * row[spread] / row[seconds]
                of_name = groups.setdefault(_group(row), {}).setdefault(row["name"], {})
                of_name[kind] = (row[ratio], width)
    return groups


def _milliseconds(row: dict[str, Any], seconds: str, spread: str) -> str:
    if row[seconds] is None:
        return ""
    return f"{1e3 * row[seconds]:.4g} ± {5e2 * row[spread]:.2g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
