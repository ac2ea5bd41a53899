"""Parts of the documentation that are read from the code, the README and `setup.cfg`.

Pure functions from sources to Markdown, without MkDocs: `hooks.py` puts them into the pages,
and the tests look at them. A page asks for one by a comment on a line of its own, such as
``<!-- generated: configuration -->`` or ``<!-- section: README.md Conventions -->``.
"""

import dataclasses
import inspect
import json
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parent.parent

_MARK = re.compile(r"^<!-- (generated|section): (.+?) -->$", re.M)


def expand(text: str, root: Path = ROOT) -> str:
    """A page with the parts it asks for.

    Args:
        text: Markdown.
        root: Of the repository.

    Raises:
        KeyError: If there is no part or section of a name.
    """

    def part(match: re.Match) -> str:
        kind, what = match.groups()
        if kind == "generated":
            return GENERATED[what](root)
        path, _, heading = what.partition(" ")
        return from_file(root, path, heading)

    return _MARK.sub(part, text)


# -- parts of other files --------------------------------------------------------------------


def from_file(root: Path, path: str, heading: str = "") -> str:
    """A section of a Markdown file without its heading; all below the title if none is named.

    Links are turned to what the site has of their targets, see `relink`.

    Raises:
        KeyError: If the file has no such section.
    """
    text = (root / path).read_text(encoding="utf-8")
    if heading:
        found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
        if not found:
            raise KeyError(f"{path} has no section {heading!r}")
        text = found[1]
    else:
        text = text.partition("\n")[2]
    # Marks of generated tables, which would make the table below them a paragraph.
    text = re.sub(r"^<!--.*-->$", "", text, flags=re.M)
    return relink(text, Path(path).parent).strip()


def relink(text: str, folder: Path) -> str:
    """Links of a file in `folder` of the repository as links within the site.

    Pictures are copied to ``images``; pages have pages of their own; of source files only the
    text of the link is left.
    """

    def link(match: re.Match) -> str:
        bang, words, target = match.groups()
        path, _, anchor = target.partition("#")
        if "://" in target or not path:
            return match[0]
        place = folder / path
        if place.suffix == ".png":
            return f"{bang}[{words}](images/{picture_name(place)})"
        if place == Path("experiments/README.md"):
            return f"[{words}](experiments.md{'#' + anchor if anchor else ''})"
        return words

    return re.sub(r"(!?)\[((?:[^\[\]]|`[^`]*`)*)\]\(([^()\s]+)\)", link, text)


def pictures(root: Path = ROOT) -> list[Path]:
    """Pictures that pages may show."""
    return sorted((root / "experiments" / "results").rglob("*.png"))


def picture_name(path: Path) -> str:
    """Name on the site, with that of the study, as all studies call their pictures alike."""
    return "_".join(path.parts[path.parts.index("results") + 1 :])


def notebook_files(root: Path = ROOT) -> list[Path]:
    """The notebooks, in order."""
    return sorted((root / "notebooks").glob("*.ipynb"))


def notebooks(root: Path = ROOT) -> str:
    """A table of the notebooks: title, first paragraph, link to the file."""
    rows = []
    for path in notebook_files(root):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        prose = [
            "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"
        ]
        paragraphs = "\n\n".join(prose).split("\n\n")
        title = paragraphs[0].lstrip("# ").strip() if paragraphs else path.stem
        about = next((p for p in paragraphs[1:] if p and not p.startswith("#")), "")
        link = f"[`{path.name}`](notebooks/{path.name})"
        # Whole sentences: some go on with what a web page does not show.
        whole = re.match(r".*[.!?)]", " ".join(about.split()))
        rows.append((link, title, relink(whole[0] if whole else "", Path("notebooks"))))
    if not rows:
        return "*This checkout has no notebooks.*"
    return _table(("file", "title", "what it shows"), rows)


def model_cards(root: Path = ROOT) -> str:
    """The cards of the packaged models."""
    path = Path("ewald_jax/pretrained/README.md")
    if not (root / path).exists():
        return "*This checkout has no packaged models.*"
    text = from_file(root, str(path))
    return text[text.index("\n## ") :].strip()


