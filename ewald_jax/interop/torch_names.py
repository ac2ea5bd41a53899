"""Which array of the PyTorch reference is which parameter of ours.

PyTorch stores a dense layer as [out, in], flax as [in, out]. Names are those of the Open
Catalyst Project's models of 2022 and 2023, and of the Ewald reference built on them.
"""

import re
from collections.abc import Callable, Container, Iterator, Mapping
from typing import NamedTuple

import flax.linen as nn

from ewald_jax.models import DimeNetPlusPlus, GemNetT, PaiNN, SchNet

IGNORED = (
    ".offset",  # centres of Gaussians, constants here
    "initial_embedding",
    "atomic_mass",
    ".down.linear.weight",  # the shared projection again, in each Ewald block
)
"""Ends of names of arrays that hold nothing more."""

IGNORED_PARTS = (
    ".conv.nn.",  # the filter network of a SchNet interaction a second time
    ".seq_energy.",  # the layers of a GemNet output block a second time
)


_SHARED = (
    (re.compile(r"\.conv\.nn\."), ".mlp."),
    (re.compile(r"\.seq_energy\."), ".layers."),
    (re.compile(r"^.*\.down\.linear\.weight$"), "down.linear.weight"),
)
"""Layers with several names, and the name that comes first in the reference."""


def first_name(name: str, names: Container[str]) -> str:
    """The name under which an array comes first, of those that a shared layer has."""
    for pattern, first in _SHARED:
        other = pattern.sub(first, name)
        if other in names:
            name = other
    return name


def is_constant(name: str) -> bool:
    """Whether no optimiser of the reference moves an array: scale factors and buffers."""
    return name.endswith(("scale_factor", ".offset", "initial_embedding", "atomic_mass"))


class Rule(NamedTuple):
    """One parameter.

    Attributes:
        path: Where it stands in our tree.
        name: What the reference calls it.
        transpose: Whether the axes of a matrix are swapped.
    """

    path: tuple[str, ...]
    name: str
    transpose: bool = False


def rules(model: nn.Module) -> list[Rule]:
    """All parameters of a model, in the order of its layers."""
    return list(_MODELS[type(model)](model))


def _kernel(path: str, name: str) -> Iterator[Rule]:
    yield Rule((*path.split("/"), "kernel"), f"{name}.weight", transpose=True)


def _dense(path: str, name: str) -> Iterator[Rule]:
    yield from _kernel(path, name)
    yield Rule((*path.split("/"), "bias"), f"{name}.bias")


def _scaled(path: str, name: str) -> Iterator[Rule]:
    yield from _kernel(path, f"{name}.linear")


def _residual(path: str, name: str) -> Iterator[Rule]:
    for n in range(2):
        yield from _scaled(f"{path}/dense_{n}", f"{name}.dense_mlp.{n}")


def _scale(path: str, name: str) -> Iterator[Rule]:
    yield Rule((*path.split("/"), "scale_factor"), f"{name}.scale_factor")


def _cfconv(path: str, name: str) -> Iterator[Rule]:
    yield from _dense(f"{path}/filter_0", f"{name}.mlp.0")
    yield from _dense(f"{path}/filter_1", f"{name}.mlp.2")
    yield from _kernel(f"{path}/lin_in", f"{name}.conv.lin1")
    yield from _dense(f"{path}/lin_out", f"{name}.conv.lin2")
    yield from _dense(f"{path}/lin", f"{name}.lin")


def ewald_block_rules(path: str, name: str, num_hidden: int) -> Iterator[Rule]:
    """The parameters of one `EwaldBlock` without a scale factor.

    Args:
        path: Of the block in our tree, parts joined by "/"; "" for the block alone.
        name: Of the block in the reference, with the final dot.
        num_hidden: Residual layers of its update network.
    """
    at = f"{path}/" if path else ""
    yield Rule((*at.split("/")[:-1], "up"), f"{name}up.linear.weight", transpose=True)
    yield from _residual(f"{at}pre_residual", f"{name}pre_residual")
    yield from _scaled(f"{at}update", f"{name}ewald_layers.0")
    for n in range(num_hidden):
        yield from _residual(f"{at}hidden_{n}", f"{name}ewald_layers.{n + 1}")


