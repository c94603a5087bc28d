"""Things without names."""

from __future__ import annotations

import numpy as np
from PIL import Image

from data.recipes.world import odd_things, things


def test_odd_things_are_functions_of_their_number():
    for number in range(12):
        kit, parts = odd_things.build(number)
        again = odd_things.build(number)[1]
        assert kit in odd_things.KITS and len(parts) >= 2
        assert [(p.at, p.size, p.color) for p in parts] == [(p.at, p.size, p.color) for p in again]


def test_a_turned_hue_keeps_the_shape_and_the_grays():
    cut = Image.new("RGBA", (2, 1), (200, 10, 10, 255))
    cut.putpixel((1, 0), (90, 90, 90, 128))
    red, gray = map(tuple, np.asarray(things.rotate_hue(cut, 85))[0].tolist())
    assert red[1] > 190 and red[0] < 20 and gray == (90, 90, 90, 128)
