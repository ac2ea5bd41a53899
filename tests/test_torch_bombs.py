"""Small PyTorch files that ask for much work or memory: refused quickly, in one sentence."""

import functools
import pickle
import time

import numpy as np
import pytest
from torch_files import (
    FORMATS,
    Call,
    Named,
    floats,
    legacy_file,
    load_value,
    pickled,
    refusal,
    save,
    tensor,
    torch_file,
)

from ewald_jax.data.restricted import restricted_loads
from ewald_jax.data.stand_ins import PLAIN
from ewald_jax.interop.torch_checkpoint import read_checkpoint
from ewald_jax.typing import InputError


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


@pytest.fixture(autouse=True)
def quick():
    start = time.process_time()
    yield
    assert time.process_time() - start < 2


class Raw:
    """Instructions among pickled values."""

    def __init__(self, data):
        self.data = data


def code(value):
    """The instructions that make a value, without a memo."""
    if isinstance(value, Raw):
        return value.data
    if isinstance(value, Call):
        named, args, _ = value.parts
        head = f"c{named.module}\n{named.name}\n".encode()
        return head + b"(" + b"".join(map(code, args)) + b"tR"
    if isinstance(value, Named):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, str):
        value = value.encode()
        return b"X" + len(value).to_bytes(4, "little") + value
    if isinstance(value, bytes):
        return b"B" + len(value).to_bytes(4, "little") + value
    if isinstance(value, int):
        raw = pickle.encode_long(value)
        return b"\x8b" + len(raw).to_bytes(4, "little") + raw
    assert isinstance(value, list | tuple)
    return b"(" + b"".join(map(code, value)) + (b"l" if isinstance(value, list) else b"t")


def again(value, name, count, times=1, before=()):
    """A list of `count` calls of a function with one shared argument, `times` times."""
    call = code(Call(name, *before, *[Raw(b"h\x00")] * times))
    return code(value) + b"q\x000(" + call * count + b"l"


P = 2**61 - 1


def slices(count=200):
    """l[len(l):] = l, again and again: each time the list is twice as long."""
    nothing = b"cbuiltins\nslice\n(J\xff\xff\xff\x7fNNtR"
    return b"]q\x00K\x01a" + (nothing + b"h\x00s") * count


WIDE = b")" + b"2\x86" * 15  # a tuple of 2^16 values

