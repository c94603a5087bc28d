"""What a figure leaves: a PNG, a page of a notebook, each with a text for those who cannot see it.

Every function of `figures` returns a matplotlib `Figure` that belongs to no backend and no global state: it
works without a display and leaves the reader's own plots alone. The text (`alt`, made from titles
and labels where none is given) travels with the figure as its label: `alt_text` reads it, `save`
writes it into the PNG's Description, `show` hands it to the notebook.
"""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tiutils.errors import InputError, encodable
from tiutils.io import files

# Okabe and Ito's colors stay apart for color-blind readers; dashes and markers say it again.
BLUE, GREEN, VERMILION, GRAY = "#0072B2", "#009E73", "#D55E00", "#7F7F7F"

DPI = 100
Images = Sequence[Image.Image]


def contact_sheet(images: Images, columns: int = 4, *, gap: int = 2) -> Image.Image:
    """Pictures side by side at their own size, as one RGB image; for validation grids on disk.

    Raises:
        InputError: no pictures, or not a single column.
    """
    if not images or columns < 1:
        raise InputError(f"{len(images)} pictures in {columns} columns: give at least one of each")
    columns = min(columns, len(images))
    width, height = (max(image.size[side] for image in images) + gap for side in (0, 1))
    size = (columns * width - gap, -(-len(images) // columns) * height - gap)
    sheet = Image.new("RGB", size, "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet


def alt_text(figure: Figure) -> str:
    """The text that says what the figure shows."""
    return str(figure.get_label())


def save(picture: Figure | Image.Image, path: str | Path, *, alt: str | None = None) -> Path:
    """Write a PNG whose Description says what it shows, whole or not at all; make its folder.

    A picture keeps its colors to the last bit; a figure is written with 256, a third of the size.
    An image needs its `alt`, a figure brings its own.

    Raises:
        InputError: an image without `alt`, or a file that cannot be written.
    """
    is_picture = isinstance(picture, Image.Image)
    data, path = to_png(picture, alt=alt, full_color=is_picture), files.given(path)
    files.write(path, data)
    return path


def save_new(
    picture: Figure | Image.Image, folder: Path, names: Iterator[str], *, alt: str | None = None
) -> Path:
    """Write a PNG as `save` does, into `folder` under the first of `names` that nothing has; returns its path."""
    data = to_png(picture, alt=alt, full_color=isinstance(picture, Image.Image))
    return files.write_new((folder / name for name in names), data)


def numbered(folder: Path) -> Iterator[str]:
    """Names for new pictures, 000.png and on, after all that are there."""
    there = (path.stem for path in folder.glob("*.png"))
    first = max((int(stem) + 1 for stem in there if re.fullmatch("[0-9]{1,9}", stem)), default=0)
    return (f"{number:03d}.png" for number in itertools.count(first))


def show(picture: Figure | Image.Image, *, alt: str | None = None) -> Shown:
    """What a notebook displays, alt text where notebooks look for it; arguments as in `save`."""
    return Shown(to_png(picture, alt=alt), _alt_of(picture, alt))


class Shown:
    """A PNG and its text; Jupyter and Colab draw it, a reader of plain text sees the text."""

    def __init__(self, png: bytes, alt: str):
        self.png, self.alt = png, alt

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        data = {"image/png": base64.b64encode(self.png).decode(), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt}}


def to_png(
    picture: Figure | Image.Image, *, alt: str | None = None, full_color: bool = False
) -> bytes:
    """The bytes of a PNG whose Description is the alt text; with 256 colors a third of the size."""
    info = PngInfo()
    info.add_itxt("Description", encodable(_alt_of(picture, alt)))
    if isinstance(picture, Figure):
        drawn = io.BytesIO()
        picture.savefig(drawn, format="png", facecolor="white")
        picture = Image.open(drawn, formats=["PNG"])
    buffer = io.BytesIO()
    picture = picture.convert("RGB")
    picture = picture if full_color else picture.quantize(256)
    picture.save(buffer, format="png", optimize=True, pnginfo=info)
    return buffer.getvalue()


def draw_picture(axis: Any, picture: Image.Image, side: int) -> None:
    """Draw a picture into its cell; shrunk first, as matplotlib's own filters alias."""
    picture = picture.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    axis.imshow(np.asarray(picture), interpolation="bicubic")


def _alt_of(picture: Figure | Image.Image, alt: str | None) -> str:
    alt = alt or (alt_text(picture) if isinstance(picture, Figure) else "")
    if not alt:
        raise InputError("a picture needs alt text: one sentence that says what it shows")
    return alt
