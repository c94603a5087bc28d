"""Blending words: directions along the arc, lengths along the line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tiutils.cli.main import main
from tiutils.errors import InputError
from tiutils.io.blending import blend, slerp
from tiutils.io.embeddings import LearnedEmbedding, read, write

X, Y = np.eye(2, dtype=np.float32)


def word(token, *vectors, **facts):
    return LearnedEmbedding(token, np.array(vectors, np.float32), facts)


def test_by_hand():
    half = np.sqrt(0.5)
    np.testing.assert_allclose(slerp(X, Y, 0.5), [half, half], rtol=1e-6)
    np.testing.assert_allclose(slerp(2 * X, 4 * Y, 0.5), [3 * half, 3 * half], rtol=1e-6)
    np.testing.assert_allclose(slerp(X, Y, 1 / 3), [np.cos(np.pi / 6), 0.5], rtol=1e-6)
    np.testing.assert_array_equal(slerp(X, -X, 0.25), [0.5, 0])  # no arc: along the line
    np.testing.assert_array_equal(slerp(0 * X, Y, 0.25), [0, 0.25])
    assert slerp(X, Y, 0.5).dtype == np.float32


@given(
    arrays(np.float32, (2, 3, 8), elements=st.floats(-10, 10, width=32)),
    st.floats(0, 1),
)
def test_ends_lengths_and_order(pair, share):
    first, second = pair
    np.testing.assert_allclose(slerp(first, second, 0), first, atol=1e-5)
    np.testing.assert_allclose(slerp(first, second, 1), second, atol=1e-5)
    between, back = slerp(first, second, share), slerp(second, first, 1 - share)
    np.testing.assert_allclose(between, back, atol=1e-4)
    lengths = (1 - share) * np.linalg.norm(first, axis=1) + share * np.linalg.norm(second, axis=1)
    assert (np.linalg.norm(between, axis=1) <= lengths + 1e-4).all()


def test_only_the_ratios_of_weights_count_and_the_file_says_them():
    words = [word("<a>", X, base_model="m"), word("<b>", Y, base_model="m")]
    one, two = blend(words, [0.7, 0.3], "<c>"), blend(words, [7, 3], "<c>")
    np.testing.assert_allclose(one.vectors, slerp(X, Y, 0.3)[None], rtol=1e-6)
    np.testing.assert_allclose(one.vectors, two.vectors, rtol=1e-6)
    assert one.token == "<c>"
    assert one.metadata == {"blend": "0.7 <a> + 0.3 <b>", "base_model": "m"}
    alone = blend(words, [1, 0])
    np.testing.assert_allclose(alone.vectors, [X], atol=1e-6)


def test_three_words_and_a_pair_of_encoders():
    three = blend([word("<a>", X), word("<b>", Y), word("<c>", -Y)], [1, 1, 0])
    np.testing.assert_allclose(three.vectors, slerp(X, Y, 0.5)[None], rtol=1e-6)
    pairs = [
        LearnedEmbedding("<a>", X[None], {}, "clip_l", {"clip_g": 2 * X[None]}),
        LearnedEmbedding("<b>", Y[None], {}, "clip_l", {"clip_g": 2 * Y[None]}),
    ]
    mixed = blend(pairs, [1, 1])
    assert mixed.text_encoder == "clip_l"
    np.testing.assert_allclose(mixed.others["clip_g"], 2 * mixed.vectors, rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "weights", "said"),
    [
        ([word("<a>", X)], [1], "two words or more"),
        ([word("<a>", X), word("<b>", Y)], [1], "two words or more"),
        ([word("<a>", X), word("<b>", Y, Y)], [1, 1], "1 × 2, '<b>' has 2 × 2"),
        ([word("<a>", X), word("<b>", [1, 2, 3])], [1, 1], "1 × 2, '<b>' has 1 × 3"),
        ([word("<a>", X), word("<b>", Y)], [1, -1], "weight of '<b>' is -1"),
        ([word("<a>", X), word("<b>", Y)], [np.nan, 1], "weight of '<a>' is nan"),
        ([word("<a>", X), word("<b>", Y)], [np.inf, 1], "weight of '<a>' is inf"),
        ([word("<a>", X), word("<b>", Y)], [0, 0], "all weights are 0"),
    ],
)
def test_what_cannot_be_blended(words, weights, said):
    with pytest.raises(InputError) as error:
        blend(words, weights)
    assert said in str(error.value)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write("a.safetensors", word("<a>", X))
    write("b=1.safetensors", word("<b>", Y))
    made = ["blend", "a.safetensors=3", "b=1.safetensors", "c.safetensors", "--token", "<c>"]
    assert main(made) == 0
    assert capsys.readouterr().out == "c.safetensors\n"
    found = read("c.safetensors")
    assert found.token == "<c>" and found.metadata["blend"] == "0.75 <a> + 0.25 <b>"
    np.testing.assert_allclose(found.vectors, slerp(X, Y, 0.25)[None], rtol=1e-6)
    for arguments, said in (
        (made, "already exists"),
        (["blend", "a.safetensors=x", "b=1.safetensors", "d.pt"], "'x' is not a number"),
        (["blend", "a.safetensors", "d.pt"], "two words or more"),
        (["blend", "a.safetensors", "b=1.safetensors", "d.txt"], "must end in"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert not list(tmp_path.glob("d.*"))
