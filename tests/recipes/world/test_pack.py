"""The pack: one file with all cut-outs."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from data.recipes.world import pack


def test_the_pack_is_the_same_file_each_time_and_holds_the_cut_outs(studio):
    pack.build()
    first = pack.PACK.read_bytes()
    pack.build()
    assert pack.PACK.read_bytes() == first
    things = pack.load()
    assert [len(thing.sides) for thing in things] == [9] * 20
    assert [len(thing.held_out) for thing in things] == [1] * 20
    wanted = pack.shrink(studio / "cuts" / "3-4.png", pack.LONGEST)
    got = np.asarray(things[3].sides[4])
    assert got.shape == wanted.shape
    solid = wanted[..., 3] == 255
    error = np.abs(got[solid].astype(float) - wanted[solid]).mean()
    assert error <= 12, "WebP loses a little"
    assert ((got[..., 3] > 128) == (wanted[..., 3] > 128)).mean() > 0.98


@hypothesis.given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_a_cut_out_comes_back_in_its_size(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    stored = pack.encode(pixels)
    assert pack.decode(stored, height, width).size == (width, height)
    with pytest.raises(ValueError, match="where the table says"):
        pack.decode(stored, height + 1, width)
