"""Is the evaluator a good judge, and how well does it score the model? `python -m data.recipes.results.judge`

Writes a table into the model card, between its markers. There are 200 questions, each a noun in the one place where
training never shows it. Each is composed (from sides that training never sees, where a thing has any) and drawn by
stock diffusers. The evaluator ranks 50 nouns and all places. Two witnesses that share nothing with it do the same, by
finding the nearest of other compositions in raw pixels and in a histogram of colors. Finally, the concept photos: is a
held-out one most similar to those of its own concept?
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tiutils import concept
from tiutils.evaluation import clip as clip_model

from ..networks import train_evaluator
from ..networks.presets import BUNDLED, PRESETS, Preset
from ..world import compose, lexicon, places
from . import sheet

COUNT, NOUNS = 200, 50
PLACES = list(places.PLACES)
CARD, BEGIN, END = Path("data/tiny-sd/README.md"), "<!-- judge:begin -->", "<!-- judge:end -->"
CONCEPTS = ("wood-toy", "rocking-horse", "teddy-bear")


@dataclass(frozen=True)
class Questions:
    """Pairs of a noun and a place that no training picture shows, in groups of nouns to choose among."""

    nouns: list[str]  # COUNT of them, NOUNS in a group
    places: np.ndarray  # (COUNT,) numbers in PLACES

    @classmethod
    def of(cls) -> Questions:
        """The questions, about nouns of the world, not the toys' names."""
        known = [
            n.word for n in compose.World.load(held_out=True).words if n.word not in lexicon.toys()
        ]
        nouns = np.random.default_rng(50).choice(known, COUNT, replace=False)
        kept_apart = [PLACES.index(compose.place_never_seen(noun)) for noun in nouns]
        return cls(nouns.tolist(), np.array(kept_apart))

    def right(self, nouns: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Whether the answers, numbers of nouns and of places, are right: (COUNT, 2)."""
        return np.stack([nouns == np.arange(COUNT), found == self.places], axis=1)


def group(number: int) -> slice:
    """The nouns among which question `number` is to be answered."""
    first = number // NOUNS * NOUNS
    return slice(first, first + NOUNS)


def held_out(preset: Preset, questions: Questions) -> tuple[np.ndarray, np.ndarray]:
    """Composed pictures (..., side, side, 3) uint8: one for each question, (COUNT, ...);
    and others, each noun in each place, (COUNT, places, ...).
    """
    things = compose.World.load(held_out=True)
    asked = zip(questions.nouns, questions.places, strict=True)
    real = [compose.asked_scene(things, 501, n, PLACES[p], preset.size) for n, p in asked]
    gallery = [
        [compose.asked_scene(things, 502, n, place, preset.size) for place in PLACES]
        for n in questions.nouns
    ]
    return np.stack(real), np.array(gallery)


def draw(questions: Questions, model: Path) -> np.ndarray:
    """One picture for each question, by stock diffusers as on the contact sheet: (COUNT, side, side, 3) uint8."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    asked = zip(questions.nouns, questions.places, strict=True)
    prompts = [f"a photo of {train_evaluator.named(noun)} {PLACES[place]}" for noun, place in asked]
    drawn = []
    for start in range(0, COUNT, 20):
        drawn += sheet.paint(pipeline, prompts[start : start + 20], seed=start)
        print(f"drawn: {len(drawn)}/{COUNT}", flush=True)
    return np.stack([np.asarray(picture) for picture in drawn])


def by_evaluator(
    clip: clip_model.ClipScorer, pictures: np.ndarray, questions: Questions
) -> np.ndarray:
    """Whether the evaluator is right about each picture: (COUNT, 2), for noun and place."""
    seen = clip.encode_images([Image.fromarray(picture) for picture in pictures])
    nouns = clip.encode_text(
        [f"a photo of {train_evaluator.named(noun)}" for noun in questions.nouns]
    )
    found = [group(n).start + int((seen[n] @ nouns[group(n)].T).argmax()) for n in range(COUNT)]
    return questions.right(
        np.array(found), (seen @ clip.encode_text(PLACES).T).argmax(dim=1).numpy()
    )


def by_distance(pictures: np.ndarray, gallery: np.ndarray, questions: Questions) -> np.ndarray:
    """Whether the nearest picture of the gallery shows the right answer: (COUNT, 2); features (COUNT, width)."""
    nouns, places_found = [], []
    for number, picture in enumerate(pictures):
        nearest = ((gallery[group(number)] - picture) ** 2).sum(-1).ravel().argmin()
        noun, place = divmod(int(nearest), gallery.shape[1])
        nouns.append(group(number).start + noun)
        places_found.append(place)
    return questions.right(np.array(nouns), np.array(places_found))


def pixels(pictures: np.ndarray) -> np.ndarray:
    """(..., side, side, 3) uint8 as 16 x 16 pixels in a row: (..., 768)."""
    side = pictures.shape[-2] // 16
    blocks = pictures.reshape(*pictures.shape[:-3], 16, side, 16, side, 3).astype(np.float32)
    return blocks.mean(axis=(-4, -2)).reshape(*pictures.shape[:-3], -1)


def colors(pictures: np.ndarray) -> np.ndarray:
    """(..., side, side, 3) uint8 as the root of a histogram of 8 x 8 x 8 colors: (..., 512), Hellinger's distance."""
    boxes = (pictures // 32).astype(np.int64) @ np.array([64, 8, 1])
    flat = boxes.reshape(-1, boxes.shape[-1] * boxes.shape[-2])
    counts = np.stack([np.bincount(row, minlength=512) for row in flat])
    return np.sqrt(counts / flat.shape[1]).reshape(*pictures.shape[:-3], 512)


def concepts(clip: clip_model.ClipScorer) -> list[str]:
    """For each held-out photo, whether it looks more like its own concept's photos than like the others'."""
    photos = {
        name: [photo.image for photo in concept.load(Path("data/concepts") / name).photos]
        for name in CONCEPTS
    }
    rows = []
    for name in CONCEPTS:
        folder = Path("data/concepts") / name / "held_out"
        unseen = [photo.image for photo in concept.load(folder).photos]
        alike = [clip.clip_i(unseen, photos[other]).mean().item() for other in CONCEPTS]
        rows.append(f"| {name} | " + " | ".join(f"{value:.2f}" for value in alike) + " |")
    return rows


def table(scores: dict[str, np.ndarray], rows: list[str]) -> str:
    """Both tables in Markdown; `scores` are shares of right answers, (2,), by judge and pictures."""
    real, drawn = scores["evaluator, composed"], scores["evaluator, drawn"]
    lines = [f"| judge and pictures | noun, first of {NOUNS} | place, first of {len(PLACES)} |"]
    lines += ["|---|--:|--:|"]
    shown = scores | {"chance": np.array([1 / NOUNS, 1 / len(PLACES)])}
    lines += [f"| {name} | {noun:.1%} | {place:.1%} |" for name, (noun, place) in shown.items()]
    noun, place = drawn / real
    lines += [
        "",
        f"So drawn pictures reach {noun:.0%} of the figure of composed ones for nouns, {place:.0%} for places. The",
        "witnesses share nothing with the evaluator: they take what the nearest of "
        f"{NOUNS * len(PLACES)} other compositions shows,",
        "by 16 × 16 raw pixels or by a histogram of 512 colors.",
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
    parser.add_argument("--preset", choices=PRESETS, default=BUNDLED)
    parser.add_argument("--model", type=Path, default=Path("data/tiny-sd"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    preset, clip = PRESETS[arguments.preset], clip_model.load(arguments.model / "evaluator")
    questions = Questions.of()
    real, gallery = held_out(preset, questions)
    scores = {}
    for name, pictures in (("composed", real), ("drawn", draw(questions, arguments.model))):
        scores[f"evaluator, {name}"] = by_evaluator(clip, pictures, questions)
        for witness, look in (("pixels", pixels), ("colors", colors)):
            there, here = look(gallery), look(pictures)
            scores[f"nearest {witness}, {name}"] = by_distance(here, there, questions)
    text = table({name: right.mean(axis=0) for name, right in scores.items()}, concepts(clip))
    print(text)
    page = CARD.read_text()
    head, tail = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    CARD.write_text(f"{head}\n{text}\n{tail}")


if __name__ == "__main__":
    main()
