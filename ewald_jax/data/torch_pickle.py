"""PyTorch files read without PyTorch, and without running anything that is in them.

`torch.save` writes a pickle whose tensors refer to storages: blocks of bytes that lie beside
the pickle, in a zip archive (since PyTorch 1.6) or one after the other (before). The pickle
goes through `data.restricted`, which knows only the stand-ins of `TORCH`, all of them here or
in `data.stand_ins`: a file can ask for arrays and plain values, anything else is refused.
Storages are never larger than the file they are in, and tensors never leave their storage.
"""

import io
import math
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ewald_jax.data.budget import Refused, budget_of_file, budgeted
from ewald_jax.data.restricted import reading, shown, unpickle
from ewald_jax.data.stand_ins import PLAIN, sizes
from ewald_jax.typing import InputError

_MAGIC = 0x1950A86A20F9469CFC6C
_EXPECTED = "a PyTorch file"

# Storages by the name of their type, as numpy calls what they hold. bfloat16 is what float32
# begins with, and is read as that.
_BFLOAT16 = "bfloat16"
_TYPES = """Float:f4 Double:f8 Half:f2 BFloat16:bfloat16 Long:i8 Int:i4 Short:i2 Char:i1
    Byte:u1 Bool:b1 ComplexFloat:c8 ComplexDouble:c16
    Untyped:u1 storage.Untyped:u1 storage._Untyped:u1"""
_STORAGES = {
    f"torch.{name}Storage": kind
    for name, kind in (pair.split(":") for pair in _TYPES.split())
}
# What an untyped storage can be seen as: types without a storage of their own.
_VIEWS = {
    **{f"torch.uint{bits}": f"u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"torch.int{bits}": f"i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"torch.float{bits}": f"f{bits // 8}" for bits in (16, 32, 64)},
}
_OTHER_DTYPES = """bool bfloat16 complex32 complex64 complex128
    float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz""".split()


