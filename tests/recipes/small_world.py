"""A world of a few things and a preset of a few weights, with which every stage of the recipes runs in seconds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from data.recipes import make
from data.recipes.networks import presets, thing_pool
from data.recipes.world import compose, lexicon, pack

WORDS = ("thing", "molly", "monica")  # single tokens of the tiny tokenizer, which spells the rest
MERGES = sorted(
    {(w[:n], w[n] if n < len(w) - 1 else w[n] + "</w>") for w in WORDS for n in range(1, len(w))},
    key=lambda pair: len(pair[0]),
)
TINY = replace(
    presets.CPU,
    name="tiny",
    size=32,
    vae_channels=(8, 16),
    unet_channels=(16, 32),
    text_layers=1,
    text_width=64,
    text_side=32,
    vocabulary=514 + len(MERGES),
    pool=40,
    things=8,
    evaluator_width=16,
    **{f"{name}_{what}": n for name in make.TRAININGS for what, n in (("steps", 6), ("batch", 4))},
)


def thing(word: str) -> pack.Thing:
    cut = Image.new("RGBA", (8, 8), (200, 40, 40, 255))
    return pack.Thing((word,), word, [cut], [cut])


def small_stage(held_out: bool = False) -> compose.World:
    """Thirty-eight nouns and two names with one picture each."""
    nouns = [*lexicon.nouns()[::22][:38], *lexicon.names()[::150]]
    by_word = {noun.word: [thing(noun.word)] for noun in nouns}
    return compose.World(by_word, nouns, np.full(len(nouns), 1 / len(nouns)), held_out)


def compose_things() -> None:
    """All of TINY's things, in this process, which alone knows the studio."""
    (TINY.folder / "things").mkdir(exist_ok=True)
    for chunk in range(thing_pool.chunk_count(TINY)):
        thing_pool.compose_chunk(TINY, chunk, thing_pool.draw_chunk(TINY, chunk))
