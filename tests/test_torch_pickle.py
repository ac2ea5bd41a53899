"""PyTorch files without PyTorch: the same numbers, and nothing in a file is ever run.

`reference/torch_zip.pt` and `torch_legacy.pt` were written by PyTorch 2.13.0 (`torch.save` of
one dictionary, with and without `_use_new_zipfile_serialization`), `torch_expected.npz` holds
the same tensors as `Tensor.numpy()` gave them, bfloat16 through `Tensor.float()`; keys are the
paths in the dictionary. All other files are assembled here, instruction by instruction.
"""

import collections
import functools
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from structures import reference
from torch_files import (
    FORMATS,
    Call,
    Named,
    Pickler,
    Storage,
    floats,
    legacy_file,
    load_content,
    load_value,
    pickled,
    refusal,
    tensor,
    torch_file,
)

from ewald_jax.data.restricted import restricted_loads
from ewald_jax.data.stand_ins import PLAIN, Record
from ewald_jax.data.torch_pickle import TORCH, load_torch
from ewald_jax.typing import InputError

HERE = Path(__file__).parent / "reference"


@pytest.fixture(params=FORMATS)
def kind(request):
    return request.param


@pytest.fixture
def read(tmp_path):
    """What comes out of a file with these bytes."""
    return functools.partial(load_content, tmp_path)


@pytest.fixture
def load(tmp_path, kind):
    """What comes out of a file of this value, in either format."""
    return functools.partial(load_value, tmp_path, kind)


@pytest.fixture
def refused(tmp_path):
    """The sentence about a file with these bytes, without its name."""
    return functools.partial(refusal, tmp_path)


# -- what PyTorch wrote ----------------------------------------------------------------------


def arrays_in(value, path=""):
    if isinstance(value, np.ndarray):
        return {path: value}
    items = value.items() if isinstance(value, dict) else ()
    found = {}
    for key, part in items:
        found |= arrays_in(part, f"{path}/{key}")
    return found


def test_reads_what_pytorch_wrote(kind):
    content = load_torch(HERE / f"torch_{kind}.pt")
    expected, found = reference("torch_expected"), arrays_in(content)
    assert set(found) == set(expected)
    for name, array in found.items():
        assert array.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(array, expected[name], strict=True, err_msg=name)
        assert not array.flags.writeable
    assert set(content["state_dict"]) == {"module.module.weight", "module.module.bias"}
    assert type(content["state_dict"]) is dict
    assert np.shares_memory(content["row"], content["transposed"])
    plain = {name: content[name] for name in content if f"/{name}" not in expected}
    del plain["state_dict"]
    assert plain == {
        "epoch": 3,
        "step": 1200,
        "best": 0.25,
        "name": "tiny",
        "none": None,
        "flag": True,
        "shape": (1, [2, {"a": 3}]),
        "size": (2, 3),
        "device": "cpu",
        "dtype": "torch.float32",
        "args": {"lr": 0.1, "path": "a/b"},
        "counts": {"x": [1]},
        "set": {1, 2},
        "np_scalar": 0.5,
    }


def test_a_file_cut_anywhere_is_refused(kind, refused):
    whole = (HERE / f"torch_{kind}.pt").read_bytes()
    for length in [*range(0, len(whole), 11), *range(len(whole) - 30, len(whole))]:
        sentence = refused(whole[:length])
        assert "expected a PyTorch file" in sentence
        if length >= 4 and kind == "zip":
            assert sentence.startswith("is truncated or damaged (")


def test_changed_bytes_are_read_or_refused(kind, tmp_path):
    whole = (HERE / f"torch_{kind}.pt").read_bytes()
    rng = np.random.default_rng(0)
    refusals = 0
    for _ in range(300):
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            changed[place] = rng.integers(256)
        (tmp_path / "x.pt").write_bytes(changed)
        try:
            load_torch(tmp_path / "x.pt")
        except InputError:
            refusals += 1
    assert refusals > 100


