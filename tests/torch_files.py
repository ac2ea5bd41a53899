"""PyTorch files assembled without PyTorch, instruction by instruction where it matters.

`save` writes what `torch.save` would write of dictionaries and arrays; the parts below it make
files that `torch.save` would not.
"""

import collections
import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from ewald_jax.data.torch_pickle import load_torch
from ewald_jax.typing import InputError

FORMATS = ("zip", "legacy")
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


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


def load_content(folder, content):
    """What comes out of a file with these bytes."""
    (folder / "x.pt").write_bytes(content)
    return load_torch(folder / "x.pt")


def load_value(folder, kind, value, order="little", protocol=2):
    """What comes out of a file of `value` in a format."""
    data, storages = pickled(value, kind == "legacy", protocol)
    return load_content(folder, torch_file(kind, data, storages.values(), order))


def refusal(folder, content):
    """The sentence about a file with these bytes, without its name."""
    path = folder / "x.pt"
    with pytest.raises(InputError) as error:
        load_content(folder, content)
    sentence = str(error.value)
    assert sentence.startswith(f"{path}: ") and "\n" not in sentence
    return sentence.removeprefix(f"{path}: ")


def floats(count=6, key="0", kind="torch.FloatStorage"):
    return Storage(kind, key, np.arange(count, dtype="<f4").tobytes(), count)


def tensor(storage, offset, size, stride, *more):
    name = "torch._utils._rebuild_tensor_v2"
    return Call(
        name, storage, offset, size, stride, False, collections.OrderedDict(), *more
    )


# Numpy's types as torch calls the storages of them.
KINDS = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "b1": "Bool"}


def tensors(value, made=None):
    """The value with every array as a tensor; arrays that are one object share a storage."""
    made = {} if made is None else made
    if isinstance(value, np.ndarray):
        if id(value) not in made:
            flat = np.ascontiguousarray(value)
            kind = f"torch.{KINDS[flat.dtype.str[1:]]}Storage"
            storage = Storage(kind, str(len(made)), flat.tobytes(), flat.size)
            strides = tuple(step // flat.itemsize for step in flat.strides)
            strides = () if value.ndim == 0 else strides
            made[id(value)] = tensor(storage, 0, value.shape, strides)
        return made[id(value)]
    if isinstance(value, dict):
        items = ((key, tensors(part, made)) for key, part in value.items())
        return collections.OrderedDict(items)
    if isinstance(value, list | tuple):
        return type(value)(tensors(part, made) for part in value)
    return value


def save(path, value, kind="zip"):
    """Writes what `torch.save(value, path)` would, arrays as tensors."""
    data, storages = pickled(tensors(value), kind == "legacy")
    path.write_bytes(torch_file(kind, data, storages.values()))
    return path
