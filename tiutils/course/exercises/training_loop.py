"""The checks of 03_training_loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tiutils.course.exercises import NOT_YET, check_cases
from tiutils.runs import early_stopping


def check_adam_bytes(function: Callable[[tuple[int, int]], int]) -> str:
    """How much memory do AdamW's moments take? Two float32 numbers for each trained one."""
    cases = [
        ((1, 768), 6144, "two moments of 768 numbers, four bytes each"),
        ((6, 768), 36864, "six rows have six times as many numbers"),
        ((49408, 768), 303562752, "the whole table of Stable Diffusion 1.5: 304 MB"),
    ]
    return check_cases(function, cases) or (
        "right: 6 kB for one row of Stable Diffusion 1.5, 304 MB for its table"
    )


def check_variance_ratio(function: Callable[[Sequence[float], int], Any]) -> str:
    """Has a loss come to rest? The variance of the last ones over that of all."""
    cases = [
        ([1.0, 3.0, 2.0, 2.0], 2, "the last two do not vary"),
        ([0.0, 3.0, 2.0, 3.0], 2, "the variance of 2 and 3 is 1/4; that of all four is 3/2"),
        ([4.0, 1.0, 2.0], 3, "the last three are all there are"),
        ([5.0, 5.0, 5.0], 2, "where nothing varies the ratio shall be 0"),
    ]
    for losses, window, reason in cases:
        try:
            answer = function(list(losses), window)
            if answer is ... or answer is None:
                return NOT_YET
            right = math.isclose(
                answer, early_stopping.variance_ratio(losses, window), rel_tol=1e-6, abs_tol=1e-9
            )
        except Exception as error:  # a reader's function may raise anything
            return f"not quite: your function raised {type(error).__name__}: {error}"
        if not right:
            expected = early_stopping.variance_ratio(losses, window)
            return f"not quite: for {losses} and window {window} it gave {answer!r}, expected {expected:.4g}: {reason}"
    return "right: below 0.15 the loss has come to rest, says DVAR"
