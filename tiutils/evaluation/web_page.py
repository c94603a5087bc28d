"""`report.html`: what a run has learned, as one page that needs no server, no network and no other file."""

from __future__ import annotations

import base64
import html
import io
import os
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from PIL import Image

from tiutils.config import TrainingConfig
from tiutils.evaluation.comparison import METRICS, Score
from tiutils.io.engines import ENGINES

TEMPLATE = Path(__file__).with_name("web_page.html")
PHOTO, DRAWN, SHEET = 288, 512, 960  # the longest side of an embedded picture, in pixels
# A page is for sharing: it says nothing of the folders of the machine that made it.
PER_MACHINE = ("output_dir", "logging_dir", "resume_from_checkpoint")
PATHS = ("train_data_dir", "pretrained_model_name_or_path", "tokenizer_name", "evaluator")


@dataclass(frozen=True)
class Pair:
    """A prompt's picture by the plain word and by the learned one, from the same noise."""

    prompt: str
    before: Image.Image
    after: Image.Image


@dataclass(frozen=True)
class Page:
    """All that the page shows.

    Attributes:
        word: the learned word.
        plain_word: the word it is compared with.
        facts: what made the word, in a sentence.
        photos: what it was learned from.
        pairs: pictures before and after.
        sheets: pictures drawn during the training, by step.
        curves: by heading, a figure's PNG and the sentence that says what it shows.
        scores: the measures of the word, and the plain word's values; None if it was not scored.
        reference_folder: the photos that the scores compare with.
        embedding: the name of the word's file, beside the page.
        flags: the run's settings, as run.json has them.
    """

    word: str
    plain_word: str
    facts: str
    photos: Sequence[Image.Image]
    pairs: Sequence[Pair]
    sheets: dict[int, Image.Image] = field(default_factory=dict)
    curves: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    scores: tuple[dict[str, Score], dict[str, float]] | None = None
    reference_folder: str = ""
    embedding: str = "learned_embeds.safetensors"
    flags: dict[str, Any] = field(default_factory=dict)


def render(page: Page) -> str:
    """The page as HTML. Whatever a person or a file has said is escaped; equal pages are equal text."""
    sections = [
        _photos(page),
        _pairs(page),
        _sheets(page),
        *(_curve(heading, *curve) for heading, curve in page.curves.items()),
        _scores(page),
        _engines(page),
        _settings(page),
    ]
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=_text(f"{page.word}: a learned word"),
        heading=f"A new word: <code>{_text(page.word)}</code>",
        lead=_text(page.facts),
        sections="\n".join(section for section in sections if section),
    )


def _photos(page: Page) -> str:
    items = [
        f"<li>{_image(photo, PHOTO, f'Photo {number} of {len(page.photos)}.', 'photo')}</li>"
        for number, photo in enumerate(page.photos, start=1)
    ]
    return _section("The photos", '<ul class="row">', *items, "</ul>")


def _pairs(page: Page) -> str:
    figures = [
        f'<figure><div class="pair" data-prompt="{_text(pair.prompt)}">'
        f"{_image(pair.before, DRAWN, f'“{pair.prompt}”, before training.', 'before')}"
        f"{_image(pair.after, DRAWN, f'“{pair.prompt}”, after training.', 'after')}"
        f"</div><figcaption>{_text(pair.prompt)}</figcaption></figure>"
        for pair in page.pairs
    ]
    said = (
        f"Both from the same noise: with <code>{_text(page.plain_word)}</code> on the left, with "
        f"<code>{_text(page.word)}</code> on the right. Move the slider to see one behind the other."
    )
    return _section("Before and after", f"<p>{said}</p>", '<div class="pairs">', *figures, "</div>")


def _sheets(page: Page) -> str:
    if not page.sheets:
        return ""
    figures = [
        f"<figure>{_image(sheet, SHEET, f'Pictures drawn after {step} steps.')}"
        f"<figcaption>step {step}</figcaption></figure>"
        for step, sheet in sorted(page.sheets.items())
    ]
    return _section("While it was learned", '<div class="row">', *figures, "</div>")


