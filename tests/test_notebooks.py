"""Notebooks as they are stored: executed, small, without errors, warnings and this machine."""

import json
import re

import pytest
from conftest import REPOSITORY

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

MACHINE_PATH = re.compile(
    r"(?<![\w.])/(?:home|root|tmp|work|usr|opt|var|Users|mnt)/|\b[A-Z]:\\"
)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell["outputs"]]


def text_of(value):
    """nbformat keeps text as a string or as a list of lines."""
    return value if isinstance(value, str) else "".join(value)


def test_there_are_six_in_order():
    assert [path.stem[:2] for path in NOTEBOOKS] == [f"{n:02d}" for n in range(1, 7)]


@every_notebook
def test_format(path):
    notebook = read(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"] >= 5) == (4, True)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        needed = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            needed |= {"execution_count", "outputs"}
        assert set(cell) == needed


@every_notebook
def test_is_executed_from_top_to_bottom(path):
    counts = [cell["execution_count"] for cell in code_cells(read(path))]
    assert counts == list(range(1, len(counts) + 1))


@every_notebook
def test_outputs_are_results_only(path):
    found = outputs(read(path))
    assert any("image/png" in output.get("data", {}) for output in found)
    for output in found:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr", text_of(output["text"])[:300]
        # An object's address and bars that move are noise in every later comparison.
        text = text_of(output.get("text", output.get("data", {}).get("text/plain", "")))
        assert " at 0x" not in text and "\r" not in text


@every_notebook
def test_is_small(path):
    assert path.stat().st_size < 300_000


@every_notebook
def test_names_no_path_of_a_machine(path):
    notebook = read(path)
    texts = [text_of(cell["source"]) for cell in notebook["cells"]]
    for output in outputs(notebook):
        texts += [text_of(output.get("text", ""))]
        texts += [text_of(v) for k, v in output.get("data", {}).items() if k != "image/png"]
    found = [match.group() for text in texts for match in MACHINE_PATH.finditer(text)]
    assert found == []


@every_notebook
def test_links_lead_somewhere(path):
    for cell in read(path)["cells"]:
        if cell["cell_type"] == "markdown":
            for target in re.findall(r"\]\(([^)#\s]+)\)", text_of(cell["source"])):
                if not target.startswith("http"):
                    assert (path.parent / target).exists(), target
