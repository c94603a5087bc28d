"""`report.html`, what a run has learned, and `comparison.html`, what several have: self-contained pages.

Their text and layout are in `templates/`.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from tiutils import concept
from tiutils.config import LARGE_WIDTH, TrainingConfig
from tiutils.errors import printable
from tiutils.evaluation import overfitting
from tiutils.evaluation.comparison import METRICS, Score
from tiutils.figures import curves, output
from tiutils.io.engines import ENGINES
from tiutils.io.run_folder import SHEETS, entry, read_record

TEMPLATES = Path(__file__).with_name("templates")
PHOTO, DRAWN, SHEET = 288, 512, 960  # the longest side of an embedded picture, in pixels
SCALES = (1, 0.7, 0.5, 0.35, 0.25)  # of these sides: the first that keeps the page small enough
MAX_BYTES = 2_000_000
MAX_SHEETS = 6  # of a long run: the first, the last, and some between
# A page is made to be shared: it names no folder of the machine that made it.
PER_MACHINE = ("output_dir", "logging_dir", "resume_from_checkpoint")
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
        pictures: by word, plain or learned: prompt by prompt, as many of each.
    """

    runs: Sequence[Run]
    prompts: Sequence[str]
    pictures: Mapping[str, Sequence[Image.Image]]


def recorded(run_dir: Path) -> dict[str, Any]:
    """What a run's folder has for its `Page`: steps, sheets, charts, flags.

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
    """A history in run.json, by step; entries of another form are left out."""
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

    Everything that comes from a person or a file is escaped.
    """
    scores, plain = page.scores or ({}, {})
    flags = _shown(page.flags)
    return _small_enough(
        "run.html",
        page=page,
        compared_with=_compared_with([page.reference_folder]),
        rows_of_scores=[[METRICS[name][0], *_values(scores[name], plain[name])] for name in scores],
        engines=[
            (
                engine.title,
                engine.file_name(page.word),
                engine.place.replace("`", ""),
                engine.written(page.word),
            )
            for engine in ENGINES.values()
        ],
        settings=[(f"--{name}", _value(flags[name])) for name in flags],
        changed=[(f"--{name}", _value(value)) for name, value in _changed(flags).items()],
    )


def render_comparison(page: ComparisonPage) -> str:
    """The page of several runs as HTML, made like `render`."""
    scored = [(run, *run.scores) for run in page.runs if run.scores is not None]
    flags = [_shown(run.flags) for run in page.runs]
    names = dict.fromkeys(name for each in flags for name in each)
    settings = [(f"--{name}", *(_value(each.get(name)) for each in flags)) for name in names]
    return _small_enough(
        "comparison.html",
        page=page,
        runs={run.word: run for run in page.runs},
        each=len(next(iter(page.pictures.values()))) // len(page.prompts),
        compared_with=_compared_with([run.reference_folder for run, *_ in scored]),
        rows_of_scores=[
            [METRICS[name][0], run.word, *_values(scores[name], plain[name])]
            for name in (scored[0][1] if scored else ())
            for run, scores, plain in scored
            if name in scores
        ],
        heads=["Setting", *(run.word for run in page.runs)],
        differences=[row for row in settings if len(set(row[1:])) > 1],
    )


def _small_enough(template: str, **values: Any) -> str:
    """A page with its pictures at the first of `SCALES` that keeps it within `MAX_BYTES`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "jpeg": _jpeg,
        "png": _png,
        "printable": printable,
        "fill": concept.fill,
    }
    environment.globals |= {"PHOTO": PHOTO, "DRAWN": DRAWN, "SHEET": SHEET}
    text = ""
    for scale in SCALES:
        text = environment.get_template(template).render(**values, scale=scale)
        if len(text.encode()) <= MAX_BYTES:
            break
    return text


def _finalize(value: object) -> object:
    """A value as text, before it is escaped: what a file or screen cannot show is spelled out."""
    return value if hasattr(value, "__html__") else printable(str(value))


def _compared_with(folders: Iterable[str]) -> str:
    names = dict.fromkeys(Path(folder).name for folder in folders)
    return f"Compared with the photos in {', '.join(names)}"


def _values(score: Score, plain: float) -> list[str]:
    """The cells for one measure of a word: the plain word's value, its own, and by how much it is better."""
    verdict = "better" if score.low > 0 else "worse" if score.high < 0 else "not clear"
    low, high = (f"{end:+.4f}" for end in (score.low, score.high))
    numbers = f"{plain:.4f}", f"{score.value:.4f}", f"{score.better_by:+.4f}", f"{low} to {high}"
    return [*(number.replace("-", "−") for number in numbers), verdict]


def _changed(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are no defaults; the learning rate that suits a model's width is one."""
    defaults = {each.name: each.default for each in fields(TrainingConfig)}
    plain = TrainingConfig(optimizer=flags.get("optimizer", defaults["optimizer"]))
    for settled in map(plain.with_learning_rate, (0, LARGE_WIDTH)):
        rate = {"learning_rate": settled.learning_rate, "scale_lr": settled.scale_lr}
        if rate == {name: flags.get(name, defaults[name]) for name in rate}:
            defaults |= rate
    return {name: value for name, value in flags.items() if value != defaults.get(name)}


def _shown(flags: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings without this machine's folders."""
    return {
        name: Path(value).name
        if name in PATHS and isinstance(value, str) and os.path.isabs(value)
        else value
        for name, value in flags.items()
        if name not in PER_MACHINE
    }


def _value(setting: object) -> str:
    return "" if setting is None else str(setting)


def _jpeg(image: Image.Image, side: float) -> dict[str, Any]:
    """An image for `img`, no larger than `side` pixels, without anything that a camera wrote into it."""
    image = image.convert("RGB")
    image.info = {}
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="jpeg", quality=90)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"width": image.width, "height": image.height, "source": source}


def _png(figure: Figure) -> dict[str, Any]:
    """A figure for `img`, with its alt text."""
    width, height = (round(100 * side) for side in figure.get_size_inches())
    figure.set_dpi(200)  # sharp on dense screens
    source = f"data:image/png;base64,{base64.b64encode(output.to_png(figure)).decode()}"
    return {"width": width, "height": height, "source": source, "alt": output.alt_text(figure)}
