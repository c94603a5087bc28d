"""Execute notebooks with the bundled model and store their outputs: python notebooks/store.py FILE ...

Beside its output, each code cell keeps a digest of the source that made it, so that a test can tell
an output that is out of date.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def digest(source: str) -> str:
    """Sixteen hexadecimal digits of a cell's source."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def store(path: Path) -> float:
    """Execute a notebook in its own folder, write it back with its outputs; returns the seconds."""
    notebook = nbformat.read(path, as_version=4)
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
