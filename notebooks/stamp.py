"""Write the repository's address into every notebook, README.md and CONTRIBUTING.md.

    python notebooks/stamp.py https://github.com/NAME/REPO

The address stands in one place, pyproject.toml. From there it goes into each notebook's first code
cell, which fetches the course where the notebook is alone, and into all links "Open in Colab".
Without an argument the address in pyproject.toml is written again, into a new notebook for example.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
from store import digest

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = r"https://github\.com/[\w.-]+/[\w.-]+"
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"


def address_in(pyproject: Path) -> str:
    """The address that pyproject.toml gives."""
    found = re.search(rf'^Repository = "({ADDRESS})"$', pyproject.read_text(), re.MULTILINE)
    if not found:
        sys.exit(f'{pyproject.name} has no line Repository = "https://github.com/NAME/REPO"')
    return found[1]


def stamp(path: Path, address: str) -> bool:
    """Stamp one notebook; whether anything changed."""
    notebook = nbformat.read(path, as_version=4)
    before = nbformat.writes(notebook)
    title, first = notebook.cells[0], next(c for c in notebook.cells if c.cell_type == "code")
    first.source, found = re.subn(
        rf'("TIUTILS_REPOSITORY", "){ADDRESS}', rf"\g<1>{address}", first.source
    )
    if not found:
        sys.exit(f"{path.name}: its first cell must name the repository")
    if "made_from" in first.metadata:
        first.metadata["made_from"] = digest(first.source)  # what it prints says no address
    page = address.removeprefix("https://github.com/")
    link = f"https://colab.research.google.com/github/{page}/blob/main/notebooks/{path.name}"
    heading, *lines = title.source.splitlines()
    text = "\n".join(line for line in lines if not line.startswith(BADGE)).strip("\n")
    title.source = f"{heading}\n\n{BADGE}({link})\n\n{text}"
    if nbformat.writes(notebook) == before:
        return False
    nbformat.write(notebook, path)
    return True


def readdressed(text: str, old: str, new: str) -> str:
    """A page with another address in its `git clone` and its links to Colab."""
    colab_old, colab_new = (f"/github/{a.removeprefix('https://github.com/')}/" for a in (old, new))
    return text.replace(f"git clone {old} ", f"git clone {new} ").replace(colab_old, colab_new)


def main(arguments: list[str]) -> None:
    """Stamp notebooks and pages with the address given, or notebooks with the one in pyproject.toml."""
    pyproject = ROOT / "pyproject.toml"
    address = address_in(pyproject)
    if arguments:
        old, address = address, arguments[0].removesuffix("/").removesuffix(".git")
        if len(arguments) > 1 or not re.fullmatch(ADDRESS, address):
            sys.exit(f"{' '.join(arguments)!r}: give one address, https://github.com/NAME/REPO")
        pyproject.write_text(pyproject.read_text().replace(f'"{old}"', f'"{address}"'))
        for page in sorted(ROOT.glob("*.md")):
            page.write_text(readdressed(page.read_text(), old, address))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        print(f"{path.name}: {'stamped' if stamp(path, address) else 'as it was'}")


if __name__ == "__main__":
    main(sys.argv[1:])
