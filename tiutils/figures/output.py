"""Figures, each with a text for those who cannot see it.

Every function returns a matplotlib `Figure` that belongs to no backend and no global state: it
works without a display and leaves the reader's own plots alone. The text (`alt`, made from titles
and labels where none is given) travels with the figure as its label: `alt_text` reads it, `save`
writes it into the PNG's Description, `show` hands it to the notebook.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tiutils.curves import BLUE as BLUE  # the palette is offered to readers' own plots, too
from tiutils.curves import GRAY as GRAY
from tiutils.curves import GREEN as GREEN
from tiutils.curves import VERMILION as VERMILION
from tiutils.curves import draw_losses
from tiutils.embedding_files import replace_file
from tiutils.errors import InputError

DPI = 100
Images = Sequence[Image.Image]


def image_grid(
    rows: Sequence[Sequence[Image.Image | None]],
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str = "",
    alt: str | None = None,
    cell: float = 1.15,
    gaps: Sequence[int] = (),
) -> Figure:
    """Pictures in rows and columns, with a label left of each row and above each column.

    Args:
        rows: pictures row by row; None, or the missing end of a short row, leaves a cell empty.
        row_labels: one a row, wrapped.
        column_labels: one a column, wrapped.
        title: above everything, wrapped.
        alt: see the module.
        cell: side of a picture in inches (100 pixels each).
        gaps: columns after which a gap sets groups apart.

    Raises:
        InputError: no picture at all.
    """
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise InputError("there is no picture to draw; give at least one")
    places: list[int] = []
    widths: list[float] = []  # of each column among the subplots, gaps included
    for column in range(columns):
        places.append(len(widths))
        widths += [1.0, 0.12] if column in gaps else [1.0]
    width = cell * sum(widths) + (1.3 if any(row_labels) else 0.1)
    heading = textwrap.wrap(title, int(12 * width))  # letters of 10 points: 12 an inch
    above = 0.55 + 0.17 * (len(heading) - 1) if heading else 0.3
    figure = Figure(
        figsize=(width, cell * len(rows) + above),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(
            compress=True, w_pad=0.03, h_pad=0.03, wspace=0.0, hspace=0.0
        ),
    )
    axes = figure.subplots(len(rows), len(widths), squeeze=False, width_ratios=widths)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            if picture is not None:
                _draw(axes[row, places[column]], picture, int(cell * DPI))
    for row, label in enumerate(row_labels):
        axis, text = axes[row, 0], textwrap.fill(label, 18)
        axis.text(-0.06, 0.5, text, ha="right", va="center", size=8, transform=axis.transAxes)
    for column, label in enumerate(column_labels):
        text = textwrap.fill(label, int(13 * cell))
        axes[0, places[column]].set_title(text, fontsize=8, pad=3)
    figure.suptitle("\n".join(heading), fontsize=10)
    figure.set_label(alt or _describe_grid(rows, row_labels, column_labels, title))
    return figure


def before_after(
    photos: Images, before: Images, after: Images, prompts: Sequence[str], *, title: str = ""
) -> Figure:
    """One row a prompt: a photo, then the pictures before training, then those after, same noise.

    Args:
        photos: of the thing; one a row, starting again when there are more prompts.
        before: `len(prompts) * n` pictures, those of the first prompt first, as `generate` gives.
        after: as many, drawn from the same noise.
        prompts: as they were written, with the new word.
        title: above everything.

    Raises:
        InputError: the numbers of pictures and prompts do not go together.
    """
    if not prompts or not photos or len(before) != len(after) or len(before) % len(prompts):
        raise InputError(
            f"{len(photos)} photos, {len(prompts)} prompts, {len(before)} pictures before and "
            f"{len(after)} after do not make rows; give as many before as after, n for each prompt"
        )
    n = len(before) // len(prompts)
    rows = [
        [photos[i % len(photos)], *before[i * n : (i + 1) * n], *after[i * n : (i + 1) * n]]
        for i in range(len(prompts))
    ]
    alt = (
        f"{title + '. ' if title else ''}Each row: a photo, {n} drawn before training and {n} "
        f"after, from the same noise. Prompts: {'; '.join(prompts)}."
    )
    labels = ["photo", "before", *[""] * (n - 1), "after"]
    return image_grid(
        rows, row_labels=prompts, column_labels=labels, title=title, alt=alt, gaps=(0, n)
    )


def step_strip(
    samples: Mapping[int, Images], *, prompt: str = "", photo: Image.Image | None = None
) -> Figure:
    """The same prompt as training goes on; picture k of every step was drawn from the same noise.

    Args:
        samples: step → pictures.
        prompt: the title.
        photo: shown in front, to compare with.

    Raises:
        InputError: no samples.
    """
    steps = sorted(samples)
    count = max((len(pictures) for pictures in samples.values()), default=0)
    rows: list[list[Image.Image | None]] = [
        [samples[step][k] if k < len(samples[step]) else None for step in steps]
        for k in range(count)
    ]
    labels = [f"step {step}" for step in steps]
    if photo is not None and rows:
        rows = [[photo if k == 0 else None, *row] for k, row in enumerate(rows)]
        labels = ["a photo", *labels]
    alt = f"“{prompt}” drawn from the same noise after {', '.join(map(str, steps))} training steps."
    gaps = (0,) if photo is not None else ()
    return image_grid(rows, column_labels=labels, title=prompt, alt=alt, gaps=gaps)


def loss_curve(
    losses: Sequence[float | None],
    *,
    evaluation: Mapping[int, float] | None = None,
    kept_step: int | None = None,
) -> Figure:
    """Training loss of each step with its running mean, and the fixed evaluation loss if given.

    Args:
        losses: of step 1, 2, …; None or NaN where it is not known.
        evaluation: step → loss on the fixed evaluation batch.
        kept_step: marked with a line: the step whose rows were kept.

    Raises:
        InputError: no losses.
    """
    figure = Figure(figsize=(6.4, 2.8), dpi=DPI, layout="constrained")
    figure.set_label(draw_losses(figure.subplots(), losses, 1, evaluation, kept_step))
    return figure


def loss_and_pictures(
    losses: Sequence[float | None],
    pictures: Images,
    *,
    evaluation: Mapping[int, float] | None = None,
    last_step: int | None = None,
) -> Figure:
    """The loss curve beside pictures: how a run stands after `last_step`, the step of the last loss.

    Raises:
        InputError: no losses.
    """
    first = 1 if last_step is None else last_step - len(losses) + 1
    width = 3.6 + 1.3 * len(pictures)
    figure = Figure(figsize=(width, 2.0), dpi=DPI, layout="constrained")
    curve, *places = figure.subplots(
        1, 1 + len(pictures), squeeze=False, width_ratios=[3.6, *[1.3] * len(pictures)]
    )[0]
    text = draw_losses(curve, losses, first, evaluation, None)
    curve.set_ylabel("loss")  # there is no room for more
    for place, picture in zip(places, pictures, strict=True):
        place.set_axis_off()
        _draw(place, picture, int(1.3 * DPI))
    figure.set_label(f"{text} Beside it: pictures, {len(pictures)}." if pictures else text)
    return figure


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

    An image needs its `alt`, a figure brings its own.

    Raises:
        InputError: an image without `alt`.
    """
    data, path = to_png(picture, alt=alt), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)
    return path


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


