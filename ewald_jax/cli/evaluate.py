"""`ewald-jax evaluate`: exact metrics of a checkpoint on labelled structures."""

from pathlib import Path
from typing import Annotated

import typer

from ewald_jax.cli.common import (
    AsJson,
    BatchSize,
    Progress,
    Which,
    command,
    print_json,
    print_metrics,
    progress_bar,
)
from ewald_jax.cli.sources import SOURCE_HELP, checkpoint_data, data_config, structures_of
from ewald_jax.typing import InputError


@command
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A directory written by `train`.")],
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]", help=f"{SOURCE_HELP} Default: the training's own."
        ),
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    split: Annotated[
        str, typer.Option(help="train, val, test, ..., or all; a file of its own is all.")
    ] = "",
    which: Which = "best",
    batch_size: BatchSize = 32,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Print the metrics of a checkpoint on a data set; forces and stress where it has them.

    Energies are compared as totals in eV. Data configs and sample sets are split as in
    training, and their test split is taken unless --split says otherwise.
    """
    from ewald_jax.data.base import load_dataset
    from ewald_jax.train.checkpoint import load_checkpoint
    from ewald_jax.train.evaluate import evaluate as measure

    model, params, saved, statistics = load_checkpoint(checkpoint, which)
    if data is None:
        config, name = checkpoint_data(saved, checkpoint), f"the data of {checkpoint}"
    else:
        config, name = data_config(data, overrides or ()), data
    split = split or ("all" if data == config.path else "test")
    dataset = load_dataset(config, model.cutoff, model.max_neighbors, progress)
    indices = structures_of(dataset, config, split)
    check_known(model, statistics, dataset, indices)
    with progress_bar("evaluating", progress) as advance:
        metrics = measure(
            model,
            params,
            dataset,
            indices,
            statistics=statistics,
            batch_size=batch_size,
            on_batch=advance,
        )
    if as_json:
        print_json(
            {
                "checkpoint": str(checkpoint),
                "data": name,
                "split": split,
                "structures": len(indices),
                "metrics": metrics,
            }
        )
        return
    print_metrics(f"{checkpoint} on {name}, {split}: {len(indices)} structures", metrics)


def check_known(model, statistics, dataset, indices) -> None:
    """Refuses structures that the model was not made or not trained for."""
    from ase.data import chemical_symbols

    from ewald_jax.models import check_structure

    for index in indices:
        species = dataset.species(index)
        try:
            check_structure(model, species, dataset[index].graph.globals["pbc"][0])
        except InputError as error:
            raise InputError(f"{dataset.where(index)} {error}") from None
        if unseen := statistics.unseen(species):
            raise InputError(
                f"{dataset.where(index)} has the element {chemical_symbols[unseen[0]]}, which "
                "the training data did not have"
            )
