"""Train the models that come with the package, and put them there with their cards.

    python experiments/pretrain.py            # all of them: about an hour on two cores
    python experiments/pretrain.py dimers

trains each on a packaged sample set, random split, into ``runs/pretrained/NAME`` (which a
second call continues), and writes parameters, description and card to
``ewald_jax/pretrained``.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from cells import Cell, run_cell

from ewald_jax.cli.common import command, note
from ewald_jax.memory import keep_memory
from ewald_jax.pretrained import PRETRAINED, load_pretrained, model_card, write_pretrained
from ewald_jax.pretrained.files import HERE

DATA = {
    "dimers": (
        "the packaged dimers: pairs of ions, zwitterions and polar molecules, from contact to "
        "15 Å apart, GFN2-xTB, open boundaries"
    ),
    "slabs": (
        "the packaged slabs: molecules on rattled slabs of NaCl, LiF and MgO, and rattled "
        "crystals of them, GFN1-xTB at the Gamma point, periodic in all directions"
    ),
}
LIMITS = {
    "dimers": (
        "Made for trying things out: errors are those of the table. It has seen two molecules "
        "at a time, near their equilibrium: no reactions, no liquids, no crystals, and single "
        "molecules only as partners far apart. Away from the training structures energies may "
        "fall without bound, and dynamics at high temperature goes there."
    ),
    "slabs": (
        "Made for trying things out: errors are those of the table, in cells of 18 to 80 "
        "atoms. The labels are those of one k-point, so that a crystal in different cells has "
        "different ones, which no size-consistent model can follow. Away from rock salt and "
        "from molecules near such surfaces it guesses."
    ),
}


NAMES = {"schnet": "SchNet", "painn": "PaiNN"}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one model is trained.

    Attributes:
        data: Name of a data config and of a sample set.
        model: Name of a model config.
        overrides: ``key=value``.
    """

    data: str
    model: str
    overrides: tuple[str, ...]


RECIPES = {
    "dimers": Recipe("dimers", "schnet_small", ("train.batch_size=8", "train.epochs=60")),
    "dimers-painn": Recipe(
        "dimers", "painn_small", ("train.batch_size=8", "train.epochs=16")
    ),
    "slabs": Recipe("slabs", "schnet_small", ("train.batch_size=8", "train.epochs=12")),
}


def train(name: str, runs: Path) -> None:
    """Trains one model, or takes it from where it is trained, and packs it."""
    from ewald_jax.train import load_checkpoint

    recipe = RECIPES[name]
    cell = Cell(recipe.data, recipe.model, "radial", 0)
    folder = runs / name
    overrides = [*recipe.overrides, "train.tensorboard=false"]
    result = run_cell(cell, folder, overrides)
    _, params, config, statistics = load_checkpoint(folder / cell.name)
    card = {
        "data": DATA[recipe.data],
        "limits": LIMITS[recipe.data],
        "elements": statistics.to_dict()["species"],
        "command": f"python experiments/pretrain.py {name}",
        "configs": [recipe.data, recipe.model, "radial", *overrides],
        "metrics": result["metrics"],
        "parameters": result["parameters"],
        "steps": result["steps"],
        "machine": result["machine"],
    }
    write_pretrained(name, params, config, statistics, card)


def card_text(name: str) -> str:
    """The card of a model as markdown."""
    card = model_card(name)
    _, _, config, _ = load_pretrained(name)
    rows = [
        f"| {split} | {_milli(values, 'energy_mae')} | {_milli(values, 'forces_mae')} "
        f"| {values['forces_cosine']:.3f} |"
        for split, values in card["metrics"].items()
    ]
    machine = card["machine"]
    return "\n".join(
        [
            f"## {name}",
            "",
            f"{NAMES[config['model']['name']]} with Ewald message passing (`radial`), "
            f"{card['parameters']:,} parameters; elements {', '.join(card['elements'])}.",
            "",
            f"Data: {card['data']}; split by `{config['data']['split']}`.",
            "",
            "| split | energy MAE (meV per structure) | force MAE (meV/Å) | force cosine |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Limits: {card['limits']}",
            "",
            f"Made by `{card['command']}` ({' '.join(card['configs'])}): {card['steps']:,} "
            f"steps, seed 0, {machine['cores']} cores of {machine['processor']}, JAX "
            f"{machine['jax']}.",
        ]
    )


def _milli(values: dict[str, Any], key: str) -> str:
    return f"{1e3 * values[key]:.1f}"


def write_cards() -> None:
    """Writes the cards of all models that are there."""
    there = [name for name in PRETRAINED if (HERE / f"{name}.json").exists()]
    head = (
        "# Model cards\n\nOf the models that come with the package: "
        '`EwaldCalculator.from_pretrained("dimers")`, '
        '`ewald_jax.load_pretrained("dimers")`, or `pretrained:dimers` where the command line '
        "expects a checkpoint. MIT license, as the code. Written by "
        "`python experiments/pretrain.py`.\n"
    )
    text = "\n\n".join([head.rstrip("\n"), *map(card_text, there)]) + "\n"
    (HERE / "README.md").write_text(text, encoding="utf-8")


@command
def main(
    names: Annotated[list[str] | None, typer.Argument(help="Models; all if none.")] = None,
    runs: Annotated[Path, typer.Option(help="Where runs go.")] = Path("runs/pretrained"),
) -> None:
    """Train and pack."""
    for name in names or PRETRAINED:
        if name not in RECIPES:
            raise typer.BadParameter(f"{name!r}: expected some of {', '.join(RECIPES)}")
        train(name, runs)
        write_cards()
        note(f"packed {name} into {HERE}")


if __name__ == "__main__":
    keep_memory()
    typer.run(main)
