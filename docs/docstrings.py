"""An extension of griffe: docstrings, written for Sphinx's eyes too, as Markdown."""

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from generate import docstring_markdown  # noqa: E402


class Docstrings(griffe.Extension):
    """Formulas, tables and literal blocks of every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = docstring_markdown(obj.docstring.value)
