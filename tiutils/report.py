"""What a finished run has learned: a picture *photos | before | after*, and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiutils import concept, evaluation, figures, inference, models
from tiutils.errors import InputError
from tiutils.record import read_record, update_record

PICTURE = "before_after.png"


@dataclass(frozen=True)
class Report:
    """The picture's file and the scores of `evaluation.score`, for the word and its initializer."""

    picture: Path
    scores: dict[str, float]
    references: str


def evaluate_run(
    run_dir: str | Path,
    prompts: Sequence[str],
    *,
    held_out: str | Path | None = None,
    model: str | None = None,
    **drawing: Any,
) -> Report:
    """Draw prompts with the initializer word and with the learned one, from the same noise; score.

    Writes `before_after.png` and adds the scores to the run's `run.json`.

    Args:
        run_dir: output folder of a run.
        prompts: what to draw, with `{}` for the word.
        held_out: photos to compare with that training has not seen; the folder `held_out` beside
            the photos if there is one, else the photos themselves.
        model: the model, if it is not where the run found it.
        drawing: arguments of `inference.generate`.

    Raises:
        InputError: no run there, or no photos.
    """
    run_dir = Path(run_dir)
    record = read_record(run_dir)
    files = sorted(run_dir.glob("learned_embeds.*"))
    if not record or not files:
        raise InputError(
            f"{run_dir} holds no finished run (run.json and learned_embeds.safetensors); "
            f"give the --output_dir of `tiutils train`"
        )
    flags = record["flags"]
    if missing := [prompt for prompt in prompts if "{}" not in prompt]:
        raise InputError(f"the prompt {missing[0]!r} has no {{}} where the word is to stand")
    photo_folder = concept.find_photos(flags["train_data_dir"])
    photos = [photo.image for photo in concept.load(photo_folder).photos]
    reference_folder = Path(held_out or photo_folder / "held_out")
    if held_out is None and not reference_folder.is_dir():
        reference_folder = photo_folder
    references = [photo.image for photo in concept.load(reference_folder).photos]

    parts = models.load(model or record["model"], device=models.best_device())
    word, initializer = inference.load_embedding(parts, files[0]), flags["initializer_token"]
    before, after = (
        inference.generate(parts, [prompt.format(name) for prompt in prompts], **drawing)
        for name in (initializer, word.token)
    )
    written = [prompt.format(word.token) for prompt in prompts]
    figure = figures.before_after(
        photos, before, after, written, title=f"{word.token}, learned from {len(photos)} photos"
    )
    picture = figures.save(figure, run_dir / PICTURE)
    scores = evaluation.score(
        parts, word, initializer, references, learnable_property=flags["learnable_property"]
    )
    update_record(run_dir, {"scores": scores})
    return Report(picture, scores, str(reference_folder))


def as_text(report: Report, word: str, initializer: str) -> str:
    """The scores as a table for the terminal."""
    rows = [
        ("evaluation_loss", "loss on photos", "lower"),
        ("image_similarity", "likeness to photos", "higher"),
        ("histogram_distance", "distance of colors", "lower"),
    ]
    lines = [f"{'against ' + report.references:<40} {initializer:>12} {word:>16}   better is"]
    for key, name, better in rows:
        plain, learned = report.scores[f"initializer_{key}"], report.scores[key]
        lines.append(f"{name:<40} {plain:>12.4f} {learned:>16.4f}   {better}")
    return "\n".join(lines)