def _curve(heading: str, png: bytes, alt: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    image = f'<img src="{source}" alt="{_text(alt)}">'
    return _section(heading, f'<figure class="card">{image}</figure>', f"<p>{_text(alt)}</p>")


def _scores(page: Page) -> str:
    if page.scores is None:
        return _section(
            "Scores", "<p>Not computed: <code>tiutils evaluate</code> without --no-scores does.</p>"
        )
    scores, plain = page.scores
    rows = [
        [
            METRICS[name][0],
            f"{plain[name]:.4f}",
            f"{score.value:.4f}",
            f"{score.better_by:+.4f}",
            f"{score.low:+.4f} … {score.high:+.4f}",
        ]
        for name, score in scores.items()
    ]
    photos = "/".join(Path(page.reference_folder).parts[-2:])
    caption = (
        f"Against the photos in {photos}. The last column is how much “better by” varies with the noise that pictures "
        f"start from. ↑: more is better, ↓: less is."
    )
    heads = ["measure", page.plain_word, page.word, "better by", "from … to"]
    return _section("Scores", _table(caption, heads, rows, numbers=range(1, 5)))


def _engines(page: Page) -> str:
    rows = [
        [
            engine.title,
            engine.file_name(page.word),
            engine.place.replace("`", ""),
            engine.written(page.word),
        ]
        for engine in ENGINES.values()
    ]
    link = f'<a href="{_text(page.embedding)}" download>{_text(page.embedding)}</a>'
    said = (
        f"The word is {link}, beside this page. <code>tiutils convert FILE --for PROGRAM</code> writes the file that a "
        f"program wants."
    )
    heads = ["program", "file", "where", "in the prompt"]
    return _section("Take it along", f"<p>{said}</p>", _table("In other programs", heads, rows))


def _settings(page: Page) -> str:
    defaults = {each.name: each.default for each in fields(TrainingConfig)}
    shown = {
        name: Path(value).name if name in PATHS and os.path.isabs(value or "") else value
        for name, value in page.flags.items()
        if name not in PER_MACHINE
    }
    changed = {name: value for name, value in shown.items() if value != defaults.get(name)}
    heads = ["flag", "value"]

    def rows(flags: dict[str, Any]) -> list[list[str]]:
        return [[f"--{name}", "" if value is None else str(value)] for name, value in flags.items()]

    every = _table("All settings", heads, rows(shown))
    return _section(
        "Settings",
        _table("Those that are not the defaults", heads, rows(changed)),
        f"<details><summary>All settings</summary>{every}</details>",
    )


def _section(title: str, *parts: str) -> str:
    return "\n".join(["<section>", f"<h2>{_text(title)}</h2>", *parts, "</section>"])


def _table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Iterable[int] = ()
) -> str:
    """A table whose first column names its rows; columns of `numbers` are set to the right."""
    right = set(numbers)

    def cells(texts: Sequence[str], of_head: bool) -> str:
        found = []
        for place, text in enumerate(texts):
            tag = "th" if of_head or place == 0 else "td"
            scope = f' scope="{"col" if of_head else "row"}"' if tag == "th" else ""
            look = ' class="number"' if place in right else ""
            found.append(f"<{tag}{scope}{look}>{_text(text)}</{tag}>")
        return f"<tr>{''.join(found)}</tr>"

    return "\n".join(
        [
            '<div class="scroll" tabindex="0" role="region" aria-label="' + _text(caption) + '">',
            f"<table><caption>{_text(caption)}</caption>",
            f"<thead>{cells(heads, True)}</thead>",
            "<tbody>",
            *(cells(row, False) for row in rows),
            "</tbody></table></div>",
        ]
    )


def _image(image: Image.Image, side: int, alt: str, look: str = "") -> str:
    """An `img` that carries its picture, no larger than `side` pixels."""
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="jpeg", quality=92, subsampling=0)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img class="{look}" {size} src="{source}" alt="{_text(alt)}">'


def _text(text: str) -> str:
    """Text for HTML, in an element or in an attribute."""
    return html.escape(text, quote=True)
