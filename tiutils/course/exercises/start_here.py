"""Checks for 00_start_here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tiutils.course.exercises import check_cases, check_integer
from tiutils.models import Models
from tiutils.tokenizer import Placeholder


def check_learned_numbers(answer: Any, models: Models, placeholder: Placeholder) -> str:
    """How many numbers did the training change? One row of the table for each vector."""
    table = models.text_encoder.config.vocab_size * models.hidden_size
    expected = placeholder.num_vectors * models.hidden_size
    if complaint := check_integer(answer):
        return complaint
    if answer == table:
        return "not quite: that is the whole table; only the rows of the new word are learned"
    if answer == 4 * expected:
        return "not quite: that is their size in bytes; a float32 number takes four"
    if answer != expected:
        return "not quite: rows of the new word × numbers in one row; look at the shape above"
    return f"right: {expected} numbers, of {table} in the table alone"


def check_best_step(function: Callable[[Mapping[int, float]], int]) -> str:
    """Which step's rows should be kept? Those with the lowest loss, the earlier ones in a tie."""
    cases = [
        (({0: 0.5, 50: 0.3, 100: 0.4},), 50, "the last step is not always the best"),
        (({0: 0.5, 50: 0.4, 100: 0.3},), 100, "the last step may be the best"),
        (({0: 0.1, 50: 0.2},), 0, "if training only did harm, keep step 0"),
        (({100: 0.3, 0: 0.5, 50: 0.3},), 50, "of two equally good steps, keep the earlier one"),
    ]
    praise = "right: steps and losses are different things, and you chose by the loss"
    return check_cases(function, cases, praise)
