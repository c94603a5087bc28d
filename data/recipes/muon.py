"""Muon, an optimizer for matrices: momentum whose singular values are all made one, about.

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


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest (about) semi-orthogonal matrix to (rows, columns), by five Newton-Schulz iterations in bfloat16."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).float()


class Muon(torch.optim.Optimizer):
    """For parameters of two or more dimensions; kernels count as matrices (out, in x height x width).

    Where several processes train together each orthogonalises its share of the matrices and they exchange the results.
    """

    def __init__(self, parameters, lr: float, weight_decay: float = 0.01):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for parameter, update in zip(parameters, self._updates(parameters), strict=True):
                scale = 0.2 * max(len(parameter), parameter[0].numel()) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)

    def _updates(self, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        updates = []
        for number, parameter in enumerate(parameters):
            state = self.state[parameter]
            momentum = state.setdefault("momentum", torch.zeros_like(parameter))
            momentum.lerp_(parameter.grad, 1 - MOMENTUM)
            ahead = parameter.grad.lerp(momentum, MOMENTUM)
            mine = number % world == rank
            updates.append(
                orthogonalise(ahead.flatten(1)).flatten() if mine else torch.zeros(ahead.numel())
            )
        if world == 1:
            return updates
        flat = torch.cat(updates)
        dist.all_reduce(flat)
        return list(flat.split([update.numel() for update in updates]))


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
