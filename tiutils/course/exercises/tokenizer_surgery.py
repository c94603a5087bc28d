"""The checks of 02_tokenizer_surgery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tiutils.course.exercises import check_cases


def check_nearest(function: Callable[[Tensor, Tensor, int], Any]) -> str:
    """Which rows point most nearly where a vector points? Direction counts, length does not."""
    vector, table = torch.tensor([1.0, 1.0]), torch.tensor([[9.0, 0.0], [0.2, 0.2], [-3.0, -3.0]])
    cases = [
        ((vector, table, 1), [1], "row 1 points exactly the same way, however short it is"),
        ((vector, table, 3), [1, 0, 2], "the nearest first, the one that points away last"),
        ((-5 * vector, table, 2), [2, 0], "a long vector has the neighbors of a short one"),
        ((vector, table[:1], 1), [0], "a table may have a single row"),
    ]

    def plain(case: tuple[Tensor, Tensor, int]) -> Any:
        answer = function(*case)
        return answer.tolist() if isinstance(answer, Tensor) else answer

    return check_cases(plain, cases) or "right: by direction alone, the nearest first"


def check_training_bytes(function: Callable[[int, int], int]) -> str:
    """What Adam needs beside the numbers it trains: a gradient and two moments, float32."""
    cases = [
        ((1, 1), 12, "one number has a gradient and two moments, four bytes each"),
        ((1, 768), 9_216, "one row of Stable Diffusion 1.5"),
        ((49_408, 768), 455_344_128, "its whole table"),
    ]
    return check_cases(lambda shape: function(*shape), cases) or (
        "right: 455 MB for the whole table, 9 kB for one row"
    )


def check_write_out(function: Callable[[str, str, int], str]) -> str:
    """A word of several vectors stands for several tokens: each time it occurs, all are written."""
    cases = [
        (("a <toy> in snow", "<toy>", 1), "a <toy> in snow", "one vector, one token"),
        (("a <toy> in snow", "<toy>", 2), "a <toy> <toy>_1 in snow", "the second token is <toy>_1"),
        (("<toy>, <toy>", "<toy>", 3), "<toy> <toy>_1 <toy>_2, <toy> <toy>_1 <toy>_2",
         "each time that the word occurs"),
        (("a dog", "<toy>", 3), "a dog", "without the word, nothing changes"),
    ]  # fmt: skip
    return check_cases(lambda case: function(*case), cases) or (
        "right: one word to you, several tokens to the model"
    )
