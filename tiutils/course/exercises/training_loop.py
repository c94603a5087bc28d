"""Checks for 03_training_loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tiutils.course.exercises import check_cases


def check_adam_bytes(function: Callable[[tuple[int, int]], int]) -> str:
    """How much memory do AdamW's moments take? Two float32 numbers for each trained one."""
    cases = [
        (((1, 768),), 6144, "two moments of 768 numbers, four bytes each"),
        (((6, 768),), 36864, "six rows have six times as many numbers"),
        (((49408, 768),), 303562752, "the whole table of Stable Diffusion 1.5: 304 MB"),
    ]
    praise = "right: 6 kB for one row of Stable Diffusion 1.5, 304 MB for its table"
    return check_cases(function, cases, praise)


def check_variance_ratio(function: Callable[[Sequence[float], int], Any]) -> str:
    """Has a loss settled? The variance of the last values divided by that of all."""
    cases = [
        (([1.0, 3.0, 2.0, 2.0], 2), 0.0, "the last two do not vary"),
        (
            ([0.0, 3.0, 2.0, 3.0], 2),
            1 / 6,
            "the variance of 2 and 3 is 1/4; that of all four is 3/2",
        ),
        (([4.0, 1.0, 2.0], 3), 1.0, "the last three are all there are"),
        (([5.0, 5.0, 5.0], 2), 0.0, "where nothing varies, the ratio is 0"),
    ]
    praise = "right: below 0.15 the loss has settled, according to DVAR"
    return check_cases(function, cases, praise, partial(math.isclose, rel_tol=1e-6, abs_tol=1e-9))
