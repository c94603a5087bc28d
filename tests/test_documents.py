"""Every page: its links arrive, and its commands are ones that `tiutils` knows."""

import re
import shlex
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

from tiutils.cli.main import build_parser

ROOT = Path(__file__).resolve().parent.parent
NOT_OURS = {".venv", "build", "runs", "work", "node_modules"}
PAGES = [
    path
    for path in sorted([*ROOT.rglob("*.md"), *ROOT.glob("notebooks/*.ipynb")])
    if not any(part in NOT_OURS or part.startswith(".") for part in path.relative_to(ROOT).parts)
]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


@pytest.fixture(params=PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def page(request):
    return request.param


def text_of(page):
    """A page's Markdown; of a notebook, that of its cells of prose."""
    if page.suffix == ".md":
        return page.read_text(encoding="utf-8")
    cells = nbformat.read(page, as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def without_code(text):
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors_of(page):
    """As GitHub makes them: lower case, punctuation gone, a hyphen for each space, repeats numbered."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)
    seen, anchors = Counter(), set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", text, re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        anchors.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return anchors


def broken_links(page):
    """The links to files and headings of ours that lead nowhere."""
    for match in LINK.finditer(without_code(text_of(page))):
        link = match[1] or match[2]
        target, _, anchor = unquote(link).partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        there = (page.parent / target).resolve() if target else page
        if not there.exists() or (anchor and anchor not in anchors_of(there)):
            yield link


def test_links_arrive(page):
    assert list(broken_links(page)) == []


def test_a_broken_link_is_noticed(tmp_path):
    other = tmp_path / "b.md"
    other.write_text("# One `x`: [a](b)\n## One x a\n")
    page = tmp_path / "a.md"
    page.write_text(
        '[1](b.md#one-x-a) [2](b.md#one-x-a-1) [3](https://x.y/z) `[4](none)` <img src="none.png">\n'
        "[5](b.md#two) [6](c.md) [7](#none)\n"
    )
    assert list(broken_links(page)) == ["none.png", "b.md#two", "c.md", "#none"]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_files_that_are_named_exist(name):
    """A file of Python in backquotes lies in the repository, or where the page says that tests or modules lie."""
    named = re.findall(r"`([\w/.]+\.py)`", text_of(ROOT / name))
    folders = [ROOT, ROOT / "tiutils", ROOT / "tests"]
    foreign = {"textual_inversion.py"}  # diffusers' script
    missing = {n for n in named if not any((folder / n).is_file() for folder in folders)}
    assert missing - foreign == set()


def commands_in(text):
    """The `tiutils` commands of a page's blocks of code, as lists of words."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines() if language == "bash" else ():
            words = shlex.split(line, comments=True)
            if words and Path(words[0]).name == "tiutils":
                yield words[1:]


def test_commands_are_understood(page):
    if page.suffix == ".md":
        for command in commands_in(text_of(page)):
            build_parser().parse_args(command)


def test_the_pages_of_commands_have_some():
    for name in ("README.md", "docs/commands.md"):
        assert len(list(commands_in(text_of(ROOT / name)))) >= 3, name
