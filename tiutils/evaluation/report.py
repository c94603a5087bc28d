"""What finished runs have learned: pictures *photos | before | after*, scores, and a page to look at."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tiutils import concept, inference, models
from tiutils.config import SamplingConfig
from tiutils.errors import InputError, printable
from tiutils.evaluation import clip as clip_model
from tiutils.evaluation import comparison, web_page
from tiutils.evaluation.comparison import Score
from tiutils.figures import grids, output
from tiutils.io import embeddings
from tiutils.io.files import check_writable, given, to_json, write_new
from tiutils.io.progress import bar
from tiutils.io.run_folder import entry, find_again, model_of, read_record, update_record
from tiutils.tokenizer import (
    find_clash,
    read_word,
    warn_of_misreadings,
    with_tokens,
    without_weights,
)

logger = logging.getLogger("tiutils")

PICTURE, PAGE, COMPARISON = "before_after.png", "report.html", "comparison"
SAMPLING = SamplingConfig(num_images_per_prompt=2, num_inference_steps=15)
SCORED = 8  # pictures of a word that each score is the mean of, at least; see benchmarks/README.md


@dataclass(frozen=True)
class Subject:
    """A learned word to be scored: its file, the word it started from, its photos, and the photos to compare with."""

    run_dir: Path
    embedding: Path
    token: str
    plain_word: str
    learnable_property: str
    photos: clip_model.Images
    references: clip_model.Images
    reference_folder: str


@dataclass(frozen=True)
class WordScores:
    """The scores of a word and the values of the plain word, by measure."""

    word: str
    plain_word: str
    reference_folder: str
    scores: dict[str, Score]
    plain_scores: dict[str, float]


@dataclass(frozen=True)
class Report:
    """The picture's file, the words' files, the scores of each word if asked for, and a page to look at."""

    picture: Path
    words: tuple[Path, ...]
    word_scores: tuple[WordScores, ...] = ()
    page: Path | None = None


@dataclass(frozen=True)
class EvaluationConfig:
    """What an evaluation compares with, and how it draws and scores.

    Attributes:
        photos: the photos, if they have moved since training.
        held_out: photos to compare with that training has not seen; the folder `held_out` beside each run's photos if
            there is one, else the photos themselves.
        model: arguments of `models.load` that replace the model recorded by the runs.
        evaluator: a CLIP model, folder or Hub id; the one that came with the model, if one did.
        output_dir: folder for a comparison of several runs.
        sampling: how pictures are generated, by default two per prompt; scores use these and, if there are fewer than
            `SCORED`, more. With 25 steps the scores are the same as with 15 (benchmarks/README.md).
        scores: whether to compute scores.
    """

    photos: str | Path | None = None
    held_out: str | Path | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    evaluator: str | None = None
    output_dir: str | Path = COMPARISON
    sampling: SamplingConfig = SAMPLING
    scores: bool = True


def evaluate(
    run_dirs: Sequence[str | Path],
    prompts: Sequence[str],
    config: EvaluationConfig | None = None,
    *,
    on_image: Callable[[Path], object] | None = None,
) -> Report:
    """Draw prompts with plain and learned words, from the same noise, and score them.

    For one run, `before_after.png`, the scores in `run.json`, and `report.html` are written into its folder; for
    several, `comparison.png`, `comparison.json`, and `comparison.html` into `output_dir`. Existing files are kept: a
    second picture is called `before_after-2.png`.

    Args:
        run_dirs: output folders of runs, all on one model.
        prompts: what to draw, with `{}` for the word.
        config: the defaults if None.
        on_image: called with the picture's path as soon as it is written, long before the scores are ready.

    Raises:
        InputError: a run, its photos, or the evaluator is missing; or the runs used different models.
    """
    config = config or EvaluationConfig()
    if missing := [prompt for prompt in prompts if "{}" not in prompt]:
        raise InputError(f"the prompt {missing[0]!r} has no {{}} where the word belongs")
    folders = [given(run_dir, "the run's folder") for run_dir in run_dirs]
    subjects = [_subject(folder, config.photos, config.held_out) for folder in folders]
    chosen = _model(folders, config.model)
    is_one = len(subjects) == 1
    target = folders[0] if is_one else given(config.output_dir, "--output_dir")
    check_writable(target, "the run's folder" if is_one else "--output_dir")
    words = _names(chosen, subjects, prompts)
    parts = models.load(**chosen, device=models.best_device())
    clip = None
    if config.scores and config.evaluator:
        clip = clip_model.load(config.evaluator, device=parts.device)
    elif config.scores:
        clip = clip_model.bundled_with(parts)
    for subject, word in zip(subjects, words, strict=True):
        inference.load_embedding(parts, subject.embedding, word)

    sampling = dataclasses.replace(config.sampling, batch_size=parts.at_once)
    gallery, each = comparison.Gallery(parts, sampling), sampling.num_images_per_prompt
    shown = list(dict.fromkeys([*(s.plain_word for s in subjects), *words]))
    sentences = [concept.fill(prompt, word) for word in shown for prompt in prompts]
    with bar(gallery.missing(sentences, each), "drawing", "picture") as drawn:
        gallery.on_image = drawn.update
        gallery.pictures(sentences, each)
    pictures = {
        word: gallery.pictures([concept.fill(p, word) for p in prompts], each) for word in shown
    }
    figure = (
        _one_run(subjects[0], prompts, pictures, words[0])
        if is_one
        else _several_runs(subjects, prompts, pictures, words)
    )
    picture = _keep(output.to_png(figure), target, PICTURE if is_one else f"{COMPARISON}.png")
    if on_image is not None:
        on_image(picture)
    word_scores: tuple[WordScores, ...] = ()
    if config.scores:
        word_scores = _score_words(subjects, words, clip, prompts, gallery)
    record = [dataclasses.asdict(each) for each in word_scores]
    page: Path | None = None
    try:
        if is_one:
            if config.scores:
                update_record(target, {"scores": record[0]})
            page = _page(subjects[0], prompts, pictures, words[0], *word_scores)
        else:
            if config.scores:
                write_new(_numbered(picture.with_suffix(".json")), to_json(record))
            runs = _compared(subjects, words, word_scores)
            text = web_page.render_comparison(web_page.ComparisonPage(runs, prompts, pictures))
            page = _keep(text.encode(), target, f"{COMPARISON}.html")
    except InputError as error:  # still return the scores
        logger.warning("%s", error)
    return Report(picture, tuple(subject.embedding for subject in subjects), word_scores, page)


def _model(run_dirs: Sequence[Path], changed: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `models.load` for the model that the runs were trained on, or the one that was asked for."""
    if changed.get("name"):
        return dict(changed)
    found = [model_of(run_dir) for run_dir in run_dirs]
    if any(each != found[0] for each in found):
        names = sorted({" ".join(filter(None, each.values())) for each in found})
        raise InputError(
            f"the runs used different models ({', '.join(names)}); compare runs of one model, "
            f"or give --pretrained_model_name_or_path"
        )
    return {**found[0], **changed}


