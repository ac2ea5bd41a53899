"""`ewald-jax train`: from configs to a directory with checkpoints and metrics."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ewald_jax.cli.common import (
    INTERRUPTED,
    AsJson,
    Progress,
    command,
    note,
    print_json,
    print_metrics,
)
from ewald_jax.cli.sources import composed_config, note_skipped, note_units
from ewald_jax.typing import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from ewald_jax.config import Config
    from ewald_jax.train.loop import FitResult


@command
def train(
    configs: Annotated[
        list[str],
        typer.Argument(metavar="CONFIG... [KEY=VALUE]...", help="Files, then overrides."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Folder to write; runs/NAMES-OF-CONFIGS if unset."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the training in OUTPUT.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the training in OUTPUT.")
    ] = False,
    init: Annotated[
        Path | None,
        typer.Option(help="Checkpoint folder whose parameters to start from."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="Members of an ensemble (train.members); 1 for one model."),
    ] = None,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Train a model: YAML configs composed from left to right, then overrides.

    For example: ewald-jax train data.yaml model.yaml variant.yaml optim.lr=1e-4

    Ctrl-C finishes the step in progress and saves; --resume goes on from there.

    --init fine-tunes: reference energies are fitted to the new data, the scale of energies
    is the checkpoint's unless data.statistics.scale names another.

    --seeds 4 trains an ensemble at once: four models from the seeds train.seed, train.seed + 1,
    ..., on the same batches in the same order. The numbers shown, and the best checkpoint,
    are those of the mean over the members.
    """
    from rich.console import Console

    from ewald_jax.data.parallel import available_cores

    config, paths = composed_config(_with_seeds(configs, seeds), "train")
    output = output or Path("runs") / "-".join(path.stem for path in paths)
    for section, settings in config.changed().items() if progress and not as_json else ():
        typer.echo(f"{section}: {settings}")
    result = run_training(
        config,
        output,
        resume=resume,
        overwrite=overwrite,
        init=init,
        progress=progress,
        # With --json, stdout holds the result and nothing else.
        console=Console(stderr=True, soft_wrap=True, highlight=False) if as_json else None,
        workers=available_cores(),
    )
    if as_json:
        print_json(
            {
                "output": str(output),
                "finished": not result.interrupted,
                "step": result.step,
                "best_step": result.best_step,
                "metrics": result.metrics,
                "compilations": result.compilations,
                "compilations_per_bucket": result.compilations_per_bucket,
                "seconds_per_step": result.seconds_per_step,
                **({"members": result.member_metrics} if result.member_metrics else {}),
            }
        )
    else:
        # With progress, the lines of the training have said it.
        for split, metrics in result.metrics.items() if not progress else ():
            print_metrics(f"{split}, step {result.best_step}", metrics)
        note(f"checkpoints, metrics and config are in {output}")
    if result.interrupted:
        raise typer.Exit(INTERRUPTED)


def _with_seeds(arguments: list[str], seeds: int | None) -> list[str]:
    """The arguments with `--seeds` as an override of its key.

    Raises:
        InputError: If it is no number of networks, or an override says another.
    """
    if seeds is None:
        return arguments
    if seeds < 1:
        raise InputError(f"--seeds must be at least 1, not {seeds}")
    ours = f"train.members={seeds}"
    for argument in arguments:
        if argument.replace(" ", "").startswith("train.members=") and argument != ours:
            raise InputError(
                f"--seeds {seeds} and {argument} contradict each other; give one of them"
            )
    return [*arguments, ours]


def run_training(
    config: "Config",
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    init: Path | None = None,
    progress: bool = True,
    console: "Console | None" = None,
    workers: int = 1,
) -> "FitResult":
    """From a composed config to a trained model: what the verb does, for scripts.

    Args:
        config: Data, model, loss, optimiser, training.
        output: Directory of the run.
        resume: Continue the training in `output`; start one if there is none.
        overwrite: Replace the training in `output`.
        init: Checkpoint directory to start from; its scale of energies stays, unless the
            config names one. Not looked at where a training continues.
        progress: Show progress.
        console: Where to show it; None is standard output.
        workers: Processes that build graphs; a script needs ``if __name__ == "__main__"``
            for more than one.

    Returns:
        As `ewald_jax.train.loop.fit`.

    Raises:
        InputError: If the data are broken, or the directory is in use.
    """
    from ewald_jax.data.base import load_dataset
    from ewald_jax.data.fitting import dataset_statistics
    from ewald_jax.data.splits import split_dataset
    from ewald_jax.models import neighborhood
    from ewald_jax.train.directory import check_directory
    from ewald_jax.train.initial import find_initial, keep_scale
    from ewald_jax.train.loop import fit

    # Before the data are read, which may take long.
    continues = check_directory(output, resume, overwrite)
    members = config.train.members
    initial = None if continues else find_initial(init, output, resume, members)
    dataset = load_dataset(
        config.data, neighborhood(config.model), progress, workers=workers
    )
    note_skipped(dataset)
    note_units(dataset, config.data)
    splits = split_dataset(config.data, dataset)
    settings = keep_scale(config.data.statistics, initial)
    return fit(
        config.model,
        dataset,
        splits,
        train=config.train,
        loss=config.loss,
        optim=config.optim,
        output_dir=output,
        statistics=dataset_statistics(dataset, splits["train"], settings),
        config=config.to_dict(),
        resume=resume,
        overwrite=overwrite,
        init=initial,
        progress=progress,
        console=console,
    )