# -- tensors ---------------------------------------------------------------------------------

NUMBERS = {
    "Float": ("f4", [1.5, -2]),
    "Double": ("f8", [1e-300, 2]),
    "Half": ("f2", [0.5, -3]),
    "Long": ("i8", [2**40, -1]),
    "Int": ("i4", [-5, 7]),
    "Short": ("i2", [-6, 300]),
    "Char": ("i1", [-7, 1]),
    "Byte": ("u1", [200, 1]),
    "Bool": ("b1", [True, False]),
    "ComplexFloat": ("c8", [1 + 2j, -1j]),
    "ComplexDouble": ("c16", [3 - 4j, 0]),
}


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("name", NUMBERS)
def test_every_type_of_numbers_in_both_byte_orders(name, order, load):
    dtype, values = NUMBERS[name]
    raw = np.array(values, {"little": "<", "big": ">"}[order] + dtype).tobytes()
    storage = Storage(f"torch.{name}Storage", "0", raw, 2)
    array = load(tensor(storage, 0, (2,), (1,)), order)
    np.testing.assert_array_equal(array, np.array(values, dtype), strict=True)


def test_bfloat16_is_the_upper_half_of_float32(load):
    raw = np.array([0x3FC0, 0xC040], "<u2").tobytes()
    array = load(tensor(Storage("torch.BFloat16Storage", "0", raw, 2), 0, (2,), (1,)))
    np.testing.assert_array_equal(array, np.float32([1.5, -3]), strict=True)


def test_a_true_that_is_not_one_is_true(load):
    array = load(tensor(Storage("torch.BoolStorage", "0", b"\0\2\xff", 3), 0, (3,), (1,)))
    assert array.view(np.uint8).tolist() == [0, 1, 1]


def test_views_of_one_storage(load):
    storage = floats(12)
    views = {
        "transposed": tensor(storage, 0, (4, 3), (1, 4)),
        "block": tensor(storage, 5, (2, 2), (4, 1)),
        "expanded": tensor(storage, 3, (2, 3), (0, 1)),
        "last": tensor(storage, 11, (), ()),
        "empty": tensor(storage, 12, (0, 3), (3, 1)),
        "old": Call("torch._utils._rebuild_tensor", storage, 2, (3,), (2,)),
        "storage": storage,
    }
    whole = np.arange(12, dtype=np.float32)
    expected = {
        "transposed": whole.reshape(3, 4).T,
        "block": whole.reshape(3, 4)[1:, 1:3],
        "expanded": np.stack([whole[3:6]] * 2),
        "last": whole[11],
        "empty": np.zeros((0, 3), np.float32),
        "old": whole[[2, 4, 6]],
        "storage": whole,
    }
    found = load(views)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
        assert array.shape == expected[name].shape and array.dtype == np.float32
        assert name == "empty" or np.shares_memory(array, found["storage"])


def test_parameters_and_tensors_with_attributes(load):
    inner = tensor(floats(), 0, (6,), (1,))
    hooks = collections.OrderedDict()
    rebuild = Named("torch._utils._rebuild_tensor_v2")
    values = [
        Call("torch._utils._rebuild_parameter", inner, True, hooks),
        Call("torch._utils._rebuild_parameter_with_state", inner, True, hooks, {"a": 1}),
        Call(
            "torch._tensor._rebuild_from_type_v2",
            *(rebuild, Named("torch.Tensor")),
            *((floats(key="1"), 0, (6,), (1,), False, hooks), {"tag": 1}),
        ),
    ]
    for array in load(values):
        np.testing.assert_array_equal(array, np.arange(6, dtype=np.float32), strict=True)


