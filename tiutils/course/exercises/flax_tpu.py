"""The checks of 05_flax_tpu."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tiutils.course.exercises import NOT_YET

CASES = [
    ([0.5], "one step"),
    ([0.1, 0.2], "each step multiplies by one minus its own beta"),
    ([0.0, 0.5, 0.0, 0.25], "where beta is 0 the product stays as it is"),
]
BATCHES = [
    (8, 8, "eight already divides"),
    (9, 8, "nine does not; the next that does is sixteen"),
    (1, 4, "each device needs a sample"),
    (12, 8, "the next multiple of eight"),
    (7, 1, "one device takes any batch"),
]


def check_product_step(function: Callable[[float, float], Any]) -> str:
    """Does a scan with this step give the products of 1 − β? Tried in plain Python, one step after the other."""
    for betas, reason in CASES:
        carried, kept = 1.0, []
        try:
            for beta in betas:
                answer = function(carried, beta)
                if answer is ... or answer is None:
                    return NOT_YET
                carried, one = answer
                kept.append(float(one))
        except TypeError as error:
            return f"not quite: the step must take two numbers and return two: {error}"
        except Exception as error:  # a reader's function may raise anything
            return f"not quite: your function raised {type(error).__name__}: {error}"
        expected = [math.prod(1 - beta for beta in betas[: i + 1]) for i in range(len(betas))]
        if not all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(kept, expected, strict=True)):
            return f"not quite: for betas {betas} it kept {kept}, expected {expected}: {reason}"
    return "right: `jax.lax.scan(product_step, 1.0, betas)` is a cumulative product"


def check_batch_that_divides(function: Callable[[int, int], Any]) -> str:
    """The smallest multiple of the devices from the batch on."""
    for batch, devices, reason in BATCHES:
        try:
            answer = function(batch, devices)
        except Exception as error:  # a reader's function may raise anything
            return f"not quite: your function raised {type(error).__name__}: {error}"
        if answer is ... or answer is None:
            return NOT_YET
        expected = -(-batch // devices) * devices
        if isinstance(answer, bool) or answer != expected:
            return (
                f"not quite: for a batch of {batch} on {devices} devices it gave {answer!r}, "
                f"expected {expected}: {reason}"
            )
    return "right: the module's message offers this very number"
