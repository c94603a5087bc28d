"""Compose a picture and its caption from the same draw: template, color, noun, count, place.

`scene(world, seed, index)` is a pure function, so that pools, tests and resumed runs agree without stored state.

The world is orderly. Each thing is shown in its usual pose: upright, near the middle, always about the same size, and
mostly from the same side. The caption then almost determines the picture, and a denoiser soon learns what a thing looks
like. If things were anywhere, turned and mirrored, the mean of their pictures would be a blob, and a small denoiser
would hardly get beyond it.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from . import lexicon, pack, places

EMPTY_CAPTIONS = 0.10
COUNT_ODDS = (0.86, 0.09, 0.05)  # one, two, three
RECOLORED = 0.2
LOOSE = 0.06  # how much larger or smaller a thing may be, and how far from its usual position, relative to its size
USUAL = 0.75  # share of a noun's pictures that show its first thing, and of those, one side of it
VARIED = lexicon.words_with("varied")
SINGLE = lexicon.words_with("single")
UNPAINTED = lexicon.words_with("unpainted") | set(lexicon.toys())


@dataclass
class World:
    """All things, by word, with how often each word is drawn."""

    by_word: dict[str, list[pack.Thing]]
    words: list[lexicon.Noun]
    odds: np.ndarray
    held_out: bool = False

    @classmethod
    def load(cls, held_out: bool = False) -> World:
        """The things in the pack; with `held_out`, only the sides that training never sees, where a thing has one."""
        by_word: dict[str, list[pack.Thing]] = {}
        for thing in pack.load():
            if thing.sides or (held_out and thing.held_out):
                for word in thing.words:
                    by_word.setdefault(word, []).append(thing)
        words = [noun for noun in (*lexicon.nouns(), *lexicon.names()) if noun.word in by_word]
        odds = np.array([noun.weight for noun in words])
        return cls(by_word, words, odds / odds.sum(), held_out)

    def draw(self, rng: np.random.Generator, word: str) -> pack.Thing:
        """One of the things called `word`: mostly the first, unless the word's pictures are meant to vary."""
        group = self.by_word[word]
        if word not in VARIED and rng.random() < USUAL:
            return group[0]
        return group[rng.integers(len(group))]

    def side(self, rng: np.random.Generator, thing: pack.Thing) -> tuple[Image.Image, int]:
        """One of its sides, mostly the front, but any for a toy; and the side's number among all, -1 if held out."""
        if self.held_out and thing.held_out:
            return thing.held_out[rng.integers(len(thing.held_out))], -1
        number = 0
        if thing.name.startswith("toy:") or rng.random() >= USUAL:
            number = rng.integers(len(thing.sides))
        return thing.sides[number], thing.first + int(number)

    def without(self, word: str) -> str:
        """The place in which training must not show this noun."""
        return "" if self.held_out else place_never_seen(word)


def place_never_seen(word: str) -> str:
    """Each noun has one place in which training never shows it: 1 of 18 pairs is left to ask for."""
    return list(places.PLACES)[zlib.crc32(word.encode()) % len(places.PLACES)]


def recolor(cut: Image.Image, rng: np.random.Generator, name: str) -> Image.Image:
    """Repaint a cut-out in one color, keeping its light and shade."""
    array = np.asarray(cut).astype(np.float32) / 255
    light = array[..., :3] @ np.array([0.3, 0.59, 0.11], np.float32)
    mean = (light * array[..., 3]).sum() / array[..., 3].sum()
    light = np.clip(0.72 + (light - mean) * 1.1, 0.15, 1.4)[..., None]
    base = places.plain_color(rng, name)
    painted = np.minimum(light, 1) * base * 1.12 + np.clip(light - 0.95, 0, 1) * 0.7
    array[..., :3] = np.clip(0.9 * painted + 0.1 * array[..., :3], 0, 1)
    return Image.fromarray((array * 255).astype(np.uint8))


