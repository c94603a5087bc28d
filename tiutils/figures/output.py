"""Figures as PNG files and in notebooks, with alt text.

The functions of `figures` return matplotlib `Figure`s without a backend or global state: they need no display and do
not affect the reader's own plots. A figure's label is its alt text: `alt_text` reads it, `save` writes it into the
PNG's Description, `show` passes it to the notebook.
"""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tiutils.errors import InputError, encodable
from tiutils.io import files

# Okabe and Ito's colors, which color-blind readers can tell apart; dashes and markers help as well
BLUE, GREEN, VERMILION, GRAY = "#0072B2", "#009E73", "#D55E00", "#7F7F7F"

DPI = 150  # a grid's cell of 1.15 inches has 172 pixels
FEW_COLORS = 32  # of a PNG that only few programs display
Images = Sequence[Image.Image]


def contact_sheet(images: Images, columns: int = 4, *, gap: int = 2) -> Image.Image:
    """Images side by side at their own size, as one RGB image.

    Raises:
        InputError: there are no images or no columns.
    """
    if not images or columns < 1:
        raise InputError(f"{len(images)} images in {columns} columns: give at least one of each")
    columns = min(columns, len(images))
    width, height = (max(image.size[side] for image in images) + gap for side in (0, 1))
    size = (columns * width - gap, -(-len(images) // columns) * height - gap)
    sheet = Image.new("RGB", size, "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet


def sentence(title: str) -> str:
    """A title as a sentence of alt text, followed by a space; "" if there is none."""
    return title and f"{title}{'' if title.endswith(('?', '!', '.')) else '.'} "


def alt_text(figure: Figure) -> str:
    """The alt text of a figure."""
    return str(figure.get_label())


def save(picture: Figure | Image.Image, path: str | Path, *, alt: str | None = None) -> Path:
    """Write a PNG with alt text atomically, creating its folder; return its path.

    Raises:
        InputError: the image has no `alt`, or the file cannot be written.
    """
    path = files.given(path)
    files.write(path, to_png(picture, alt=alt))
    return path


def save_new(
    picture: Figure | Image.Image, folder: Path, names: Iterator[str], *, alt: str | None = None
) -> Path:
    """Write a PNG as `save` does, into `folder` under the first name that is free; return its path."""
    data = to_png(picture, alt=alt)
    return files.write_new((folder / name for name in names), data)


def numbered(folder: Path) -> Iterator[str]:
    """Names for new images, 000.png and so on, after those that exist."""
    there = (path.stem for path in folder.glob("*.png"))
    first = max((int(stem) + 1 for stem in there if re.fullmatch("[0-9]{1,9}", stem)), default=0)
    return (f"{number:03d}.png" for number in itertools.count(first))


def show(picture: Figure | Image.Image, *, alt: str | None = None) -> Shown:
    """An object that a notebook displays as an image with its alt text as a caption; arguments as in `save`."""
    whole, alt = _render(picture), _alt_of(picture, alt)
    small = whole.reduce(2) if isinstance(picture, Figure) else whole
    return Shown(to_png(small, alt=alt, colors=FEW_COLORS), as_html(whole, alt=alt), alt)


def show_saved(path: str | Path) -> Shown:
    """A figure that `save` wrote, as `show` returns it, but with a PNG of a third of the width.

    Its Description is the alt text.

    Raises:
        InputError: it has no Description.
    """
    with Image.open(files.given(path), formats=["PNG"]) as picture:
        whole, alt = picture.convert("RGB"), picture.info.get("Description")
    small = to_png(whole.reduce(3), alt=alt, colors=FEW_COLORS)
    return Shown(small, as_html(whole, alt=alt), _alt_of(whole, alt))


@dataclass(frozen=True)
class Shown:
    """An image in the forms that readers of notebooks take.

    Neither nbconvert's default template nor JupyterLab reads alt text from the metadata of an `image/png`. So the HTML
    has it, and a caption; the PNG, a figure's at half the width, is for programs without HTML, the plain text for those
    without images.
    """

    png: bytes
    html: str
    alt: str

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        data = {
            "text/html": self.html,
            "image/png": base64.b64encode(self.png).decode(),
            "text/plain": self.alt,
        }
        return data, {"image/png": {"alt": self.alt}}


def as_html(picture: Figure | Image.Image, *, alt: str | None = None) -> str:
    """A figure element: the image as WebP, a third of a PNG's size, with its alt text, which is also its caption.

    The caption is hidden from screen readers, which read the alt text.
    """
    text, buffer = escape(_alt_of(picture, alt)), io.BytesIO()
    _render(picture).save(buffer, format="webp", quality=50, method=6)
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        '<figure style="margin: 0">'
        f'<img alt="{text}" src="data:image/webp;base64,{data}" style="max-width: 100%">'
        f'<figcaption aria-hidden="true"><em>{text}</em></figcaption></figure>'
    )


def to_png(
    picture: Figure | Image.Image, *, alt: str | None = None, colors: int | None = None
) -> bytes:
    """A PNG whose Description is the alt text; with this many colors, or with all if None."""
    info, buffer = PngInfo(), io.BytesIO()
    info.add_itxt("Description", encodable(_alt_of(picture, alt)))
    image = _render(picture)
    if colors:  # chosen so that rare ones survive, which takes seconds if they are many
        image = image.quantize(colors, Image.Quantize.MAXCOVERAGE, kmeans=1)
    image.save(buffer, format="png", optimize=True, pnginfo=info)
    return buffer.getvalue()


def plot_image(axis: Any, picture: Image.Image, side: int) -> None:
    """Plot an image, reduced to `side` pixels first because matplotlib's own filters cause aliasing."""
    picture = picture.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    axis.imshow(np.asarray(picture), interpolation="bicubic")


def _render(picture: Figure | Image.Image) -> Image.Image:
    if isinstance(picture, Figure):
        plotted = io.BytesIO()
        picture.savefig(plotted, format="png", facecolor="white", dpi=max(picture.dpi, DPI))
        picture = Image.open(plotted, formats=["PNG"])
    return picture.convert("RGB")


def _alt_of(picture: Figure | Image.Image, alt: str | None) -> str:
    alt = alt or (alt_text(picture) if isinstance(picture, Figure) else "")
    if not alt:
        raise InputError("an image needs alt text: give a sentence that says what it shows")
    return alt
