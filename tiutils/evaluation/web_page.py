"""`report.html`, what a run has learned, and `comparison.html`, what several have: pages that need no other file."""

from __future__ import annotations

import base64
import html
import io
import math
import os
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from tiutils import concept
from tiutils.config import TrainingConfig
from tiutils.errors import printable
from tiutils.evaluation import overfitting
from tiutils.evaluation.comparison import METRICS, Score
from tiutils.figures import curves, output
from tiutils.io.engines import ENGINES
from tiutils.io.run_folder import SHEETS, entry, read_record

TEMPLATE = Path(__file__).with_name("web_page.html")
PHOTO, DRAWN, SHEET = 288, 512, 960  # the longest side of an embedded picture, in pixels
SCALES = (1, 0.7, 0.5, 0.35, 0.25)  # of these sides: the first that keeps the page small enough
MAX_BYTES = 2_000_000
MAX_SHEETS = 6  # of a long run: the first, the last, and some between
# A page is made to be shared: it names no folder of the machine that made it.
PER_MACHINE = ("output_dir", "logging_dir", "resume_from_checkpoint")
ADVANTAGE = ["Better by", "95% interval", "Verdict"]
HOW_TO_READ = (
    '<p class="note">↑ more is better, ↓ less is better. “Better by” is positive where the learned word wins. Its '
    "interval covers other noise to draw from, not other training runs; the verdict is clear where the interval leaves "
    "out zero.</p>"
)
NOT_SCORED = "<p>Not computed. Run <code>tiutils evaluate</code> without <code>--no-scores</code> to add them.</p>"
PATHS = ("train_data_dir", "pretrained_model_name_or_path", "tokenizer_name", "evaluator")


@dataclass(frozen=True)
class Pair:
    """A prompt drawn with the plain word and with the learned one, from the same noise."""

    prompt: str
    before: Image.Image
    after: Image.Image


