"""`ewald-jax import-torch`: from a PyTorch checkpoint to a directory for the other verbs."""

from pathlib import Path
from typing import Annotated

import typer

from ewald_jax.cli.common import AsJson, command, note, print_json


@command
def import_torch(
    checkpoint: Annotated[
        Path, typer.Argument(help="A .pt file of the Open Catalyst Project or EwaldMP.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    config: Annotated[
        Path | None,
        typer.Option(help="Its YAML config; the one inside CHECKPOINT if unset."),
    ] = None,
    scale_file: Annotated[
        Path | None,
        typer.Option(help="Fitted scale factors (.json or .pt), if not in CHECKPOINT."),
    ] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="Take the running averages of the parameters.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the checkpoint in OUTPUT.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Import a PyTorch checkpoint of SchNet, PaiNN, DimeNet++ or GemNet-T.

    The folder is one that `evaluate`, `predict` and `train --init` take. PyTorch is not
    needed, and nothing in the file is executed.
    """
    from ewald_jax.interop.torch_import import import_checkpoint, write_imported
    from ewald_jax.train.publish import check_output
    from ewald_jax.train.state import count_parameters

    check_output(output, overwrite)
    imported = import_checkpoint(checkpoint, config, scale_file, ema)
    write_imported(imported, output, str(checkpoint), overwrite)
    for sentence in imported.notes:
        note(sentence)
    model, statistics = type(imported.model).__name__, imported.statistics
    parameters = count_parameters(imported.params)
    if as_json:
        print_json(
            {
                "output": str(output),
                "model": model,
                "parameters": parameters,
                "elements": len(statistics.species),
                "mean": statistics.mean,
                "scale": statistics.scale,
                "averaged": ema,
                "notes": imported.notes,
            }
        )
        return
    typer.echo(
        f"{model} with {parameters:,} parameters for elements 1 to "
        f"{len(statistics.species)}; energies are {statistics.mean:g} eV plus "
        f"{statistics.scale:g} eV times the output"
    )
    note(f"the checkpoint is in {output}")
