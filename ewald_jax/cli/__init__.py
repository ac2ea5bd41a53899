"""The command line `ewald-jax`: train, evaluate, predict, simulate, and look at data.

Every verb prints tables for people, or one JSON object with `--json`. A mistake of the user
is one sentence on stderr and exit code 2; Ctrl-C is exit code 130.
"""

import typer

from ewald_jax.cli.benchmark import benchmark_app
from ewald_jax.cli.data import data_app
from ewald_jax.cli.evaluate import evaluate
from ewald_jax.cli.export import export
from ewald_jax.cli.fit_scales import fit_scales
from ewald_jax.cli.i_pi import i_pi
from ewald_jax.cli.import_torch import import_torch
from ewald_jax.cli.md import md
from ewald_jax.cli.predict import predict
from ewald_jax.cli.relax import relax
from ewald_jax.cli.train import train
from ewald_jax.memory import keep_memory

__all__ = ["app", "main"]

app = typer.Typer(
    name="ewald-jax",
    help="Ewald message passing: train, evaluate and use long-range molecular networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train)
app.command()(evaluate)
app.command()(predict)
app.command()(relax)
app.command()(md)
app.command("i-pi")(i_pi)
app.command()(export)
app.command("fit-scales")(fit_scales)
app.command("import-torch")(import_torch)
app.add_typer(benchmark_app, name="benchmark")
app.add_typer(data_app, name="data")


def main() -> None:
    """Entry point of the console script."""
    keep_memory()
    app()
