"""A working folder for the small world, and the same with pack, tokenizer and pool."""

from __future__ import annotations

import gzip

import pytest
from PIL import Image, ImageDraw
from small_world import MERGES, TINY, WORDS

from data.recipes.networks import pool, tokenizer, training
from data.recipes.world import collect, lexicon, pack


@pytest.fixture
def studio(tmp_path, monkeypatch):
    """A working folder with a drawn world of twenty things, ten sides each, and a few merges."""
    cuts, found = tmp_path / "cuts", []
    cuts.mkdir()
    for number, noun in enumerate(lexicon.nouns()[::40][:20]):
        files = []
        for side in range(10):
            picture = Image.new("RGBA", (40, 40))
            color = (10 * number, 255 - 12 * number, 20 * side, 255)
            ImageDraw.Draw(picture).ellipse((4, 2 + side, 36, 38), color, "white", 3)
            files.append(cuts / f"{number}-{side}.png")
            picture.save(files[-1])
        words = [noun.word, *WORDS[1:][number : number + 1]]
        found.append((words, {"name": noun.word, "license": "CC0"}, files))
    monkeypatch.setattr(pack, "sources", lambda: [(w, dict(c), f) for w, c, f in found])
    monkeypatch.setattr(pack, "PACK", tmp_path / "pack.npz")
    monkeypatch.setattr(collect, "WORK", tmp_path)
    monkeypatch.setattr(collect, "MERGES", tmp_path / "merges.gz")
    lines = ["#version", *map(" ".join, MERGES)]
    collect.MERGES.write_bytes(gzip.compress("\n".join(lines).encode()))
    monkeypatch.setattr(pool, "CHUNK", 20)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    held_out = pool.held_out  # a few pictures to look at are enough here
    monkeypatch.setattr(pool, "held_out", lambda preset, count: held_out(preset, min(count, 20)))
    return tmp_path


@pytest.fixture
def stocked(studio):
    """The studio with a pack, a tokenizer and a pool for TINY."""
    pack.build()
    folder = TINY.folder / "pool"
    folder.mkdir(parents=True)
    pool.start()
    for number in range(2):
        pool.write_chunk(folder, number, pool.SEED, TINY.size)
    tokenizer.build(TINY)
    return studio