def scale(cut: Image.Image, size: float, limit: float) -> Image.Image:
    """Resize to about `size` pixels. Long thin things may be longer, up to `limit`, so as not to become slivers."""
    slim = max(cut.size) / min(cut.size)
    factor = min(size * slim**0.35, max(size, limit)) / max(cut.size)
    return cut.resize([max(2, round(side * factor)) for side in cut.size], Image.LANCZOS)


def paste(
    canvas: Image.Image,
    cut: Image.Image,
    center: float,
    bottom: float,
    shadow: float,
    behind: float = 0.62,
) -> None:
    """Put a cut-out on the canvas, its foot at `bottom` (pixels), with a soft shadow on the ground.

    `behind` is the part of the shadow behind the foot, hidden where the thing is thick.
    """
    left, top = round(center - cut.width / 2), round(bottom - cut.height)
    if shadow > 0:
        lying = cut.getchannel("A").resize(
            (round(cut.width * 1.08), max(2, round(cut.height * 0.16)))
        )
        margin = max(2, canvas.width // 24)
        soft = Image.new("L", (lying.width + 2 * margin, lying.height + 2 * margin))
        soft.paste(lying, (margin, margin))
        soft = soft.filter(ImageFilter.GaussianBlur(margin / 2)).point(
            lambda level: int(level * shadow)
        )
        dark = Image.new("RGB", soft.size, (12, 12, 18))
        at = (
            left - margin + round(cut.width * 0.03),
            round(bottom - behind * lying.height) - margin,
        )
        canvas.paste(dark, at, soft)
    canvas.paste(cut, (left, top), cut)


def backdrop(
    rng: np.random.Generator, n: int, without: str = ""
) -> tuple[str, np.ndarray, float | None]:
    """Place words (maybe none), the empty place, and its floor; never the place `without`."""
    kind = rng.random()
    names = [name for name in places.PLACES if name != without]
    if kind < 0.62:
        name = names[rng.integers(len(names))]
    elif kind < 0.86:
        color = list(places.COLORS)[rng.integers(len(places.COLORS))]
        name = f"on {article(color)} {color} background"
    else:  # two colors running into each other: no words for it
        y, x = places.grid(n)
        mix = np.clip((x - 0.5) * rng.uniform(-1, 1) + (y - 0.5) * rng.uniform(-1, 1) + 0.5, 0, 1)
        return "", places.blend(mix, rng.uniform(0.1, 1, 3), rng.uniform(0.1, 1, 3)), 0.6
    picture, floor = places.place(rng, n, name)
    return ("" if rng.random() < 0.22 else name), picture, floor


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" and not word.startswith("u") else "a"


def wording(rng: np.random.Generator, count: int, place: str) -> tuple[str, str]:
    """A sentence with `{}` where its thing will be named, and the template it came from."""
    if count > 1:
        template = lexicon.MANY_TEMPLATES[rng.integers(len(lexicon.MANY_TEMPLATES))]
        words = template.format(f"{lexicon.COUNTS[count]} {{}}")
    else:
        pool = lexicon.TEMPLATES if rng.random() < 0.65 else lexicon.PLAIN_TEMPLATES
        words = template = pool[rng.integers(len(pool))]
    return f"{words} {place}".strip(), template


def name_thing(sentence: str, noun: lexicon.Noun, color: str, count: int) -> str:
    """The sentence about this thing."""
    phrase = f"{color} {noun.plural if count > 1 else noun.word}".strip()
    return re.sub(r"\ba (?=[aeio])", "an ", sentence.format(phrase))


def size_of(template: str, count: int) -> float:
    """The thing's longest side as a fraction of the frame, which words such as `small` and `close-up` change."""
    if count > 1:
        return 0.47 if count == 2 else 0.33
    if "close-up" in template or "cropped" in template:
        return 1.05
    return 0.45 if "small" in template else 0.92 if "large" in template else 0.8


def foot_of(height: int, n: int, floor: float | None) -> float:
    """Where a thing of this height stands (pixels): its middle a little below the picture's, but on the floor."""
    foot = 0.54 * n + height / 2
    return min(max(foot, (floor + 0.12) * n) if floor else foot, max(0.96 * n, height / 2 + n / 2))


def finish(rng: np.random.Generator, canvas: Image.Image, template: str) -> np.ndarray:
    """The light or dirt that the template mentions, otherwise a little variation: (n, n, 3) uint8."""
    array = np.asarray(canvas).astype(np.float32) / 255
    gain = rng.uniform(0.9, 1.08)
    if "dark" in template:
        gain = rng.uniform(0.42, 0.6)
    elif "bright" in template:
        gain = rng.uniform(1.18, 1.4)
    if "dirty" in template:
        stains = np.clip(places.rough(rng, array.shape[0], 6) - 0.52, 0, 0.2) * 2.5
        array = places.blend(stains, np.array([0.28, 0.2, 0.12], np.float32), array)
    return (np.clip(array * gain, 0, 1) * 255).astype(np.uint8)


def stand(
    things: World,
    rng: np.random.Generator,
    picture: np.ndarray,
    floor: float | None,
    thing: pack.Thing,
    count: int,
    color: str,
    template: str,
) -> tuple[np.ndarray, int]:
    """The empty place `picture` with `count` of the thing in it: (n, n, 3) uint8; and the number of the last's side."""
    canvas, n = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8)), len(picture)
    size = size_of(template, count) * rng.uniform(1 - LOOSE, 1 + LOOSE)
    painter = int(rng.integers(2**31))
    for number in range(count):
        cut, side = things.side(rng, thing)
        if color:
            cut = recolor(cut, np.random.default_rng(painter), color)
        cut = scale(cut, size * n, 0.92 * n / max(1, 0.75 * count))
        center = (number + 0.5) / count + rng.uniform(-LOOSE, LOOSE) / (2 * count)
        paste(canvas, cut, center * n, foot_of(cut.height, n, floor), 0.55 if floor else 0)
    return finish(rng, canvas, template), side


