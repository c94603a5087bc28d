"""Frozen linear layers whose weights are stored in 8 or 4 bits, packed by bitsandbytes.

Each pass, forward or backward, unpacks one layer's weights, uses them, and discards them. As nothing here is trained,
the backward pass needs no inputs. (bitsandbytes' own 8-bit layer also rounds its inputs and keeps them for the
backward pass, which takes more memory here than its small weights save.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 64  # values that share one scale, in 4 bits


class FrozenLinear(nn.Module):
    """A linear layer with packed weights, frozen; gradients go through it to its input.

    Attributes:
        packed: int8 `(out, in)`, or uint8 with two values in each byte.
        scales: float32; with 8 bits one per output, with 4 bits one per 64 weights.
        bias: unchanged, or None.
    """

    packed: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, bits: str):
        super().__init__()
        from bitsandbytes import functional

        weight = linear.weight.detach()
        self.shape, self.dtype = weight.shape, weight.dtype
        if bits == "8bit":  # bitsandbytes takes only float16 here
            packed, scales, _ = functional.int8_vectorwise_quant(weight.half())
        else:
            packed, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
            scales = state.absmax
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def weight(self) -> Tensor:
        """The unpacked weights, `(out, in)`, in their original dtype."""
        if self.packed.dtype == torch.int8:
            return self.packed.to(self.dtype) * (self.scales / 127)[:, None].to(self.dtype)
        unpack = torch.ops.bitsandbytes.dequantize_4bit.default
        return unpack(self.packed, self.scales, BLOCK, "nf4", self.shape, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)`."""
        return _Linear.apply(x, self)


class _Linear(torch.autograd.Function):
    """`F.linear` without keeping the unpacked weights for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight(), layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weight = ctx.layer.weight()
        return gradient.to(weight.dtype) @ weight, None


def quantize(module: nn.Module, bits: str) -> None:
    """Replace each linear layer by a `FrozenLinear` of "8bit" or "4bit"; convolutions are left unchanged."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, FrozenLinear(child, bits))
        else:
            quantize(child, bits)
