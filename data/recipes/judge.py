"""Is the evaluator a good judge, and how well does the model do before it? `python -m data.recipes.judge`

Writes a table into the model card, between its markers. 200 held-out compositions (sides of things that no training
saw) and 200 pictures that stock diffusers draws from the same nouns and places are shown to the evaluator, which ranks
50 nouns and all places. A witness that shares nothing with it does the same: it looks for the nearest of other held-out
compositions in raw pixels. Last, the concept photos: does a held-out photo look most like its own concept's?
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tiutils import concept, evaluator

from . import compose, places, train_evaluator
from .presets import PRESETS, Preset

COUNT, GALLERY, NOUNS = 200, 3000, 50
PLACES = list(places.PLACES)
CARD, BEGIN, END = Path("data/tiny-sd/README.md"), "<!-- judge:begin -->", "<!-- judge:end -->"
CONCEPTS = ("wood-toy", "rocking-horse", "teddy-bear")


def asked_nouns(preset: Preset) -> list[str]:
    """The fifty nouns, drawn once from those that have a held-out side."""
    known = [noun.word for noun in compose.World.load(True, preset.world).words]
    return sorted(np.random.default_rng(50).choice(known, NOUNS, replace=False))


def held_out(
    preset: Preset, nouns: list[str], count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (count, side, side, 3) uint8 of one thing in a named place, and their (noun, place) numbers."""
    things, pictures, labels, index = compose.World.load(True, preset.world), [], [], 0
    names, _ = train_evaluator.nouns(preset.world)
    chosen = [number for number, noun in enumerate(things.words) if noun.word in nouns]
    things.words = [things.words[number] for number in chosen]
    things.odds = np.full(NOUNS, 1 / NOUNS)
    while len(pictures) < count:
        picture, caption = compose.scene(things, seed, index, preset.size)
        noun, place = train_evaluator.parts_of(caption, preset.world)
        if 0 <= place < len(PLACES) and not re.search(r"\b(two|three)\b", caption):
            pictures.append(picture)
            labels.append((nouns.index(names[noun]), place))
        index += 1
    return np.stack(pictures), np.array(labels)


def draw(nouns: list[str], labels: np.ndarray, model: Path, kept: Path) -> np.ndarray:
    """One picture for each (noun, place), by stock diffusers as on the contact sheet; kept for the next time."""
    if kept.exists():
        with np.load(kept) as there:
            if np.array_equal(there["labels"], labels):
                return there["pictures"]
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [
        f"a photo of {train_evaluator.named(nouns[noun])} {PLACES[place]}" for noun, place in labels
    ]
    drawn = []
    for start in range(0, len(prompts), 20):
        seeds = [torch.Generator().manual_seed(start + n) for n in range(20)]
        drawn += pipeline(
            prompts[start : start + 20], num_inference_steps=30, guidance_scale=4.0, generator=seeds
        ).images
        print(f"drawn: {len(drawn)}/{len(prompts)}", flush=True)
    pictures = np.stack([np.asarray(picture) for picture in drawn])
    np.savez(kept, pictures=pictures, labels=labels)
    return pictures


def by_evaluator(clip: evaluator.Evaluator, pictures: np.ndarray, nouns: list[str]) -> np.ndarray:
    """What the evaluator sees: (pictures, 2) numbers of noun and place."""
    seen = clip.see([Image.fromarray(picture) for picture in pictures])
    asked = [f"a photo of {train_evaluator.named(noun)}" for noun in nouns], PLACES
    return np.stack([(seen @ clip.read(each).T).argmax(dim=1).numpy() for each in asked], axis=1)


def by_pixels(pictures: np.ndarray, gallery: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What the nearest picture of the gallery shows, at 16 x 16 pixels: (pictures, 2)."""

    def small(images: np.ndarray) -> np.ndarray:
        side = images.shape[1] // 16
        blocks = images.reshape(len(images), 16, side, 16, side, 3).astype(np.float32)
        return blocks.mean(axis=(2, 4)).reshape(len(images), -1)

    there, here = small(gallery), small(pictures)
    return labels[(((there**2).sum(1)) - 2 * here @ there.T).argmin(axis=1)]


def concepts(clip: evaluator.Evaluator) -> list[str]:
    """For each held-out photo, whether it looks more like its own concept's photos than like the others'."""
    photos = {
        name: [photo.image for photo in concept.load(Path("data/concepts") / name).photos]
        for name in CONCEPTS
    }
    rows = []
    for name in CONCEPTS:
        folder = Path("data/concepts") / name / "held_out"
        unseen = [photo.image for photo in concept.load(folder).photos]
        alike = [clip.similarities(unseen, photos[other]).mean().item() for other in CONCEPTS]
        rows.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in alike) + " |")
    return rows


def table(scores: dict[str, np.ndarray], rows: list[str]) -> str:
    """Both tables in Markdown; `scores` are shares right, (2,), by what was shown to whom."""
    real, drawn = scores["evaluator, held-out compositions"], scores["evaluator, drawn pictures"]
    lines = [f"| judge and pictures | noun, first of {NOUNS} | place, first of {len(PLACES)} |"]
    lines += ["|---|--:|--:|"]
    shown = scores | {"chance": np.array([1 / NOUNS, 1 / len(PLACES)])}
    lines += [f"| {name} | {noun:.1%} | {place:.1%} |" for name, (noun, place) in shown.items()]
    noun, place = drawn / real
    lines += [
        "",
        f"So drawn pictures reach {noun:.0%} of the figure of real ones for nouns, {place:.0%} for places. The witness",
        f"takes what the nearest of {GALLERY} other held-out compositions shows, in raw 16 × 16 pixels.",
        "",
        "How alike the evaluator finds held-out photos (rows) and the photos to learn from (columns):",
        "",
        "| held out | " + " | ".join(CONCEPTS) + " |",
        "|---|" + "--:|" * len(CONCEPTS),
        *rows,
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--model", type=Path, default=Path("data/tiny-sd"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    preset, clip = PRESETS[arguments.preset], evaluator.load(arguments.model / "evaluator")
    nouns, kept = asked_nouns(preset), preset.folder / "judged.npz"
    real, labels = held_out(preset, nouns, COUNT, 501)
    gallery, known = held_out(preset, nouns, GALLERY, 502)
    drawn = draw(nouns, labels, arguments.model, kept)
    scores = {}
    for name, pictures in (("held-out compositions", real), ("drawn pictures", drawn)):
        scores[f"evaluator, {name}"] = by_evaluator(clip, pictures, nouns) == labels
        scores[f"witness, {name}"] = by_pixels(pictures, gallery, known) == labels
    text = table({name: right.mean(axis=0) for name, right in scores.items()}, concepts(clip))
    print(text)
    page = CARD.read_text()
    head, tail = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    CARD.write_text(f"{head}\n{text}\n{tail}")


if __name__ == "__main__":
    main()
