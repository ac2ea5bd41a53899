"""Events of MkDocs: generated parts of pages, pictures and notebooks, formulas as MathML."""

import html
import re

import generate
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files

log = get_plugin_logger("ewald_jax")

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
_BAR = '<mo stretchy="false" lspace="0" rspace="0">|</mo>'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pictures and notebooks of the repository, which pages link to."""
    paths = {f"images/{generate.picture_name(path)}": path for path in generate.pictures()}
    paths |= {f"notebooks/{path.name}": path for path in generate.notebook_files()}
    for name, path in paths.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page, config: MkDocsConfig, files: Files) -> str:
    """Puts generated parts in."""
    try:
        return generate.expand(markdown)
    except KeyError as error:
        log.warning("%s: there is no part %s", page.file.src_uri, error)
        return markdown


def on_page_content(html: str, page, config: MkDocsConfig, files: Files) -> str:
    """Turns formulas into MathML, which browsers show without a script."""
    return _FORMULA.sub(lambda match: _mathml(match, page.file.src_uri), html)


def _mathml(match: re.Match, place: str) -> str:
    from latex2mathml.converter import convert

    display = "block" if match[1] == "div" else "inline"
    formula = html.unescape(match[2]).strip()
    out = convert(formula, display=display)
    # What it does not know it leaves as it was written.
    if "\\" in html.unescape(out):
        log.warning("%s: no MathML for the formula %s", place, formula)
    # A bar is no operator between two things, but a part of |k|.
    out = re.sub(r"<mo[^>]*>&#x0007C;</mo>", _BAR, out)
    return out if display == "inline" else f'<div class="formula">{out}</div>'
