"""The rules of the code base that a reader relies on, read from the source itself."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ewald_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# Low to high: a module imports from floors below its own and from its own room, never up.
FLOORS = (
    ("typing", "units", "interrupt", "memory"),
    ("checked",),
    ("ops",),
    ("kspace",),
    ("graph",),
    ("nn",),
    ("models",),
    ("potential",),
    ("ensemble",),
    ("data",),
    ("pretrained",),
    ("train",),
    ("interop",),
    ("calculator",),
    ("analysis",),
    ("config",),
    ("cli",),
)
HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}

# Files over 300 lines, each with the reason why it is one idea all the same.
LONG_FILES: dict[str, str] = {}

# What the core does not need: modules may use it, but must import without it.
OPTIONAL = (
    *("tblite", "dftd3", "dftd4", "rdkit", "lmdb", "grain", "flatbuffers", "jax_md"),
    # What `benchmark peers` compares with.
    *("torch", "torchpme", "jaxpme", "lorem", "marathon"),
)

# Files that set the environment of worker processes which they start themselves.
OWN_PROCESSES = ("data/samples/make.py",)

FORBIDDEN_CALLS = {
    "eval": "runs code from data",
    "exec": "runs code from data",
    "pickle.load": "runs code from data",
    "pickle.loads": "runs code from data",
    "pickle.Unpickler": "runs code from data",
    "cloudpickle.load": "runs code from data",
    "torch.load": "runs code from data",
    "yaml.load": "runs code from data; use yaml.safe_load or OmegaConf",
    "yaml.unsafe_load": "runs code from data",
    "jax.config.update": "changes the user's process",
    "os.environ.update": "changes the user's process",
    "os.environ.setdefault": "changes the user's process",
    "os.putenv": "changes the user's process",
    "np.random.seed": "changes the user's process",
}


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path):
    """(room, line) of every import of this package, wherever it stands in the file."""
    own = ("ewald_jax", *path.relative_to(PACKAGE).with_suffix("").parts)
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(own[: -node.level]) if node.level else []
            base += node.module.split(".") if node.module else []
            # `from ewald_jax import x`: x is the room.
            modules = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for parts in modules:
            if parts[0] == "ewald_jax" and parts[1:] != ["__version__"]:
                yield (parts[1] if len(parts) > 1 else ""), node.lineno


def dotted(node):
    """`a.b.c` of an expression, or an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


every_file = pytest.mark.parametrize("path", FILES, ids=name_of)


@every_file
def test_imports_only_from_floors_below(path):
    room = room_of(path)
    if room == "__init__":
        return
    assert room in HEIGHT, f"{name_of(path)} has no floor: add its room to FLOORS"
    for other, line in imported_rooms(path):
        place = f"{name_of(path)}:{line}"
        assert other in HEIGHT, f"{place} imports {other!r} from the package's root"
        assert other == room or HEIGHT[other] < HEIGHT[room], (
            f"{place}: {room} must not import {other}, which is not below it"
        )


@every_file
def test_length(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 500, f"{name_of(path)} has {lines} lines: split it"
    assert lines <= 300 or name_of(path) in LONG_FILES, (
        f"{name_of(path)} has {lines} lines: split it, or give the reason in LONG_FILES"
    )


@every_file
def test_public_names_are_documented(path):
    tree = tree_of(path)
    assert ast.get_docstring(tree), f"{name_of(path)} says not what it holds"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name_of(path)}:{node.lineno} {node.name}"


@every_file
def test_nothing_forbidden(path):
    for node in ast.walk(tree_of(path)):
        place = f"{name_of(path)}:{getattr(node, 'lineno', '?')}"
        if isinstance(node, ast.Call):
            call = dotted(node.func).replace("numpy.", "np.")
            assert call not in FORBIDDEN_CALLS, f"{place} {call}: {FORBIDDEN_CALLS[call]}"
            for keyword in node.keywords:
                if keyword.arg == "allow_pickle":
                    safe = (
                        isinstance(keyword.value, ast.Constant) and not keyword.value.value
                    )
                    assert safe, f"{place} reads pickles: runs code from data"
        if isinstance(node, ast.Attribute):
            assert dotted(node) != "jax.config", f"{place} jax.config is the user's"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{place} bare except hides every mistake"
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                subscript = isinstance(target, ast.Subscript)
                sets = subscript and dotted(target.value) == "os.environ"
                assert not sets or name_of(path) in OWN_PROCESSES, place


IMPORT_EVERYTHING = f"""
import importlib, os, pkgutil, sys
import jax
before = dict(jax.config.values), dict(os.environ), set(os.listdir("."))
import ewald_jax
modules = [m.name for m in pkgutil.walk_packages(ewald_jax.__path__, "ewald_jax.")]
for name in modules:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {OPTIONAL!r}:
            raise
# Parts of jax that are imported on demand register settings of their own.
settings = {{key: jax.config.values[key] for key in before[0]}}
assert (settings, dict(os.environ), set(os.listdir("."))) == before
# Refused as soon as any backend is up: then importing has taken the user's device.
jax.config.update("jax_num_cpu_devices", 3)
assert jax.device_count("cpu") == 3
print(len(modules))
"""


def test_importing_has_no_side_effects(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= len(FILES) - len(list(PACKAGE.rglob("__init__.py")))


def test_core_imports_without_the_extras(tmp_path):
    blocked = f"import sys\nfor name in {OPTIONAL!r}: sys.modules[name] = None\n"
    code = blocked + "import ewald_jax, ewald_jax.cli"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
