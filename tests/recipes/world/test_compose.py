"""Scenes and their captions: which side of a thing is shown, where it stands, and which pairs are left out."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from small_world import small_stage

from data.recipes.world import compose, lexicon, pack, places


def test_the_usual_side_of_the_usual_thing_is_shown_most_in_one_pose():
    def colored(*fill: int, size: int = 16) -> Image.Image:
        return Image.new("RGBA", (size, 16), (*fill, 255))

    usual = pack.Thing(("cat",), "usual", [colored(0, 250, 0), colored(250, 0, 0)], [])
    other = pack.Thing(("cat",), "other", [colored(0, 0, 250)], [colored(9, 9, 9)])
    cat = lexicon.Noun("cat", "cats")
    stage = compose.World({"cat": [usual, other]}, [cat], np.ones(1))
    shown = [compose.asked_scene(stage, n, "cat", "in space", 32) for n in range(300)]
    inside = np.stack(shown).astype(int)[:, 8:24, 10:22].mean(axis=(1, 2))
    often = np.bincount(inside.argmax(axis=1), minlength=3) / 300
    share = compose.USUAL + (1 - compose.USUAL) / 2  # of the thing, and of its side
    want = np.array([share * (1 - share), share * share, 1 - share])
    assert np.abs(often - want).max() < 0.08, "green: the front of the first thing"
    solid = [(one == one[16, 16]).all(axis=2) for one in shown]
    assert np.mean([same[12:20, 12:20].mean() for same in solid]) > 0.9, "always in the middle"
    unseen = replace(stage, held_out=True)
    dark = np.stack([compose.asked_scene(unseen, n, "cat", "in the snow", 32) for n in range(99)])
    share_dark = (dark[:, 12:20, 14:18].mean(axis=(1, 2, 3)) < 40).mean()
    assert 0.02 < share_dark < 0.3, "held-out worlds show the held-out side where there is one"


def test_a_toy_shows_any_of_its_sides():
    sides = [Image.new("RGBA", (4 + n, 4)) for n in range(3)]
    toy, other = (pack.Thing(("al",), name, sides, [], 40) for name in ("toy:bear-01", "zero:cat"))
    stage, rng = compose.World({}, [], np.ones(0)), np.random.default_rng(0)
    for thing, often in ((toy, [1 / 3] * 3), (other, [5 / 6, 1 / 12, 1 / 12])):
        drawn = [stage.side(rng, thing) for _ in range(900)]
        assert all(number == 36 + cut.width for cut, number in drawn)
        shown = np.bincount([number - 40 for _, number in drawn]) / 900
        assert np.abs(shown - often).max() < 0.06, thing.name


def test_how_high_a_thing_stands():
    assert compose.foot_of(20, 64, None) == pytest.approx(0.54 * 64 + 10)
    assert compose.foot_of(8, 64, 0.7) == pytest.approx(0.82 * 64), "on the floor, not before it"
    assert compose.foot_of(90, 64, 0.5) == 77, "a close-up has its middle in the picture's"


def test_captions_say_what_was_drawn_and_leave_out_the_pairs_kept_apart():
    stage, templates, found = small_stage(), set(), set()
    for index in range(600):
        scene = compose.scene(stage, 3, index, 16)
        assert scene.picture.shape == (16, 16, 3)
        if not scene.caption:
            continue
        place = next((p for p in places.PLACES if scene.caption.endswith(" " + p)), "")
        rest = scene.caption.removesuffix(place).strip()
        rest = re.sub(r" on an? \w+ background$", "", rest)
        noun = [n.word for n in stage.words if rest.endswith((n.word, n.plural))]
        assert noun, scene.caption
        word = max(noun, key=len)
        assert not place or place != compose.place_never_seen(word), scene.caption
        begin, end = scene.sentence.split("{}")
        assert scene.caption.startswith(begin.removesuffix("a ")) and scene.caption.endswith(end)
        assert (scene.side == -1) == any(f" {c} " in f" {rest} " for c in places.COLORS)
        templates.add(rest.removesuffix(word))
        found.add((word, place))
    assert len(found) > 200, "nouns and places are drawn freely"
    assert {"a photo of a ", "a photo of my ", "a close-up photo of the "} & templates


def test_every_noun_has_a_place_left_to_ask_for():
    known = [*lexicon.nouns(), *lexicon.names()]
    pairs = {noun.word: compose.place_never_seen(noun.word) for noun in known}
    assert set(pairs.values()) == set(places.PLACES), "no place is left out"
    stage = small_stage(held_out=True)
    drawn = [compose.scene(stage, 4, i, 8).caption for i in range(900)]
    kept = [c for c in drawn for n in stage.words if c.endswith(f"{n.word} {pairs[n.word]}")]
    assert kept, "held-out compositions do show them"
