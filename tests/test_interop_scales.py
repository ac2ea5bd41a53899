"""Files of scale factors beside PyTorch checkpoints, in all the ways that they are named."""

import json

import jax
import numpy as np
import pytest
from structures import quick_compilation  # noqa: F401
from test_interop_checkpoint import GEMNET, PAINN, SCHNET, check_energies, file_content
from torch_files import save

from ewald_jax.interop.torch_import import import_checkpoint
from ewald_jax.interop.torch_scales import read_scales
from ewald_jax.typing import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")

OLDER = {
    "out_blocks.{}.scale_sum": ("OutBlock_{}_sum", 0, 3),
    "int_blocks.{}.atom_update.scale_sum": ("AtomUpdate_{}_sum", 1, 2),
    "int_blocks.{}.trip_interaction.scale_rbf": ("TripInteraction_{}_had_rbf", 1, 2),
    "int_blocks.{}.trip_interaction.scale_cbf_sum": ("TripInteraction_{}_sum_cbf", 1, 2),
    "int_blocks.{}.ewald_block.ewald_scale_sum": ("EwaldUpdate_{}_sum", 1, 2),
}


def parts(name, keep=False, factor=1.0):
    """The checkpoint's content with (wrong) or without scale factors, and these by path."""
    content = file_content(name, "")
    state = content["state_dict"]
    scales = {k: float(v) for k, v in state.items() if k.endswith("scale_factor")}
    for key in scales:
        del state[key]
    if keep:
        state |= {key: np.array(factor, np.float32) for key in scales}
    return content, {k.removesuffix(".scale_factor"): v for k, v in scales.items()}


def older(scales):
    out = {"comment": "GemNetT"}
    for path, (name, first, count) in OLDER.items():
        out |= {name.format(i + first): scales[path.format(i)] for i in range(count)}
    assert len(out) == len(scales) + 1
    return out


def write(path, scales):
    if path.suffix == ".pt":
        return save(path, scales)
    path.write_text(json.dumps(scales))
    return path


def with_suffix(scales):
    return {f"{key}.scale_factor": value for key, value in scales.items()}


def as_tensors(scales):
    return {f"module.{key}": np.array(value, np.float32) for key, value in scales.items()}


@pytest.mark.parametrize(
    ("name", "change", "file"),
    [
        (GEMNET, older, "x.json"),
        (GEMNET, dict, "x.json"),
        (GEMNET, with_suffix, "x.JSON"),
        (GEMNET, as_tensors, "x.pt"),
        (PAINN, dict, "x.json"),
        (PAINN, dict, "x.pt"),
        (PAINN, as_tensors, "x.pt"),
    ],
)
@pytest.mark.parametrize("keep", [False, True])
def test_scale_files(name, change, file, keep, tmp_path):
    content, scales = parts(name, keep, factor=0.0)
    file = write(tmp_path / file, change(scales))
    imported = import_checkpoint(save(tmp_path / "c.pt", content), scale_file=file)
    if change is older:
        check_energies(name, *imported[:3])
    expected = import_checkpoint(save(tmp_path / "c.pt", file_content(name))).params
    jax.tree.map(np.testing.assert_array_equal, imported.params, expected)


def test_factors_of_direct_forces_are_left_over_without_them(tmp_path):
    content, scales = parts(GEMNET)
    file = write(tmp_path / "x.json", older(scales) | {"OutBlock_2_had": 14.5})
    import_checkpoint(save(tmp_path / "c.pt", content), scale_file=file)
    file = write(tmp_path / "x.json", older(scales) | {"OutBlock_3_had": 14.5})
    with pytest.raises(InputError, match="'OutBlock_3_had' is none of the model's"):
        import_checkpoint(tmp_path / "c.pt", scale_file=file)


def test_scale_factors_that_do_not_fit(tmp_path):
    content, scales = parts(GEMNET)
    checkpoint = save(tmp_path / "c.pt", content)

    def sentence(values, checkpoint=checkpoint):
        with pytest.raises(InputError) as caught:
            import_checkpoint(checkpoint, scale_file=write(tmp_path / "x.json", values))
        assert str(checkpoint) in str(caught.value)
        return str(caught.value)

    assert "'AtomUpdate_3_sum' is none of the model's" in sentence({"AtomUpdate_3_sum": 1})
    assert "expected names like 'int_blocks" in sentence({"AtomUpdate_0_sum": 1})
    assert "given twice" in sentence(scales | older(scales))
    left = dict(list(scales.items())[1:])
    assert "no scale factor" in sentence(left) and "(and 0 more)" in sentence(left)
    schnet = save(tmp_path / "s.pt", file_content(SCHNET))
    assert "a SchNet has none" in sentence({"upd_out_scalar_scale_0": 1}, schnet)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a list, expected scale factors by name"),
        ({}, "is empty"),
        ({"a": 0.0}, "'a' is 0.0 (it was never fitted), expected a number above 0"),
        ({"a": -1}, "'a' is -1, expected a number above 0"),
        ({"a": float("nan")}, "'a' is nan"),
        ({"a": "1.0"}, "'a' is '1.0'"),
        ({"a": True}, "'a' is True"),
        ({"a": [1.0]}, "'a' is [1.0]"),
        ({"a": 10**400}, "expected a number above 0"),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_files_that_are_refused(content, words, suffix, tmp_path):
    file = write(tmp_path / f"x{suffix}", content)
    with pytest.raises(InputError) as caught:
        read_scales(file)
    assert words in str(caught.value) and str(caught.value).startswith(f"{file}: ")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="there is no file of scale factors"):
        read_scales(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{'a': 1}")
    with pytest.raises(InputError, match="is not JSON"):
        read_scales(tmp_path / "x.json")
    with pytest.raises(InputError, match="cannot be read"):
        (tmp_path / "y.json").mkdir()
        read_scales(tmp_path / "y.json")
    save(tmp_path / "x.pt", {"a": np.ones(2)})
    with pytest.raises(InputError, match=r"'a' is \[1.0, 1.0\]"):
        read_scales(tmp_path / "x.pt")