def to_png(picture: Figure | Image.Image, *, alt: str | None = None) -> bytes:
    """The bytes of a PNG whose Description is the alt text; 256 colors, a third of the size."""
    info = PngInfo()
    info.add_itxt("Description", _alt_of(picture, alt))
    if isinstance(picture, Figure):
        drawn = io.BytesIO()
        picture.savefig(drawn, format="png", facecolor="white")
        picture = Image.open(drawn, formats=["PNG"])
    buffer = io.BytesIO()
    picture.convert("RGB").quantize(256).save(buffer, format="png", optimize=True, pnginfo=info)
    return buffer.getvalue()


def _draw(axis: Any, picture: Image.Image, side: int) -> None:
    """Draw a picture into its cell; shrunk first, as matplotlib's own filters alias."""
    picture = picture.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    axis.imshow(np.asarray(picture), interpolation="bicubic")


def _alt_of(picture: Figure | Image.Image, alt: str | None) -> str:
    alt = alt or (alt_text(picture) if isinstance(picture, Figure) else "")
    if not alt:
        raise InputError("a picture needs alt text: one sentence that says what it shows")
    return alt


def _describe_grid(
    rows: Sequence[Sequence[Image.Image | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str,
) -> str:
    """Title, size and labels in a sentence or two."""
    count = sum(picture is not None for row in rows for picture in row)
    text = [title, f"{count} {'picture' if count == 1 else 'pictures'}"]
    for name, labels in (("rows", row_labels), ("columns", column_labels)):
        if any(labels):
            text.append(f"{name}: {', '.join(label for label in labels if label)}")
    return ". ".join(part for part in text if part) + "."
