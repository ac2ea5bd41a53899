"""Executes notebooks and stores their outputs small, as they are kept in the repository.

    python notebooks/store.py                   # all of them
    python notebooks/store.py notebooks/04*     # some

Pictures get a palette of 256 colours, half of their size; lines printed by one cell become
one output; what depends on the machine (times of execution, versions) is left out. A cell
that fails stops everything, and its notebook stays as it was.
"""

import base64
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent


def store(path: Path) -> None:
    """Executes one notebook in its folder and replaces it."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources=resources
    ).execute()
    tidy(notebook)
    nbformat.write(notebook, path)


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Makes outputs small and the same for every machine, in place."""
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata, outputs = {}, []
        for output in cell.outputs:
            last = outputs[-1] if outputs else {}
            if output.output_type == "stream" and last.get("name") == output.name:
                last["text"] += output.text
                continue
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = with_palette(output.data["image/png"])
            outputs.append(output)
        cell.outputs = outputs


def with_palette(png: str) -> str:
    """A picture, base64 as in a notebook, with at most 256 colours."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    out = io.BytesIO()
    image.quantize(256, kmeans=1, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(HERE.glob("*.ipynb")):
        store(Path(name).resolve())
        print(f"{Path(name).name}: {Path(name).stat().st_size / 1000:.0f} kB")
