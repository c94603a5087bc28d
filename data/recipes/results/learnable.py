"""Can the model be taught a word? Run `python -m data.recipes.results.learnable` after `results.embeddings`.

Each learned word and the noun it started from are drawn in every place of the world from the same noise. The evaluator
says how many of the learned word's pictures are closer to the concept's held-out photos than to the noun's pictures,
and how many show the place asked for, out of all places. The goals are 80 % and 70 %. Nothing is cherry-picked.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import tiutils
from tiutils import concept, models
from tiutils.evaluation import clip as clip_model

from ..world import places

ROOT = Path(__file__).parents[3]
PLACES = list(places.PLACES)


def nearer(clip: clip_model.ClipScorer, learned, plain, photos) -> float:
    """The share of the learned word's pictures that are more like the photos than like the noun's pictures."""
    closer = clip.clip_i(learned, photos) > clip.clip_i(learned, plain)
    return closer.float().mean().item()


def in_place(clip: clip_model.ClipScorer, pictures) -> float:
    """The share of pictures that the evaluator finds in the place asked for; as many of each place, in order."""
    found = (clip.encode_images(pictures) @ clip.encode_text(PLACES).T).argmax(dim=1)
    asked = torch.arange(len(PLACES)).repeat_interleave(len(pictures) // len(PLACES))
    return (found == asked).float().mean().item()


def measure(
    model: models.Models, clip: clip_model.ClipScorer, name: str, words: Path, seeds: int
) -> tuple:
    """Teach `model` the concept's word from the folder `words`, draw, and judge."""
    about = json.loads((ROOT / "data" / "concepts" / name / "concept.json").read_text())
    tiutils.load_embedding(model, words / f"{name}.safetensors")
    photos = [p.image for p in concept.load(ROOT / "data/concepts" / name / "held_out").photos]
    both = about["placeholder_token"], about["initializer_token"]
    learned, plain = (
        tiutils.generate(
            model, [f"a {word} {place}" for place in PLACES], num_images_per_prompt=seeds
        )
        for word in both
    )
    shares = nearer(clip, learned, plain, photos), in_place(clip, learned), in_place(clip, plain)
    return *both, len(learned), *shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "data" / "tiny-sd")
    parser.add_argument("--words", type=Path, default=ROOT / "data" / "embeddings")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    model, clip = tiutils.load(arguments.model), clip_model.load(arguments.model / "evaluator")
    print(
        "| word | from | pictures | nearer the concept than the noun | in the place asked for | the noun, too |"
    )
    print("|---|---|--:|--:|--:|--:|")
    for name in ("wood-toy", "rocking-horse", "teddy-bear"):
        word, noun, count, near, placed, plain = measure(
            model, clip, name, arguments.words, arguments.seeds
        )
        print(
            f"| `{word}` | {noun} | {count} | {near:.0%} | {placed:.0%} | {plain:.0%} |", flush=True
        )


if __name__ == "__main__":
    main()
