"""Execute notebooks with the bundled model and store their outputs: python notebooks/store.py FILE ...

Beside its output, each code cell keeps a digest of the source that made it, so that a test can tell
an output that is out of date. What a cell's metadata say that its pictures show (`shows`) is checked by
`benchmarks.claims`; if it does not hold, nothing is stored. Processor time and memory in the table at the head of a
notebook are those of this run.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def digest(source: str) -> str:
    """Sixteen hexadecimal digits of a cell's source."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


CLAIM = "claim"  # the metadata's name for a cell that is there only while the notebook is executed


def with_claims(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Add a cell after each cell with claims, which checks them, and a last one that says what the run took."""
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        for claim in cell.metadata.get("shows", []):
            about = {key: claim[key] for key in ("thing", "place") if key in claim}
            source = f"from benchmarks import claims as _claims\n_claims.check({claim['pictures']}, **{about})"
            added = nbformat.v4.new_code_cell(source)
            added.metadata[CLAIM] = cell.get("id", "")
            cells.append(added)
    costs = nbformat.v4.new_code_cell(COSTS)
    costs.metadata[CLAIM] = "costs"
    notebook.cells = [*cells, costs]
    return notebook


COSTS = """import json, resource
_used = resource.getrusage(resource.RUSAGE_SELF)
json.dumps([_used.ru_utime + _used.ru_stime, _used.ru_maxrss * 1024])"""
COST_ROW = "| a laptop or a classroom, CPU |"


def write_costs(notebook: nbformat.NotebookNode, seconds: float, memory: int) -> None:
    """Write processor time and peak memory (bytes) of this run into the table at the head of the notebook."""
    time_said = f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
    first = notebook.cells[0]
    lines = first.source.split("\n")
    for number, line in enumerate(lines):
        if line.startswith(COST_ROW):
            kept = line.split("|")[:3]
            new = [f" {time_said} of processor time ", f" {memory / 1e9:.1f} GB ", ""]
            lines[number] = "|".join([*kept, *new])
    first.source = "\n".join(lines)


def without_claims(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Take these cells away again and number the others in order; returns what each said."""
    added = [cell for cell in notebook.cells if CLAIM in cell.metadata]
    notebook.cells = [cell for cell in notebook.cells if CLAIM not in cell.metadata]
    for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
        cell.execution_count = number
        for out in cell.outputs:
            if out.output_type == "execute_result":
                out.execution_count = number
    said = [(cell.metadata[CLAIM], cell.outputs[0].data["text/plain"]) for cell in added]
    return {f"{number} {name}": ast.literal_eval(text) for number, (name, text) in enumerate(said)}


def store(path: Path) -> float:
    """Execute a notebook in its own folder, write it back with its outputs; returns the seconds."""
    notebook = with_claims(nbformat.read(path, as_version=4))
    start = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,  # times of day are noise in a diff
        coalesce_streams=True,  # lines printed one after another stand together
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    seconds = time.perf_counter() - start
    *claims, costs = without_claims(notebook).items()
    write_costs(notebook, *json.loads(costs[1]))
    for name, said in claims:
        print(f"  {name}: {said}")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.metadata["made_from"] = digest(cell.source)
    notebook.metadata["language_info"] = {"name": "python"}  # without this machine's version
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    return seconds


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the outputs on the page are those of a CPU
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in sys.argv[1:]:
        seconds = store(Path(name).resolve())
        print(f"{name}: {seconds:.0f} s, {Path(name).stat().st_size / 1000:.0f} kB")
