"""Which folder of the recipes may import which."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from data.recipes import make

ROOT = Path(make.__file__).parent
MAY_IMPORT = {
    "world": {"world"},
    "networks": {"world", "networks"},
    "results": {"world", "networks", "results"},
    "make": {"world", "networks", "results"},
}
FILES = [path for path in sorted(ROOT.rglob("*.py")) if "work" not in path.relative_to(ROOT).parts]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports_of(path: Path) -> set[str]:
    """Modules of the recipes that a file imports, such as `world.compose`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            package = [*path.relative_to(ROOT).parent.parts]
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *filter(None, (node.module or "").split("."))]
            if not node.level and module[:2] != ["data", "recipes"]:
                continue
            module = module if node.level else module[2:]
            names = [".".join([*module, alias.name]) for alias in node.names]
            known = {name_of(file) for file in FILES}
            found |= {name if name in known else ".".join(module) for name in names}
    return found


def test_every_file_stands_in_a_folder_of_the_table():
    assert {name_of(file).split(".")[0] for file in FILES} == {*MAY_IMPORT, "__init__"}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_down_only(file):
    allowed = MAY_IMPORT.get(name_of(file).split(".")[0], set())
    assert {name for name in imports_of(file) if name.split(".")[0] not in allowed} == set()


def test_no_two_modules_need_each_other():
    known = {name_of(file): imports_of(file) for file in FILES}
    assert "world.compose" in known["networks.pool"]
    assert list(TopologicalSorter(known).static_order())  # raises CycleError, which names them