@dataclass(frozen=True)
class Chart:
    """A figure, which brings its own alt text, and how to read it."""

    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Page:
    """All that the page shows. What is empty is left out.

    Attributes:
        word: the learned word.
        plain_word: the word it is compared with.
        photos: what it was learned from.
        pairs: pictures before and after.
        steps: how many the training took; 0 if unknown.
        sheets: pictures drawn during training, with their alt text, by step.
        charts: curves over the steps.
        scores: the measures of the word, and the plain word's values; None if it was not scored.
        reference_folder: the photos that the scores compare with.
        embedding: the name of the word's file, beside the page.
        flags: the run's settings, as run.json has them.
    """

    word: str
    plain_word: str
    photos: Sequence[Image.Image]
    pairs: Sequence[Pair]
    steps: int = 0
    sheets: Mapping[int, tuple[Image.Image, str]] = field(default_factory=dict)
    charts: Sequence[Chart] = ()
    scores: tuple[dict[str, Score], dict[str, float]] | None = None
    reference_folder: str = ""
    embedding: str = "learned_embeds.safetensors"
    flags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One of several runs that a page compares.

    Attributes:
        name: of its folder.
        word: the learned word; no two runs have the same.
        plain_word: the word it is compared with; several runs may share it.
        photo: one of the photos it was learned from.
        scores: as in `Page`.
        reference_folder: the photos that its scores compare with.
        flags: its settings, as run.json has them.
    """

    name: str
    word: str
    plain_word: str
    photo: Image.Image
    scores: tuple[dict[str, Score], dict[str, float]] | None = None
    reference_folder: str = ""
    flags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparisonPage:
    """All that the page of several runs shows.

    Attributes:
        runs: in the order of the rows.
        prompts: with `{}` for the word.
        pictures: by word, plain or learned: as many of the first prompt as of each other, prompt by prompt.
    """

    runs: Sequence[Run]
    prompts: Sequence[str]
    pictures: Mapping[str, Sequence[Image.Image]]


def recorded(run_dir: Path) -> dict[str, Any]:
    """What the folder of a run holds for its `Page`: steps, sheets, charts, flags.

    Anybody may have written these files: what cannot be read is left out.
    """
    record = read_record(run_dir)
    losses = [
        loss if isinstance(loss, float) and math.isfinite(loss) else None
        for loss in entry(record, "losses", list)
    ]
    history = dict(sorted(overfitting.history_in(record).items()))
    fixed, sensitivity = (_by_step(record, name) for name in ("fixed_losses", "prompt_sensitivity"))
    charts = []
    if any(loss is not None for loss in losses):
        caption = "Each step draws new noise, so single values jump; follow the running mean."
        charts.append(Chart("Loss", caption, curves.loss_curve(losses, evaluation=fixed)))
    if sensitivity:
        caption = (
            "How much the sentence around the word still counts, compared with the plain word at 1. Far below 1 the "
            "word drowns out the sentence, even if the loss goes on falling."
        )
        charts.append(Chart("Prompt sensitivity", caption, curves.sensitivity_curve(sensitivity)))
    if history:
        caption = (
            "A CLIP model's judgment of the pictures drawn during training. If likeness rises while prompt following "
            "falls, the word is starting to stand for the photos as they are."
        )
        charts.append(Chart("Overfitting", caption, overfitting.curves(history)))
    return {
        "steps": entry(record, "steps", int),
        "sheets": _read_sheets(run_dir),
        "charts": charts,
        "flags": entry(record, "flags", dict),
    }


def _by_step(record: dict[str, Any], name: str) -> dict[int, float]:
    """A history that run.json holds, by step; entries of another form are left out."""
    found = {
        int(step): value
        for step, value in entry(record, name, dict).items()
        if re.fullmatch("[0-9]{1,9}", step) and isinstance(value, float) and math.isfinite(value)
    }
    return dict(sorted(found.items()))


def _read_sheets(run_dir: Path) -> dict[int, tuple[Image.Image, str]]:
    """Pictures drawn during training and their alt text, by step; of many, some."""
    paths = {
        int(match[1]): path
        for path in run_dir.glob(f"{SHEETS}*.png")
        if (match := re.fullmatch(rf"{SHEETS}([0-9]{{1,9}})\.png", path.name))
    }
    steps, sheets = sorted(paths), {}
    if (count := len(steps)) > MAX_SHEETS:
        steps = [steps[k * (count - 1) // (MAX_SHEETS - 1)] for k in range(MAX_SHEETS)]
    for step in steps:
        try:
            with Image.open(paths[step], formats=["PNG"]) as image:
                alt = image.info.get("Description") or f"Drawn after {step} steps"
                sheets[step] = image.convert("RGB"), str(alt)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
    return sheets


def render(page: Page) -> str:
    """The page as HTML, with pictures as large as `MAX_BYTES` allows; equal pages are equal text.

    Everything that a person or a file has said is escaped.
    """
    return _small_enough(lambda scale: _render(page, scale))


def render_comparison(page: ComparisonPage) -> str:
    """The page of several runs as HTML, made like `render`."""
    sections = [_measured(page.runs), _differences(page.runs)]
    return _small_enough(
        lambda scale: _document(
            "Learned words side by side",
            "Learned words side by side",
            f"{len(page.runs)} words, drawn from the same noise and scored in the same way.",
            [_sheet(page, scale), *sections],
        )
    )


def _small_enough(render_at: Callable[[float], str]) -> str:
    """A page with its pictures at the first of `SCALES` that keeps it within `MAX_BYTES`."""
    text = ""
    for scale in SCALES:
        text = render_at(scale)
        if len(text.encode()) <= MAX_BYTES:
            break
    return text


def _document(title: str, heading: str, lead: str, sections: Sequence[str]) -> str:
    """The whole page; `heading` is HTML, title and lead are text."""
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=_text(title),
        heading=heading,
        lead=_text(lead),
        sections="\n".join(section for section in sections if section),
    )


def _render(page: Page, scale: float) -> str:
    photos = "1 photo" if len(page.photos) == 1 else f"{len(page.photos)} photos"
    steps = f" in {page.steps} steps" if page.steps else ""
    sections = [
        _photos(page, scale),
        _pairs(page, scale),
        _sheets(page, scale),
        *(_chart(chart) for chart in page.charts),
        _scores(page),
        _engines(page),
        _settings(page),
    ]
    return _document(
        f"{page.word}: a learned word",
        f"A new word: <code>{_text(page.word)}</code>",
        f"Learned from {photos}{steps}, starting from “{page.plain_word}”.",
        sections,
    )


def _photos(page: Page, scale: float) -> str:
    items = [
        f"<li>{_image(photo, PHOTO * scale, f'Photo {number} of {len(page.photos)}')}</li>"
        for number, photo in enumerate(page.photos, start=1)
    ]
    return _section("Photos", '<ul class="photos">', *items, "</ul>") if items else ""


def _pairs(page: Page, scale: float) -> str:
    figures = []
    for number, pair in enumerate(page.pairs, start=1):
        sides = [
            f'<div class="{side}">'
            f"{_image(image, DRAWN * scale, f'Picture {number} {side} training: “{pair.prompt}”')}"
            f'<span class="tag">{side}</span></div>'
            for side, image in (("before", pair.before), ("after", pair.after))
        ]
        figures.append(
            f'<figure><div class="pair">{"".join(sides)}</div>'
            f"<figcaption>{_text(pair.prompt)}</figcaption></figure>"
        )
    said = (
        f"Before: drawn with <code>{_text(page.plain_word)}</code>. "
        f"After: the same noise, with <code>{_text(page.word)}</code>."
        '<span class="how" hidden> Drag across a picture to compare, or select it and use the arrow keys.</span>'
    )
    body = ('<div class="pairs">', *figures, "</div>")
    return _section("Before and after", f"<p>{said}</p>", *body) if figures else ""


def _sheets(page: Page, scale: float) -> str:
    figures = [
        f"<figure><figcaption>Step {step}</figcaption>{_image(sheet, SHEET * scale, alt)}</figure>"
        for step, (sheet, alt) in sorted(page.sheets.items())
    ]
    said = "The same prompt, always from the same noise."
    body = ('<div class="strip">', *figures, "</div>")
    return _section("During training", f"<p>{said}</p>", *body) if figures else ""


def _chart(chart: Chart) -> str:
    width, height = (round(100 * side) for side in chart.figure.get_size_inches())
    chart.figure.set_dpi(200)  # sharp on dense screens
    source = f"data:image/png;base64,{base64.b64encode(output.to_png(chart.figure)).decode()}"
    alt = _text(output.alt_text(chart.figure))
    image = f'<img width="{width}" height="{height}" src="{source}" alt="{alt}">'
    caption = f"<figcaption>{_text(chart.caption)}</figcaption>"
    scrolled = _scrollable(f"Chart: {chart.title}", image)
    return _section(chart.title, f'<figure class="chart">{scrolled}{caption}</figure>')


def _scores(page: Page) -> str:
    if page.scores is None:
        return _section("Scores", NOT_SCORED)
    scores, plain = page.scores
    rows = [[METRICS[name][0], *_values(score, plain[name])] for name, score in scores.items()]
    caption = f"Compared with the photos in {Path(page.reference_folder).name}"
    heads = ["Measure", page.plain_word, page.word, *ADVANTAGE]
    return _section("Scores", _table(caption, heads, rows, numbers=range(1, 5)), HOW_TO_READ)


def _measured(runs: Sequence[Run]) -> str:
    """The scores of several runs, measure by measure."""
    scored = [(run, *run.scores) for run in runs if run.scores is not None]
    if not scored:
        return _section("Scores", NOT_SCORED)
    rows = [
        [METRICS[name][0], run.word, *_values(scores[name], plain[name])]
        for name in scored[0][1]
        for run, scores, plain in scored
        if name in scores
    ]
    folders = dict.fromkeys(Path(run.reference_folder).name for run in runs)
    caption = f"Compared with the photos in {', '.join(folders)}"
    heads = ["Measure", "Word", "Plain word", "Learned word", *ADVANTAGE]
    return _section("Scores", _table(caption, heads, rows, numbers=range(2, 6)), HOW_TO_READ)


def _values(score: Score, plain: float) -> list[str]:
    """The cells for one measure of a word: the plain word's value, its own, and by how much it is better."""
    return [
        _number(plain, ""),
        _number(score.value, ""),
        _number(score.better_by, "+"),
        f"{_number(score.low, '+')} to {_number(score.high, '+')}",
        _verdict(score),
    ]


