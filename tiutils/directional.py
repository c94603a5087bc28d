"""Directional Textual Inversion: only the direction of a row is learned, its length stays.

Kim et al., ICLR 2026 (arXiv 2512.13672): the meaning of a token's vector lies in its direction, and long vectors drown
the rest of the sentence. A row is e = m·v with a fixed length m and a direction v on the unit sphere. A step follows
the normalized gradient in the sphere's tangent plane and returns to the sphere; a von Mises-Fisher prior of
concentration κ around the starting direction μ adds the constant −κμ to the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Directional(torch.optim.Optimizer):
    """Stochastic descent on the sphere, for each row and, in SDXL, for each of its two halves.

    Args:
        rows: float32 `(num_vectors, sum(widths))`; where they point now is the prior's mean direction.
        lr: η, the tangent of the angle of a step.
        prior: κ, how strongly a direction is pulled back to where it started.
        widths: of the text encoders' vectors, which stand side by side in a row.
    """

    def __init__(self, rows: Tensor, lr: float, prior: float, widths: Sequence[int]):
        super().__init__([rows], {"lr": lr, "prior": prior, "widths": tuple(widths)})
        self.state[rows]["start"] = rows.detach().clone()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Turn all rows that have a gradient."""
        for group in self.param_groups:
            for rows in group["params"]:
                if rows.grad is None:
                    continue
                whole = (rows, rows.grad, self.state[rows]["start"])
                halves = (tensor.split(group["widths"], dim=1) for tensor in whole)
                for half, gradient, start in zip(*halves, strict=True):
                    half.copy_(turned(half, gradient, start, group["lr"], group["prior"]))


def turned(rows: Tensor, gradient: Tensor, start: Tensor, lr: float, prior: float) -> Tensor:
    """Rows after one step; each keeps its length. All tensors are float32 `(num_vectors, hidden)`.

    With v = e/m: g = m ∂L/∂e − κμ; g ← g − (g·v)v; g ← g/|g|; v ← (v − ηg)/|v − ηg|. Dividing by the gradient's length
    makes η the size of a turn whatever the loss is.
    """
    length = _length(rows)
    direction = rows / length
    gradient = length * gradient - prior * start / _length(start)
    gradient = gradient - (gradient * direction).sum(1, keepdim=True) * direction
    new = direction - lr * gradient / _length(gradient)
    return length * new / _length(new)


def _length(rows: Tensor) -> Tensor:
    return rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