def load_torch(path: str | Path) -> Any:
    """The content of a file written by `torch.save`, without PyTorch.

    Args:
        path: A .pt, .pth or .ckpt file, in the zip format or the one before it.

    Returns:
        Nested dicts, lists, tuples and sets of numbers and text. Tensors, parameters and
        storages are read-only numpy arrays, which share memory where the tensors did;
        bfloat16 comes as float32. Devices, types and paths are text, a namespace is a dict.

    Raises:
        InputError: If the file is missing, damaged or of another kind, or if it holds
            anything but tensors and plain values, such as a whole model or code.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise InputError(f"{path}: {what}, expected {_EXPECTED}")
    with reading(path, _EXPECTED), open(path, "rb") as stream:
        head, size = stream.read(16), stream.seek(0, io.SEEK_END)
        stream.seek(0)
        if not head:
            raise Refused(f"is empty, expected {_EXPECTED}")
        if head.startswith(b"PK\3\4"):
            with zipfile.ZipFile(stream) as archive:
                return _Archive(archive, size).load()
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size:
            raise Refused("is a safetensors file, expected a .pt file as of torch.save")
        if head.startswith(b"\x80"):
            return _load_legacy(stream, size, TORCH)
        raise Refused(f"is not what torch.save writes, expected {_EXPECTED}")


# -- zip archives ----------------------------------------------------------------------------


class _Archive:
    """The zip format: <name>/data.pkl and one member <name>/data/<key> for each storage."""

    def __init__(self, archive: zipfile.ZipFile, size: int):
        self._archive, self._left = archive, size
        self._storages: dict[str, tuple[str, np.ndarray]] = {}
        names = archive.namelist()
        if any(re.match(r"[^/]+/(constants\.pkl$|code/)", name) for name in names):
            raise Refused(
                "is a TorchScript program, which is not run, expected tensors and plain "
                "values as of torch.save"
            )
        roots = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise Refused(f"is a zip file without one data.pkl, expected {_EXPECTED}")
        self._root = roots[0].removesuffix("data.pkl")
        self._order = "<"
        if f"{self._root}byteorder" in names:
            self._order = {b"little": "<", b"big": ">"}[self._read("byteorder")]

    def load(self) -> Any:
        """The content of the file."""
        with budgeted(self._left):
            return unpickle(self._read("data.pkl"), TORCH, self._storage)

    def _read(self, name: str) -> bytes:
        try:
            member = self._archive.getinfo(self._root + name)
        except KeyError:
            raise ValueError(f"{name} is missing") from None
        if member.flag_bits & 1:
            raise Refused(f"is encrypted, expected {_EXPECTED}")
        if member.compress_type != zipfile.ZIP_STORED:
            raise Refused(f"is compressed, as torch.save never does, expected {_EXPECTED}")
        # Members may claim any size, and the same bytes as others.
        self._left -= member.file_size
        if self._left < 0:
            raise ValueError("its parts are larger than the file")
        return self._archive.read(member)

    def _storage(self, pid: Any) -> np.ndarray:
        kind, key, numel, _ = _reference(pid)
        if key not in self._storages:
            raw = self._read(f"data/{key}")
            self._storages[key] = kind, _decode(raw, kind, self._order)
        known, storage = self._storages[key]
        return _checked(storage, known, kind, numel)


# -- legacy files ----------------------------------------------------------------------------


def _load_legacy(stream: BinaryIO, size: int, table: Mapping[str, Any]) -> Any:
    """The format before 1.6: pickles, then the storages in the order of the last pickle."""
    storages: dict[str, tuple[str, np.ndarray]] = {}
    left = size

    def storage(pid: Any) -> np.ndarray:
        nonlocal left
        kind, key, numel, view = _reference(pid)
        if key not in storages:
            left -= numel * _itemsize(kind)
            if left < 0:
                raise ValueError("its storages are larger than the file")
            # Filled below: its bytes come after the pickle.
            storages[key] = kind, np.zeros(numel, _decode(b"", kind, "<").dtype)
        known, root = storages[key]
        if view is None:
            return _checked(root, known, kind, numel)
        # Before 0.4 a storage could be a part of another.
        _, first, count = view
        first, count = sizes((first, count))
        return _checked(root[first : first + count], known, kind, count)

    if unpickle(stream, table) != _MAGIC:
        raise Refused(f"is a pickle that torch.save did not write, expected {_EXPECTED}")
    unpickle(stream, {})  # the version of the protocol, 1001 ever since
    order = "<" if unpickle(stream, {})["little_endian"] else ">"
    with budgeted(size):
        result = unpickle(stream, table, storage)
    keys = unpickle(stream, {})
    if sorted(keys) != sorted(storages):
        raise ValueError("its list of storages is another than that of its tensors")
    for key in keys:
        kind, array = storages[key]
        (count,) = struct.unpack(f"{order}q", stream.read(8))
        if count != len(array):
            raise ValueError(f"storage {shown(key)} has another size than its tensors say")
        raw = stream.read(count * _itemsize(kind))
        if len(raw) < count * _itemsize(kind):  # numpy would repeat a single entry
            raise EOFError(f"it ends within storage {shown(key)}")
        array[:] = _decode(raw, kind, order)
    return result


def _from_bytes(data: Any) -> Any:
    """A storage in a pickle that is not of `torch.save`: a legacy file within it."""
    if type(data) is not bytes:
        raise TypeError("a storage is not bytes")
    budget_of_file().work(3 * len(data))  # reading takes longer than copying
    # One file within another is all that PyTorch writes.
    table = {name: entry for name, entry in TORCH.items() if entry is not _from_bytes}
    return _load_legacy(io.BytesIO(data), len(data), table)


# -- storages and tensors --------------------------------------------------------------------


def _reference(pid: Any) -> tuple[str, str, int, Any]:
    """(type, key, number of entries, view) of a reference to a storage."""
    if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage":
        raise Refused("refers to an object that is no storage, expected tensors")
    _, kind, key, _, numel, *view = pid
    if type(kind) is not str or kind not in _STORAGES:
        raise ValueError("a storage is of no known type")
    if type(key) is not str:
        raise TypeError("the key of a storage is not text")
    (numel,) = sizes((numel,))
    return kind, key, numel, view[0] if view else None


def _checked(storage: np.ndarray, known: str, kind: str, numel: int) -> np.ndarray:
    if known != kind:
        raise ValueError("a storage is used as two types")
    if len(storage) != numel:
        raise ValueError(f"a storage of {numel} entries has {len(storage)}")
    return storage


def _itemsize(kind: str) -> int:
    name = _STORAGES[kind]
    return 2 if name == _BFLOAT16 else np.dtype(name).itemsize


def _decode(raw: bytes, kind: str, order: str) -> np.ndarray:
    """The entries of a storage, in the byte order of this machine."""
    name = _STORAGES[kind]
    if len(raw) % _itemsize(kind):
        raise ValueError("a storage ends within an entry")
    if name == "b1":  # any byte but zero is true
        return np.frombuffer(raw, np.uint8) != 0
    if name == _BFLOAT16:
        upper = np.frombuffer(raw, f"{order}u2").astype(np.uint32)
        return (upper << np.uint32(16)).view(np.float32)
    return np.frombuffer(raw, order + name).astype(name, copy=False)


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> np.ndarray:
    """The read-only view of a storage that is a tensor, if it lies within the storage."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        raise TypeError("a tensor has no storage")
    if any(rest[2:]):  # after requires_grad and the hooks
        raise Refused("holds a tensor to be conjugated or negated, expected plain tensors")
    (offset,), shape, strides = sizes((offset,)), sizes(size), sizes(stride)
    if len(shape) != len(strides):
        raise ValueError("a tensor has other strides than sizes")
    count = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if count and last >= len(storage):
        raise ValueError("a tensor is larger than its storage")
    budget_of_file().entries(count)
    if count:
        steps = [step * storage.itemsize for step in strides]
        start = offset * storage.itemsize
        tensor = np.ndarray(shape, storage.dtype, storage, start, steps)
    else:
        tensor = np.empty(shape, storage.dtype)
    tensor.flags.writeable = False
    return tensor