def _number(value: float, sign: str) -> str:
    """Four decimals, with a minus as wide as a plus."""
    return f"{value:{sign}.4f}".replace("-", "−")


def _verdict(score: Score) -> str:
    return "better" if score.low > 0 else "worse" if score.high < 0 else "not clear"


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
        f"The learned word is the file {link}, in the same folder as this page. "
        f"<code>tiutils convert {_text(page.embedding)} --for PROGRAM</code> writes it as a program wants it."
    )
    heads = ["Program", "File", "Where it goes", "In the prompt"]
    table = _table("What to write in other programs", heads, rows)
    return _section("Use the word", f"<p>{said}</p>", table)


def _sheet(page: ComparisonPage, scale: float) -> str:
    """A row of pictures for each plain and each learned word, a column or several for each prompt."""
    each = len(next(iter(page.pictures.values()))) // len(page.prompts)
    learned = {run.word: run for run in page.runs}
    rows = []
    for word, pictures in page.pictures.items():
        run = learned.get(word)
        said = f"<small>{_text(run.name if run else 'the plain word')}</small>"
        photo = (
            _image(run.photo, PHOTO * scale, f"A photo that {word} was learned from") if run else ""
        )
        cells = [f'<th scope="row"><code>{_text(word)}</code>{said}</th>', f"<td>{photo}</td>"]
        for number, image in enumerate(pictures):
            prompt = concept.fill(page.prompts[number // each], word)
            alt = f"“{prompt}”, picture {number % each + 1} of {each}"
            cells.append(f"<td>{_image(image, PHOTO * scale, alt)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(
        f'<th scope="colgroup" colspan="{each}">{_text(concept.fill(prompt, "…"))}</th>'
        for prompt in page.prompts
    )
    body = "\n".join(rows)
    table = (
        '<table class="sheet"><caption>A row for each word, a column for each prompt and seed</caption>\n'
        f'<thead><tr><th scope="col">Word</th><th scope="col">Photo</th>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table>"
    )
    return _section("Pictures", _scrollable("Pictures", table))


def _differences(runs: Sequence[Run]) -> str:
    """The settings that are not the same in all runs."""
    shown = [_shown(run.flags) for run in runs]
    names = dict.fromkeys(name for flags in shown for name in flags)
    rows = [
        [f"--{name}", *("" if flags.get(name) is None else str(flags[name]) for flags in shown)]
        for name in names
    ]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    heads = ["Setting", *(run.word for run in runs)]
    return _section("Settings that differ", _table("By word", heads, rows)) if rows else ""


def _shown(flags: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings without this machine's folders."""
    return {
        name: Path(value).name
        if name in PATHS and isinstance(value, str) and os.path.isabs(value)
        else value
        for name, value in flags.items()
        if name not in PER_MACHINE
    }


def _settings(page: Page) -> str:
    defaults = {each.name: each.default for each in fields(TrainingConfig)}
    shown = _shown(page.flags)
    changed = {name: value for name, value in shown.items() if value != defaults.get(name)}
    heads = ["Setting", "Value"]

    def rows(flags: dict[str, Any]) -> list[list[str]]:
        return [[f"--{name}", "" if value is None else str(value)] for name, value in flags.items()]

    if not shown:
        return ""
    every = _table("All settings", heads, rows(shown))
    return _section(
        "Settings",
        _table("Changed from the defaults", heads, rows(changed)) if changed else "",
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
            tag, shown = "th" if of_head or place == 0 else "td", _text(text)
            scope = f' scope="{"col" if of_head else "row"}"' if tag == "th" else ""
            look = ' class="number"' if place in right else ""
            if place == 0:  # a flag too long for a phone breaks between its words
                shown = shown.replace("_", "_<wbr>")
            found.append(f"<{tag}{scope}{look}>{shown}</{tag}>")
        return f"<tr>{''.join(found)}</tr>"

    body = "\n".join(cells(row, False) for row in rows)
    return _scrollable(
        caption,
        f"<table><caption>{_text(caption)}</caption>\n<thead>{cells(heads, True)}</thead>\n"
        f"<tbody>\n{body}\n</tbody></table>",
    )


def _scrollable(name: str, wide: str) -> str:
    """What is too wide for a phone, in a frame that scrolls, by keyboard as well."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(name)}">{wide}</div>'


def _image(image: Image.Image, side: float, alt: str) -> str:
    """An `img` that carries its picture, no larger than `side` pixels, and nothing that a camera wrote into it."""
    image = image.convert("RGB")
    image.info = {}
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="jpeg", quality=90)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img {size} src="{source}" alt="{_text(alt)}">'


def _text(text: str) -> str:
    """Text for HTML, in an element or in an attribute; what no file or screen can hold is spelled out."""
    return html.escape(printable(text), quote=True)
