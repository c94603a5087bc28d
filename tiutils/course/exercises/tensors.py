"""What the checks of several notebooks need to compare tensors."""

from __future__ import annotations

from typing import Any

import torch


def check_tensor(answer: Any, expected: torch.Tensor, reason: str) -> str | None:
    """The complaint about an answer that is not the expected tensor, to within rounding, or None."""
    if not isinstance(answer, torch.Tensor):
        return f"not quite: expected a tensor, found {type(answer).__name__}"
    if answer.shape != expected.shape:
        return f"not quite: expected the shape {tuple(expected.shape)}, found {tuple(answer.shape)}"
    if not torch.allclose(answer.detach().to(expected.dtype), expected, rtol=1e-4, atol=1e-5):
        return f"not quite: {reason}"
    return None
