"""`ewald-jax benchmark`: speed as ratios taken in one run."""

from typing import Annotated

import typer

from ewald_jax.cli.common import AsJson, command, print_json, print_table
from ewald_jax.typing import InputError

benchmark_app = typer.Typer(
    help="Measure speed and memory, as ratios taken in one run.", no_args_is_help=True
)


@benchmark_app.command()
@command
def kspace(
    nodes: Annotated[int, typer.Option(min=1, help="Atoms in one cell.")] = 4000,
    num_k: Annotated[
        str, typer.Option(help="Index box n_x,n_y,n_z; 5,4,5 has 544.")
    ] = "5,4,5",
    features: Annotated[int, typer.Option(min=1, help="Channels.")] = 128,
    num_hidden: Annotated[int, typer.Option(min=0, help="Residual layers.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls.")] = 20,
    as_json: AsJson = False,
) -> None:
    """One Ewald block, forward, against a matrix product measured in the same run."""
    from ewald_jax.analysis.benchmark import time_block

    try:
        box = tuple(int(n) for n in num_k.split(","))
    except ValueError:
        box = ()
    if len(box) != 3:
        raise InputError(f"--num-k is {num_k!r}, expected three integers such as 5,4,5")
    timing = time_block(nodes, box, features, num_hidden, repeats)
    if as_json:
        print_json(timing.to_dict())
        return
    rows = [
        ("time of one forward pass", 1e3 * timing.seconds, "ms"),
        ("its interquartile range", 1e3 * timing.seconds_spread, "ms"),
        ("rate, the two sums counted", timing.gflops, "GFLOP/s"),
        ("rate of a 2048^3 matrix product", timing.matmul_gflops, "GFLOP/s"),
        ("block / matrix product", timing.fraction, ""),
        ("buffers reserved by XLA", timing.compiled_mb, "MB"),
    ]
    if timing.resident_mb is not None:
        rows.append(("measured peak above the inputs", timing.resident_mb, "MB"))
    title = f"{timing.nodes} atoms, {timing.kvecs} wave vectors, {timing.features} features"
    print_table(title, ("", "value", "unit"), rows)
