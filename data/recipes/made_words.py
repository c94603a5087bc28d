"""Words for pictures: rows of the embedding table that nobody trained, computed from how a thing looks.

The text encoder was trained beside a small picture net, so that a word and what it shows lie near each other; a linear
map from what that net sees of a thing to the thing's row explains nearly half of rows that it was not fitted to. In the
denoiser's last training such rows stand in place of nouns in some of the captions. Thereby what lies *between* the
words it knows means something, too, and that is where Textual Inversion looks for a new one.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from . import compose, pack, pool, tokenizer, train_text, training, world
from .presets import Preset

STAND_IN = "thing"  # whose row is exchanged; no noun of the world
RIDGE = 0.1
OTHER_SIDE = 0.4  # of the rows are computed from another side of the same thing
MIXED = 0.5  # of the rows lie between this and a row of the thing's own words, up to half way
NOISE = 0.2  # of a row's length


def on_grey(cut: Image.Image, size: int) -> np.ndarray:
    """A cut-out alone, posed as in the world: (size, size, 3) uint8."""
    cut = compose.scale(cut, 0.8 * size, 0.92 * size)
    canvas = Image.new("RGB", (size, size), (150, 150, 150))
    compose.paste(canvas, cut, size / 2, compose.foot_of(cut.height, size, None), 0)
    return np.asarray(canvas)


@torch.no_grad()
def look(preset: Preset, pair: train_text.Pair, things: list[pack.Thing]) -> torch.Tensor:
    """What the picture net sees of each side, in order: unit vectors (sides, width)."""
    cuts = [side for thing in things for side in thing.sides]
    seen = []
    for start in range(0, len(cuts), 256):
        pictures = np.stack([on_grey(cut, preset.size) for cut in cuts[start : start + 256]])
        seen.append(F.normalize(pair.tower(train_text.shrink(pictures, preset.text_side)), dim=-1))
    return torch.cat(seen)


def fit(seen: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ridge regression of rows (words, width) on what is seen (words, width): two means and the matrix between."""
    here, there = seen.mean(0), rows.mean(0)
    x, y = seen - here, rows - there
    square = x.T @ x + RIDGE * torch.eye(x.shape[1], device=x.device)
    return here, there, torch.linalg.solve(square, x.T @ y)


class MadeWords:
    """Hidden states of the pool's sentences, said with made rows."""

    def __init__(self, preset: Preset, count: int):
        """For the first `count` pictures of the pool."""
        self.preset, things = preset, pack.load()
        pair = train_text.load_pair(preset)
        self.encoder, seen = pair.text, look(preset, pair, things)
        vocabulary = tokenizer.load(preset).get_vocab()
        rows = self.encoder.get_input_embeddings().weight
        words = [n.word for n in (*world.nouns(), *world.names()) if n.word + "</w>" in vocabulary]
        own = {word: rows[vocabulary[word + "</w>"]] for word in words}
        sides_of: dict[str, list[int]] = {}
        for thing in things:
            for word in thing.words:
                numbers = range(thing.first, thing.first + len(thing.sides))
                sides_of.setdefault(word, []).extend(numbers)
        known = [word for word in words if sides_of.get(word)]
        means = torch.stack([seen[sides_of[word]].mean(0) for word in known])
        self.here, self.there, self.matrix = fit(means, torch.stack([own[w] for w in known]))
        self.length = torch.stack([own[word] for word in known]).norm(dim=1).median()
        self.made = self._full_length((seen - self.here) @ self.matrix + self.there)
        spoken = {
            thing.first + n: [own[w] for w in thing.words if w in own]
            for thing in things
            for n in range(len(thing.sides))
        }
        self.spoken = [torch.stack(spoken[n]) if spoken[n] else None for n in range(len(seen))]
        self.block = {
            thing.first + n: (thing.first, len(thing.sides))
            for thing in things
            for n in range(len(thing.sides))
        }
        self.sides = np.array(pool.words(preset, count, "side"))
        sentences = [s.format(STAND_IN) for s in pool.words(preset, count, "sentence")]
        ids = train_text.token_ids(preset, sentences, train_text.LENGTH)
        self.ids = F.pad(ids, (0, 77 - ids.shape[1]), value=preset.vocabulary - 1)
        self.stand_in = vocabulary[STAND_IN + "</w>"]

    def _full_length(self, rows: torch.Tensor) -> torch.Tensor:
        return F.normalize(rows, dim=-1) * self.length

    def row(self, rng: np.random.Generator, side: int) -> torch.Tensor:
        """A row (width,) for the thing on this side."""
        first, count = self.block[side]
        if rng.random() < OTHER_SIDE:
            side = first + int(rng.integers(count))
        row = self.made[side]
        if self.spoken[side] is not None and rng.random() < MIXED:
            words = self.spoken[side]
            row = torch.lerp(row, words[int(rng.integers(len(words)))], 0.5 * rng.random())
        noise = rng.standard_normal(len(row), np.float32) / len(row) ** 0.5
        noise = torch.from_numpy(noise).to(row.device)
        return self._full_length(row) + NOISE * self.length * noise

    @torch.no_grad()
    def take(self, rng: np.random.Generator, pictures: np.ndarray) -> torch.Tensor:
        """Hidden states (batch, 77, width) of these pictures' sentences; each must show a side that has a number."""
        ids = self.ids[torch.from_numpy(pictures)].to(training.device())
        rows = torch.stack([self.row(rng, side) for side in self.sides[pictures]])

        def exchange(module: nn.Module, arguments: tuple, embedded: torch.Tensor) -> torch.Tensor:
            return torch.where((ids == self.stand_in)[..., None], rows[:, None], embedded)

        hook = self.encoder.get_input_embeddings().register_forward_hook(exchange)
        try:
            with training.autocast():
                return self.encoder(ids).last_hidden_state.float()
        finally:
            hook.remove()
