"""Small models, and weights for them that need no compilation."""

import functools

import jax
import numpy as np

import ewald_jax

SIZES = {
    "schnet": {
        "hidden_channels": 16,
        "num_filters": 16,
        "num_interactions": 2,
        "num_gaussians": 12,
    },
    "painn": {"hidden_channels": 16, "num_layers": 2, "num_rbf": 12},
    "dimenetpp": {
        "hidden_channels": 16,
        "out_emb_channels": 16,
        "num_blocks": 2,
        "int_emb_size": 8,
        "basis_emb_size": 4,
        "num_spherical": 3,
        "num_radial": 4,
        "num_before_skip": 1,
        "num_after_skip": 1,
        "num_output_layers": 1,
    },
    "gemnet_t": {
        "emb_size_atom": 16,
        "emb_size_edge": 16,
        "emb_size_trip": 8,
        "emb_size_rbf": 6,
        "emb_size_cbf": 4,
        "emb_size_bil_trip": 8,
        "num_blocks": 2,
        "num_spherical": 3,
        "num_radial": 12,
        "num_before_skip": 1,
        "num_after_skip": 1,
        "num_concat": 1,
        "num_atom": 1,
    },
}


def tiny(name, **fields):
    """The model with every width at most 16 and two blocks."""
    return ewald_jax.build_model(name, **SIZES[name] | fields)


def drawn(model, batch, seed=0):
    """Random weights: matrices keep the variance, scale factors are 1, the rest is small."""
    init = functools.partial(ewald_jax.init_params, model)
    shapes = jax.eval_shape(init, jax.random.key(0), batch)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path[-1:])
        if "scale" in name and leaf.ndim < 2:
            value = np.ones(leaf.shape)
        elif "frequencies" in name:
            value = np.pi * np.arange(1, leaf.shape[0] + 1)
        elif leaf.ndim < 2:
            value = 0.1 * rng.normal(size=leaf.shape)
        else:
            fan_in = 1 if "embedding" in name else np.prod(leaf.shape[:-1])
            value = rng.normal(size=leaf.shape) / np.sqrt(fan_in)
        return value.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)
