"""The notebooks for tests: reading and shortening them, and what their cells define."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
DEFINITIONS = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)


def read(name: str) -> nbformat.NotebookNode:
    """A notebook of the course, by its file name without the suffix."""
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def sources(name: str) -> dict[str, str]:
    """The source of each code cell, by its id."""
    return {cell.id: cell.source for cell in read(name).cells if cell.cell_type == "code"}


def definitions(name: str, *cells: str, **known: Any) -> dict[str, Any]:
    """The names that these cells of a notebook define; other statements are not executed.

    `known` are the names that earlier cells define.
    """
    code = sources(name)
    for cell in cells:
        defined = [node for node in ast.parse(code[cell]).body if isinstance(node, DEFINITIONS)]
        assert defined, f"cell {cell} of {name} defines nothing"
        exec(compile(ast.Module(defined, []), cell, "exec"), known)
    return known


def shortened(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same notebook with 30 training steps instead of 300, for a small model."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            source = re.sub(r"^STEPS = 300$", "STEPS = 30", cell.source, flags=re.MULTILINE)
            cell.source = source.replace("max_train_steps=300,", "max_train_steps=30,")
    return notebook
