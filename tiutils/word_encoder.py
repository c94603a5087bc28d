"""From a picture of a thing to a row: the first guess of a word for it, in one look.

A small convolutional network over the latents that the VAE makes of a photo. It was trained together with the denoiser
and the text encoder it belongs to, so that the row it names is one that they draw: the idea of E4T (Gal et al. 2023,
arXiv 2302.12228) and ELITE (Wei et al. 2023, arXiv 2302.13848), at this course's size.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional as F

GROUPS = 16  # of channels, normalized together


class Residual(nn.Module):
    """Two convolutions beside a skip connection: (batch, channels, height, width) to the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add what the convolutions find to what came in."""
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class WordEncoder(nn.Module):
    """Scaled latents (batch, latent_channels, side, side) to unit vectors (batch, hidden)."""

    def __init__(
        self,
        hidden: int,
        side: int = 16,
        latent_channels: int = 4,
        channels: tuple[int, ...] = (96, 160, 224),
    ):
        """`side` is the latents' height and width; each further entry of `channels` halves it."""
        super().__init__()
        self.sizes = {
            "hidden": hidden,
            "side": side,
            "latent_channels": latent_channels,
            "channels": list(channels),
        }
        self.first = nn.Conv2d(latent_channels, channels[0], 3, padding=1)
        layers: list[nn.Module] = [Residual(channels[0])]
        for before, after in itertools.pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, padding=1, stride=2), Residual(after)]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.GroupNorm(GROUPS, channels[-1])
        cells = (side // 2 ** (len(channels) - 1)) ** 2
        self.last = nn.Linear(channels[-1] * cells, hidden)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """The direction of the row for what each picture shows."""
        seen = self.layers(self.first(latents))
        return F.normalize(self.last(F.silu(self.norm(seen)).flatten(1)).float(), dim=-1)
