"""What the tables of several studies share."""

from collections.abc import Sequence


def spread(seconds: float, spread: float, unit: float = 1e3) -> str:
    """Text of a median and half its interquartile range, in milliseconds unless told."""
    value, error = unit * seconds, unit * spread / 2
    # As .3g and .1g, without powers of ten.
    left = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{left} ± {error:.0f}" if error >= 1 else f"{left} ± {error:.1g}"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    """A table and a sentence below it."""
    lines = ["| " + " | ".join(row) + " |" for row in (columns, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:], "", note])


def variant_name(name: str) -> str:
    """The variant that a config file has in its name."""
    kind = name.rpartition("_")[2]
    return "Ewald" if kind in ("voxel", "lattice") else kind
