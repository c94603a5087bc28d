"""One command writes the repository's address into all notebooks, and nothing else."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
digest = runpy.run_path(str(ROOT / "notebooks" / "store.py"))["digest"]


@pytest.fixture
def course(tmp_path):
    """What the command reads and writes, copied."""
    (tmp_path / "notebooks").mkdir()
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("store.py", "stamp.py", "00_start_here.ipynb"):
        shutil.copy(ROOT / "notebooks" / name, tmp_path / "notebooks")
    return tmp_path


@pytest.fixture
def stamp(course, monkeypatch):
    """The command with these arguments, in this process."""
    monkeypatch.syspath_prepend(course / "notebooks")
    main = runpy.run_path(str(course / "notebooks" / "stamp.py"))["main"]
    return lambda *arguments: main([*arguments])


def test_badge_and_first_cell_get_the_address_and_nothing_else_changes(course, stamp, capsys):
    path = course / "notebooks" / "00_start_here.ipynb"
    before = nbformat.read(path, as_version=4)
    command = [sys.executable, course / "notebooks" / "stamp.py"]
    address = "https://github.com/some-one/a.course/"
    done = subprocess.run([*command, address], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = nbformat.read(path, as_version=4)
    changed = [cell.id for old, cell in zip(before.cells, after.cells, strict=True) if old != cell]
    assert set(changed) <= {"title", "setup"}
    title, setup = (next(c for c in after.cells if c.id == name) for name in ("title", "setup"))
    link = "https://colab.research.google.com/github/some-one/a.course/blob/main/notebooks/"
    assert title.source.count("colab-badge.svg") == 1
    assert f"({link}00_start_here.ipynb)" in title.source
    assert title.source.startswith("# ")
    assert '"https://github.com/some-one/a.course")' in setup.source
    assert setup.metadata["made_from"] == digest(setup.source)
    assert (
        'Repository = "https://github.com/some-one/a.course"'
        in (course / "pyproject.toml").read_text()
    )
    stamp()  # a second time: no change
    assert capsys.readouterr().out == "00_start_here.ipynb: as it was\n"


@pytest.mark.parametrize(
    "arguments", [["github.com/a/b"], ["https://github.com/a"], ["https://github.com/a/b", "c"]]
)
def test_no_address_no_change(course, stamp, arguments):
    before = (course / "pyproject.toml").read_bytes()
    with pytest.raises(SystemExit, match=r"https://github\.com/NAME/REPO"):
        stamp(*arguments)
    assert (course / "pyproject.toml").read_bytes() == before


def test_the_pages_get_the_address(course, stamp):
    for address in ("https://github.com/some-one/a.course", "https://github.com/b/c"):
        stamp(address)
    for name in ("README.md", "CONTRIBUTING.md"):
        page = (course / name).read_text()
        assert "git clone https://github.com/b/c course" in page, name
        assert "OWNER" not in page and "some-one" not in page, name
    colab = "/github/b/c/blob/main/notebooks/00_start_here.ipynb)"
    assert colab in (course / "README.md").read_text()


def test_all_notebooks_bear_the_address_of_pyproject():
    address = re.search(r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    page = address.removeprefix("https://github.com/")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = path.read_text()
        assert f'{address}\\")' in text, f"{path.name}: python notebooks/stamp.py"
        assert f"/github/{page}/blob/main/notebooks/{path.name})" in text, path.name
