"""Checks for 05_using_your_word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tiutils.course.exercises import attempt, check_cases

FAULTS = ("rate too small", "one background", "name taken")
_EVIDENCE = {  # run: its fault, and where to look
    "A": ("name taken", "its curves are healthy; look at the horses"),
    "B": ("rate too small", "its loss hardly moves, and its pictures are those of the plain word"),
    "C": ("one background", "look at what stands behind and below the thing, whatever the place"),
}


def check_heat_of(function: Callable[[Tensor, int], Tensor]) -> str:
    """The map of one token from a layer's shares."""
    shares = torch.rand(2, 12**2, 5, generator=torch.Generator().manual_seed(0))
    shares = shares / shares.sum(dim=-1, keepdim=True)
    for position in (0, 3):
        expected = shares.mean(dim=0)[:, position].reshape(12, 12)
        answer, complaint = attempt(function, shares, position)
        if complaint is not None:
            return complaint
        if not isinstance(answer, Tensor):
            return f"not quite: expected a tensor, found {type(answer).__name__}"
        answer = answer.detach().float()
        if answer.shape != expected.shape:
            return (
                f"not quite: shares of shape {tuple(shares.shape)} gave {tuple(answer.shape)}, expected "
                f"(12, 12): one number for each place, in rows"
            )
        if torch.allclose(answer, expected.T):
            return "not quite: rows and columns are swapped; places are numbered row by row"
        if torch.allclose(answer, 2 * expected):
            return "not quite: that is the sum over the heads; take their mean"
        if not torch.allclose(answer, expected):
            return "not quite: take the mean over the heads, then the token's own column"
    return "right: heads averaged, one column, laid out as a square"


def check_weaken(function: Callable[[Tensor, Tensor, float], Tensor]) -> str:
    """A row between the initializer's and the learned one."""
    learned, start = torch.tensor([[4.0, 0.0, -2.0]]), torch.tensor([[2.0, 1.0, 0.0]])
    by_strength = [
        (1.0, [[4.0, 0.0, -2.0]], "strength 1 is the learned row"),
        (0.0, [[2.0, 1.0, 0.0]], "strength 0 is the initializer's row"),
        (0.25, [[2.5, 0.75, -0.5]], "a quarter of the way from the initializer's row"),
        (1.5, [[5.0, -0.5, -3.0]], "beyond 1 the line continues: do not clamp"),
    ]

    def equal(answer: Any, expected: list[list[float]]) -> bool:
        return answer.shape == learned.shape and torch.allclose(
            answer.detach().float(), torch.tensor(expected)
        )

    cases = [((learned, start, s), row, reason) for s, row, reason in by_strength]
    praise = "right: a straight line from what the model knew to what it learned"
    return check_cases(function, cases, praise, equal)


def check_diagnose(function: Callable[[str], str]) -> str:
    """Which of `FAULTS` each of the three broken runs has."""
    for run, (fault, reason) in _EVIDENCE.items():
        answer, complaint = attempt(function, run)
        if complaint is not None:
            return complaint
        if not isinstance(answer, str) or answer not in FAULTS:
            return f"not quite: run {run} has {answer!r}, which is none of {', '.join(FAULTS)}"
        if answer != fault:
            return f"not quite: run {run} has another fault than {answer!r}: {reason}"
    return "right: three faults, and three places to look at first"
