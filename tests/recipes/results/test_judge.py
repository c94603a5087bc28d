"""The judge of the evaluator, and its two witnesses."""

from __future__ import annotations

import numpy as np
from small_world import small_stage

from data.recipes.results import judge
from data.recipes.world import compose, lexicon


def test_questions_are_pairs_that_training_never_shows(monkeypatch):
    stage = small_stage(held_out=True)
    monkeypatch.setattr(compose.World, "load", lambda held_out: stage)
    monkeypatch.setattr(judge, "COUNT", 30)
    monkeypatch.setattr(judge, "NOUNS", 10)
    questions = judge.Questions.of()
    known = {noun.word for noun in stage.words}
    assert len(set(questions.nouns)) == 30 and set(questions.nouns) <= known - set(lexicon.toys())
    for noun, place in zip(questions.nouns, questions.places, strict=True):
        assert judge.PLACES[place] == compose.place_never_seen(noun)
    answers = questions.right(np.arange(30), questions.places)
    assert answers.all() and answers.shape == (30, 2)
    assert judge.group(9) == slice(0, 10) and judge.group(10) == slice(10, 20)


def test_a_witness_finds_the_nearest(monkeypatch):
    monkeypatch.setattr(judge, "COUNT", 4)
    monkeypatch.setattr(judge, "NOUNS", 2)
    rng = np.random.default_rng(0)
    gallery = rng.integers(0, 256, (4, 3, 32, 32, 3)).astype(np.uint8)
    questions = judge.Questions(list("abcd"), np.array([2, 0, 1, 1]))
    asked = gallery[np.arange(4), [2, 0, 1, 0]]  # the last shows another place
    asked[1] = gallery[0, 0]  # and the second another noun
    for look in (judge.pixels, judge.colors):
        right = judge.by_distance(look(asked), look(gallery), questions)
        assert right.tolist() == [[True, True], [False, True], [True, True], [True, False]], look
    assert judge.pixels(gallery).shape == (4, 3, 768)
    histogram = judge.colors(gallery)
    np.testing.assert_allclose((histogram**2).sum(-1), 1, rtol=1e-6)
    red = np.full((1, 32, 32, 3), (255, 0, 0), np.uint8)
    assert judge.colors(red)[0].argmax() == 7 * 64
