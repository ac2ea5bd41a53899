"""Models that come with the package, trained on the packaged samples.

``dimers`` (SchNet) and ``dimers-painn`` (PaiNN) know pairs of molecules, ``slabs`` (SchNet)
ionic crystals and their surfaces, all with Ewald message passing (`radial`). They are for
trying things out: small, trained for minutes on a processor. `model_card` and ``README.md``
beside this file say what each has seen, how well it does, and where it fails;
``experiments/pretrain.py`` trains them again.
"""

from ewald_jax.pretrained.files import (
    PREFIX,
    PRETRAINED,
    load_pretrained,
    model_card,
    pretrained_name,
    write_pretrained,
)

__all__ = [
    "PREFIX",
    "PRETRAINED",
    "load_pretrained",
    "model_card",
    "pretrained_name",
    "write_pretrained",
]
