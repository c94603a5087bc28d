"""The words of the world: its nouns, the names of its toys, and the sentences that captions are made of.

`nouns.tsv` has a row for each noun. `emoji` are labels of emojibase, `models` are `library:file` of Debian's
sweethome3d-furniture (see `collect.LIBRARIES`), and `weight` is how often the noun is drawn. Its traits:

- `core`: a word that concepts start from and that first prompts ask for; the denoiser trains on it more often.
- `single`: plural already, or never shown in twos and threes.
- `varied`: its pictures show all of its things equally often, not mostly the first.
- `unpainted`: never repainted in another color.

`toys.tsv` gives each toy of `toys.py` a name: a word that means one thing, seen from every side, like a learned word.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from tiutils import concept

from . import subjects, tables

HERE = Path(__file__).parent
TRAITS = {"core", "single", "varied", "unpainted"}

TEMPLATES = concept.templates("object")  # the paper's; the composer drops `a` before plurals
PLAIN_TEMPLATES = ("a {}", "{}", "the {}", "a picture of a {}", "an image of a {}")
MANY_TEMPLATES = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "a rendering of {}",
    "a good photo of {}",
)
COUNTS = {2: "two", 3: "three"}


@dataclass(frozen=True)
class Noun:
    """A word and the sources of its pictures."""

    word: str
    plural: str
    weight: float = 1.0
    traits: tuple[str, ...] = ()
    emoji: tuple[str, ...] = ()
    models: tuple[str, ...] = ()

    @property
    def forms(self) -> tuple[str, str]:
        return self.word, self.plural


@functools.cache
def nouns() -> tuple[Noun, ...]:
    """Every noun, in the table's order.

    Raises:
        ValueError: a noun shows something that the model must not see.
    """
    found = tuple(
        Noun(
            row["noun"],
            row["plural"],
            float(row["weight"]),
            *(tables.split(row[column]) for column in ("traits", "emoji", "models")),
        )
        for row in tables.read(HERE / "nouns.tsv")
    )
    shown = {thing for noun in found for thing in noun.models + noun.emoji}
    clash = shown & {*subjects.EXCLUDED_MODELS, *subjects.EXCLUDED_EMOJI}
    if clash:
        raise ValueError(f"nouns.tsv shows what the model must not see: {sorted(clash)}")
    return found


@functools.cache
def toys() -> dict[str, str]:
    """Name to toy, such as `bear-07`."""
    return {row["name"]: row["toy"] for row in tables.read(HERE / "toys.tsv")}


@functools.cache
def names() -> tuple[Noun, ...]:
    """The toys' names: words like nouns, but each of one thing, and unchanged in the plural, as in `two <wood-toy>`."""
    return tuple(Noun(name, name) for name in toys())


def words_with(trait: str) -> frozenset[str]:
    """The nouns that have a trait."""
    return frozenset(noun.word for noun in nouns() if trait in noun.traits)