def extras(root: Path = ROOT) -> str:
    """A table of the extras of `setup.cfg`, each with the comment above it."""
    text = (root / "setup.cfg").read_text(encoding="utf-8")
    section = text.split("[options.extras_require]\n")[1].split("\n[")[0]
    rows, about = [], []
    for line in section.splitlines():
        if line.startswith("#"):
            about.append(line.lstrip("# "))
        elif found := re.fullmatch(r"(\w[\w-]*) =", line):
            rows.append([f"`{found[1]}`", " ".join(about), []])
            about = []
        elif line.strip() and not line.strip().startswith("#"):
            rows[-1][2].append(f"`{line.strip()}`")
    cells = [(name, about, ", ".join(packages)) for name, about, packages in rows]
    return _table(("extra", "what for", "packages"), cells)


# -- configuration ---------------------------------------------------------------------------


def configuration(root: Path = ROOT) -> str:
    """Every key of every section: type, default and what it does, from the dataclasses."""
    from ewald_jax.config import SECTIONS
    from ewald_jax.models import MODELS

    parts = [_section(SECTIONS["data"], "data")]
    nested: dict[type, str] = {}
    for name, cls in MODELS.items():
        key = f"name: {name}"
        parts.append(_section(cls, "model", f"`model`, with `{key}`", nested))
    parts += [_section(cls, key) for cls, key in nested.items()]
    parts += [_section(cls, name) for name, cls in SECTIONS.items() if name != "data"]
    return "\n\n".join(parts)


def _section(
    cls: type, key: str, title: str = "", shared: dict[type, str] | None = None
) -> str:
    """A heading, the first paragraph of the docstring and a table, then nested dataclasses.

    Those are put into `shared` if it is given, for several classes have them.
    """
    from ewald_jax.checked import fields_of

    hints, docs, rows, inner = get_type_hints(cls), attribute_docs(cls), [], {}
    for name, field in fields_of(cls).items():
        hint = hints[name]
        for member in (hint, *get_args(hint)):
            if dataclasses.is_dataclass(member):
                inner[member] = f"{key}.{name}"
        rows.append(
            (f"`{key}.{name}`", type_words(hint), default_words(field), docs.get(name, ""))
        )
    intro = (cls.__doc__ or "").split("\n\n")[0].strip()
    table = _table(("key", "type", "default", "what it does"), rows)
    parts = [f"## {title or f'`{key}`'}", f"{intro} (`{cls.__name__}`)", table]
    if shared is None:
        parts += [_section(member, place) for member, place in inner.items()]
    else:
        shared |= inner
    return "\n\n".join(parts)


def attribute_docs(cls: type) -> dict[str, str]:
    """What the ``Attributes`` section of a class's docstring says of each."""
    lines = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2].splitlines()
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        entry = re.match(r"    (\w+): (.*)", line)
        if entry:
            name, found[entry[1]] = entry[1], entry[2]
        elif name and line.startswith("     "):
            found[name] += " " + line.strip()
        elif line.strip():
            break
    return {name: _code(text) for name, text in found.items()}


