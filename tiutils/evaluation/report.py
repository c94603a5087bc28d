"""What finished runs have learned: pictures *photos | before | after*, and scores."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiutils import concept, inference, models
from tiutils.errors import InputError, printable
from tiutils.evaluation import clip as clip_model
from tiutils.evaluation import comparison
from tiutils.evaluation.comparison import Score
from tiutils.figures import grids, output
from tiutils.io.embeddings import read
from tiutils.io.files import replace_file
from tiutils.io.run_folder import read_record, update_record
from tiutils.models import Models
from tiutils.tokenizer import find_clash

PICTURE, COMPARISON = "before_after.png", "comparison"


@dataclass(frozen=True)
class Subject:
    """A learned word to be judged: its file, the word it began as, its photos, those to judge by."""

    run_dir: Path
    embedding: Path
    token: str
    plain_word: str
    learnable_property: str
    photos: clip_model.Images
    references: clip_model.Images
    reference_folder: str


@dataclass(frozen=True)
class Verdict:
    """The scores of a word, and what the plain word has, by measure."""

    word: str
    plain_word: str
    reference_folder: str
    scores: dict[str, Score]
    plain_scores: dict[str, float]


@dataclass(frozen=True)
class Report:
    """The picture's file, and a verdict on each word."""

    picture: Path
    verdicts: tuple[Verdict, ...]


def evaluate(
    run_dirs: Sequence[str | Path],
    prompts: Sequence[str],
    *,
    held_out: str | Path | None = None,
    model: str | None = None,
    judge: str | None = None,
    output_dir: str | Path = COMPARISON,
    num_images_per_prompt: int = 2,
    **drawing: Any,
) -> Report:
    """Draw prompts with plain words and learned ones, from the same noise; score.

    Of one run, `before_after.png` and the scores in `run.json` go into its folder; of several,
    `comparison.png` and `comparison.json` go into `output_dir`.

    Args:
        run_dirs: output folders of runs, all on one model.
        prompts: what to draw, with `{}` for the word.
        held_out: photos to compare with that training has not seen; the folder `held_out` beside
            each run's photos if there is one, else the photos themselves.
        model: the model, if it is not where the runs found it.
        judge: a CLIP model, folder or Hub id; the one that came with the model, if one did.
        output_dir: where a comparison goes.
        num_images_per_prompt: in the picture; scores have their own number.
        drawing: further arguments of `inference.generate`.

    Raises:
        InputError: no run there, no photos, runs on different models, or no such judge.
    """
    if missing := [prompt for prompt in prompts if "{}" not in prompt]:
        raise InputError(f"the prompt {missing[0]!r} has no {{}} where the word is to stand")
    subjects = [_subject(Path(run_dir), held_out) for run_dir in run_dirs]
    names = {read_record(subject.run_dir)["model"] for subject in subjects}
    if model is None and len(names) > 1:
        raise InputError(
            f"the runs are on different models ({', '.join(sorted(names))}); compare those on one, "
            f"or give --pretrained_model_name_or_path"
        )
    parts = models.load(model or names.pop(), device=models.best_device())
    clip = clip_model.load(judge, device=parts.device) if judge else clip_model.beside(parts)
    words = [_add_word(parts, subject) for subject in subjects]
    drawn = {
        word: inference.generate(
            parts,
            [concept.fill(prompt, word) for prompt in prompts],
            num_images_per_prompt=num_images_per_prompt,
            **drawing,
        )
        for word in dict.fromkeys([*(s.plain_word for s in subjects), *words])
    }
    verdicts = tuple(
        _judge(parts, subject, word, clip, prompts, drawing)
        for subject, word in zip(subjects, words, strict=True)
    )
    if len(subjects) == 1:
        return Report(_one_run(subjects[0], prompts, drawn, verdicts[0]), verdicts)
    return Report(_several_runs(Path(output_dir), subjects, prompts, drawn, verdicts), verdicts)


