"""What a notebook lets the reader press; each callback is a plain function.

Only what ipywidgets 7 and 8 share is used: Colab has 7.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tiutils.concept import PHOTO_SUFFIXES
from tiutils.embedding_files import replace_file


def photo_upload(folder: str | Path) -> Any:
    """A button that stores the photos chosen in the browser in `folder`; an `ipywidgets.FileUpload`."""
    import ipywidgets  # here, so that this module can be imported without it

    button = ipywidgets.FileUpload(
        accept=",".join(PHOTO_SUFFIXES), multiple=True, description="Choose 3 to 5 photos",
        layout={"width": "max-content"},
    )  # fmt: skip
    button.observe(lambda change: save_uploads(change["new"], folder), names="value")
    return button


def save_uploads(value: Any, folder: str | Path) -> list[Path]:
    """Write uploaded files into `folder`, under the last part of their names.

    Args:
        value: of a FileUpload: in ipywidgets 8 a sequence of mappings with "name" and "content",
            in 7 a mapping of names to mappings with "content".
        folder: where to; made if missing.
    """
    if isinstance(value, Mapping):
        files = {name: entry["content"] for name, entry in value.items()}
    else:
        files = {entry["name"]: entry["content"] for entry in value}
    folder, written = Path(folder), []
    for name, content in files.items():
        # a browser sends a bare name; anything that climbs out of the folder is cut to one
        plain = name.replace("\\", "/").rsplit("/", 1)[-1]
        if plain.strip(". \0"):
            folder.mkdir(parents=True, exist_ok=True)
            written.append(folder / plain.replace("\0", ""))
            replace_file(written[-1], bytes(content))
    return written


class DownloadLink:
    """A link that saves a small file from the notebook's page; it holds the file itself."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.data = base64.b64encode(self.path.read_bytes()).decode()

    def _repr_html_(self) -> str:
        name = html.escape(self.path.name, quote=True)
        href = f"data:application/octet-stream;base64,{self.data}"
        return f'<a download="{name}" href="{href}">Download {name}</a>'

    def __repr__(self) -> str:
        return f"Download {self.path.name}"
