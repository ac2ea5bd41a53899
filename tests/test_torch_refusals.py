"""What PyTorch files are refused for: code of any kind, bombs, damage, other files."""

import collections
import functools
import pickle
import struct
import zipfile

import numpy as np
import pytest
from torch_files import (
    FORMATS,
    Call,
    Named,
    Storage,
    floats,
    legacy_file,
    load_value,
    pickled,
    refusal,
    tensor,
    torch_file,
    zip_file,
)

from ewald_jax.data.restricted import restricted_loads
from ewald_jax.data.torch_pickle import TORCH, load_torch
from ewald_jax.typing import InputError

NOT_RUN = "expected a file of tensors and plain values (nothing in it was executed)"


@pytest.fixture(params=FORMATS)
def kind(request):
    return request.param


@pytest.fixture
def load(tmp_path, kind):
    """What comes out of a file of this value, in either format."""
    return functools.partial(load_value, tmp_path, kind)


@pytest.fixture
def refused(tmp_path):
    """The sentence about a file with these bytes, without its name."""
    return functools.partial(refusal, tmp_path)


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
    repeated = tensor(floats(), 0, (2**22, 2), (0, 1))
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
