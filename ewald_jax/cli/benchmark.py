"""`ewald-jax benchmark`: speed as ratios taken in one run."""

from pathlib import Path
from typing import Annotated

import typer

from ewald_jax.cli.benchmark_peers import peers
from ewald_jax.cli.benchmark_precision import precision
from ewald_jax.cli.benchmark_scaling import scaling
from ewald_jax.cli.common import (
    AsJson,
    BatchSize,
    command,
    print_json,
    print_table,
    split_arguments,
    split_numbers,
)
from ewald_jax.cli.measuring import (
    Clock,
    Features,
    NumK,
    Picture,
    check_drawable,
    in_words,
    index_box,
    jax_device,
    keep_picture,
    machine,
)
from ewald_jax.typing import InputError

benchmark_app = typer.Typer(
    help="Measure speed and memory, as ratios taken in one run.", no_args_is_help=True
)


@benchmark_app.command()
@command
def kspace(
    nodes: Annotated[str, typer.Option(help="Atoms in one cell; several: 1000,4000.")] = (
        "4000"
    ),
    num_k: NumK = "5,4,5",
    features: Features = 128,
    num_hidden: Annotated[int, typer.Option(min=0, help="Residual layers.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls.")] = 20,
    clock: Clock = "wall",
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """One Ewald block against a matrix product measured in the same run.

    The rate counts the operations of the two sums alone, forward and with the gradient by
    features, positions and parameters.
    """
    from ewald_jax.analysis.benchmark import time_block

    numbers, box = split_numbers(nodes, "--nodes"), index_box(num_k)
    check_drawable(picture)
    timings = [time_block(n, box, features, num_hidden, repeats, clock) for n in numbers]
    values = {"blocks": [t.to_dict() for t in timings]} | machine(clock)
    title = f"{timings[0].kvecs} wave vectors, {features} features, {in_words(values)}"
    if picture is not None:
        from ewald_jax.analysis.benchmark_plots import plot_rates

        keep_picture(plot_rates(values["blocks"], title), picture)
    if as_json:
        print_json(values)
        return
    rows = [
        (
            t.nodes,
            1e3 * t.seconds,
            1e3 * t.seconds_spread,
            t.fraction,
            1e3 * t.gradient_seconds,
            1e3 * t.gradient_spread,
            t.gradient_fraction,
            t.matmul_gflops,
            t.compiled_mb,
            t.gradient_mb,
        )
        for t in timings
    ]
    forward = ("atoms", "forward ms", "IQR ms", "/ product")
    gradient = ("with gradient ms", "IQR ms", "/ product", "product GFLOP/s")
    print_table(title, (*forward, *gradient, "MB", "gradient MB"), rows)


@benchmark_app.command()
@command
def step(
    configs: Annotated[
        list[str],
        typer.Argument(metavar="MODEL... [KEY=VALUE]...", help="Files, then overrides."),
    ],
    variant: Annotated[
        list[Path],
        typer.Option(
            "-v", "--variant", help="A file for each model to time, in this order."
        ),
    ],
    batch_size: BatchSize = 8,
    slab: Annotated[
        bool, typer.Option("--slab", help="66-atom slabs in place of 41-atom molecules.")
    ] = False,
    carbons: Annotated[
        int, typer.Option(min=1, help="n of the molecules, C_n H_2n+2; 13 make 41 atoms.")
    ] = 13,
    repeats: Annotated[int, typer.Option(min=1, help="Timed steps of each.")] = 5,
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Training steps of variants of a model, in turn on the same made-up structures.

    Also inference: energies, and forces if the loss has them, of the same structures.
    For example: ewald-jax benchmark step model.yaml -v baseline.yaml -v voxel.yaml
    """
    from ewald_jax.analysis.benchmark_step import time_steps
    from ewald_jax.analysis.made_up import alkanes, slabs
    from ewald_jax.config import load_config

    paths, overrides = split_arguments(configs)
    # A config needs data; those of the benchmark are made here.
    overrides = ["data.name=dimers", *overrides]
    composed = [load_config([*paths, path], overrides) for path in variant]
    structures = slabs(batch_size) if slab else alkanes(batch_size, carbons)
    models = {path.stem: c.model for path, c in zip(variant, composed, strict=True)}
    if len(models) < len(variant):
        raise InputError("two --variant files have the same name, expected different ones")
    check_drawable(picture)
    timings = time_steps(models, structures, composed[0].loss, repeats, inference=True)
    title = f"training step, {timings[0].nodes} atoms, {jax_device()}"
    if picture is not None:
        from ewald_jax.analysis.benchmark_plots import plot_bars

        bars = {t.name: (t.ratio, t.ratio * t.seconds_spread / t.seconds) for t in timings}
        figure = plot_bars(bars, f"time / time of {timings[0].name}", title)
        keep_picture(figure, picture)
    if as_json:
        settings = {
            "config": " ".join(path.stem for path in paths),
            "forces": composed[0].loss.needs_forces,
            "structures": batch_size,
            "atoms": len(structures[0]),
            "device": jax_device(),
        }
        print_json(settings | {"steps": [t.to_dict() for t in timings]})
        return
    rows = [
        (
            t.name,
            t.parameters,
            t.edges,
            t.compile_seconds,
            1e3 * t.seconds,
            1e3 * t.seconds_spread,
            t.ratio,
            t.inference_ms,
            t.gflop,
            t.gbytes,
            1e3 * t.limit_seconds,
            t.compiled_mb,
            t.resident_mb,
        )
        for t in timings
    ]
    columns = ("variant", "parameters", "edges", "compile s", "step ms", "IQR ms", "ratio")
    limits = ("GFLOP", "GB", "limit ms")
    columns = (*columns, "inference ms/structure", *limits, "buffers MB", "peak MB")
    print_table(title, columns, rows)


@benchmark_app.command()
@command
def loader(
    configs: Annotated[
        list[str],
        typer.Argument(metavar="MODEL... [KEY=VALUE]...", help="Files, then overrides."),
    ],
    structures: Annotated[
        int, typer.Option(min=8, help="77-atom slabs to convert and read.")
    ] = 1000,
    repeated: Annotated[
        int, typer.Option(min=100, help="Molecules in the cache to open.")
    ] = 1_000_000,
    batch_size: BatchSize = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: all cores.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Conversion, opening and reading of data, against the training step of a model.

    For example: ewald-jax benchmark loader schnet_small.yaml baseline.yaml
    """
    from ewald_jax.analysis.benchmark_data import time_data
    from ewald_jax.config import load_config
    from ewald_jax.data.parallel import available_cores

    paths, overrides = split_arguments(configs)
    config = load_config(paths, ["data.name=dimers", *overrides])
    batch_size = min(batch_size, structures)
    timing = time_data(
        config.model,
        config.loss,
        structures,
        repeated,
        batch_size,
        workers or available_cores(),
    )
    if as_json:
        print_json(timing.to_dict() | {"device": jax_device()})
        return
    rows = [
        (f"conversion by {timing.workers} processes", timing.convert_rate, "structures/s"),
        ("reading the cache in random order", timing.read_rate, "structures/s"),
        ("padded batches of the loader", timing.batch_rate, "structures/s"),
        (f"training step on {jax_device()}", timing.step_rate, "structures/s"),
        ("reading / training step", timing.read_ratio, ""),
        ("batches / training step", timing.batch_ratio, ""),
        (f"opening {timing.open_structures:,} structures", timing.open_seconds, "s"),
    ]
    if timing.open_mb is not None:
        rows.append(("measured peak meanwhile", timing.open_mb, "MB"))
    title = f"{timing.atoms} atoms, {timing.edges:.0f} edges, batches of {batch_size}"
    print_table(title, ("", "value", "unit"), rows)


benchmark_app.command("data", hidden=True)(loader)  # its name before
benchmark_app.command()(scaling)
benchmark_app.command()(peers)
benchmark_app.command()(precision)