@dataclass(frozen=True)
class Scene:
    """A picture (n, n, 3) uint8 and what can be said of it.

    `sentence` is the caption with `{}` for its thing; `side` is the number of the side shown, -1 if that is repainted
    or kept out of training.
    """

    picture: np.ndarray
    caption: str
    sentence: str
    side: int


def scene(things: World, seed: int, index: int, n: int) -> Scene:
    """Picture `index` of the world with this seed, n pixels a side."""
    rng = np.random.default_rng([seed, index])
    noun = things.words[rng.choice(len(things.words), p=things.odds)]
    thing = things.draw(rng, noun.word)
    count = 1 if noun.word in SINGLE else 1 + rng.choice(3, p=COUNT_ODDS)
    color = ""
    if noun.word not in UNPAINTED and rng.random() < RECOLORED:
        color = list(places.COLORS)[rng.integers(len(places.COLORS))]
    place, picture, floor = backdrop(rng, n, things.without(noun.word))
    sentence, template = wording(rng, count, place)
    shown, side = stand(things, rng, picture, floor, thing, count, color, template)
    caption = name_thing(sentence, noun, color, count)
    caption = "" if rng.random() < EMPTY_CAPTIONS else caption
    return Scene(shown, caption, sentence, -1 if color else side)


def asked_scene(things: World, seed: int, word: str, place: str, n: int) -> np.ndarray:
    """One thing called `word` in `place`, in its own colors: (n, n, 3) uint8, the same for the same seed."""
    rng = np.random.default_rng([seed, zlib.crc32(f"{word} {place}".encode())])
    picture, floor = places.place(rng, n, place)
    return stand(things, rng, picture, floor, things.draw(rng, word), 1, "", "a photo of a {}")[0]
