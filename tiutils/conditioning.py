"""What the U-Net is told: the prompt, and in SDXL a summary of it and the size of the picture.

Stable Diffusion 1.x and 2.x take the text encoder's last hidden states. SDXL (Podell et al. 2023, arXiv 2307.01952,
section 2) takes the penultimate ones of both its text encoders side by side, the second one's pooled output, and the
sizes that a training picture had before and after cropping. All of this follows diffusers' pipelines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tiutils.models import Models
from tiutils.tokenizer import prompt_ids


@torch.no_grad()
def encode(models: Models, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    """Encode prompts, learned words included, in float32 and without a gradient.

    Returns:
        hidden states `(batch, tokens, hidden)`; and pooled `(batch, projection)`, None for one text encoder.
    """
    ids = torch.from_numpy(prompt_ids(models.tokenizers, prompts)).to(models.device)
    with torch.autocast(models.device.type, enabled=False):
        return encode_ids(models, ids)


def encode_negative(models: Models, prompt: str) -> tuple[Tensor, Tensor | None]:
    """Encode what guidance steers away from; in SDXL an empty prompt gives zeros, as in its pipeline."""
    states, pooled = encode(models, [prompt])
    if pooled is None or prompt:
        return states, pooled
    return torch.zeros_like(states), torch.zeros_like(pooled)


def encode_ids(models: Models, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """Like `encode`, from int64 ids `(batch, encoders × tokens)`, with a gradient to the rows of learned words."""
    if len(models.text_encoders) == 1:
        return models.text_encoder(ids)[0], None
    parts = ids.chunk(len(models.text_encoders), dim=1)
    encoded = [
        encoder(part, output_hidden_states=True)
        for encoder, part in zip(models.text_encoders, parts, strict=True)
    ]
    states = torch.cat([each.hidden_states[-2] for each in encoded], dim=-1)
    return states, encoded[-1].text_embeds


def predict(
    models: Models,
    noisy_latents: Tensor,
    timesteps: Tensor,
    encoder_hidden_states: Tensor,
    pooled: Tensor | None = None,
) -> Tensor:
    """The U-Net's prediction, in its own number format: `(batch, channels, height, width)`.

    Args:
        models: the frozen parts.
        noisy_latents: the same shape, scaled.
        timesteps: `(batch,)` int64.
        encoder_hidden_states: `(batch, tokens, hidden)`.
        pooled: `(batch, projection)`, the other thing that `encode` returns.
    """
    dtype, more = models.unet.dtype, dict[str, Any]()
    if pooled is not None:
        height, width = (side * models.vae_factor for side in noisy_latents.shape[-2:])
        # original size, upper left corner of the crop, target size: a whole picture, as large as it is drawn
        sizes = torch.zeros(len(pooled), 6, dtype=dtype, device=noisy_latents.device)
        sizes[:, 0::4], sizes[:, 1::4] = height, width
        more["added_cond_kwargs"] = {"text_embeds": pooled.to(dtype), "time_ids": sizes}
    # autocast would compute the norms of a half-precision U-Net in float32 and save those for the backward pass
    with torch.autocast(models.device.type, enabled=False):
        states = encoder_hidden_states.to(dtype)
        return models.unet(noisy_latents.to(dtype), timesteps, states, **more).sample
