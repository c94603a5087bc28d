"""Checks for 04_inference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tiutils.course.exercises import attempt
from tiutils.course.exercises.tensors import check_tensor


def check_guided_noise(function: Callable[..., Tensor]) -> str:
    """Ask a U-Net twice, with the prompt and without, and go on from the second answer past the first."""
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=draw)
    states, empty = torch.randn(2, 2, 3, 5, generator=draw)

    def unet(latents: Tensor, t: int, states: Tensor) -> Tensor:
        return latents * t / 1000 + states.mean(dim=(1, 2)).view(-1, 1, 1, 1)

    with_prompt, without = unet(latents, 300, states), unet(latents, 300, empty)
    reasons = {
        1.0: "at guidance 1 the result is the answer to the prompt",
        0.0: "at guidance 0 the result is the answer to the empty prompt",
        7.5: "at guidance 7.5 go 7.5 times the difference, starting from the empty prompt's answer",
    }
    for guidance, reason in reasons.items():
        answer, complaint = attempt(function, unet, latents, 300, states, empty, guidance)
        expected = without + guidance * (with_prompt - without)
        complaint = complaint or check_tensor(answer, expected, reason)
        if complaint:
            return complaint
    return "right: two questions and one line; the scale decides how strongly the prompt counts"


def check_ddim_step(function: Callable[..., Tensor]) -> str:
    """One step of DDIM: solve for the clean latents, then mix them with the same noise at the next level."""
    clean, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    levels = [
        (0.6, 0.8, 0.8, 0.6, "guess the clean latents, then mix them at the next level"),
        (0.6, 0.8, 0.6, 0.8, "a step to the same level must change nothing"),
        (0.28, 0.96, 1.0, 0.0, "a step to level 0 must give the clean latents"),
    ]
    for alpha, sigma, next_alpha, next_sigma, reason in levels:
        latents = alpha * clean + sigma * noise
        answer, complaint = attempt(function, latents, noise, alpha, sigma, next_alpha, next_sigma)
        expected = next_alpha * clean + next_sigma * noise
        complaint = complaint or check_tensor(answer, expected, reason)
        if complaint:
            return complaint
    return "right: repeated from the noisiest level to the cleanest, this step draws a picture"


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
