"""The notebooks as tests see them: read, shortened, and what their cells define."""

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
    """A notebook of the course by the name of its file, without the suffix."""
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def sources(name: str) -> dict[str, str]:
    """The code of each code cell by the cell's id."""
    return {cell.id: cell.source for cell in read(name).cells if cell.cell_type == "code"}


def definitions(name: str, *cells: str, **known: Any) -> dict[str, Any]:
    """What these cells of a notebook define, as names; what they show off with it is not executed.

    `known` are the names that earlier cells would have given.
    """
    code = sources(name)
    for cell in cells:
        defined = [node for node in ast.parse(code[cell]).body if isinstance(node, DEFINITIONS)]
        assert defined, f"cell {cell} of {name} defines nothing"
        exec(compile(ast.Module(defined, []), cell, "exec"), known)
    return known


def shortened(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same notebook with 30 steps of training in place of 300; for use with a small model."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            source = cell.source.replace("max_train_steps=300,", "max_train_steps=30,")
            cell.source = re.sub(r"early_stopping_window=[^,]+", "early_stopping_window=20", source)
    return notebook
