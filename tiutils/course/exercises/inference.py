"""Checks for 04_inference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tiutils.course.exercises import attempt, check_cases


def check_unet_passes(function: Callable[[int, float], int]) -> str:
    """How many samples does the U-Net process for one image?"""
    cases = [
        ((25, 7.5), 50, "with guidance, each step needs two, with the prompt and without"),
        ((25, 1.0), 25, "a scale of 1 is the prediction for the prompt itself: one is enough"),
        ((4, 0.0), 4, "the pipeline needs a second one only for scales above 1"),
        ((1, 1.5), 2, "any scale above 1 needs both"),
    ]
    praise = "right: guidance doubles the work, which is why distilled models do without it"
    return check_cases(function, cases, praise)


def check_mix_noise(function: Callable[[Tensor, Tensor, float], Tensor]) -> str:
    """Noise between two noises, with the same standard deviation."""
    first, second = torch.randn(2, 1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    ends = torch.stack([first.flatten(), second.flatten()], dim=1)
    for amount in (0.0, 1.0, 0.25, 0.5, 0.75):
        answer, complaint = attempt(function, first, second, amount)
        if complaint is not None:
            return complaint
        if not isinstance(answer, Tensor):
            return f"not quite: expected a tensor, found {type(answer).__name__}"
        if answer.shape != first.shape:
            return (
                f"not quite: expected the shape {tuple(first.shape)}, found {tuple(answer.shape)}"
            )
        flat = answer.detach().float().flatten()[:, None]
        shares = torch.linalg.lstsq(ends, flat).solution
        if not torch.allclose(ends @ shares, flat, atol=1e-2):
            return f"not quite: for {amount} it is not made of the two noises alone"
        if amount in (0.0, 1.0) and abs(shares[int(amount)].item() - 1) > 1e-3:
            return f"not quite: {amount:.0f} must give the {'second' if amount else 'first'} noise"
        if abs(flat.std().item() - 1) > 0.03:
            return f"not quite: for {amount} the deviation is {flat.std().item():.2f}, expected 1"
        if shares.min() < -1e-3 or (0 < amount < 1 and shares.min() < 1e-3):
            return "not quite: add the two noises, each with a share above 0"
    return "right: on a circle the noise keeps its deviation, as the model expects"
