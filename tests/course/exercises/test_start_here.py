"""Every solution passes its check; every check refuses wrong answers and never raises."""

import runpy
from pathlib import Path

import pytest

from tiutils import models, token_embedding
from tiutils.course.exercises import start_here as exercises

SOLUTIONS = Path(__file__).parents[3] / "notebooks" / "solutions" / "start_here.py"


@pytest.fixture(scope="module")
def word(small_model):
    parts = models.load(small_model)
    return parts, token_embedding.add_placeholder(
        parts, "<t>", initializer_token="toy", num_vectors=2
    )


def test_solutions_are_right(word):
    solutions = runpy.run_path(str(SOLUTIONS))
    answer = solutions["learned_numbers"](*word)
    assert exercises.check_learned_numbers(answer, *word).startswith("right")
    assert exercises.check_best_step(solutions["best_step"]).startswith("right")


def test_stubs_are_not_yet(word):
    assert exercises.check_learned_numbers(..., *word).startswith("not yet")
    assert exercises.check_best_step(lambda losses: ...).startswith("not yet")
    assert exercises.check_best_step(lambda losses: None).startswith("not yet")


@pytest.mark.parametrize("answer", [0, 1, 32, 63, 256, 64.0, "64", None, True, [], 10**30])
def test_wrong_numbers_are_refused(word, answer):
    assert exercises.check_learned_numbers(answer, *word).startswith("not quite")


def test_likely_mistakes_are_named(word):
    table = word[0].text_encoder.config.vocab_size * 32
    assert "whole table" in exercises.check_learned_numbers(table, *word)
    assert "bytes" in exercises.check_learned_numbers(256, *word)


@pytest.mark.parametrize(
    "function",
    [
        max,  # the last step
        min,  # the first
        lambda losses: min(losses.values()),  # a loss, not a step
        lambda losses: max(losses, key=losses.get),
        lambda losses: min(losses, key=losses.get),  # the first of a tie as written, not as trained
        lambda losses: 1 / 0,
        lambda: 50,
        50,
    ],
)
def test_wrong_functions_are_refused(function):
    assert exercises.check_best_step(function).startswith("not quite")