def test_untyped_storages_seen_as_numbers(load):
    raw = np.array([65535, 1, 2], "<u2").tobytes() + b"\0"
    storage = Storage("torch.storage.UntypedStorage", "0", raw, 7)
    args = (storage, 1, (2,), (1,), False, {})
    rebuild = "torch._utils._rebuild_tensor_v3"
    found = load(Call(rebuild, *args, Named("torch.uint16")))
    np.testing.assert_array_equal(found, np.uint16([1, 2]), strict=True)
    with pytest.raises(
        InputError, match=r"x.pt: holds a tensor of torch.float8_e5m2, which"
    ):
        load(Call(rebuild, *args, Named("torch.float8_e5m2")))
    with pytest.raises(
        InputError, match=r"damaged \(a tensor is larger than its storage\)"
    ):
        load(Call(rebuild, storage, 2, (2,), (1,), False, {}, Named("torch.uint16")))


def test_a_storage_that_is_a_part_of_another(read):
    class Part(Pickler):
        def persistent_id(self, value):
            pid = super().persistent_id(value)
            return pid and (*pid[:5], ("9", 2, 3))

    stream, storage = io.BytesIO(), floats()
    Part(stream, 2, True).dump(tensor(storage, 0, (3,), (1,)))
    found = read(legacy_file(stream.getvalue(), [storage]))
    np.testing.assert_array_equal(found, np.float32([2, 3, 4]), strict=True)


@pytest.mark.parametrize(
    ("offset", "size", "stride", "reason"),
    [
        (0, (7,), (1,), "a tensor is larger than its storage"),
        (5, (2,), (1,), "a tensor is larger than its storage"),
        (0, (2, 2), (5, 1), "a tensor is larger than its storage"),
        (6, (), (), "a tensor is larger than its storage"),
        (2**62, (2,), (2**62,), "a tensor is larger than its storage"),
        (-1, (2,), (1,), "a shape has an entry that is not a size"),
        (5, (2,), (-1,), "a shape has an entry that is not a size"),
        (0, (-2, -3), (1, 1), "a shape has an entry that is not a size"),
        (0, (True,), (1,), "a shape has an entry that is not a size"),
        (0, (2.0,), (1,), "a shape has an entry that is not a size"),
        (0, "ab", (1, 1), "a shape is not a tuple"),
        (0, (2,), (), "a tensor has other strides than sizes"),
    ],
)
def test_a_tensor_stays_within_its_storage(offset, size, stride, reason, load):
    with pytest.raises(InputError) as error:
        load(tensor(floats(), offset, size, stride))
    assert str(error.value).endswith(
        f"x.pt: is truncated or damaged ({reason}), expected a PyTorch file"
    )


def test_tensors_that_are_refused(load):
    with pytest.raises(InputError, match="x.pt: repeats its tensors to more than 1000"):
        load(tensor(floats(), 0, (2**20, 2**20), (0, 0)))
    with pytest.raises(InputError, match="a tensor to be conjugated or negated, expected"):
        load(tensor(floats(), 0, (2,), (1,), {"conj": True}))
    for name in ("_rebuild_sparse_tensor", "_rebuild_qtensor"):
        with pytest.raises(
            InputError, match=f"x.pt: asks to call torch._utils.{name}, exp"
        ):
            load(Call(f"torch._utils.{name}", 1))
    for thing in ([1.0], None, tensor(floats(), 0, (2, 3), (3, 1))):
        with pytest.raises(InputError, match=r"damaged \(a tensor has no storage\)"):
            load(tensor(thing, 0, (1,), (1,)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"count": 7}, None),
        ({"count": 2**60}, None),
        ({"count": -1}, "a shape has an entry that is not a size"),
        ({"kind": "torch.DoubleStorage"}, None),
        ({"kind": "torch.uint8"}, "a storage is of no known type"),
        ({"key": 0}, "the key of a storage is not text"),
    ],
)
def test_storages_that_are_not_as_the_file_says(change, reason, load):
    storage = floats(5)
    vars(storage).update(change)
    with pytest.raises(InputError, match=r"x.pt: is truncated or damaged \(") as error:
        load(tensor(storage, 0, (1,), (1,)))
    assert reason is None or f"({reason})" in str(error.value)


