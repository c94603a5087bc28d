"""The checks of 04_inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tiutils.course.exercises import NOT_YET, check_cases


def check_unet_passes(function: Callable[[int, float], int]) -> str:
    """How many samples does the U-Net work on for one picture?"""
    cases = [
        ((25, 7.5), 50, "under guidance each step asks twice, with the prompt and without"),
        ((25, 1.0), 25, "a scale of 1 is the answer to the prompt itself: one is enough"),
        ((4, 0.0), 4, "the pipeline asks a second time only for scales above 1"),
        ((1, 1.5), 2, "any scale above 1 needs both answers"),
    ]
    return check_cases(lambda case: function(*case), cases) or (
        "right: guidance doubles the work, and that is why distilled models do without"
    )


def check_heat_of(function: Callable[[Tensor, int], Tensor]) -> str:
    """The map of one token from a layer's shares."""
    shares = torch.rand(2, 12**2, 5, generator=torch.Generator().manual_seed(0))
    shares = shares / shares.sum(dim=-1, keepdim=True)
    for position in (0, 3):
        expected = shares.mean(dim=0)[:, position].reshape(12, 12)
        answer, complaint = _tensor(function, shares.clone(), position)
        if answer is None:
            return complaint
        if answer.shape != expected.shape:
            return (
                f"not quite: shares of {tuple(shares.shape)} gave {tuple(answer.shape)}, expected "
                f"(12, 12): one number for each place, in rows"
            )
        if torch.allclose(answer, expected.T):
            return "not quite: rows and columns are exchanged; places are numbered row by row"
        if torch.allclose(answer, 2 * expected):
            return "not quite: that is the sum over the heads; take their mean"
        if not torch.allclose(answer, expected):
            return "not quite: take the mean over the heads, of the token's own column"
    return "right: heads averaged, one column, laid out as a square"


def check_weaken(function: Callable[[Tensor, Tensor, float], Tensor]) -> str:
    """A row between the initializer's and the learned one."""
    learned, start = torch.tensor([[4.0, 0.0, -2.0]]), torch.tensor([[2.0, 1.0, 0.0]])
    cases = [
        (1.0, [[4.0, 0.0, -2.0]], "strength 1 is the learned row"),
        (0.0, [[2.0, 1.0, 0.0]], "strength 0 is the initializer's row"),
        (0.25, [[2.5, 0.75, -0.5]], "a quarter of the way from the initializer's row"),
        (1.5, [[5.0, -0.5, -3.0]], "beyond 1 the line goes on: no clamp"),
    ]
    for strength, expected, reason in cases:
        answer, complaint = _tensor(function, learned.clone(), start.clone(), strength)
        if answer is None:
            return complaint
        if answer.shape != learned.shape or not torch.allclose(answer, torch.tensor(expected)):
            return (
                f"not quite: strength {strength} gave {answer.tolist()}, expected {expected}: "
                f"{reason}"
            )
    return "right: a straight line from what the model knew to what it learned"


def _tensor(function: Callable[..., Any], *arguments: Any) -> tuple[Tensor | None, str]:
    """The function's answer as a float32 tensor; or None, and what to say."""
    try:
        answer = function(*arguments)
    except Exception as error:  # a reader's function may raise anything
        return None, f"not quite: your function raised {type(error).__name__}: {error}"
    if answer is ... or answer is None:
        return None, NOT_YET
    if not isinstance(answer, Tensor):
        return None, f"not quite: expected a tensor, found {type(answer).__name__}"
    return answer.detach().float(), ""
