"""PyTorch files without PyTorch: the same numbers, and nothing in a file is ever run.

`reference/torch_zip.pt` and `torch_legacy.pt` were written by PyTorch 2.13.0 (`torch.save` of
one dictionary, with and without `_use_new_zipfile_serialization`), `torch_expected.npz` holds
the same tensors as `Tensor.numpy()` gave them, bfloat16 through `Tensor.float()`; keys are the
paths in the dictionary. All other files are assembled here, instruction by instruction.
"""

import collections
import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from structures import reference

from ewald_jax.data.restricted import restricted_loads
from ewald_jax.data.stand_ins import PLAIN, Record
from ewald_jax.data.torch_pickle import TORCH, load_torch
from ewald_jax.typing import InputError

HERE = Path(__file__).parent / "reference"
FORMATS = ("zip", "legacy")
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
NOT_RUN = "expected a file of tensors and plain values (nothing in it was executed)"


# -- assembling files ------------------------------------------------------------------------


class Named:
    """Pickled as a global of this name, which need not exist."""

    def __init__(self, name):
        self.module, _, self.name = name.rpartition(".")

    def __call__(self):
        raise AssertionError("only to look like a function")


class Call:
    """Pickled as the result of a call."""

    def __init__(self, name, *args, state=None):
        self.parts = (Named(name), args, state)

    def __reduce__(self):
        return self.parts


class Storage:
    def __init__(self, kind, key, raw, count):
        self.kind, self.key, self.raw, self.count = kind, key, raw, count


class Pickler(pickle._Pickler):
    dispatch = dict(pickle._Pickler.dispatch)

    def __init__(self, stream, protocol, legacy):
        super().__init__(stream, protocol)
        self.legacy, self.storages = legacy, {}

    def save_named(self, named):
        self.write(f"c{named.module}\n{named.name}\n".encode())

    dispatch[Named] = save_named

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        self.storages[value.key] = value
        pid = ("storage", Named(value.kind), value.key, "cpu", value.count)
        return (*pid, None) if self.legacy else pid


def pickled(value, legacy=False, protocol=2):
    stream = io.BytesIO()
    pickler = Pickler(stream, protocol, legacy)
    pickler.dump(value)
    return stream.getvalue(), pickler.storages


def legacy_file(data, storages=(), order="little"):
    info = {"protocol_version": PROTOCOL, "little_endian": order == "little"}
    parts = [pickle.dumps(part, 2) for part in (MAGIC, PROTOCOL, info)]
    parts += [data, pickle.dumps([storage.key for storage in storages], 2)]
    for storage in storages:
        parts += [struct.pack(f"{'<' if order == 'little' else '>'}q", storage.count)]
        parts += [storage.raw]
    return b"".join(parts)


def zip_file(members, **options):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def torch_file(kind, data, storages=(), order="little"):
    if kind == "legacy":
        return legacy_file(data, storages, order)
    members = {"x/data.pkl": data, "x/version": b"3\n", "x/byteorder": order.encode()}
    return zip_file(members | {f"x/data/{s.key}": s.raw for s in storages})


@pytest.fixture(params=FORMATS)
def kind(request):
    return request.param


@pytest.fixture
def read(tmp_path):
    def read(content):
        (tmp_path / "x.pt").write_bytes(content)
        return load_torch(tmp_path / "x.pt")

    return read


@pytest.fixture
def load(read, kind):
    """What comes out of a file of `value`, in either format."""

    def load(value, order="little", protocol=2):
        data, storages = pickled(value, kind == "legacy", protocol)
        return read(torch_file(kind, data, storages.values(), order))

    return load


@pytest.fixture
def refused(tmp_path):
    """The sentence about a file without its name."""

    def refused(content):
        path = tmp_path / "x.pt"
        path.write_bytes(content)
        with pytest.raises(InputError) as error:
            load_torch(path)
        sentence = str(error.value)
        assert sentence.startswith(f"{path}: ") and "\n" not in sentence
        return sentence.removeprefix(f"{path}: ")

    return refused


def floats(count=6, key="0", kind="torch.FloatStorage"):
    return Storage(kind, key, np.arange(count, dtype="<f4").tobytes(), count)


def tensor(storage, offset, size, stride, *more):
    name = "torch._utils._rebuild_tensor_v2"
    return Call(
        name, storage, offset, size, stride, False, collections.OrderedDict(), *more
    )


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
    with pytest.raises(InputError, match="x.pt: repeats a tensor to more than 134217728"):
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