def _subject(run_dir: Path, held_out: str | Path | None) -> Subject:
    """What a run's folder says of its word. Raises InputError where there is no finished run."""
    record = read_record(run_dir)
    files = sorted(run_dir.glob("learned_embeds.*"))
    if not record or not files:
        raise InputError(
            f"{run_dir} holds no finished run (run.json and learned_embeds.safetensors); "
            f"give the --output_dir of `tiutils train`"
        )
    flags = record["flags"]
    photo_folder = concept.find_photos(flags["train_data_dir"])
    reference_folder = Path(held_out or photo_folder / "held_out")
    if held_out is None and not reference_folder.is_dir():
        reference_folder = photo_folder
    photos, references = (
        [photo.image for photo in concept.load(folder).photos]
        for folder in (photo_folder, reference_folder)
    )
    plain_word = flags.get("initializer_phrase") or flags["initializer_token"]
    return Subject(
        run_dir, files[0], flags["placeholder_token"], plain_word,
        flags["learnable_property"], photos, references, str(reference_folder),
    )  # fmt: skip


def _add_word(parts: Models, subject: Subject) -> str:
    """Give the model a run's word; where two runs taught the same one, the later becomes <word-2>."""
    count, token, number = len(read(subject.embedding).vectors), subject.token, 2
    while find_clash(parts.tokenizer, token, count):
        body = subject.token.removesuffix(">")
        token, number = f"{body}-{number}{subject.token[len(body) :]}", number + 1
    return inference.load_embedding(parts, subject.embedding, token).token


def _judge(
    parts: Models,
    subject: Subject,
    word: str,
    clip: clip_model.Evaluator | None,
    prompts: Sequence[str],
    drawing: dict[str, Any],
) -> Verdict:
    """Every measure of a word beside its plain word."""
    learned, plain = (
        comparison.measure(
            parts,
            name,
            subject.references,
            plain_word=subject.plain_word,
            evaluator=clip,
            learnable_property=subject.learnable_property,
            prompts=prompts,
            **drawing,
        )
        for name in (word, subject.plain_word)
    )
    return Verdict(
        word,
        subject.plain_word,
        subject.reference_folder,
        comparison.compare(learned, plain),
        {name: float(values.mean()) for name, values in plain.items()},
    )


def _one_run(
    subject: Subject, prompts: Sequence[str], drawn: dict[str, Any], verdict: Verdict
) -> Path:
    """The picture *photos | before | after* and the scores, into the run's own folder."""
    word = verdict.word
    figure = grids.before_after(
        subject.photos,
        drawn[subject.plain_word],
        drawn[word],
        [concept.fill(prompt, word) for prompt in prompts],
        title=f"{word}, learned from {len(subject.photos)} photos",
    )
    update_record(subject.run_dir, {"scores": dataclasses.asdict(verdict)})
    return output.save(figure, subject.run_dir / PICTURE)


def _several_runs(
    output_dir: Path,
    subjects: Sequence[Subject],
    prompts: Sequence[str],
    drawn: dict[str, Any],
    verdicts: Sequence[Verdict],
) -> Path:
    """A contact sheet, a row for each plain and each learned word, and the scores as JSON."""
    photos = {verdict.word: s.photos[0] for s, verdict in zip(subjects, verdicts, strict=True)}
    each = len(next(iter(drawn.values()))) // len(prompts)
    figure = grids.image_grid(
        [[photos.get(word), *pictures] for word, pictures in drawn.items()],
        row_labels=list(drawn),
        column_labels=["photo", *(concept.fill(p, "…") for p in prompts for _ in range(each))],
        title="the same prompts from the same noise",
        gaps=[0, *range(each, each * len(prompts), each)],
    )
    picture = output.save(figure, output_dir / f"{COMPARISON}.png")
    record = json.dumps([dataclasses.asdict(verdict) for verdict in verdicts], indent=2)
    replace_file(output_dir / f"{COMPARISON}.json", record.encode())
    return picture


def as_text(verdict: Verdict) -> str:
    """One word's scores as a table for the terminal."""
    plain_word, word = printable(verdict.plain_word), printable(verdict.word)
    width = max(12, len(plain_word), len(word)) + 2
    lines = [
        f"against {printable(verdict.reference_folder)}",
        f"{'':<29}{plain_word:>{width}}{word:>{width}}   better by, and from … to, for other noise",
    ]
    for key, score in verdict.scores.items():
        lines.append(
            f"{comparison.MEASURES[key][0]:<29}"
            f"{verdict.plain_scores[key]:>{width}.4f}{score.value:>{width}.4f}"
            f"   {score.better_by:+.4f}   {score.low:+.4f} … {score.high:+.4f}"
        )
    return "\n".join(lines)
