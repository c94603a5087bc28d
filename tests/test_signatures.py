"""No function takes so many arguments that a call cannot be read: what belongs together travels as one thing."""

from __future__ import annotations

import ast
from pathlib import Path

import tiutils

MOST = 7
PACKAGE = Path(tiutils.__file__).parent


def number_of_arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many a caller may give; `*args` and `**kwargs` count as one each, `self` and `cls` do not."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    if names and names[0] in ("self", "cls"):
        names = names[1:]
    return len(names) + (given.vararg is not None) + (given.kwarg is not None)


def functions(source: str):
    """Every function and method of a module, inner ones, too."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]


def test_what_is_counted():
    source = "class A:\n    def f(self, a, /, b, *c, d=1, **e): ...\n    async def g(cls): ..."
    assert [number_of_arguments(each) for each in functions(source)] == [5, 0]


def test_no_function_takes_more_than_seven_arguments():
    counts = {
        f"{path.relative_to(PACKAGE)}:{each.lineno} {each.name}": number_of_arguments(each)
        for path in PACKAGE.rglob("*.py")
        for each in functions(path.read_text(encoding="utf-8"))
    }
    assert len(counts) > 500
    assert not {name: count for name, count in counts.items() if count > MOST}
