"""Images in rows and columns: words side by side, before and after, step by step."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from PIL import Image

from tiutils.errors import InputError
from tiutils.figures.output import DPI, Images, plot_image, sentence


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
    """Images in rows and columns, with labels to the left of rows and above columns.

    Args:
        rows: images row by row; a cell is empty for None, and at the end of a short row.
        row_labels: one per row, wrapped.
        column_labels: one per column, wrapped.
        title: above everything, wrapped.
        alt: the alt text; made from title and labels by default.
        cell: the side of an image in inches (`output.DPI` pixels each).
        gaps: columns to be followed by a gap.

    Raises:
        InputError: there is no image.
    """
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise InputError("there is no image to show; give at least one")
    places: list[int] = []  # of each column among the subplots, which include gaps
    widths: list[float] = []  # of each subplot
    for column in range(columns):
        places.append(len(widths))
        widths += [1.0, 0.12] if column in gaps else [1.0]
    width = cell * sum(widths) + (1.3 if any(row_labels) else 0.1)
    heading = textwrap.wrap(title, int(12 * width))  # 12 letters of 10 points per inch
    above = 0.55 + 0.17 * (len(heading) - 1) if heading else 0.3
    figure = Figure(figsize=(width, cell * len(rows) + above), dpi=DPI)
    figure.set_layout_engine("compressed", w_pad=0.03, h_pad=0.03, wspace=0.0, hspace=0.0)
    axes = figure.subplots(len(rows), len(widths), squeeze=False, width_ratios=widths)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            if picture is not None:
                plot_image(axes[row, places[column]], picture, int(cell * DPI))
    for row, label in enumerate(row_labels):
        axis, text = axes[row, 0], textwrap.fill(label, 18)
        axis.text(-0.06, 0.5, text, ha="right", va="center", size=8, transform=axis.transAxes,
                  parse_math=False)  # fmt: skip
    for column, label in enumerate(column_labels):
        text = textwrap.fill(label, int(13 * cell))
        axes[0, places[column]].set_title(text, fontsize=8, pad=3, parse_math=False)
    figure.suptitle("\n".join(heading), fontsize=10, parse_math=False)
    figure.set_label(alt or _describe_grid(rows, row_labels, column_labels, title))
    return figure


def before_after(
    photos: Images, before: Images, after: Images, prompts: Sequence[str], *, title: str = ""
) -> Figure:
    """A row per prompt: a photo, images generated before training, images generated after it from the same noise.

    Args:
        photos: of the thing; one per row, repeated if there are more prompts.
        before: `len(prompts) * n` images, ordered by prompt, as `generate` returns them.
        after: as many, from the same noise.
        prompts: with the new word.
        title: above everything.

    Raises:
        InputError: the numbers of images and prompts do not match.
    """
    if not prompts or not photos or len(before) != len(after) or len(before) % len(prompts):
        raise InputError(
            f"{len(photos)} photos, {len(prompts)} prompts, {len(before)} images before and {len(after)} "
            f"after do not make rows; give as many before as after, the same number for each prompt"
        )
    n = len(before) // len(prompts)
    rows = [
        [photos[i % len(photos)], *before[i * n : (i + 1) * n], *after[i * n : (i + 1) * n]]
        for i in range(len(prompts))
    ]
    alt = (
        f"{sentence(title)}Each row: a photo, {n} drawn before training and {n} "
        f"after, from the same noise. Prompts: {'; '.join(prompts)}."
    )
    labels = ["photo", "before", *[""] * (n - 1), "after"]
    return image_grid(
        rows, row_labels=prompts, column_labels=labels, title=title, alt=alt, gaps=(0, n)
    )


def step_strip(
    samples: Mapping[int, Images], *, prompt: str = "", photo: Image.Image | None = None
) -> Figure:
    """The same prompt after various numbers of training steps; image k of each step is from the same noise.

    Args:
        samples: step → images.
        prompt: the title.
        photo: shown first, for comparison.

    Raises:
        InputError: there are no samples.
    """
    steps = sorted(samples)
    count = max((len(pictures) for pictures in samples.values()), default=0)
    columns = [list(samples[step]) for step in steps]
    labels = [f"step {step}" for step in steps]
    if photo is not None:
        columns, labels = [[photo], *columns], ["a photo", *labels]
    rows = [[images[k] if k < len(images) else None for images in columns] for k in range(count)]
    alt = f"“{prompt}” drawn from the same noise after {', '.join(map(str, steps))} training steps."
    gaps = (0,) if photo is not None else ()
    return image_grid(rows, column_labels=labels, title=prompt, alt=alt, gaps=gaps)


def class_gallery(
    pictures: Mapping[str, Images],
    prompts: Sequence[str],
    *,
    photos: Mapping[str, Image.Image] | None = None,
    title: str = "",
) -> Figure:
    """A row for each word, a column for each prompt.

    Args:
        pictures: word → one image for each prompt.
        prompts: with `{}` in place of the word.
        photos: word → a photo of the thing, shown first.
        title: above everything.

    Raises:
        InputError: there are no words, or a word has more or fewer images than there are prompts.
    """
    for word, drawn in pictures.items():
        if len(drawn) != len(prompts):
            raise InputError(
                f"{word!r} has {len(drawn)} images for {len(prompts)} prompts; give one for each"
            )
    photos = photos or {}
    front = [[photos.get(word)] if photos else [] for word in pictures]
    rows = [[*first, *drawn] for first, drawn in zip(front, pictures.values(), strict=True)]
    columns = [prompt.replace("{}", "…") for prompt in prompts]
    alt = (
        f"{sentence(title)}A row for each word: {', '.join(pictures)}. "
        f"A column for each prompt: {'; '.join(columns)}."
    )
    labels, gaps = (["a photo", *columns], (0,)) if photos else (columns, ())
    words = list(pictures)
    return image_grid(rows, row_labels=words, column_labels=labels, title=title, alt=alt, gaps=gaps)


def wipe(before: Image.Image, after: Image.Image, percent: int) -> Figure:
    """One image over another: the left `percent` of the width is from `after`.

    Raises:
        InputError: their sizes differ.
    """
    if before.size != after.size:
        raise InputError(
            f"images of {before.size} and {after.size} pixels; give two of the same size"
        )
    seam = round(before.width * percent / 100)
    both = before.convert("RGB")
    both.paste(after.convert("RGB").crop((0, 0, seam, after.height)))
    title = f"{percent} % after, {100 - percent} % before"
    alt = f"Left of the seam, {percent} % of the width, the picture after; right of it the one before."
    return image_grid([[both]], title=title, alt=alt, cell=1.8)


def _describe_grid(
    rows: Sequence[Sequence[Image.Image | None]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str,
) -> str:
    """The default alt text: title, number of images, labels."""
    count = sum(picture is not None for row in rows for picture in row)
    text = [title, f"{count} {'picture' if count == 1 else 'pictures'}"]
    for name, labels in (("rows", row_labels), ("columns", column_labels)):
        if any(labels):
            text.append(f"{name}: {', '.join(label for label in labels if label)}")
    return ". ".join(part for part in text if part) + "."
