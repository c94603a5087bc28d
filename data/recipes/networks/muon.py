"""Muon, an optimizer for matrices: momentum whose singular values are all brought close to one.

Keller Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the learning rate's scale is
that of Liu et al., "Muon is Scalable for LLM Training" (2025), so that AdamW's rates fit. PyTorch's own takes
two-dimensional parameters only, and most of a denoiser's are kernels of convolutions.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

MOMENTUM, ITERATIONS = 0.95, 5
COEFFICIENTS = (
    3.4445,
    -4.7750,
    2.0315,
)  # of the quintic iteration that drives singular values to 0.7..1.2


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Approximately the nearest semi-orthogonal matrices to (..., rows, columns), by Newton-Schulz iterations.

    The iterations tolerate bfloat16, in which a GPU is much faster.
    """
    dtype = torch.bfloat16 if matrices.is_cuda else torch.float32
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x.reshape(-1, *x.shape[-2:])
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(
            x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a
        )  # a x + (b x x' + c (x x')²) x
    return (x.mT if tall else x).float().reshape(matrices.shape)


class Muon(torch.optim.Optimizer):
    """For parameters of two or more dimensions; kernels count as matrices (out, in x height x width).

    Matrices of one shape are orthogonalized together, which keeps a GPU busy. Where several processes train together
    each takes its share of the matrices and they exchange the results.
    """

    def __init__(self, parameters, lr: float, weight_decay: float = 0.01):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            updates = self._updates(parameters)
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def _updates(self, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        updates = [torch.zeros_like(one) for one in ahead] if world > 1 else list(ahead)
        shapes: dict[tuple[int, int], list[int]] = {}
        for number in range(rank, len(ahead), world):
            shapes.setdefault(ahead[number].flatten(1).shape, []).append(number)
        for (rows, columns), numbers in shapes.items():
            together = orthogonalize(torch.stack([ahead[n].flatten(1) for n in numbers]))
            together *= 0.2 * max(rows, columns) ** 0.5
            for number, update in zip(numbers, together, strict=True):
                updates[number] = update.view_as(ahead[number])
        if world == 1:
            return updates
        flat = torch.cat([update.flatten() for update in updates])
        dist.all_reduce(flat)
        parts = flat.split([update.numel() for update in updates])
        return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]


class Both:
    """Muon for a module's hidden matrices and AdamW for the rest, as one optimizer."""

    def __init__(self, module: nn.Module, outer: tuple[str, ...], lr: float, **adam):
        hidden, rest = [], []
        for name, parameter in module.named_parameters():
            (hidden if parameter.ndim > 1 and not name.startswith(outer) else rest).append(
                parameter
            )
        self.parts = (torch.optim.AdamW(rest, lr=lr, **adam), Muon(hidden, lr=lr))

    @property
    def param_groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict) -> None:
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(own)
