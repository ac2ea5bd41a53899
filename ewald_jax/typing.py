"""Array aliases, the fixed list of axis names, and the error of a user's mistake.

Axis names used in every annotation of the package:

* ``nodes``    atoms of a batch (padding included),
* ``edges``    directed neighbor pairs,
* ``graphs``   structures of a batch (padding included),
* ``rows``     structures that take part in k-space sums (see `graph.schema.Batch`),
* ``slots``    atoms of one structure in the dense layout,
* ``kvecs``    wave vectors,
* ``feat``     feature channels.
"""

from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

Array = jax.Array | np.ndarray
PyTree = Any

__all__ = ["Array", "Bool", "Float", "InputError", "Int", "PyTree"]


class InputError(ValueError):
    """A mistake in what the user gave: one sentence that says where and what was expected.

    The command line prints it without a traceback and exits with code 2.
    """
