"""Can the model be taught a word? `python -m data.recipes.learnable`, after `python -m data.embeddings.make`.

Each learned word and the noun it started from are drawn in the same places from the same noise. The evaluator says for
how many of the learned word's pictures the concept's held-out photos are nearer than the noun's pictures are, and how
many show the place that was asked for. Aim: 80 % and 70 %. Nothing is picked.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import tiutils
from tiutils import concept, evaluator, models

from . import places

ROOT = Path(__file__).parents[2]
ASKED = ("on the beach", "in the snow", "on grass", "in a room", "on the street", "in the forest")
PLACES = list(places.PLACES)


def shares(clip: evaluator.Evaluator, learned, plain, photos, asked: list[int]) -> tuple:
    """Of the learned word's pictures: the share nearer the photos than the noun, and in the place asked for."""
    nearer = clip.similarities(learned, photos) > clip.similarities(learned, plain)
    found = (clip.see(learned) @ clip.read(PLACES).T).argmax(dim=1)
    return nearer.float().mean().item(), (found == torch.tensor(asked)).float().mean().item()


def measure(model: models.Models, clip: evaluator.Evaluator, name: str, seeds: int) -> tuple:
    """Teach `model` the concept's word from `data/embeddings`, draw, and judge."""
    about = json.loads((ROOT / "data" / "concepts" / name / "concept.json").read_text())
    tiutils.load_embedding(model, ROOT / "data" / "embeddings" / f"{name}.safetensors")
    photos = [p.image for p in concept.load(ROOT / "data/concepts" / name / "held_out").photos]
    words = about["placeholder_token"], about["initializer_token"]
    learned, plain = (
        tiutils.generate(
            model, [f"a {word} {place}" for place in ASKED], num_images_per_prompt=seeds
        )
        for word in words
    )
    asked = [PLACES.index(place) for place in ASKED for _ in range(seeds)]
    return *words, len(learned), *shares(clip, learned, plain, photos, asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "data" / "tiny-sd")
    parser.add_argument("--seeds", type=int, default=4)
    arguments = parser.parse_args()
    model, clip = tiutils.load(arguments.model), evaluator.load(arguments.model / "evaluator")
    print("| word | from | pictures | nearer the concept than the noun | in the place asked for |")
    print("|---|---|--:|--:|--:|")
    for name in ("wood-toy", "rocking-horse", "teddy-bear"):
        word, noun, count, near, placed = measure(model, clip, name, arguments.seeds)
        print(f"| `{word}` | {noun} | {count} | {near:.0%} | {placed:.0%} |", flush=True)


if __name__ == "__main__":
    main()
