"""`ewald-jax export`: a trained model as a file that needs jax and numpy alone."""

from pathlib import Path
from typing import Annotated

import typer

from ewald_jax.cli.common import AsJson, Checkpoint, Which, command, note, print_json
from ewald_jax.typing import InputError


@command
def export(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    float64: Annotated[
        bool, typer.Option("--float64", help="Compute in float64, not in float32.")
    ] = False,
    member: Annotated[
        int | None, typer.Option(help="Of an ensemble: which network, from 0.")
    ] = None,
    which: Which = "best",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the exported model in OUTPUT.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Export a model for use without this package, on CPU, CUDA and TPU (`jax.export`).

    OUTPUT gets model.npz (functions and weights, for structures of any size), model.json
    (units, conventions, inputs) and load_exported.py, 30 lines that need jax and numpy alone.
    """
    from ewald_jax import ensemble
    from ewald_jax.interop import exporting
    from ewald_jax.train.checkpoint import load_checkpoint
    from ewald_jax.train.description import members_of

    exporting.check_output(output, overwrite)
    model, params, config, statistics = load_checkpoint(checkpoint, which)
    members = members_of(config)
    if members > 1 and member is None:
        raise InputError(
            f"{checkpoint} holds an ensemble of {members} networks, expected one: --member 0 "
            "exports the first of them"
        )
    if member is not None:
        params = ensemble.member(params, member) if members > 1 else params
        if members == 1 and member != 0:
            raise InputError(
                f"{checkpoint} holds one network, expected no --member {member}"
            )
    dtype = "float64" if float64 else "float32"
    about = exporting.export(model, params, statistics, output, dtype, overwrite)
    if as_json:
        print_json({"output": str(output), **about})
        return
    size = (output / exporting.MODEL).stat().st_size
    note(
        f"{about['model']['name']} for {', '.join(about['boundaries'])} structures, "
        f"{size / 1e6:.2g} MB, is in {output}; use it with {output / exporting.LOADER}"
    )