# -- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("os.system", ("touch {}",)),
        ("posix.system", ("touch {}",)),
        ("subprocess.getoutput", ("touch {}",)),
        ("builtins.eval", ("open('{}', 'w')",)),
        ("__builtin__.exec", ("open('{}', 'w')",)),
        ("builtins.open", ("{}", "w")),
        ("builtins.getattr", ("a", "upper")),
        ("builtins.__import__", ("os",)),
        ("torch.load", ("{}",)),
        ("torch.serialization.os.system", ("touch {}",)),
        ("torch._utils.torch", ()),
        ("torch.storage.TypedStorage", ()),
        ("numpy.core.multiarray.fromfile", ("{}",)),
        ("numpy.load", ("{}", None, True)),
        ("copyreg._reconstructor", (1, 2, 3)),
        ("functools.partial", ()),
        ("__main__.Net", ()),
        ("ewald_jax.data.torch_pickle.load_torch", ("{}",)),
    ],
)
def test_nothing_is_called(name, args, kind, tmp_path, refused):
    trace = tmp_path / "trace"
    args = [arg.format(trace) if isinstance(arg, str) else arg for arg in args]
    data, _ = pickled({"state_dict": Call(name, *args)})
    shown = name.replace("__builtin__", "builtins")
    assert refused(torch_file(kind, data)) == f"asks to call {shown}, {NOT_RUN}"
    assert not trace.exists()


def test_the_example_would_have_run(tmp_path):
    """The attack is real: Python's own unpickler falls for it."""
    data, _ = pickled(Call("posix.system", f"touch {tmp_path / 'trace'}"))
    pickle.loads(data)
    assert (tmp_path / "trace").exists()


def stacked(module, name, tail=b"."):
    """A global by STACK_GLOBAL, where a name may have dots."""
    parts = [b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name)]
    return b"\x80\x04" + b"".join(parts) + b"\x93" + tail


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.serialization", "os.system"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("collections", "OrderedDict.__class__"),
        ("builtins", "int.__subclasses__"),
        ("", "eval"),
    ],
)
def test_dotted_names_lead_nowhere(module, name, kind, refused):
    sentence = refused(torch_file(kind, stacked(module, name)))
    assert sentence == f"asks to call {module}.{name}, {NOT_RUN}"


def test_names_are_shown_without_control_characters(refused):
    sentence = refused(torch_file("zip", stacked("a\x1b[31m\n", "b" * 200)))
    assert sentence.startswith(r"asks to call 'a\x1b[31m\n.bbb") and len(sentence) < 250


BUILDS = {
    "a function": (b"ctorch._utils\n_rebuild_tensor\n", "changes an object it has made"),
    "a class": (
        b"cargparse\nNamespace\n",
        "is truncated or damaged (Record.__setstate__()",
    ),
    "a type": (b"cnumpy\ndtype\n", "changes an object it has made"),
    "text": (b"cbuiltins\nint\n", "is truncated or damaged ('str' object has no attribute"),
    "a list": (b"]", "is truncated or damaged ('list' object has no attribute"),
}


@pytest.mark.parametrize("what", BUILDS)
@pytest.mark.parametrize("slots", [False, True])
def test_no_attribute_is_set(what, slots, kind, refused):
    target, expected = BUILDS[what]
    names = ("__defaults__", "__setstate__", "__new__", "state", "value", "function")
    state = {name: 1 for name in names}
    state = pickle.dumps((None, state) if slots else state, 2)[2:-1]
    before = {name: (entry, dir(entry)) for name, entry in TORCH.items()}
    sentence = refused(torch_file(kind, b"\x80\x02" + target + state + b"b."))
    assert sentence.startswith(expected)
    assert {name: (entry, dir(entry)) for name, entry in TORCH.items()} == before


def test_attributes_of_a_dictionary_are_left_out(load):
    value = collections.OrderedDict(a=1)
    value._metadata, value.keys = {"version": 1}, 5
    found = load(value)
    assert found == {"a": 1} and list(found.keys()) == ["a"]


def test_arrays_are_out_of_reach(load, kind, refused):
    """An array cannot be given another state, or entries, by the pickle that made it."""
    data, storages = pickled(tensor(floats(), 0, (6,), (1,)), kind == "legacy")
    state = pickle.dumps((1, (1,), np.dtype("f4"), False, b"\0\0\0\0"), 2)[2:-1]
    sentence = refused(torch_file(kind, data[:-1] + state + b"b.", storages.values()))
    assert sentence.startswith("changes an object it has made, expected tensors")
    sentence = refused(torch_file(kind, data[:-1] + b"K\x00K\x01s.", storages.values()))
    assert sentence.startswith("is truncated or damaged ('Held' object does not support")