def _long_range(
    model: nn.Module, count: int, ewald: str, atomic: str, num_hidden: int | None = None
) -> Iterator[Rule]:
    """Long-range blocks; `ewald` and `atomic` are names with a place for the number."""
    if model.ewald is not None:
        layers = model.ewald.num_hidden if num_hidden is None else num_hidden
        yield Rule(("ewald_filter", "down"), "down.linear.weight", transpose=True)
        for i in range(count):
            yield from ewald_block_rules(f"ewald_{i}", ewald.format(i), layers)
    if model.atomic is not None:
        for i in range(count):
            yield from _cfconv(f"atomic_{i}", atomic.format(i))


def _schnet(model: SchNet) -> Iterator[Rule]:
    yield Rule(("embedding", "embedding"), "embedding.weight")
    for i in range(model.num_interactions):
        yield from _cfconv(f"interaction_{i}", f"interactions.{i}")
    yield from _long_range(
        model, model.num_interactions, "ewald_blocks.{}.", "interactions_at.{}"
    )
    yield from _dense("output_0", "lin1")
    yield from _dense("output_1", "lin2")


def _painn(model: PaiNN) -> Iterator[Rule]:
    yield Rule(("embedding", "embedding"), "atom_emb.embeddings.weight")
    for i in range(model.num_layers):
        ours, theirs = f"message_{i}", f"message_layers.{i}"
        yield Rule((ours, "norm", "scale"), f"{theirs}.x_layernorm.weight")
        yield Rule((ours, "norm", "bias"), f"{theirs}.x_layernorm.bias")
        yield from _dense(f"{ours}/features_0", f"{theirs}.x_proj.0")
        yield from _dense(f"{ours}/features_1", f"{theirs}.x_proj.2")
        yield Rule((ours, "filter_kernel"), f"{theirs}.rbf_proj.weight", transpose=True)
        yield Rule((ours, "filter_bias"), f"{theirs}.rbf_proj.bias")
        ours, theirs = f"update_{i}", f"update_layers.{i}"
        yield from _kernel(f"{ours}/vectors", f"{theirs}.vec_proj")
        yield from _dense(f"{ours}/gates_0", f"{theirs}.xvec_proj.0")
        yield from _dense(f"{ours}/gates_1", f"{theirs}.xvec_proj.2")
        yield from _scale(f"scale_{i}", f"upd_out_scalar_scale_{i}")
    yield from _long_range(
        model, model.num_layers, "ewald_blocks.{}.", "interactions_at.{}"
    )
    yield from _dense("output_0", "out_energy.0")
    yield from _dense("output_1", "out_energy.2")
    for i in range(2 if model.direct_forces else 0):
        ours, theirs = f"force_{i}", f"out_forces.output_network.{i}"
        yield from _kernel(f"{ours}/norms", f"{theirs}.vec1_proj")
        yield from _kernel(f"{ours}/vectors", f"{theirs}.vec2_proj")
        yield from _dense(f"{ours}/gates_0", f"{theirs}.update_net.0")
        yield from _dense(f"{ours}/gates_1", f"{theirs}.update_net.2")


def _dimenetpp(model: DimeNetPlusPlus) -> Iterator[Rule]:
    yield Rule(("rbf", "frequencies"), "rbf.freq")
    yield Rule(("edge_embedding", "elements", "embedding"), "emb.emb.weight")
    yield from _dense("edge_embedding/radial", "emb.lin_rbf")
    yield from _dense("edge_embedding", "emb.lin")
    for i in range(model.num_blocks):
        ours, theirs = f"interaction_{i}", f"interaction_blocks.{i}"
        for name, other in (("rbf_0", "lin_rbf1"), ("rbf_1", "lin_rbf2")):
            yield from _kernel(f"{ours}/{name}", f"{theirs}.{other}")
        for name, other in (("sbf_0", "lin_sbf1"), ("sbf_1", "lin_sbf2")):
            yield Rule((ours, name), f"{theirs}.{other}.weight", transpose=True)
        for name in ("lin_kj", "lin_ji", "lin"):
            yield from _dense(f"{ours}/{name}", f"{theirs}.{name}")
        for name in ("down", "up"):
            yield from _kernel(f"{ours}/{name}", f"{theirs}.lin_{name}")
        for side, count in (
            ("before", model.num_before_skip),
            ("after", model.num_after_skip),
        ):
            for n in range(count):
                layer = f"{theirs}.layers_{side}_skip.{n}"
                for k in range(2):
                    path = f"{ours}/{side}_skip_{n}/lin_{k}"
                    yield from _dense(path, f"{layer}.lin{k + 1}")
    for i in range(model.num_blocks + 1):
        ours, theirs = f"output_{i}", f"output_blocks.{i}"
        yield from _kernel(f"{ours}/rbf", f"{theirs}.lin_rbf")
        yield from _dense(f"{ours}/up", f"{theirs}.lin_up")
        for n in range(model.num_output_layers):
            yield from _dense(f"{ours}/lin_{n}", f"{theirs}.lins.{n}")
        yield from _kernel(f"{ours}/energy", f"{theirs}.lin")
    if model.ewald is not None or model.atomic is not None:
        yield Rule(("embedding", "embedding"), "atom_emb.embeddings.weight")
    yield from _long_range(
        model, model.num_blocks, "ewald_blocks.{}.", "interactions_at.{}"
    )