def type_words(hint: Any) -> str:
    """An annotation as a table shows it."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(type_words(member) for member in args)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin is tuple:
        if len(args) == 2 and args[1] is Ellipsis:
            return f"list of {type_words(args[0])}"
        return f"list of {len(args)} {type_words(args[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping of {type_words(args[0])} to {type_words(args[1])}"
    if hint is type(None):
        return "null"
    if dataclasses.is_dataclass(hint):
        return f"mapping (`{hint.__name__}`)"
    return hint.__name__


def default_words(field: dataclasses.Field) -> str:
    """A default as YAML has it."""
    from ewald_jax.checked import plain

    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    if dataclasses.is_dataclass(value):
        return "its defaults"
    return f"`{json.dumps(plain(value), ensure_ascii=False)}`"


def readers(root: Path = ROOT) -> str:
    """A table of the kinds of files and the names they are chosen for."""
    from ewald_jax.data import READERS

    rows = [
        (f"`{kind}`", ", ".join(f"`{suffix}`" for suffix in reader.suffixes))
        for kind, reader in READERS.items()
    ]
    return _table(("`data.kind`", "names that end in"), rows)


# -- command line ----------------------------------------------------------------------------


def command_line(root: Path = ROOT) -> str:
    """The help of every command."""
    parts = []
    for words in commands():
        title = " ".join(("ewald-jax", *words))
        level = "##" if len(words) < 2 else "###"
        parts.append(f"{level} `{title}`\n\n```text\n{help_text(words).strip()}\n```")
    return "\n\n".join(parts)


def commands() -> Iterator[tuple[str, ...]]:
    """The words of every command and group, the program itself first."""
    import typer

    from ewald_jax.cli import app

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield words
        for name, below in getattr(command, "commands", {}).items():
            if not below.hidden:
                yield from walk(below, (*words, name))

    yield from walk(typer.main.get_command(app), ())


def help_text(words: Iterable[str]) -> str:
    """What a command prints with ``--help``."""
    from typer.testing import CliRunner

    from ewald_jax.cli import app

    arguments, width = [*words, "--help"], {"COLUMNS": "80"}
    result = CliRunner().invoke(app, arguments, env=width, prog_name="ewald-jax")
    if result.exit_code:
        raise RuntimeError(f"{' '.join(words)} --help ended with {result.exit_code}")
    return result.output


# -- docstrings ------------------------------------------------------------------------------


def docstring_markdown(text: str) -> str:
    """A docstring's formulas, tables and literal blocks as Markdown has them.

    ``.. math::`` and ``:math:`` become dollars, tables between lines of equal signs become
    pipes, and code after a double colon gets fences.
    """
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    out, lines = [], text.splitlines()
    while lines:
        line = lines.pop(0)
        indent = line[: len(line) - len(line.lstrip())]
        if found := re.match(r"\s*\.\. math::(.*)", line):
            body = [found[1], *_block(lines, indent)]
            formula = " ".join(" ".join(body).split())
            out += ["", f"{indent}$$", f"{indent}{formula}", f"{indent}$$", ""]
        elif re.fullmatch(r"\s*=+( =+)+", line):
            out += _pipes(line, lines)
        elif line.endswith("::") and not line.lstrip().startswith(".."):
            body = inspect.cleandoc("\n".join(["", *_block(lines, indent)])).splitlines()
            head = line.removesuffix("::")
            fenced = ["```", *body, "```"]
            out += [head + ":" if head.strip() else "", ""]
            out += [f"{indent}{entry}".rstrip() for entry in fenced] + [""]
        else:
            out.append(line)
    return "\n".join(out)


def _block(lines: list[str], indent: str) -> list[str]:
    """Takes the lines that are further in than `indent` off the list, blank ones included."""
    body = []
    while lines and (not lines[0].strip() or lines[0].startswith(f"{indent} ")):
        body.append(lines.pop(0))
    return body


def _pipes(rule: str, lines: list[str]) -> list[str]:
    """A table of columns between rules of equal signs, taken off the list of lines."""
    starts = [found.start() for found in re.finditer(r"(?<!=)=", rule)]
    spans = list(zip(starts, [*starts[1:], None], strict=True))
    rows = []
    for _ in range(3):
        part = []
        while lines and lines[0] != rule:
            part.append(tuple(lines[0][a:b].strip() for a, b in spans))
            lines.pop(0)
        if lines and len(rows) < 2:
            lines.pop(0)
            rows.append(part)
        else:
            break
    head, *body = [row for part in rows for row in part]
    return ["", *_table(head, body).splitlines(), ""]


def _code(text: str) -> str:
    """Double backticks as single ones, which Markdown shows alike."""
    return text.replace("``", "`")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


GENERATED: dict[str, Callable[[Path], str]] = {
    "command-line": command_line,
    "configuration": configuration,
    "extras": extras,
    "model-cards": model_cards,
    "notebooks": notebooks,
    "readers": readers,
}
