"""The notebooks for tests: reading and shortening them, and what their cells define."""

from __future__ import annotations

import ast
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


# What takes long in the notebooks, and what stands there instead where a few steps will do.
SHORTER = {
    "STEPS = 300": "STEPS = 30",
    "train_by_hand(40)": "train_by_hand(4)",
    "train_by_hand(25, ": "train_by_hand(4, ",
    "for _ in range(2)), key=": "for _ in range(1)), key=",
    "max_train_steps=24, ": "max_train_steps=4, ",
    "callbacks=[lambda progress: progress.step == 10]": "callbacks=[lambda progress: progress.step == 2]",
}


def shortened(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same notebook with a tenth of the training steps, for tests of everything but the result."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for long, short in SHORTER.items():
                cell.source = cell.source.replace(long, short)
    return notebook
