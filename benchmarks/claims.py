"""Do the pictures that a notebook stores show what its sentences say? The witness and the evaluator look.

A code cell of a notebook may carry claims in its metadata, under `shows`: which pictures, a Python expression over the
notebook's own names; the thing that they show, if the witness knows it; and the place, if one is asked for.
`notebooks/store.py` asks after each such cell, and stores nothing if a claim does not hold:

    "shows": [{"pictures": "drawn[BEAR][:3]", "thing": "teddy-bear"},
              {"pictures": "drawn[BEAR][1:2]", "place": "in the snow"}]
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from PIL import Image

from benchmarks import identity, witness
from data.recipes.world.places import PLACES

SHARE = 0.5  # of the pictures that must show what is claimed, at least


judges = functools.cache(identity.Judges.call)  # called once, with the bundled model's evaluator


def check(
    pictures: Sequence[Image.Image], thing: str | None = None, place: str | None = None
) -> str:
    """Say in which share of the pictures the thing is among the first five of 60, and the place the first of 18.

    Raises:
        AssertionError: less than half of the pictures show the thing, or the place.
        ValueError: nothing is claimed, of no picture, or of a thing or place that nobody knows.
    """
    if not pictures or (thing is None and place is None):
        raise ValueError("a claim names pictures, and a thing or a place")
    found = {}
    if thing is not None:
        if thing not in witness.taught():
            raise ValueError(
                f"the witness was shown no {thing!r}; it knows {', '.join(witness.taught())}"
            )
        found[thing] = judges().identity(pictures, thing)["among_five"]
    if place is not None:
        if place not in PLACES:
            raise ValueError(f"no place is called {place!r}; there are {', '.join(PLACES)}")
        found[place] = float((identity.places_of(judges().clip, pictures) == place).mean())
    said = ", ".join(f"{name} in {share:.2f}" for name, share in found.items())
    assert min(found.values()) >= SHARE, f"of {len(pictures)} pictures, too few show it: {said}"
    return f"{len(pictures)} pictures: {said}"
