"""Read the tables of the recipes: tab-separated text with a header line, to be edited by hand."""

from __future__ import annotations

import csv
from pathlib import Path


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a table, in order, as dicts from column to cell.

    Raises:
        ValueError: a row has more or fewer cells than the header; the message names file and line.
    """
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        columns = next(reader)
        rows = []
        for row in reader:
            if len(row) != len(columns):
                raise ValueError(
                    f"{path.name}, line {reader.line_num}: {len(row)} cells where the header has "
                    f"{len(columns)}; separate cells with single tabs"
                )
            rows.append(dict(zip(columns, row, strict=True)))
    return rows


def split(cell: str) -> tuple[str, ...]:
    """The entries of a cell that holds a list, such as `cat, black cat`."""
    return tuple(entry.strip() for entry in cell.split(",") if entry.strip())
