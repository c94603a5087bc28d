"""Gather all cut-outs in one file, small enough to keep in memory, with the words each may be called by.

One `.npz` without pickles: the cut-outs end to end, a table (offset, height, width, thing, side) and a JSON header with
each thing's words, source, author and license. The last side of every render is kept out of training. Pictures are
WebP, so that the file can travel to a machine without network. The same pictures give the same file, byte for byte.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from . import collect, lexicon, render, toys

PACK = collect.WORK / "pack.npz"
LONGEST = 128  # pixels, the side of the pictures, which things mostly fill
QUALITY = 70  # of WebP
BROADSIDE = 0.3  # relative to the largest side's area: less is a door seen edge-on
MIN_SHADES = 7.0  # standard deviation in levels of 255: less is a model whose materials were lost
MIN_COVER = 0.12  # relative to the crop's area: thinner renders are wires and broken meshes


@dataclass
class Thing:
    """One object: what it may be called, and its sides as RGBA pictures.

    The first side is the one nearest to the front. `first` is its number among the sides of all things.
    """

    words: tuple[str, ...]
    name: str
    sides: list[Image.Image]
    held_out: list[Image.Image]
    first: int = 0


def shrink(path: Path, longest: int) -> np.ndarray | None:
    """One cut-out (height, width, 4) uint8, cropped; None if it is almost empty."""
    picture = np.asarray(Image.open(path).convert("RGBA"))
    cut = render.crop_to_alpha(picture, longest)
    if cut is None or min(cut.size) < 8 or (np.asarray(cut)[..., 3] > 128).mean() < MIN_COVER:
        return None
    return np.asarray(cut)


def telling(cuts: list[np.ndarray]) -> list[bool]:
    """Which sides of one thing show what it is: not those seen edge-on or in a single flat shade."""
    covers, shades = [], []
    for cut in cuts:
        solid = cut[..., 3] > 128
        covers.append(solid.sum() / max(cut.shape) ** 2)
        shades.append(cut[..., :3][solid].mean(axis=1).std())
    return [
        cover >= BROADSIDE * max(covers) and shade >= MIN_SHADES
        for cover, shade in zip(covers, shades, strict=True)
    ]


def encode(cut: np.ndarray) -> np.ndarray:
    """A cut-out as the bytes of a WebP picture."""
    file = io.BytesIO()
    Image.fromarray(cut).save(file, "WEBP", quality=QUALITY, alpha_quality=QUALITY, method=4)
    return np.frombuffer(file.getvalue(), np.uint8)


def decode(stored: np.ndarray, height: int, width: int) -> Image.Image:
    """Decode what `encode` stored, of the size given in the table."""
    picture = Image.open(io.BytesIO(stored.tobytes())).convert("RGBA")
    if picture.size != (width, height):
        raise ValueError(f"a cut-out of {picture.size} where the table says {(width, height)}")
    return picture


def sources() -> list[tuple[list[str], dict, list[Path]]]:
    """(words, card, pictures) of every thing of the world."""
    emoji, models = collect.emoji_files(), collect.catalog()
    found: dict[str, tuple[list[str], dict, list[Path]]] = {}

    def add(key: str, word: str, card: dict, files: list[Path]) -> None:
        words = found.setdefault(key, ([], card, files))[0]
        if word not in words:
            words.append(word)

    def sides(folder: Path) -> list[Path]:
        return sorted(folder.glob("*.png"), key=lambda path: int(path.stem))

    microsoft = {"author": "Microsoft (Fluent Emoji)", "license": "MIT"}
    for noun in lexicon.nouns():
        for label in noun.emoji:
            add(f"emoji:{label}", noun.word, microsoft, [emoji[label]])
        for model in noun.models:
            add(model, noun.word, models[model], sides(render.folder_of(model)))
    for model in render.MANNEQUINS:
        for word, materials in (
            ("statue", render.STATUE_MATERIALS),
            ("figure", render.FIGURE_MATERIALS),
        ):
            for material in materials:
                add(
                    f"{model}@{material}",
                    word,
                    models[model],
                    sides(render.folder_of(model, material)),
                )
    names = {toy: name for name, toy in lexicon.toys().items()}
    own = {"author": "this course", "license": "the repository's"}
    for folder in sorted(toys.TOYS.glob("*-*")):
        for word in (*toys.WORDS[folder.name.split("-")[0]], names[folder.name]):
            add(f"toy:{folder.name}", word, own, sides(folder))
    return [
        (w, {**card, "title": card.get("name", key), "name": key}, f)
        for key, (w, card, f) in found.items()
    ]


def build() -> None:
    """Write the pack, through a temporary file, so that an interruption leaves no incomplete one."""
    stored, table, things, offset = [], [], [], 0
    for words, card, files in sources():
        shrunk = [shrink(file, LONGEST) for file in files]
        cuts = [(side, cut) for side, cut in enumerate(shrunk) if cut is not None]
        if len(cuts) > 1:
            kept = telling([cut for _, cut in cuts])
            cuts = [pair for pair, keep in zip(cuts, kept, strict=True) if keep]
        if not cuts:
            print("nothing usable:", card["name"], flush=True)
            continue
        for side, cut in cuts:
            table.append((offset, cut.shape[0], cut.shape[1], len(things), side))
            stored.append(encode(cut))
            offset += stored[-1].size
        card.pop("path", None)
        things.append({"words": words, **card})
    temporary = PACK.with_suffix(".part.npz")
    np.savez(
        temporary,
        pixels=np.concatenate(stored),
        table=np.array(table),
        things=np.array(json.dumps(things)),
    )
    os.replace(temporary, PACK)
    print(f"{len(things)} things, {len(table)} cut-outs, {offset / 2**20:.0f} MiB", flush=True)


def load() -> list[Thing]:
    """The pack in memory."""
    with np.load(PACK) as data:
        pixels, table, cards = data["pixels"], data["table"], json.loads(str(data["things"]))
    things = [Thing(tuple(card["words"]), card["name"], [], []) for card in cards]
    ends = [*table[1:, 0], pixels.size]
    for (offset, height, width, thing, side), end in zip(table, ends, strict=True):
        picture = decode(pixels[offset:end], height, width)
        kept_out = side == last_side(things[thing].name)
        (things[thing].held_out if kept_out else things[thing].sides).append(picture)
    first = 0
    for thing in things:
        thing.first = first
        first += len(thing.sides)
    return things


def last_side(name: str) -> int:
    """The number of the side that is kept out of training; none for emoji, which have only one."""
    return toys.SIDES - 1 if name.startswith("toy:") else render.SIDES - 1


def credits() -> list[tuple[str, str, str, str]]:
    """(license, library, author, title) of every 3-D model in the pack, once each, in order."""
    with np.load(PACK) as data:
        cards = json.loads(str(data["things"]))
    models = [card for card in cards if "library" in card]
    return sorted({(c["license"], c["library"], c["author"], c["title"]) for c in models})


if __name__ == "__main__":
    build()
