"""From a picture of a thing to a row: the first guess of a word for it, in one look.

A small convolutional network over the latents that the VAE makes of a photo. It was trained together with the denoiser
and the text encoder it belongs to, so that the row it names is one that they draw: the idea of E4T (Gal et al. 2023,
arXiv 2302.12228) and ELITE (Wei et al. 2023, arXiv 2302.13848), at this course's size.

It lies beside a model's other parts in `word_encoder/`; few models have one.
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
from tiutils.token_embedding import table_of
from tiutils.tokenizer import median_norm

GROUPS = 16  # of channels, normalized together


class Residual(nn.Module):
    """Two convolutions beside a skip connection: (batch, channels, height, width) to the same."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
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
        """The direction of the row for what each picture shows."""
        seen = self.layers(self.first(latents))
        return F.normalize(self.last(F.silu(self.norm(seen)).flatten(1)).float(), dim=-1)


def load(folder: str | Path) -> WordEncoder | None:
    """The word encoder of a model's folder, float32, frozen, on the CPU; None if the model has none.

    Raises:
        InputError: its files are damaged, or do not belong together.
    """
    if not pretrained.has_word_encoder(folder):
        return None
    sizes = pretrained.read_config(folder, pretrained.WORD_ENCODER)
    try:
        with torch.device("meta"):  # so that sizes alone cannot ask for memory
            encoder = WordEncoder(**sizes)
        tensors = safetensors.torch.load_file(Path(folder) / pretrained.WORD_ENCODER_WEIGHTS)
        encoder.load_state_dict({name: t.float() for name, t in tensors.items()}, assign=True)
    except Exception as error:  # over a damaged folder, two libraries raise anything
        raise InputError(
            f"cannot read the word encoder in {folder}: {first_line(error)}; fetch the model again"
        ) from error
    return encoder.requires_grad_(False).eval()


@torch.no_grad()
def row_from_photos(models: Models, concept: Concept) -> Tensor:
    """The row that the model's word encoder names for what the photos show: float32 `(hidden,)`, on the model's device.

    The mean of the directions it sees in the photos, each in its central square and not mirrored, at the median length
    of the model's rows. The network computes in float32 on the CPU whatever the precision of the other parts: it is
    asked once, and so gives the same row to a GPU that rounds.

    Raises:
        InputError: the model has no word encoder, or one of another model.
    """
    folder = models.folder
    encoder = None if folder is None else load(folder)
    if encoder is None:
        raise InputError(pretrained.no_word_encoder(models.name))
    views = [view for view in concepts.views(concept, center_crop=True) if not view.flip]
    latents, _ = encode_views(models, concept, views, encoder.sizes["side"] * models.vae_factor)
    direction = F.normalize(encoder(latents.cpu()).mean(dim=0), dim=0)
    row = direction * median_norm(table_of(models).cpu().numpy())
    return row.to(models.device)
