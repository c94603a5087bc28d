"""Checks for 06_flax_tpu."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tiutils.course.exercises import check_cases


def check_product_step(function: Callable[[float, float], Any]) -> str:
    """Does a scan with this step give the products of 1 − β? Tried in plain Python, step by step."""

    def scan(betas: list[float]) -> list[float] | None:
        product, kept = 1.0, []
        for beta in betas:
            answer = function(product, beta)
            if answer is ... or answer is None:
                return None
            product, output = answer
            kept.append(float(output))
        return kept

    cases = [
        (([0.5],), [0.5], "one step"),
        (([0.1, 0.2],), [0.9, 0.72], "each step multiplies by one minus its own beta"),
        (([0.0, 0.5, 0.0, 0.25],), [1, 0.5, 0.5, 0.375], "a beta of 0 leaves the product unchanged"),
    ]  # fmt: skip
    praise = "right: `jax.lax.scan(product_step, 1.0, betas)` is a cumulative product"
    return check_cases(scan, cases, praise, np.allclose)


def check_batch_that_divides(function: Callable[[int, int], Any]) -> str:
    """The smallest multiple of the number of devices that is not below the batch size."""
    cases = [
        ((8, 8), 8, "eight is already a multiple of eight"),
        ((9, 8), 16, "nine is not; the next multiple is sixteen"),
        ((1, 4), 4, "each device needs a sample"),
        ((12, 8), 16, "the next multiple of eight"),
        ((7, 1), 7, "one device accepts any batch size"),
    ]
    praise = "right: the module's error message suggests this number"
    return check_cases(function, cases, praise)
