"""`ewald-jax export`: a trained model as a file that needs jax and numpy alone."""

from pathlib import Path
from typing import Annotated

import typer

from ewald_jax.cli.common import AsJson, Checkpoint, Which, command, note, print_json


@command
def export(
    checkpoint: Checkpoint,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    float64: Annotated[
        bool, typer.Option("--float64", help="Compute in float64, not in float32.")
    ] = False,
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
    from ewald_jax.interop import exporting
    from ewald_jax.train.checkpoint import load_checkpoint

    exporting.check_output(output, overwrite)
    model, params, _, statistics = load_checkpoint(checkpoint, which)
    dtype = "float64" if float64 else "float32"
    about = exporting.export(model, params, statistics, output, dtype, overwrite)
    if as_json:
        print_json({"output": str(output), **about})
        return
    size = (output / exporting.MODEL).stat().st_size
    note(
        f"{about['model']['name']} for {' and '.join(about['boundaries'])} structures, "
        f"{size / 1e6:.2g} MB, is in {output}; use it with {output / exporting.LOADER}"
    )
