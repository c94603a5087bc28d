"""The course as a book: the stored notebooks and docs/ as a static site, made by `make book`; nothing is executed.

Sphinx with MyST-NB reads the files where they lie. Formulas become MathML and the search runs in the page, so the book
loads nothing from elsewhere.
"""

from __future__ import annotations

import functools
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

WIDGET, WIDGETS = (
    "application/vnd.jupyter.widget-view+json",
    "application/vnd.jupyter.widget-state+json",
)

LINK = re.compile(r"(?<!!)(?P<text>\[[^]]*\])\((?P<target>[^):#\s]+)(?:#[^)\s]*)?\)")
BADGE = re.compile(r"!\[Open in Colab\]\(https://[^)]*\)")
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
REPOSITORY = tomllib.loads(PYPROJECT.read_text())["project"]["urls"]["Repository"]

project = "Textual Inversion, taught and done"
author = "The course's authors"
extensions = ["myst_nb"]
root_doc = "book/index"
include_patterns = [
    "book/*.md",
    "notebooks/*.ipynb",
    "docs/*.md",
    "benchmarks/README.md",
    "data/tiny-sd/README.md",
]
exclude_patterns = [".*", "build", "runs", "notebooks/runs", "shared"]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_dmath_double_inline = True
myst_heading_anchors = 3
html_theme = "furo"
html_extra_path = ["index.html"]  # leads from the site's root to the first page
html_title = project
html_favicon = "icon.svg"  # one colored row of a table
html_math_renderer = "mathml"
html_show_sphinx = html_show_copyright = html_copy_source = False


def as_stored(app: Sphinx, docname: str, source: list[str]) -> None:
    """Fold a notebook's set-up, and show what its widgets showed; elsewhere mend the links that leave the book."""
    if not docname.startswith("notebooks/"):
        source[0] = LINK.sub(functools.partial(leaving_the_book, app, docname), source[0])
        return
    notebook = json.loads(source[0])
    states = notebook["metadata"].pop("widgets", {}).get(WIDGETS, {}).get("state", {})
    for cell in notebook["cells"]:
        cell["source"] = BADGE.sub("Open in Colab", "".join(cell["source"]))
        if cell["metadata"].get("jupyter", {}).get("source_hidden"):
            cell["metadata"]["tags"] = [*cell["metadata"].get("tags", []), "hide-input"]
        if cell["cell_type"] == "code":
            shown = (still(output, states) for output in cell["outputs"])
            cell["outputs"] = [output for output in shown if output is not None]
    source[0] = json.dumps(notebook)


def leaving_the_book(app: Sphinx, docname: str, link: re.Match[str]) -> str:
    """A link to a file that is no page of the book leads to the repository."""
    path = (Path(app.srcdir) / docname).parent.joinpath(link["target"]).resolve()
    page = app.env.path2doc(path)
    if page in app.env.found_docs or not path.exists():
        return link[0]
    kind = "tree" if path.is_dir() else "blob"
    return f"{link['text']}({REPOSITORY}/{kind}/main/{path.relative_to(app.srcdir).as_posix()})"


def still(output: dict[str, Any], states: dict[str, Any]) -> dict[str, Any] | None:
    """The output; of a widget the pictures and texts in it, or None if it has only controls."""
    if WIDGET not in output.get("data", {}):
        return output
    parts = list(texts_in(output["data"][WIDGET]["model_id"], states))
    return {**output, "data": {"text/html": "".join(parts)}} if parts else None


def texts_in(model: str, states: dict[str, Any]) -> Iterator[str]:
    """The HTML of a widget and of those in it."""
    state = states.get(model, {})
    values = state.get("state", {})
    if state.get("model_name") == "HTMLModel" and values["value"].startswith("<figure"):
        yield values["value"]
    for child in values.get("children", ()):
        yield from texts_in(child.removeprefix("IPY_MODEL_"), states)


def visit_formula(translator: Any, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    translator.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("source-read", as_stored)
    app.add_html_math_renderer("mathml", (visit_formula, None), (visit_formula, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
