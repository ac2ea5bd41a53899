"""What the verbs of `ewald-jax benchmark` share."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ewald_jax.cli.common import note
from ewald_jax.typing import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Clock = Annotated[
    Literal["wall", "processor"],
    typer.Option(help="processor: CPU time of all threads, beside other work."),
]
NumK = Annotated[str, typer.Option(help="Index box n_x,n_y,n_z; 5,4,5 has 544.")]
Features = Annotated[int, typer.Option(min=1, help="Channels.")]
Picture = Annotated[
    Path | None, typer.Option(help="Also draw it, into this file (.png, .pdf, .svg).")
]


def index_box(text: str) -> tuple[int, int, int]:
    """The three bounds that `--num-k` takes.

    Raises:
        InputError: If they are not three.
    """
    try:
        box = tuple(int(n) for n in text.split(","))
    except ValueError:
        box = ()
    if len(box) != 3:
        raise InputError(f"--num-k is {text!r}, expected three integers such as 5,4,5")
    return box


def check_drawable(picture: Path | None) -> None:
    """Refuses a file that cannot be one of a picture, before anything is measured."""
    if picture is not None:
        from ewald_jax.analysis.plots import check_picture

        check_picture(picture)


def keep_picture(figure: "Figure", picture: Path) -> None:
    """Writes a figure and says so."""
    from ewald_jax.analysis.plots import save_figure

    note(f"the picture is in {save_figure(figure, picture)}")


def jax_device() -> str:
    """What the numbers were measured on."""
    import jax

    return jax.devices()[0].device_kind


def machine(clock: str) -> dict[str, Any]:
    """What the numbers were measured on, and with."""
    from ewald_jax.data.parallel import available_cores

    return {"device": jax_device(), "cores": available_cores(), "clock": clock}


def in_words(values: Mapping[str, Any]) -> str:
    """What `machine` says, for a title."""
    cores = f", {values['cores']} cores" if values["cores"] > 1 else ", one core"
    host = cores if values["device"] == "cpu" else ""
    return f"{values['device']}{host}{', processor time' * (values['clock'] != 'wall')}"