def _keep(data: bytes, folder: Path, name: str) -> Path:
    """Write a file under its name, or a numbered one if the name is taken; an identical file is left as it is."""
    for path in _numbered(folder / name):
        if not os.path.lexists(path):
            return write_new(_numbered(folder / name), data)
        if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return path
    raise AssertionError("unreachable: there is always a free number")


def _numbered(path: Path) -> Iterator[Path]:
    """The path, then the same with -2, -3 and so on."""
    yield path
    for number in itertools.count(2):
        yield path.with_stem(f"{path.stem}-{number}")


def _score_words(
    subjects: Sequence[Subject],
    words: Sequence[str],
    clip: clip_model.ClipScorer | None,
    prompts: Sequence[str],
    gallery: comparison.Gallery,
) -> tuple[WordScores, ...]:
    """Every measure of each word beside its plain word."""
    judged = [
        each for s, w in zip(subjects, words, strict=True) for each in ((s, w), (s, s.plain_word))
    ]
    # at least as many as in the figure, whose pictures are reused
    each = max(gallery.sampling.num_images_per_prompt, -(-SCORED // len(prompts)))
    usual = [
        concept.fill(concept.templates(subject.learnable_property)[0], word)
        for subject, word in judged
    ]
    asked = [concept.fill(prompt, word) for _, word in judged for prompt in prompts if clip]
    asked = [sentence for sentence in asked if sentence not in usual]
    todo = gallery.missing(usual, SCORED) + gallery.missing(asked, each) + len(judged)
    with bar(todo, "scoring", "picture") as scored:
        gallery.on_image = scored.update
        gallery.pictures(usual, SCORED)  # those of all words at once, for full batches
        gallery.pictures(asked, each)
        measured = []
        for subject, word in judged:
            measured.append(
                comparison.evaluate_word(
                    gallery.models,
                    word,
                    subject.references,
                    plain_word=subject.plain_word,
                    num_images=SCORED,
                    questions=comparison.Questions(clip, prompts, each, subject.learnable_property),
                    gallery=gallery,
                )
            )
            scored.update()
    rows = zip(subjects, words, measured[::2], measured[1::2], strict=True)
    return tuple(
        WordScores(
            word,
            subject.plain_word,
            subject.reference_folder,
            comparison.compare(learned, plain),
            {name: float(values.mean()) for name, values in plain.items()},
        )
        for subject, word, learned, plain in rows
    )


def _subject(run_dir: Path, photos: str | Path | None, held_out: str | Path | None) -> Subject:
    """What a run's folder says about its word. Raises InputError if there is no finished run."""
    record = read_record(run_dir)
    words = [run_dir / name for name in embeddings.FILE_NAMES if (run_dir / name).is_file()]
    if not record or not words:
        raise InputError(
            f"{run_dir} contains no finished run (run.json and learned_embeds.safetensors); "
            f"give the --output_dir of `tiutils train`"
        )
    flags, learned = entry(record, "flags", dict), embeddings.read(words[0])
    folder = photos or entry(flags, "train_data_dir", str)
    if not folder:
        raise InputError(
            f"{run_dir}/run.json does not say where the photos are; give --train_data_dir"
        )
    facts = learned.metadata
    learnable_property = (
        entry(flags, "learnable_property", str) or facts.get("learnable_property") or "object"
    )
    phrase = entry(flags, "initializer_phrase", str) or entry(flags, "initializer_token", str)
    plain_word = phrase or facts.get("initializer_token")
    if not plain_word and entry(flags, "initializer_from_photos", bool):
        plain_word = learnable_property  # training started from no word
    if not plain_word:
        raise InputError(
            f"{run_dir}/run.json has no initializer_token among its flags; "
            f'add the word that training started from, such as "toy"'
        )
    concept.templates(learnable_property)  # refuses another
    try:
        photo_folder = concept.find_photos(photos or find_again(run_dir, str(folder)))
    except InputError as error:
        raise InputError(
            f"cannot find the photos of {run_dir} ({error}); give their folder with --train_data_dir"
        ) from error
    reference_folder = given(held_out, "--held_out") if held_out else photo_folder / "held_out"
    if held_out is None and not reference_folder.is_dir():
        reference_folder = photo_folder
    seen, references = (
        [photo.image for photo in concept.load(folder).photos]
        for folder in (photo_folder, reference_folder)
    )
    token = entry(flags, "placeholder_token", str) or learned.token
    return Subject(
        run_dir, words[0], token, plain_word, learnable_property, seen, references, str(reference_folder),
    )  # fmt: skip


def _names(
    chosen: dict[str, Any], subjects: Sequence[Subject], prompts: Sequence[str]
) -> list[str]:
    """A name for each run's word; if two runs taught the same one, the later becomes <word-2>.

    Before the model's weights are loaded, words that do not fit it are refused, and a warning names prompts that are
    too long.
    """
    parts, names = without_weights(**chosen), []
    for subject in subjects:
        count, token, number = len(embeddings.read(subject.embedding).vectors), subject.token, 2
        while find_clash(parts.tokenizer, token, count):
            body = subject.token.removesuffix(">")
            token, number = f"{body}-{number}{subject.token[len(body) :]}", number + 1
        learned = read_word(parts, subject.embedding, token)
        parts.tokenizer, _ = with_tokens(parts.tokenizer, learned.tokens)
        names.append(token)
    shown = [*(subject.plain_word for subject in subjects), *names]
    warn_of_misreadings(parts.tokenizer, [concept.fill(p, word) for word in shown for p in prompts])
    return names


def _one_run(subject: Subject, prompts: Sequence[str], drawn: dict[str, Any], word: str) -> Figure:
    """The picture *photos | before | after*."""
    return grids.before_after(
        subject.photos,
        drawn[subject.plain_word],
        drawn[word],
        [concept.fill(prompt, word) for prompt in prompts],
        title=f"{word}, learned from {len(subject.photos)} photos",
    )


def _page(
    subject: Subject,
    prompts: Sequence[str],
    drawn: dict[str, Any],
    word: str,
    scores: WordScores | None = None,
) -> Path:
    """Write the page of one run; returns its path."""
    each = len(drawn[word]) // len(prompts)
    pairs = zip(drawn[subject.plain_word], drawn[word], strict=True)
    page = web_page.Page(
        word,
        subject.plain_word,
        subject.photos,
        [
            web_page.Pair(concept.fill(prompts[number // each], word), before, after)
            for number, (before, after) in enumerate(pairs)
        ],
        scores=(scores.scores, scores.plain_scores) if scores else None,
        reference_folder=subject.reference_folder,
        embedding=subject.embedding.name,
        **web_page.recorded(subject.run_dir),
    )
    return _keep(web_page.render(page).encode(), subject.run_dir, PAGE)


def _compared(
    subjects: Sequence[Subject], words: Sequence[str], word_scores: Sequence[WordScores]
) -> list[web_page.Run]:
    """The runs of a comparison for its page."""
    scored: Sequence[WordScores | None] = word_scores or [None] * len(subjects)
    return [
        web_page.Run(
            subject.run_dir.resolve().name,
            word,
            subject.plain_word,
            subject.photos[0],
            (each.scores, each.plain_scores) if each else None,
            subject.reference_folder,
            entry(read_record(subject.run_dir), "flags", dict),
        )
        for subject, word, each in zip(subjects, words, scored, strict=True)
    ]


def _several_runs(
    subjects: Sequence[Subject], prompts: Sequence[str], drawn: dict[str, Any], words: Sequence[str]
) -> Figure:
    """A contact sheet, a row for each plain and each learned word."""
    photos = {word: subject.photos[0] for word, subject in zip(words, subjects, strict=True)}
    each = len(next(iter(drawn.values()))) // len(prompts)
    return grids.image_grid(
        [[photos.get(word), *pictures] for word, pictures in drawn.items()],
        row_labels=list(drawn),
        column_labels=["photo", *(concept.fill(p, "…") for p in prompts for _ in range(each))],
        title="the same prompts from the same noise",
        gaps=[0, *range(each, each * len(prompts), each)],
    )


def as_text(scores: WordScores) -> str:
    """One word's scores as a table for the terminal."""
    plain_word, word = printable(scores.plain_word), printable(scores.word)
    width = max(12, len(plain_word), len(word)) + 2
    lines = [
        f"against {printable(scores.reference_folder)}",
        f"{'':<29}{plain_word:>{width}}{word:>{width}}   better by, and from … to, for other noise",
    ]
    for key, score in scores.scores.items():
        lines.append(
            f"{comparison.METRICS[key][0]:<29}"
            f"{scores.plain_scores[key]:>{width}.4f}{score.value:>{width}.4f}"
            f"   {score.better_by:+.4f}   {score.low:+.4f} … {score.high:+.4f}"
        )
    return "\n".join(lines)
