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
from .presets import BUNDLED, PRESETS, Preset

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


def explained(seen: torch.Tensor, rows: torch.Tensor, folds: int = 5) -> float:
    """The share of the rows' variance that a map fitted to the other words explains."""
    order = np.random.default_rng(0).permutation(len(rows))
    left = 0.0
    for part in np.array_split(order, folds):
        rest = np.setdiff1d(order, part)
        here, there, matrix = fit(seen[rest], rows[rest])
        left += ((seen[part] - here) @ matrix + there - rows[part]).square().sum().item()
    return 1 - left / (rows - rows.mean(0)).square().sum().item()


class MadeWords:
    """A row for each side of each thing, and hidden states of sentences that are said with such rows."""

    def __init__(self, preset: Preset):
        self.things, pair = pack.load(), train_text.load_pair(preset)
        self.encoder, seen = pair.text, look(preset, pair, self.things)
        own = self._own_rows(tokenizer.load(preset).get_vocab())
        sides: dict[str, list[int]] = {}
        for thing in self.things:
            for word in own.keys() & set(thing.words):
                sides.setdefault(word, []).extend(
                    range(thing.first, thing.first + len(thing.sides))
                )
        self.seen = torch.stack([seen[numbers].mean(0) for numbers in sides.values()])
        self.rows = torch.stack([own[word] for word in sides])
        self.length = self.rows.norm(dim=1).median()
        here, there, matrix = fit(self.seen, self.rows)
        self.made = self._full_length((seen - here) @ matrix + there)
        self.thing_of = np.repeat(range(len(self.things)), [len(t.sides) for t in self.things])
        self.own = [[own[word] for word in thing.words if word in own] for thing in self.things]

    def _own_rows(self, vocabulary: dict[str, int]) -> dict[str, torch.Tensor]:
        """The trained rows of nouns and names that are single tokens."""
        table = self.encoder.get_input_embeddings().weight
        words = [noun.word for noun in (*world.nouns(), *world.names())]
        numbers = {word: vocabulary.get(word + "</w>") for word in words}
        return {word: table[n] for word, n in numbers.items() if n is not None}

    def _full_length(self, rows: torch.Tensor) -> torch.Tensor:
        return F.normalize(rows, dim=-1) * self.length

    def row(self, rng: np.random.Generator, side: int) -> torch.Tensor:
        """A row (width,) for the thing on this side."""
        number = self.thing_of[side]
        thing, own = self.things[number], self.own[number]
        if rng.random() < OTHER_SIDE:
            side = thing.first + int(rng.integers(len(thing.sides)))
        row = self.made[side]
        if own and rng.random() < MIXED:
            row = torch.lerp(row, own[int(rng.integers(len(own)))], 0.5 * rng.random())
        noise = rng.standard_normal(len(row), np.float32) / len(row) ** 0.5
        noise = torch.from_numpy(noise).to(row.device)
        return self._full_length(row) + NOISE * self.length * noise

    @torch.no_grad()
    def say(self, ids: torch.Tensor, stand_in: int, rows: torch.Tensor) -> torch.Tensor:
        """Hidden states (batch, length, width) of ids (batch, length), with `rows` (batch, width) for the stand-in."""

        def exchange(module: nn.Module, arguments: tuple, embedded: torch.Tensor) -> torch.Tensor:
            return torch.where((ids == stand_in)[..., None], rows[:, None], embedded)

        hook = self.encoder.get_input_embeddings().register_forward_hook(exchange)
        try:
            with training.autocast():
                return self.encoder(ids).last_hidden_state.float()
        finally:
            hook.remove()


class Sentences:
    """The pool's sentences, ready to be said with made words."""

    def __init__(self, preset: Preset, count: int):
        """Of the first `count` pictures of the pool."""
        self.words = MadeWords(preset)
        self.sides = np.array(pool.words(preset, count, "side"))
        sentences = [s.format(STAND_IN) for s in pool.words(preset, count, "sentence")]
        ids = train_text.token_ids(preset, sentences, train_text.LENGTH)
        self.ids = F.pad(ids, (0, 77 - ids.shape[1]), value=preset.vocabulary - 1)
        self.stand_in = tokenizer.load(preset).get_vocab()[STAND_IN + "</w>"]

    def take(self, rng: np.random.Generator, pictures: np.ndarray) -> torch.Tensor:
        """Hidden states (batch, 77, width) for these pictures; each must show a side that has a number."""
        ids = self.ids[torch.from_numpy(pictures)].to(training.device())
        rows = torch.stack([self.words.row(rng, side) for side in self.sides[pictures]])
        return self.words.say(ids, self.stand_in, rows)


if __name__ == "__main__":
    words = MadeWords(PRESETS[BUNDLED])
    share = explained(words.seen, words.rows)
    print(f"of the rows of {len(words.rows)} words {share:.0%} is explained by what they show")