def test_claims_of_size_take_no_memory(kind, refused):
    value = [Storage("torch.FloatStorage", str(i), b"", 2**40) for i in range(3)]
    data, storages = pickled(value, kind == "legacy")
    sentence = refused(torch_file(kind, data, storages.values()))
    assert sentence.startswith("is truncated or damaged (")
    if kind == "legacy":
        assert "its storages are larger than the file" in sentence


# -- plain values ----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_of_python_and_numpy(protocol):
    value = {
        "bytes": b"\x00\xff",
        "none": b"",
        "array": bytearray(b"ab"),
        "complex": 1 + 2j,
        "set": {1, (2, "x")},
        "frozen": frozenset([3]),
        "slice": slice(None, 3, 2),
        "ordered": collections.OrderedDict(a=1),
        "counter": collections.Counter("aab"),
        "path": Path("a/b"),
        "scalars": [np.float64(0.5), np.int32(-2), np.bool_(True), np.str_("é")],
        "big": 2**200,
    }
    expected = value | {"path": "a/b", "scalars": [0.5, -2, True, "é"]}
    found = restricted_loads(pickle.dumps(value, protocol), PLAIN, "x")
    assert found == expected
    assert {type(part) for part in found["scalars"]} == {float, int, bool, str}
    assert type(found["ordered"]) is type(found["counter"]) is dict
    arrays = [
        np.arange(6.0).reshape(2, 3).T,
        np.arange(3, dtype=">i4"),
        np.array([True, False]),
        np.array(["ab", "c"]),
        np.zeros((0, 3), np.float32),
        np.array(2.5),
    ]
    for array in arrays:
        found = restricted_loads(pickle.dumps([array, array], protocol), PLAIN, "x")
        dtype = array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[0], array.astype(dtype), strict=True)
        assert found[0] is found[1] and not found[0].flags.writeable


def test_names_of_types_come_out_as_text():
    value = [Named("builtins.float"), Named("torch.bfloat16"), Named("torch.Size")]
    value += [np.dtype("f4"), Call("torch.device", "cuda", 0), Call("torch.Size", (2, 3))]
    found = restricted_loads(pickled(value)[0], TORCH, "x")
    assert found[:3] == ["builtins.float", "torch.bfloat16", "torch.Size"]
    assert found[3:] == ["float32", "cuda:0", (2, 3)]


def test_records_of_another_library():
    """As torch_geometric pickles its `Data`: tensors as files within, a store that refers
    back to its owner."""

    inner, storages = pickled(floats(), legacy=True)
    raw = legacy_file(inner, storages.values())
    positions = tensor(Call("torch.storage._load_from_bytes", raw), 0, (2, 3), (3, 1))
    # NEWOBJ of a class, then BUILD, with the owner put into the memo first.
    parts = [b"\x80\x02cpyg.Data\nData\n)\x81q\x00}", b"X\x06\x00\x00\x00_store"]
    parts += [b"cpyg.Data\nStore\n)\x81}(X\x07\x00\x00\x00_parenth\x00X\x03\x00\x00\x00pos"]
    parts += [pickled(positions)[0][2:-1], b"ub", b"sb."]
    table = TORCH | {"pyg.Data.Data": Record, "pyg.Data.Store": Record}
    found = restricted_loads(b"".join(parts), table, "data.lmdb: record 3")
    assert found["_store"]["_parent"] is None
    expected = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(found["_store"]["pos"], expected, strict=True)
    with pytest.raises(
        InputError, match=r"data.lmdb: record 3: asks to call pyg.Data.Data,"
    ):
        restricted_loads(b"".join(parts), TORCH, "data.lmdb: record 3")


def test_a_stream_is_left_at_the_end_of_its_pickle():
    stream = io.BytesIO(pickle.dumps([1]) + pickle.dumps({"a": 2}) + b"rest")
    assert restricted_loads(stream, {}, "x") == [1]
    assert restricted_loads(stream, {}, "x") == {"a": 2}
    assert stream.read() == b"rest"
