"""From photos to a row: a first guess of the new word in a single forward pass.

A small convolutional network on the VAE's latents of a photo. It was trained together with the U-Net and the text
encoder, so that they understand the rows it predicts: the idea of E4T (Gal et al. 2023, arXiv 2302.12228) and ELITE
(Wei et al. 2023, arXiv 2302.13848), at this course's size. It is an optional part of a model, in the folder
`word_encoder/`.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tiutils import concept as concepts
from tiutils.concept import Concept
from tiutils.diffusion import encode_views
from tiutils.errors import InputError, first_line
from tiutils.io import pretrained
from tiutils.models import Models
from tiutils.token_embedding import median_norms

GROUPS = 16  # of channels, normalized together


class Residual(nn.Module):
    """Two convolutions with a skip connection: `(batch, channels, height, width)` to the same shape."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Add the convolutions' output to their input."""
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
        self.sizes: dict[str, Any] = {
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

    def forward(self, latents: Tensor) -> Tensor:
        """The direction of the row for each image."""
        seen = self.layers(self.first(latents))
        return F.normalize(self.last(F.silu(self.norm(seen)).flatten(1)).float(), dim=-1)


def load(folder: str | Path) -> WordEncoder | None:
    """The word encoder of a model's folder, float32, frozen, on the CPU; None if the model has none.

    Raises:
        InputError: its files are damaged, or do not match.
    """
    if not pretrained.has_word_encoder(folder):
        return None
    sizes = pretrained.read_config(folder, pretrained.WORD_ENCODER)
    try:
        with torch.device("meta"):  # no memory is allocated for sizes that the weights do not have
            encoder = WordEncoder(**sizes)
        tensors = safetensors.torch.load_file(Path(folder) / pretrained.WORD_ENCODER_WEIGHTS)
        encoder.load_state_dict({name: t.float() for name, t in tensors.items()}, assign=True)
    except Exception as error:  # for a damaged folder, two libraries raise anything
        raise InputError(
            f"cannot read the word encoder in {folder}: {first_line(error)}; fetch the model again"
        ) from error
    return encoder.requires_grad_(False).eval()


@torch.no_grad()
def row_from_photos(models: Models, concept: Concept) -> Tensor:
    """The row that the model's word encoder predicts from the photos: float32 `(hidden,)`, on the model's device.

    The mean of the directions predicted for the photos' central squares, scaled to the median norm of the model's rows.
    The network always runs in float32 on the CPU, so that the row does not depend on the device.

    Raises:
        InputError: the model has no word encoder, or that of another model.
    """
    encoder = None if models.folder is None else load(models.folder)
    if encoder is None:
        raise InputError(pretrained.no_word_encoder(models.name))
    views = [view for view in concepts.views(concept, center_crop=True) if not view.flip]
    latents, _ = encode_views(models, concept, views, encoder.sizes["side"] * models.vae_factor)
    direction = F.normalize(encoder(latents.cpu()).mean(dim=0), dim=0)
    return (direction * median_norms(models)[0]).to(models.device)
