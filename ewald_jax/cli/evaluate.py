"""`ewald-jax evaluate`: exact metrics of a checkpoint on labelled structures."""

import jax
import numpy as np

from ewald_jax.cli.common import (
    AsJson,
    BatchSize,
    Checkpoint,
    Precision,
    Progress,
    Which,
    command,
    note,
    print_json,
    print_metrics,
    progress_bar,
)
from ewald_jax.cli.sources import (
    EvaluatedData,
    EvaluatedSplit,
    check_known,
    evaluated_data,
    shared_with_training,
    structures_of,
)


@command
def evaluate(
    checkpoint: Checkpoint,
    data: EvaluatedData = None,
    split: EvaluatedSplit = "",
    which: Which = "best",
    batch_size: BatchSize = 32,
    precision: Precision = None,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Print the metrics of a checkpoint on a data set; forces and stress where it has them.

    Energies are compared as totals in eV. Data configs and sample sets are split as in
    training, and their test split is taken unless --split says otherwise.

    Of an ensemble, it is the mean prediction that is compared; energy_std and forces_std are
    the standard deviations over its members, averaged over structures and force components.
    """
    from ewald_jax.data.base import load_dataset
    from ewald_jax.models import neighborhood
    from ewald_jax.nn.products import with_precision
    from ewald_jax.train.checkpoint import load_checkpoint
    from ewald_jax.train.description import members_of
    from ewald_jax.train.evaluate import evaluate as measure

    model, params, saved, statistics = load_checkpoint(checkpoint, which)
    model = with_precision(model, precision)
    name, config, split = evaluated_data(data or (), saved, checkpoint, split)
    dataset = load_dataset(config, neighborhood(model), progress)
    indices = structures_of(dataset, config, split)
    if split != "train" and (
        warning := shared_with_training(saved, config, dataset, indices)
    ):
        note(warning)
    for index in indices:
        pbc = dataset[index].graph.globals["pbc"][0]
        check_known(model, statistics, dataset.species(index), pbc, dataset.where(index))
    with progress_bar("evaluating", progress) as advance:
        metrics = measure(
            model,
            params,
            dataset,
            indices,
            statistics=statistics,
            batch_size=batch_size,
            dtype=jax.dtypes.canonicalize_dtype(np.float64),
            on_batch=advance,
            members=members_of(saved),
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
