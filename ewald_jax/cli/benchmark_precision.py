"""`ewald-jax benchmark precision`: what fewer digits cost in accuracy and gain in time."""

from typing import Annotated

import typer

from ewald_jax.cli.common import (
    AsJson,
    BatchSize,
    Checkpoint,
    Progress,
    Which,
    command,
    print_json,
    print_table,
)
from ewald_jax.cli.measuring import jax_device
from ewald_jax.cli.sources import (
    EvaluatedData,
    EvaluatedSplit,
    check_known,
    evaluated_data,
    structures_of,
)
from ewald_jax.typing import InputError


@command
def precision(
    checkpoint: Checkpoint,
    data: EvaluatedData = None,
    split: EvaluatedSplit = "",
    which: Which = "best",
    limit: Annotated[int, typer.Option(min=1, help="Most structures to take.")] = 200,
    batch_size: BatchSize = 16,
    repeats: Annotated[int, typer.Option(min=1, help="Timed steps of each.")] = 5,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Energies, forces and training steps in every precision, against float64 and float32.

    The differences are of the same weights on the same structures; beside them stand the
    errors against the labels. TF32 is compared on GPUs alone, elsewhere it is float32.

    For example: ewald-jax benchmark precision pretrained:dimers
    """
    from ewald_jax.analysis.benchmark_precision import compare_precisions
    from ewald_jax.data.base import load_dataset
    from ewald_jax.models import neighborhood
    from ewald_jax.train.checkpoint import load_checkpoint
    from ewald_jax.train.description import members_of

    model, params, saved, statistics = load_checkpoint(checkpoint, which)
    if members_of(saved) > 1:
        raise InputError(
            f"{checkpoint} is an ensemble, expected a checkpoint of one network"
        )
    name, config, split = evaluated_data(data or (), saved, checkpoint, split)
    dataset = load_dataset(config, neighborhood(model), progress)
    indices = structures_of(dataset, config, split)[:limit]
    for i in indices:
        pbc = dataset[i].graph.globals["pbc"][0]
        check_known(model, statistics, dataset.species(i), pbc, dataset.where(i))
    results = compare_precisions(
        model, params, dataset, indices, statistics, batch_size, repeats
    )
    if as_json:
        settings = {
            "checkpoint": str(checkpoint),
            "data": name,
            "split": split,
            "structures": len(indices),
            "atoms": int(sum(len(dataset.species(i)) for i in indices)),
            "batch_size": batch_size,
            "device": jax_device(),
        }
        print_json(settings | {"precisions": [result.to_dict() for result in results]})
        return
    columns = ("precision", "ΔE meV/atom", "max", "ΔF meV/Å", "max", "E MAE", "F MAE")
    rows = [
        tuple("-" if x is None else x for x in r.to_dict().values())[:8] for r in results
    ]
    title = f"{checkpoint} on {name}, {split}: {len(indices)} structures, {jax_device()}"
    print_table(title, (*columns, "step / float32"), rows)
