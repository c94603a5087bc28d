"""Execute all notebooks in a copy of the course; say what each weighs, shows and takes.

`make notebooks` calls this. nbmake runs every cell with the bundled model on a CPU, two notebooks at a time. Then
comes a table, and a complaint for each limit that is passed and for each cell tagged `deterministic` that printed
something else than what is stored. The time that counts is the processor's: it does not depend on what else the
machine does. Five minutes each and twenty-four together, which are twelve minutes of two cores, are what a common
machine may take; a slower one is given half as much again before that is a failure.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "build" / "notebooks"
KILOBYTES, LINES, SECONDS, SECONDS_IN_ALL = 600, 25, 5 * 60, 24 * 60
SLOWER = 1.5
COLUMNS = (
    "kB",
    "pictures",
    "without alt",
    "code",
    "prose",
    "longest",
    "repeat",
    "differ",
    "CPU s",
    "s",
)


def copy_course(folder: Path) -> list[Path]:
    """The notebooks, in a folder where they find everything and soil nothing; their new paths."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "notebooks").mkdir(parents=True)
    for name in ("tiutils", "data", "docs"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "notebooks" / "solutions", folder / "notebooks" / "solutions")
    stored = sorted((ROOT / "notebooks").glob("*.ipynb"))
    return [Path(shutil.copy(path, folder / "notebooks")) for path in stored]


def execute(path: Path) -> tuple[int, float, float, str]:
    """Run one notebook with nbmake and write it back; exit status, processor seconds, seconds, words."""
    environment = {name: value for name, value in os.environ.items() if name != "TIUTILS_MODEL"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "--quiet", "--nbmake", "--overwrite"]
    command += ["--nbmake-timeout=600", "-p", "no:cacheprovider", path.name]
    begun = time.perf_counter()
    with path.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=path.parent, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        _, status, used = os.wait4(process.pid, 0)  # the kernel is its child and counts, too
        process.returncode = os.waitstatus_to_exitcode(status)
    said = path.with_suffix(".log").read_text()
    took = time.perf_counter() - begun
    return process.returncode, used.ru_utime + used.ru_stime, took, said


def seconds_said(notebook: nbformat.NotebookNode) -> int:
    """The processor time that the table at the head of a notebook gives; 0 if it has none."""
    found = re.search(r"(\d+) (second|minute)s? of processor time", notebook.cells[0].source)
    return int(found[1]) * {"second": 1, "minute": 60}[found[2]] if found else 0


def printed(cell: nbformat.NotebookNode) -> str:
    """The text of a cell's outputs."""
    data = [output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "".join([*(output.get("text", "") for output in cell.outputs), *data])


def differing(stored: nbformat.NotebookNode, executed: nbformat.NotebookNode) -> list[str]:
    """Ids of the cells tagged `deterministic` that print something else when executed again."""
    again = {cell.id: cell for cell in executed.cells}
    return [cell.id for cell in deterministic(stored) if printed(cell) != printed(again[cell.id])]


def deterministic(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells tagged so."""
    return [cell for cell in notebook.cells if "deterministic" in cell.metadata.get("tags", [])]


def undescribed(path: Path) -> int:
    """Pictures of a stored notebook that have no description in the page that nbconvert makes of it."""
    page, _ = HTMLExporter().from_filename(str(path))
    return page.count("No description has been provided for this image")


def weigh(path: Path) -> dict[str, int]:
    """What a stored notebook has, by the names of the first columns."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    prose = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    shown = [out for cell in code for out in cell.outputs if "image/png" in out.get("data", {})]
    text = "\n".join(cell.source for cell in prose)
    linked = re.findall(r"!\[(.*?)\]\(", text) + re.findall(r"<img(?:[^>]* alt=\"([^\"]*))?", text)
    return {
        "kB": round(path.stat().st_size / 1000),
        "pictures": len(shown) + len(linked),
        "without alt": undescribed(path) + text.count("![]("),
        "code": len(code),
        "prose": len(prose),
        "longest": max(len(cell.source.splitlines()) for cell in code),
        "repeat": len(deterministic(notebook)),
    }


def complaints(name: str, row: dict[str, float]) -> list[str]:
    """The limits that a notebook passes."""
    broken = {
        f"{row['kB']} kB, {KILOBYTES} are allowed": row["kB"] >= KILOBYTES,
        f"{row['without alt']} pictures without alt text": row["without alt"] > 0,
        f"a code cell of {row['longest']} lines, {LINES} are allowed": row["longest"] > LINES,
        "more code cells than prose": row["code"] > row["prose"],
        f"{row['CPU s']:.0f} s of computing, {SECONDS} are allowed": row["CPU s"]
        > SLOWER * SECONDS,
    }
    return [f"{name}: {text}" for text, passed in broken.items() if passed]


def main() -> int:
    """Execute, print, complain; 0 if there is nothing to complain about."""
    paths = copy_course(COPY)
    stored = {path: nbformat.read(path, as_version=4) for path in paths}
    rows = {path: weigh(path) for path in paths}
    longest_first = sorted(paths, key=lambda path: -seconds_said(stored[path]))
    with ThreadPoolExecutor(2) as both_cores:
        runs = dict(zip(longest_first, both_cores.map(execute, longest_first), strict=True))
    wrong = []
    print(f"{'':24}", *(f"{name:>{max(5, len(name))}}" for name in COLUMNS))
    for path in paths:
        status, computing, took, said = runs[path]
        if status:
            print(said, file=sys.stderr)
            wrong.append(f"{path.name}: nbmake failed")
        changed = differing(stored[path], nbformat.read(path, as_version=4)) if not status else []
        wrong += [f"{path.name}: cell {cell} prints something else than stored" for cell in changed]
        row = {**rows[path], "differ": len(changed), "CPU s": computing, "s": took}
        wrong += complaints(path.name, row)
        print(f"{path.stem:24}", *(f"{row[name]:{max(5, len(name))}.0f}" for name in COLUMNS))
    in_all = sum(computing for _, computing, _, _ in runs.values())
    print(f"together {in_all / 60:.1f} minutes of computing, {SECONDS_IN_ALL // 60} are allowed")
    if in_all > SLOWER * SECONDS_IN_ALL:
        wrong.append("the notebooks compute too long together")
    print(*wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