def _untyped(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> np.ndarray:
    requires_grad, hooks, dtype, *metadata = rest
    if type(dtype) is not str or dtype not in _VIEWS:
        what = shown(dtype) if type(dtype) is str else "unknown numbers"
        raise Refused(f"holds a tensor of {what}, which numpy does not have")
    if not isinstance(storage, np.ndarray) or storage.dtype != np.uint8:
        raise TypeError("a tensor has no storage")
    whole = len(storage) - len(storage) % np.dtype(_VIEWS[dtype]).itemsize
    view = storage[:whole].view(_VIEWS[dtype])
    return _rebuild(view, offset, size, stride, requires_grad, hooks, *metadata)


def _parameter(data: Any, *settings: Any) -> np.ndarray:
    if not isinstance(data, np.ndarray):
        raise TypeError("a parameter is no tensor")
    return data


def _device(kind: Any, index: Any = None) -> str:
    if type(kind) is not str or type(index) not in (int, type(None)):
        raise TypeError("a device is not named")
    return kind if index is None else f"{kind}:{index}"


TORCH: Mapping[str, Any] = {
    **PLAIN,
    **{name: name for name in (*_STORAGES, *_VIEWS)},
    **{f"torch.{name}": f"torch.{name}" for name in _OTHER_DTYPES},
    **{f"torch.{name}": f"torch.{name}" for name in ("Tensor", "nn.parameter.Parameter")},
    "torch.Size": sizes,
    "torch.device": _device,
    "torch.storage._load_from_bytes": _from_bytes,
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _untyped,
    **{f"torch._utils._rebuild_parameter{end}": _parameter for end in ("", "_with_state")},
    "torch._tensor._rebuild_from_type_v2": lambda call, kind, args, state: call(*args),
}
"""Stand-ins by "module.name" of what PyTorch puts into pickles, plain values included."""