REPEATS = "repeats its values more than its size allows"
DAMAGED = "is truncated or damaged ("
BOMBS = {
    "slices of lists": (slices(), f"{DAMAGED}list indices must be integers or slices"),
    "slices of bytes": (
        slices().replace(
            b"]q\x00K\x01a", code(Call("builtins.bytearray", b"ab")) + b"q\x00"
        ),
        f"{DAMAGED}bytearray indices must be integers or slices",
    ),
    "bytes": (again(b"x" * 10**5, "builtins.bytearray", 400), REPEATS),
    "encoded text": (again("x" * 10**5, "_codecs.encode", 400), REPEATS),
    "paths": (again("x" * 10**4, "pathlib.PosixPath", 100, 200), REPEATS),
    "dictionaries": (again([[1, 2]] * 10**4, "collections.OrderedDict", 200), REPEATS),
    "sets": (again([1] * 10**4, "builtins.set", 400), REPEATS),
    "devices": (again("x" * 10**5, "torch.device", 400), REPEATS),
    "files": (
        again(legacy_file(pickled([1] * 10**5)[0]), "torch.storage._load_from_bytes", 400),
        REPEATS,
    ),
    "arrays": (
        code(Call("numpy.dtype", ">f4"))
        + b"q\x010"
        + code(b"x" * 10**5)
        + b"q\x00"
        + b"0("
        + code(
            Call(
                "numpy.core.numeric._frombuffer",
                *(Raw(b"h\x00"), Raw(b"h\x01"), (25000,), "C"),
            )
        )
        * 400
        + b"l",
        REPEATS,
    ),
    "states of arrays": (
        code(Call("numpy.dtype", ">f4"))
        + b"q\x010"
        + code((1, (25000,), Raw(b"h\x01"), Raw(b"\x89"), b"x" * 10**5))
        + b"q\x00"
        + b"0("
        + (
            code(
                Call("numpy.core.multiarray._reconstruct", Named("numpy.ndarray"), (0,), 1)
            )
            + b"h\x00b"
        )
        * 400
        + b"l",
        REPEATS,
    ),
    "attributes": (
        b"}("
        + b"".join(code(i) + b"N" for i in range(10**4))
        + b"uq\x000cargparse\nNamespace\n)\x81("
        + b"h\x00" * 10**4
        + b"tb",
        REPEATS,
    ),
    "keys to be hashed": (WIDE + b"q\x000}" + b"h\x00Ns" * 5000, REPEATS),
    "elements to be hashed": (
        WIDE + b"q\x00" + b"0cbuiltins\nset\n((" + b"h\x00" * 5000 + b"ltR",
        REPEATS,
    ),
    "keys of one hash": (
        b"}(" + b"".join(code(k * P) + b"N" for k in range(20000)) + b"u",
        "has an integer above 2**60 as a key, expected text",
    ),
    "elements of one hash": (
        b"cbuiltins\nset\n(" + code([k * P for k in range(20000)]) + b"tR",
        "has an integer above 2**60 as a key, expected text",
    ),
    "tuples of one hash": (
        b"}(" + b"".join(code((k * P,)) + b"N" for k in range(20000)) + b"u",
        "has an integer above 2**60 as a key, expected text",
    ),
    "pairs of one hash": (
        code(Call("collections.OrderedDict", [[k * P, 0] for k in range(20000)])),
        "has an integer above 2**60 as a key, expected text",
    ),
    "complex keys": (
        b"}("
        + b"".join(
            code(Call("builtins.complex", 10**10 - 1000003 * k, k)) + b"N"
            for k in range(6000)
        )
        + b"u",
        "has more than 5000 keys that are no text, expected text",
    ),
    "tuples as keys": (
        b"}(" + b"".join(code((k,)) + b"N" for k in range(6000)) + b"u",
        "has more than 5000 keys that are no text, expected text",
    ),
    "depth by parameters": (
        b")q\x000"
        + b"ctorch._utils\n_rebuild_parameter\nh\x00\x85\x85Rq\x000" * 10**4
        + b"}h\x00Ns",
        f"{DAMAGED}a parameter is no tensor)",
    ),
    "long sizes": (
        code(Call("torch.Size", [1] * 65)),
        f"{DAMAGED}a shape has more than 64 entries)",
    ),
    "large sizes": (
        code(Call("torch.Size", (2**63,))),
        f"{DAMAGED}a shape has an entry that is not a size)",
    ),
    "many axes": (
        code([2**60] * 10**5) + b"q\x000" + code(Call("torch.Size", Raw(b"h\x00"))),
        f"{DAMAGED}a shape has more than 64 entries)",
    ),
}


@pytest.mark.parametrize("what", BOMBS)
def test_bombs(what, kind, refused):
    data, expected = BOMBS[what]
    sentence = refused(torch_file(kind, b"\x80\x03" + data + b"."))
    assert sentence.startswith(expected) and len(sentence) < 300


def test_slices_are_values():
    found = restricted_loads(pickle.dumps([slice(1, None, 2)], 2), PLAIN, "x")
    assert found == [slice(1, None, 2)]


@pytest.mark.parametrize(
    ("size", "stride"), [((65,) * 65, (0,) * 65), ((2**63,), (0,)), ((2,), (2**63,))]
)
def test_shapes_are_small(size, stride, load):
    with pytest.raises(InputError, match=r"damaged \(a shape has "):
        load(tensor(floats(), 0, size, stride))


# -- tensors that repeat their storage -------------------------------------------------------


def test_repeated_tensors_share_a_budget(load):
    repeated = [tensor(floats(), 0, (10**6,), (0,)) for _ in range(12)]
    assert len(load(repeated[:9])) == 9
    with pytest.raises(InputError, match="x.pt: repeats its tensors to more than 1000"):
        load(repeated)


def test_repeated_names_of_a_tensor(tmp_path):
    """A tensor is made once, and copied for every name that it has."""
    half = np.zeros(10**5, np.float16)
    few = {"state_dict": {f"a{i}": half for i in range(100)}}
    assert len(read_checkpoint(save(tmp_path / "x.pt", few)).weights) == 100
    many = {"state_dict": {f"a{i}": half for i in range(200)}}
    with pytest.raises(InputError, match="x.pt: its arrays have more than 1") as caught:
        read_checkpoint(save(tmp_path / "x.pt", many))
    assert "\n" not in str(caught.value)
