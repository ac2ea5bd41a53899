"""`ewald-jax benchmark scaling`: one crystal of ever more atoms."""

import math
from typing import Annotated

import typer

from ewald_jax.cli.common import (
    AsJson,
    Progress,
    command,
    note,
    print_json,
    print_table,
    split_arguments,
    split_numbers,
)
from ewald_jax.cli.measuring import (
    Clock,
    Picture,
    check_drawable,
    in_words,
    keep_picture,
    machine,
)
from ewald_jax.typing import InputError


@command
def scaling(
    configs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]... [KEY=VALUE]...",
            help="Files, then overrides; without files SchNet small with radial messages.",
        ),
    ] = None,
    atoms: Annotated[str, typer.Option(help="Atoms in the cell.")] = "1000,4000",
    sums: Annotated[
        str, typer.Option("--sum", help="Of direct, mesh and auto, one of the two.")
    ] = "direct,mesh,auto",
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of each.")] = 5,
    memory: Annotated[
        float | None, typer.Option(min=0, help="GB to use; by default what is free.")
    ] = None,
    clock: Clock = "wall",
    picture: Picture = None,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Energy and forces of one crystal, by the direct sum and by the mesh in turn.

    For example: ewald-jax benchmark scaling --atoms 1000,4000,16000 --picture scaling.png
    """
    from ewald_jax.analysis.benchmark_scaling import small_model, time_scaling
    from ewald_jax.config import load_config
    from ewald_jax.models import model_to_config

    numbers = split_numbers(atoms, "--atoms")
    check_drawable(picture)
    paths, overrides = split_arguments(configs or [])
    if not paths:
        small = model_to_config(small_model())
        small = {key: small[key] for key in small if small[key] is not None}
        overrides = [f"model={_inline(small)}", *overrides]
    if memory is not None and not math.isfinite(memory):
        raise InputError(f"--memory is {memory}, expected a finite number of GB")
    model = load_config(paths, ["data.name=dimers", *overrides]).model
    found = time_scaling(
        model,
        numbers,
        [name.strip() for name in sums.split(",")],
        repeats,
        None if memory is None else int(1e9 * memory),
        note if progress else lambda line: None,
        clock,
    )
    for sentence in found.left_out:
        note(sentence)
    settings = {"model": model_to_config(model)} | machine(clock)
    features = getattr(model, "hidden_channels", None)
    name = settings["model"]["name"]
    title = f"energy and forces, {name}, {features} features, {in_words(settings)}"
    values = settings | {"features": features} | found.to_dict()
    if picture is not None:
        from ewald_jax.analysis.benchmark_plots import plot_scaling

        keep_picture(plot_scaling(values["timings"], found.crossover, title), picture)
    if as_json:
        print_json(values)
        return
    rows = [
        (
            t.atoms,
            f"{t.sum} (auto)" if t.chosen else t.sum,
            " x ".join(map(str, t.mesh)) if t.sum == "mesh" else f"{t.kvecs} vectors",
            t.compile_seconds,
            t.seconds,
            t.seconds_spread,
            t.microseconds_per_atom,
            t.compiled_gb,
            t.resident_gb,
        )
        for t in found.timings
    ]
    columns = ("atoms", "sum", "waves", "compile s", "s", "IQR s", "us per atom")
    print_table(title, (*columns, "buffers GB", "peak GB"), rows)
    if found.crossover is not None:
        note(f"the mesh is faster from {found.crossover:,.0f} atoms")
    if found.flatness is not None:
        note(f"time per atom with the mesh, largest / smallest: {found.flatness:.3g}")


def _inline(values: dict) -> str:
    """One value of an override."""
    import yaml

    return yaml.safe_dump(values, default_flow_style=True, width=10**6).strip()
