"""Checks for 02_tokenizer_surgery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tiutils.course.exercises import check_cases


def check_nearest(function: Callable[[Tensor, Tensor, int], Any]) -> str:
    """Which rows have the most similar direction to a vector's? Length does not count."""
    vector, table = torch.tensor([1.0, 1.0]), torch.tensor([[9.0, 0.0], [0.2, 0.2], [-3.0, -3.0]])
    cases = [
        ((vector, table, 1), [1], "row 1 has exactly the same direction, however short it is"),
        ((vector, table, 3), [1, 0, 2], "the nearest first, the opposite one last"),
        ((-5 * vector, table, 2), [2, 0], "a long vector has the same neighbors as a short one"),
        ((vector, table[:1], 1), [0], "a table may have a single row"),
    ]
    praise = "right: by direction alone, the nearest first"
    return check_cases(
        function, cases, praise, lambda answer, rows: list(map(float, answer)) == rows
    )


def check_training_bytes(function: Callable[[int, int], int]) -> str:
    """What Adam needs besides the numbers it trains: a gradient and two moments, in float32."""
    cases = [
        ((1, 1), 12, "one number has a gradient and two moments, four bytes each"),
        ((1, 768), 9_216, "one row of Stable Diffusion 1.5"),
        ((49_408, 768), 455_344_128, "its whole table"),
    ]
    praise = "right: 455 MB for the whole table, 9 kB for one row"
    return check_cases(function, cases, praise)


def check_write_out(function: Callable[[str, str, int], str]) -> str:
    """A word of several vectors stands for several tokens: all are written out wherever it occurs."""
    cases = [
        (("a <toy> in snow", "<toy>", 1), "a <toy> in snow", "one vector, one token"),
        (("a <toy> in snow", "<toy>", 2), "a <toy> <toy>_1 in snow", "the second token is <toy>_1"),
        (("<toy>, <toy>", "<toy>", 3), "<toy> <toy>_1 <toy>_2, <toy> <toy>_1 <toy>_2",
         "wherever the word occurs"),
        (("a dog", "<toy>", 3), "a dog", "without the word, nothing changes"),
    ]  # fmt: skip
    praise = "right: one word to you, several tokens to the model"
    return check_cases(function, cases, praise)
