"""Checks for 03_training_loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from tiutils.course.exercises import attempt, check_cases
from tiutils.course.exercises.tensors import check_tensor


def check_noise_loss(function: Callable[..., Any]) -> str:
    """The loss of each sample: mix latents with noise at their levels, ask, and compare with the noise."""
    z0, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t, alpha_bar = torch.tensor([0, 4, 9]), torch.linspace(0.99, 0.01, 10)

    def guess(noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return noisy * (1 + t.view(-1, 1, 1, 1) / 10)

    share = alpha_bar[t].view(-1, 1, 1, 1)
    noisy = share.sqrt() * z0 + (1 - share).sqrt() * noise
    expected = ((guess(noisy, t) - noise) ** 2).mean(dim=(1, 2, 3))
    answer, complaint = attempt(function, guess, z0, noise, t, alpha_bar)
    reason = "mix each sample at its own level, ask for the noise, and take the mean squared error"
    complaint = complaint or check_tensor(answer, expected, reason)
    return complaint or "right: this is the whole loss of Textual Inversion"


def check_accumulated_step(function: Callable[..., Any]) -> str:
    """One optimizer step whose gradient is the mean over several pieces, taken one after another."""
    targets = torch.tensor([[0.0, 1.0], [2.0, -1.0], [4.0, 3.0]])
    row = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.SGD([row], lr=0.25)
    waiting, most = set(), [0]

    def piece(number: int) -> torch.Tensor:
        loss = ((row - targets[number]) ** 2).sum()
        waiting.add(number)
        most[0] = max(most[0], len(waiting))
        loss.register_hook(lambda _: waiting.discard(number))
        return loss

    pieces = [partial(piece, number) for number in range(len(targets))]
    for step in (1, 2):
        start = row.detach().clone()
        expected = start - 0.25 * 2 * (start - targets).mean(dim=0)
        mean_loss = ((start - targets) ** 2).sum(dim=1).mean().item()
        answer, complaint = attempt(lambda: function(optimizer, pieces))
        if complaint:
            return complaint
        if most[0] > 1:
            return "not quite: call backward on each piece before computing the next, or all are kept in memory"
        if not torch.allclose(row.detach(), expected):
            reasons = (
                "the gradient is the mean over the pieces",
                "is the first step's gradient gone?",
            )
            found = f"after step {step} the row is {row.tolist()}, expected {expected.tolist()}"
            return f"not quite: {found}: {reasons[step - 1]}"
        if not isinstance(answer, float) or not math.isclose(answer, mean_loss, rel_tol=1e-5):
            return f"not quite: return the mean loss, {mean_loss:.3f}, as a float; found {answer!r}"
    return "right: the step of a big batch in the memory of a small one"


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
