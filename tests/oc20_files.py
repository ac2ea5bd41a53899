"""OC20 files assembled from structures: raw S2EF, and LMDB records of both layouts."""

import io
import json
import lzma
import pickle
import zlib

import ase.io
import lmdb
import numpy as np
from torch_files import Call, Named, Pickler, legacy_file, pickled, tensors

DATA = "torch_geometric.data.data.Data"
STORE = "torch_geometric.data.storage.GlobalStorage"


class Object:
    """Pickled as an object of the named class with these attributes."""

    def __init__(self, name, state):
        self.name, self.state = name, state


class RecordPickler(Pickler):
    dispatch = dict(Pickler.dispatch)

    def save_object(self, value):
        self.save_named(Named(value.name))
        self.write(b")\x81")
        self.memoize(value)
        self.save(value.state)
        self.write(b"b")

    dispatch[Object] = save_object


def dumps(value, protocol=2):
    """A pickle of objects, and of tensors as files within it."""
    stream = io.BytesIO()
    RecordPickler(stream, protocol, False).dump(value)
    return stream.getvalue()


def as_tensor(array):
    """A tensor in a pickle that is not of `torch.save`: its storage is a file of its own."""
    rebuilt = tensors(np.asarray(array))
    name, (storage, *rest), _ = rebuilt.parts
    inner, found = pickled(storage, legacy=True)
    loaded = Call("torch.storage._load_from_bytes", legacy_file(inner, found.values()))
    return Call(f"{name.module}.{name.name}", loaded, *rest)


def attributes(atoms, **more):
    """What OCP's preprocessing stores of a structure."""
    fixed = np.zeros(len(atoms), np.float32)
    for constraint in atoms.constraints:
        fixed[constraint.index] = 1
    arrays = {
        "pos": atoms.positions.astype(np.float32),
        "cell": atoms.cell.array.astype(np.float32)[None],
        "atomic_numbers": atoms.numbers.astype(np.float32),
        "tags": atoms.get_tags().astype(np.int64),
        "fixed": fixed,
        "sid": np.array([atoms.info.get("sid", 0)]),
        "fid": np.array([atoms.info.get("fid", 0)]),
    }
    found = {key: as_tensor(value) for key, value in arrays.items()}
    found["natoms"] = len(atoms)
    for key, value in more.items():
        found[key] = as_tensor(value) if isinstance(value, np.ndarray) else value
    return found


def s2ef(atoms):
    results = atoms.calc.results
    return attributes(
        atoms, y=float(results["energy"]), force=results["forces"].astype(np.float32)
    )


def record(found, layout):
    """The pickle of a `Data` object of torch_geometric 1 or 2."""
    if layout == 1:
        absent = dict.fromkeys(("x", "edge_index", "edge_attr", "normal", "face"))
        return dumps(Object(DATA, absent | found))
    store = Object(STORE, {})
    whole = Object(DATA, {"_store": store})
    store.state = {"_mapping": found, "_parent": whole}
    return dumps(whole)


def write_lmdb(path, records, count=True, **more):
    """An LMDB file of records under 0, 1, ..., and other keys."""
    entries = {str(i): value for i, value in enumerate(records)}
    if count is not None:
        entries["length"] = pickle.dumps(len(records) if count is True else count)
    with (
        lmdb.open(str(path), subdir=False, map_size=2**24, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in (entries | more).items():
            transaction.put(key.encode(), value)
    return path


def write_s2ef(folder, number, frames, reference=-100.0, lines=None):
    """N.extxyz.xz and N.txt.xz, with total energies in the first."""
    folder.mkdir(exist_ok=True, parents=True)
    raw = []
    for atoms in frames:
        copy = atoms.copy()
        free = np.ones(len(atoms), bool)
        for constraint in atoms.constraints:
            free[constraint.index] = False
        copy.set_constraint()
        copy.arrays["move_mask"] = free
        copy.arrays["forces"] = atoms.calc.results["forces"]
        copy.info = {"energy": atoms.calc.results["energy"] + reference}
        raw.append(copy)
    path = folder / f"{number}.extxyz.xz"
    with lzma.open(path, "wt") as stream:
        ase.io.write(stream, raw, format="extxyz", write_results=False)
    if lines is None:
        lines = [
            f"random{a.info['sid']},frame{a.info['fid']},{reference!r}" for a in frames
        ]
    with lzma.open(folder / f"{number}.txt.xz", "wt") as stream:
        stream.write("".join(f"{line}\n" for line in lines))
    return path


def write_aselmdb(path, rows, nextid=None, deleted=(), compress=True):
    """Rows as fairchem writes them, JSON with plain lists."""

    def pack(value):
        text = json.dumps(value).encode()
        return zlib.compress(text) if compress else text

    entries = {str(i + 1): pack(row) for i, row in enumerate(rows)}
    entries["nextid"] = pack(len(rows) + 1 if nextid is None else nextid)
    entries["deleted_ids"] = pack(list(deleted))
    return write_lmdb(path, (), None, **entries)