@pytest.mark.parametrize("name", ["builtins.set", "collections.OrderedDict"])
def test_containers_are_made_of_containers(name, load):
    repeated = tensor(floats(), 0, (2**26, 2), (0, 1))
    with pytest.raises(
        InputError, match=r"damaged \(a container is made of something else"
    ):
        load(Call(name, repeated))


def test_numpy_arrays_of_objects_are_refused(load):
    for value in (np.array([None, {}], dtype=object), np.dtype("O")):
        with pytest.raises(
            InputError, match=r"x.pt: holds a numpy type O8, expected numbers"
        ):
            load(value)
    for value in (np.zeros(2, "f4,i4"), np.array(["2020-01-01"], "M8[D]")):
        with pytest.raises(InputError, match="x.pt: holds a numpy type (V8|M8), expected"):
            load(value)
    make, array, f4 = "numpy.core.multiarray._reconstruct", Named("numpy.ndarray"), "f4"
    dtype = Call("numpy.dtype", f4, False, True)

    def built(*state):
        return Call(make, array, (0,), b"b", state=state)

    with pytest.raises(InputError, match="x.pt: holds a numpy array of objects, expected"):
        load(built(1, (2,), dtype, False, [1, 2]))
    with pytest.raises(InputError, match="x.pt: holds a numpy array of objects, expected"):
        load(built(1, (2,), "O", False, b"\0" * 16))
    with pytest.raises(
        InputError, match="the bytes of a numpy array do not match its shape"
    ):
        load(built(1, (2**40,), dtype, False, b"\0" * 16))
    with pytest.raises(
        InputError, match="a subclass of numpy.ndarray, expected plain arrays"
    ):
        load(Call(make, Named("builtins.int"), (0,), b"b"))
    fields = (3, "|", None, ("a",), {"a": (1, 0)}, 8, 1, 16)
    with pytest.raises(
        InputError, match="a numpy type of several fields, expected numbers"
    ):
        load(Call("numpy.dtype", f4, state=fields))
    with pytest.raises(
        InputError, match="holds a numpy array of objects, expected numbers"
    ):
        load(Call("numpy.core.multiarray.scalar", "O", b"x"))


BOMBS = {
    "deep lists": (b"]" * 10**5 + b"a" * (10**5 - 1), "nests its values deeper than 100"),
    "deep tuples": (b")" + b"\x85" * 10**5, "nests its values deeper than 100"),
    "a deep key": (b"})" + b"\x85" * 10**6 + b"Ns", "nests its values deeper than 100"),
    "a wide key": (b"})" + b"2\x86" * 64 + b"Ns", "expands to more than 100000 values"),
    "wide lists": (
        b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)),
        "expands to more than 10000000 values",
    ),
    "depth by sharing": (
        b"](" + b"]q\x00" + b"".join(b"](h%ceq%c" % (i, i + 1) for i in range(120)) + b"e",
        "nests its values deeper than 100",
    ),
    "itself": (b"]q\x00h\x00a", "holds a container that contains itself"),
    "memo": (b"]r\xff\xff\xff\x7f", "is truncated or damaged (memo index out of range)"),
    "bytes": (b"\x96" + b"\xff" * 7 + b"\x0f", "is truncated or damaged (expected 11529"),
    "text": (b"X\xff\xff\xff\x7f", "is truncated or damaged (expected 2147483647 bytes"),
    "number": (
        b"I" + b"9" * 10**6 + b"\n",
        "is truncated or damaged (Exceeds the limit (4300",
    ),
    "extension": (b"\x82\x01", "has a pickle instruction EXT1, which torch.save never"),
    "instance": (b"(ios\nsystem\n", "has a pickle instruction INST, which torch.save"),
    "buffer": (b"\x97", "has a pickle instruction NEXT_BUFFER, which torch.save never"),
    "marks": (b"((((", "is truncated or damaged (unexpected mark)"),
    "nothing": (b"", "is truncated or damaged (pop from empty list)"),
}


@pytest.mark.parametrize("what", BOMBS)
def test_bombs(what, kind, refused):
    code, expected = BOMBS[what]
    sentence = refused(torch_file(kind, b"\x80\x02" + code + b"."))
    assert sentence.startswith(expected)


