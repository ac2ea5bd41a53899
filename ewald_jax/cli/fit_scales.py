"""`ewald-jax fit-scales`: the constants that keep GemNet's and PaiNN's variances."""

from pathlib import Path
from typing import Annotated

import typer

from ewald_jax.cli.common import (
    AsJson,
    Progress,
    command,
    note,
    print_json,
    print_table,
)
from ewald_jax.cli.sources import composed_config
from ewald_jax.typing import InputError


@command
def fit_scales(
    configs: Annotated[
        list[str],
        typer.Argument(metavar="CONFIG... [KEY=VALUE]...", help="Files, then overrides."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="JSON file to write.")
    ] = Path("scales.json"),
    batches: Annotated[int, typer.Option(min=1, help="Batches to fit to.")] = 16,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUTPUT.")] = False,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Fit scale factors to the training structures of the configs that `train` takes.

    A training uses them by train.scales=OUTPUT; with train.scales=fit it fits its own.
    """
    import jax
    import numpy as np

    from ewald_jax.data.base import load_dataset
    from ewald_jax.data.loader import Loader
    from ewald_jax.data.splits import split_dataset
    from ewald_jax.models import model_to_config, neighborhood
    from ewald_jax.potential import init_params
    from ewald_jax.train import scales

    if output.exists() and not overwrite:
        raise InputError(f"{output} exists; use --overwrite or another --output")
    config, _ = composed_config(configs, "fit-scales")
    dataset = load_dataset(config.data, neighborhood(config.model), progress)
    train = split_dataset(config.data, dataset)["train"]
    loader = Loader(
        dataset,
        train,
        min(config.train.batch_size, len(train)),
        shuffle_seed=config.train.seed,
        dtype=jax.dtypes.canonicalize_dtype(np.float64),
    )
    # The same weights that a training of this config starts from.
    key, _ = jax.random.split(jax.random.key(config.train.seed))
    params = init_params(config.model, key, next(iter(loader.epoch())))
    factors = scales.fit_scales(config.model, params, loader.epoch(), batches)
    if not factors:
        name = model_to_config(config.model)["name"]
        raise InputError(f"the model {name!r} has no scale factors, nothing to fit")
    scales.write_scales(output, factors)
    if as_json:
        print_json({"output": str(output), "scales": factors})
        return
    print_table("scale factors", ("place", "value"), factors.items())
    note(f"written to {output}; train with train.scales={output}")
