"""`data.recipes.results.learnable`: what a taught word is measured on."""

import numpy as np
import torch
from PIL import Image

from data.recipes.results import learnable


class Scorer:
    """A CLIP whose embeddings say only what a picture's brightness is, and that knows the places in order."""

    def encode_images(self, pictures):
        places = [int(np.asarray(picture)[0, 0]) for picture in pictures]
        return torch.eye(len(learnable.PLACES))[places]

    def encode_text(self, texts):
        assert texts == learnable.PLACES
        return torch.eye(len(texts))


def pictures_of(places):
    return [Image.new("L", (2, 2), place) for place in places]


def test_the_share_in_the_place_asked_for():
    count = len(learnable.PLACES)
    right = [place for place in range(count) for _ in range(2)]
    assert learnable.in_place(Scorer(), pictures_of(right)) == 1.0
    wrong = [*right[2:], 0, 0]
    assert learnable.in_place(Scorer(), pictures_of(wrong)) == 0.0
    half = [place if number % 2 else (place + 1) % count for number, place in enumerate(right)]
    assert learnable.in_place(Scorer(), pictures_of(half)) == 0.5


def test_concepts_and_words_are_where_it_looks():
    for name in ("wood-toy", "rocking-horse", "teddy-bear"):
        assert (learnable.ROOT / "data" / "concepts" / name / "concept.json").is_file()
        assert (learnable.ROOT / "data" / "embeddings" / f"{name}.safetensors").is_file()
