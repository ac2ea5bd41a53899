"""The documentation: what is generated is whole, what it shows runs, what it names exists."""

import ast
import configparser
import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import REPOSITORY
from structures import quick_compilation  # noqa: F401

from ewald_jax.cli import app
from ewald_jax.data import READERS
from ewald_jax.models import MODELS
from ewald_jax.units import HARTREE

DOCS = REPOSITORY / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def load_generate():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generate()


def page(name):
    return generate.expand((DOCS / name).read_text(encoding="utf-8"))


def blocks(text, language):
    """(title, code) of the blocks of a language."""
    found = re.findall(rf'```{language}(?: title="([^"]+)")?\n(.*?)```', text, re.S)
    assert found
    return found


@pytest.fixture
def run_section(tmp_path, monkeypatch, quick_compilation):  # noqa: F811
    """Runs the code of a section in a folder of its own; returns the names it made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def run(name, heading):
        section = re.split(r"^## ", page(name), flags=re.M)
        (text,) = [part for part in section if part.startswith(f"{heading}\n")]
        names = {"__name__": "docs"}
        for title, code in blocks(text, "python"):
            if title:
                (tmp_path / title).write_text(code, encoding="utf-8")
            else:
                exec(compile(code, f"{name}: {heading}", "exec"), names)
        return names

    yield run
    for module in set(sys.modules) - before:
        if (tmp_path / f"{module}.py").exists():
            del sys.modules[module]


# -- the code of the pages -------------------------------------------------------------------


def test_first_page_runs(run_section):
    names = run_section("index.md", "A network with long-range messages")
    assert np.isfinite(names["energy"]).all() and names["forces"].shape[1] == 3
    run_section("index.md", "Three lines in your own network")


def test_a_fifth_model_runs(run_section):
    names = run_section("extending.md", "A fifth model")
    forces, sizes = np.asarray(names["forces"]), [len(m) for m in names["molecules"]]
    assert np.abs(forces).max() > 1e-3
    for own in np.split(forces, np.cumsum(sizes))[:2]:
        np.testing.assert_allclose(own.sum(axis=0), 0, atol=1e-4)
    assert "ewald_0" in names["params"]


def test_a_reader_runs(run_section, monkeypatch):
    monkeypatch.setitem(READERS, "jsonl", None)
    names = run_section("extending.md", "A third data set")
    assert names["energy"] == pytest.approx(-76.4 * HARTREE)
    dataset = names["dataset"]
    assert len(dataset) == 1 and "structure 1" in dataset.skipped[0]
    assert dataset[0].targets["forces"][0, 0] == pytest.approx(-0.01 * HARTREE)


def test_a_filter_runs(run_section):
    names = run_section("extending.md", "A filter of your own")
    message, in_box = np.asarray(names["message"]), np.asarray(names["in_box"])
    assert np.abs(message).max() > 0.1
    np.testing.assert_allclose(in_box, message, atol=1e-3 * np.abs(message).max())


def test_a_channel_runs_and_its_changes_fit_the_package(run_section):
    names = run_section("extending.md", "A channel of the `radial` filters")
    assert names["decay"] == pytest.approx(names["expected"], rel=0.05)
    for title, change in blocks(page("extending.md"), "diff"):
        source = (REPOSITORY / title).read_text(encoding="utf-8").splitlines()
        taken = [line[1:] for line in change.splitlines() if line.startswith("-")]
        assert taken and set(taken) <= set(source), title


def test_quickstart_has_the_readmes_code_only():
    own = (DOCS / "quickstart.md").read_text(encoding="utf-8")
    assert "```" not in own
    assert len(blocks(page("quickstart.md"), "bash")) >= 4


# -- what is generated -----------------------------------------------------------------------


def config_classes():
    """Every dataclass of settings in the package and its fields, read from the source."""
    for path in sorted((REPOSITORY / "ewald_jax").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ClassDef) or not node.name.endswith("Config"):
                continue
            if any("dataclass" in ast.unparse(entry) for entry in node.decorator_list):
                fields = [entry for entry in node.body if isinstance(entry, ast.AnnAssign)]
                yield node.name, [field.target.id for field in fields]


def test_configuration_covers_every_field():
    text = page("configuration.md")
    sections = re.split(r"^## ", text, flags=re.M)[1:]
    classes = dict(config_classes())
    assert {"DataConfig", "EwaldConfig", "TrainConfig", "StatisticsConfig"} <= set(classes)
    for section in classes.pop("Config"):
        assert f"| `{section}." in text
    for cls in MODELS.values():
        hints = cls.__annotations__
        own = [name for name in hints if "ClassVar" not in str(hints[name])]
        classes[cls.__name__] = [name for name in own if name not in ("parent", "name")]
    for name, fields in classes.items():
        (section,) = [part for part in sections if f"(`{name}`)\n" in part]
        for field in fields:
            row = rf"^\| `[\w.]+\.{field}` \| (.+) \| (.+) \| (.+) \|$"
            found = re.search(row, section, re.M)
            assert found, f"{name}.{field} is not in the reference, or has no description"


def test_configuration_says_types_and_defaults():
    text = page("configuration.md")
    assert "| `train.batch_size` | int | `32` | Structures per step. |" in text
    assert '| `loss.stress` | `none`, `mae`, `mse`, `huber` | `"none"` |' in text
    assert "| `model.ewald.num_k` | list of 3 int | `[1, 1, 3]` |" in text
    assert "| `model.ewald` | mapping (`EwaldConfig`) or null | `null` |" in text


def test_every_command_has_a_section():
    text = page("cli.md")
    names = [c.name or c.callback.__name__ for c in app.registered_commands]
    for group in app.registered_groups:
        names.append(group.name)
        below = group.typer_instance.registered_commands
        shown = [c for c in below if not c.hidden]
        names += [f"{group.name} {c.name or c.callback.__name__}" for c in shown]
    assert len(names) > 10
    for name in names:
        title = f"ewald-jax {name.replace('_', '-')}"
        assert f"## `{title}`\n" in text
        assert f"Usage: {title} " in text
    assert text.count("\n```text\n") == len(names) + 1


def test_every_extra_says_what_it_is_for():
    text = page("install.md")
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg")
    for name in parser["options.extras_require"]:
        row = re.search(rf"^\| `{name}` \| (.+) \| (.+) \|$", text, re.M)
        assert row and len(row[1]) > 10, name


def test_docstrings_become_markdown():
    text = (
        "A.\n\n.. math::\n    a \\cdot\n      b\n\nWith :math:`c` so::\n\n    x = 1\n\nEnd."
    )
    assert generate.docstring_markdown(text).split() == (
        r"A. $$ a \cdot b $$ With $c$ so: ``` x = 1 ``` End.".split()
    )
    table = "==== ======\nkey  unit\n==== ======\n``a`` Å\n``b`` eV\n==== ======\n\nEnd."
    assert "| ``a`` | Å |" in generate.docstring_markdown(table.replace("``a`` ", "``a``"))


def test_sections_keep_their_links():
    assert (
        generate.relink("[a](x/y.py) [b](https://c.d)", Path(".")) == "a [b](https://c.d)"
    )
    assert (
        generate.relink("![p](results/q.png)", Path("experiments")) == "![p](images/q.png)"
    )
    shown = generate.relink("![p](results/study/q.png)", Path("experiments"))
    assert shown == "![p](images/study_q.png)"
    names = [generate.picture_name(path) for path in generate.pictures()]
    assert len(set(names)) == len(names)
    with pytest.raises(KeyError, match="no section 'Nothing'"):
        generate.from_file(REPOSITORY, "README.md", "Nothing")


# -- what pages name -------------------------------------------------------------------------


def nav_files(entries):
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from nav_files(value) if isinstance(value, list) else [value]


def test_navigation_lists_every_page_once():
    config = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(nav_files(config["nav"])) == PAGES


@pytest.mark.parametrize("name", PAGES)
def test_commands_of_a_page_exist(name):
    """Flags are in the help of their command, overrides in the reference of the keys."""
    text = page(name).replace("\\\n", " ")
    known = {" ".join(words) for words in generate.commands() if words}
    keys = set(re.findall(r"`([\w.]+)`", generate.configuration()))
    for command in re.findall(r"ewald-jax +([a-z][^`\n|]*)", text):
        words = re.findall(r"[\w.=/$*,-]+", command.partition("#")[0])
        verb = max(
            (v for v in known if f"{command} ".startswith(f"{v} ")), key=len, default=""
        )
        if not verb:
            assert words[0] not in known
            continue
        shown = generate.help_text(verb.split())
        for word in words:
            if re.fullmatch(r"--?[a-z][a-z-]*", word):
                assert re.search(rf"(^|[ ,/]){word}\b", shown, re.M), f"{verb} {word}"
            elif found := re.match(r"((?:data|model|loss|optim|train)\.[\w.]+)=", word):
                assert found[1] in keys, found[1]
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^)make ([a-z]+)", text, re.M):
        assert f"\n{target}:" in makefile, target


def test_packages_of_the_reference_exist():
    for name in PAGES:
        for dotted in re.findall(r"^::: ([\w.]+)$", page(name), re.M):
            path = REPOSITORY / dotted.replace(".", "/")
            assert path.with_suffix(".py").exists() or (path / "__init__.py").exists(), (
                dotted
            )
    rooms = {p.parent.name for p in (REPOSITORY / "ewald_jax").glob("*/__init__.py")}
    assert {f"api/{room}.md" for room in rooms - {"cli"}} <= set(PAGES)