def test_a_file_within_a_file_goes_one_level_deep():
    inner, _ = pickled(Call("torch.storage._load_from_bytes", b"x"))
    data, _ = pickled(Call("torch.storage._load_from_bytes", legacy_file(inner)))
    with pytest.raises(
        InputError, match="x: asks to call torch.storage._load_from_bytes, "
    ):
        restricted_loads(data, TORCH, "x")


def test_persistent_ids(load, kind, refused):
    data = b"\x80\x02X\x06\x00\x00\x00moduleQ."
    sentence = refused(torch_file(kind, data))
    assert sentence == "refers to an object that is no storage, expected tensors"
    with pytest.raises(InputError, match="x: refers to data outside of it, expected"):
        restricted_loads(data, TORCH, "x")
    storage = floats()
    other = Storage("torch.IntStorage", "0", storage.raw, 6)
    with pytest.raises(InputError, match=r"damaged \(a storage is used as two types\)"):
        load([storage, other])


# -- other files -----------------------------------------------------------------------------


def test_damaged_archives(refused):
    data, storages = pickled(tensor(floats(), 0, (6,), (1,)))
    good = {"x/data.pkl": data, "x/data/0": storages["0"].raw}
    assert "(data/0 is missing)" in refused(zip_file({"x/data.pkl": data}))
    none = "is a zip file without one data.pkl, expected a PyTorch file"
    assert refused(zip_file({"x/data/0": b""})) == none
    assert refused(zip_file({"x/data.pkl": b"", "y/data.pkl": b""})) == none
    assert refused(zip_file(good, compression=zipfile.ZIP_DEFLATED)) == (
        "is compressed, as torch.save never does, expected a PyTorch file"
    )
    encrypted = bytearray(zip_file(good))
    entry = encrypted.index(b"PK\1\2")
    encrypted[entry + 8] |= 1
    assert refused(encrypted) == "is encrypted, expected a PyTorch file"
    larger = bytearray(zip_file(good))
    larger[entry + 20 : entry + 28] = b"\xff\xff\xff\x7f" * 2
    assert "(its parts are larger than the file)" in refused(larger)
    changed = zip_file(good).replace(storages["0"].raw, b"\1" * 24)
    assert "(Bad CRC-32 for file 'x/data/0')" in refused(changed)
    assert "is truncated or damaged (" in refused(zip_file(good | {"x/byteorder": b"odd"}))


@pytest.mark.parametrize("member", ["x/constants.pkl", "x/code/__torch__.py"])
def test_programs_are_refused(member, refused):
    assert refused(zip_file({"x/data.pkl": pickle.dumps(1), member: b""})) == (
        "is a TorchScript program, which is not run, expected tensors and plain values as of "
        "torch.save"
    )


def test_damaged_legacy_files(refused):
    data, storages = pickled(tensor(floats(), 0, (6,), (1,)), legacy=True)
    assert "(its list of storages is another than" in refused(legacy_file(data, []))
    more = [*storages.values(), floats(key="7")]
    assert "(its list of storages is another than" in refused(legacy_file(data, more))
    storages["0"].count = 5
    assert "(storage 0 has another size than" in refused(
        legacy_file(data, storages.values()) + b"\0" * 8
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty, expected a PyTorch file"),
        (b"hello, world\n", "is not what torch.save writes, expected a PyTorch file"),
        (
            pickle.dumps([1]),
            "is a pickle that torch.save did not write, expected a PyTorch file",
        ),
        (
            pickle.dumps(collections.OrderedDict(), 2),
            "is a pickle that torch.save did not write, expected a PyTorch file",
        ),
        (
            struct.pack("<q", 128) + b'{"a":{}}'.ljust(128),
            "is a safetensors file, expected a .pt file as of torch.save",
        ),
    ],
)
def test_files_of_other_kinds(content, sentence, refused):
    assert refused(content) == sentence


def test_what_is_no_file(tmp_path):
    with pytest.raises(
        InputError, match="nowhere.pt: does not exist, expected a PyTorch file"
    ):
        load_torch(tmp_path / "nowhere.pt")
    with pytest.raises(InputError, match=f"{tmp_path}: is a directory, expected a PyTorch"):
        load_torch(tmp_path)


def test_a_file_of_somebody_else(tmp_path, monkeypatch):
    def denied(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(InputError, match="x.pt: cannot be read, permission denied"):
        (tmp_path / "x.pt").touch()
        load_torch(tmp_path / "x.pt")