def _gemnet_t(model: GemNetT) -> Iterator[Rule]:
    for name, other in (("triplets", "rbf3"), ("atoms", "rbf_h"), ("output", "rbf_out")):
        yield from _scaled(f"rbf_{name}", f"mlp_{other}")
    yield Rule(("triplet_basis", "kernel"), "mlp_cbf3.weight")
    yield Rule(("embedding", "embedding"), "atom_emb.embeddings.weight")
    yield from _scaled("edge_embedding", "edge_emb.dense")

    def atoms(path: str, name: str) -> Iterator[Rule]:
        yield from _scaled(f"{path}/rbf", f"{name}.dense_rbf")
        yield from _scale(f"{path}/scale_sum", f"{name}.scale_sum")
        yield from _scaled(f"{path}/dense", f"{name}.layers.0")
        for n in range(model.num_atom):
            yield from _residual(f"{path}/residual_{n}", f"{name}.layers.{n + 1}")

    for i in range(model.num_blocks):
        ours, theirs = f"block_{i}", f"int_blocks.{i}"
        yield from _scaled(f"{ours}_skip", f"{theirs}.dense_ca")
        path, name = f"{ours}_triplets", f"{theirs}.trip_interaction"
        yield from _scaled(f"{path}/dense", f"{name}.dense_ba")
        yield from _scaled(f"{path}/rbf", f"{name}.mlp_rbf")
        yield from _scale(f"{path}/scale_rbf", f"{name}.scale_rbf")
        yield from _scaled(f"{path}/down", f"{name}.down_projection")
        yield Rule((path, "bilinear"), f"{name}.mlp_cbf.weight")
        yield from _scale(f"{path}/scale_sum", f"{name}.scale_cbf_sum")
        yield from _scaled(f"{path}/up_forward", f"{name}.up_projection_ca")
        yield from _scaled(f"{path}/up_backward", f"{name}.up_projection_ac")
        for side, other, count in (
            ("before_skip", "layers_before_skip", model.num_before_skip),
            ("after_skip", "layers_after_skip", model.num_after_skip),
            ("residual", "residual_m", model.num_concat),
        ):
            for n in range(count):
                yield from _residual(f"{ours}_{side}_{n}", f"{theirs}.{other}.{n}")
        yield from atoms(f"{ours}_atoms", f"{theirs}.atom_update")
        yield from _scaled(f"{ours}_concat", f"{theirs}.concat_layer.dense")
        if model.ewald is not None:
            name = f"{theirs}.ewald_block.ewald_scale_sum"
            yield from _scale(f"ewald_{i}/scale_sum", name)
    blocks = "int_blocks.{}.ewald_block.", "int_blocks.{}.interaction_at"
    yield from _long_range(model, model.num_blocks, *blocks, num_hidden=model.num_atom)
    for i in range(model.num_blocks + 1):
        theirs = f"out_blocks.{i}"
        yield from atoms(f"output_{i}", theirs)
        yield from _scaled(f"energy_{i}", f"{theirs}.out_energy")
        if model.direct_forces:
            ours = f"force_{i}"
            yield from _scaled(f"{ours}/dense", f"{theirs}.seq_forces.0")
            for n in range(model.num_atom):
                yield from _residual(f"{ours}/residual_{n}", f"{theirs}.seq_forces.{n + 1}")
            yield from _scaled(f"{ours}/rbf", f"{theirs}.dense_rbf_F")
            yield from _scale(f"{ours}/scale_rbf", f"{theirs}.scale_rbf_F")
            yield from _scaled(f"{ours}/force", f"{theirs}.out_forces")


_MODELS: Mapping[type[nn.Module], Callable[..., Iterator[Rule]]] = {
    SchNet: _schnet,
    PaiNN: _painn,
    DimeNetPlusPlus: _dimenetpp,
    GemNetT: _gemnet_t,
}
