"""Checks for 00_start_here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from tiutils.course.exercises import check_cases


def check_nearest_row(function: Callable[[torch.Tensor, torch.Tensor], int]) -> str:
    """Which row of a table (rows, hidden) points most nearly in the direction of a vector (hidden,)?"""
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0], [-2.0, 0.0]])
    cases = [
        ((table, torch.tensor([0.1, 1.0])), 1, "it points along the second axis"),
        ((table, torch.tensor([1.0, 0.2])), 0, "a longer row is not a nearer one: divide by the lengths"),
        ((table, torch.tensor([0.2, 0.2])), 2, "a direction, not a distance: its length does not matter"),
        ((table, torch.tensor([-1.0, 0.1])), 3, "the largest similarity, not the largest without its sign"),
    ]  # fmt: skip
    praise = "right: rows are compared by their direction"
    return check_cases(function, cases, praise)


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
