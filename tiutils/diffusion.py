"""Photos encoded once, and the loss: how well the U-Net predicts the noise.

Each view passes through the VAE once, which can then leave the device: with the mean and standard deviation that are
kept, each step samples new latents.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor

from tiutils import concept as concepts
from tiutils.batches import BatchPlan, batch_at, fixed_plan
from tiutils.concept import Concept
from tiutils.conditioning import encode, encode_ids, predict
from tiutils.config import TrainingConfig
from tiutils.dataset import make_dataset
from tiutils.models import Models, cast


@dataclass(frozen=True)
class LatentDataset:
    """What a run trains on: the arrays of a `dataset.Dataset`, and its encoded photos, on the device.

    Attributes:
        mean: `(views, channels, height, width)` float32, the VAE's mean of each view's latents, scaled.
        std: the same shape, their standard deviation; a step samples `mean + std * noise`.
    """

    mean: Tensor
    std: Tensor
    prompt_ids: Tensor
    plan: BatchPlan
    captions: Tensor | None = None
    masks: Tensor | None = None


@contextlib.contextmanager
def _casted_vae(models: Models) -> Iterator[AutoencoderKL]:
    """The VAE, cast to the number format that it computes in; see `Models.vae_dtype`."""
    vae, usual = models.vae, models.vae.dtype
    if usual != models.vae_dtype:
        cast(vae, models.vae_dtype)
    try:
        yield vae
    finally:
        if vae.dtype != usual:
            cast(vae, usual)


@torch.no_grad()
def encode_views(
    models: Models, concept: Concept, views: Sequence[concepts.View], resolution: int
) -> tuple[Tensor, Tensor]:
    """Pass each view of each photo through the VAE once and keep its moments.

    Returns:
        mean and standard deviation of the latents, float32 `(views, channels, height, width)`, on the model's device,
        multiplied by the VAE's scaling factor (Rombach et al. 2022, section D.1: latents of unit variance).
    """
    device, scale = models.vae.device, models.vae.config.scaling_factor
    moments = []
    with _casted_vae(models) as vae:
        for view in views:
            pixels = torch.from_numpy(concepts.render_view(concept, view, resolution))[None]
            latents = vae.encode(pixels.to(device, vae.dtype)).latent_dist
            moments.append((latents.mean.float() * scale, latents.std.float() * scale))
    means, stds = zip(*moments, strict=True)
    return torch.cat(means).to(models.device), torch.cat(stds).to(models.device)


@torch.no_grad()
def decode(models: Models, latents: Tensor) -> list[Image.Image]:
    """The images that the VAE decodes from scaled latents, `(batch, channels, height, width)`."""
    with _casted_vae(models) as vae:
        pixels = vae.decode(latents.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample
    values = ((pixels.float() + 1) * 127.5).round().clamp(0, 255).byte()  # from the VAE's [-1, 1]
    return [Image.fromarray(image) for image in values.permute(0, 2, 3, 1).cpu().numpy()]


def encode_dataset(
    models: Models, concept: Concept, word: str, config: TrainingConfig, num_processes: int = 1
) -> LatentDataset:
    """Encode the photos once; `dataset.make_dataset` prepares the rest."""
    made = make_dataset(models, concept, word, config, num_processes)
    mean, std = encode_views(models, concept, made.views, made.resolution)
    prompt_ids, *rest = (
        None if array is None else torch.from_numpy(array).to(models.device)
        for array in (made.prompt_ids, made.captions, made.masks)
    )
    assert prompt_ids is not None
    return LatentDataset(mean, std, prompt_ids, made.plan, *rest)


def diffusion_loss(
    models: Models,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    encoder_hidden_states: Tensor,
    masks: Tensor | None = None,
    pooled: Tensor | None = None,
) -> Tensor:
    """The loss of each sample, float32 `(batch,)`: how far the U-Net's prediction is from the noise.

    Eq. 2 of Gal et al. 2022, arXiv 2208.01618: the mean over pixels of (ε − ε_θ(z_t, t, c(y)))², or of the velocity
    where the model predicts that (Salimans & Ho 2022, arXiv 2202.00512, section 4).

    Args:
        models: the frozen parts.
        latents: `(batch, channels, height, width)` float32, scaled.
        noise: the same shape.
        timesteps: `(batch,)` int64.
        encoder_hidden_states: `(batch, tokens, hidden)`, the text encoder's output for the prompts.
        masks: `(batch, 1, height, width)`, how much each position counts; all the same by default.
        pooled: `(batch, projection)`, in SDXL; see `conditioning`.
    """
    scheduler = models.noise_scheduler
    noisy_latents = scheduler.add_noise(latents, noise, timesteps)
    target = noise
    if models.prediction_type == "v_prediction":
        target = scheduler.get_velocity(latents, noise, timesteps)
    prediction = predict(models, noisy_latents, timesteps, encoder_hidden_states, pooled)
    errors = F.mse_loss(prediction.float(), target.float(), reduction="none")
    return (errors if masks is None else errors * masks).mean(dim=(1, 2, 3))


def losses_at(models: Models, dataset: LatentDataset, step: int, start: int, stop: int) -> Tensor:
    """The loss of samples `start` to `stop` of a step's batch: float32 `(stop - start,)`."""
    arrays = vars(batch_at(dataset.plan, step, start, stop)).values()
    return losses_of(models, dataset, *(_to_device(array, models.device) for array in arrays))


def losses_of(
    models: Models,
    dataset: LatentDataset,
    views: Tensor,
    prompts: Tensor,
    timesteps: Tensor,
    latent_noise: Tensor,
    noise: Tensor,
) -> Tensor:
    """The loss of samples, the fields of a `batches.Batch` on the device: float32 `(batch,)`."""
    latents = dataset.mean[views] + dataset.std[views] * latent_noise
    if dataset.captions is not None:
        own = dataset.captions[views]
        prompts = torch.where(own < 0, prompts, own)
    states, pooled = encode_ids(models, dataset.prompt_ids[prompts])
    masks = None if dataset.masks is None else dataset.masks[views]
    return diffusion_loss(models, latents, noise, timesteps, states, masks, pooled)


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device; to a GPU from pinned memory, so that the copy need not wait for the previous step."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@torch.no_grad()
def predictions(
    models: Models, prompts: Sequence[str], noise: np.ndarray, timestep: int
) -> np.ndarray:
    """What the U-Net predicts for each prompt from the same noisy latents, without a gradient.

    Args:
        models: the frozen parts.
        prompts: learned words included.
        noise: the latents, float32 `(channels, height, width)`.
        timestep: the noise level that the U-Net assumes.

    Returns:
        float32 `(prompts, channels, height, width)`, on the host.
    """
    states, pooled = encode(models, prompts)
    latents = torch.from_numpy(noise).to(models.device).expand(len(prompts), *noise.shape)
    timesteps = torch.full((len(prompts),), timestep, device=models.device)
    return predict(models, latents, timesteps, states, pooled).float().cpu().numpy()


def fixed_batch(dataset: LatentDataset, num_samples: int = 16) -> LatentDataset:
    """The same dataset with another plan, whose batch 0 is the fixed batch."""
    return dataclasses.replace(dataset, plan=fixed_plan(dataset.plan, num_samples))


def fixed_loss(models: Models, batch: LatentDataset, at_once: int = 8) -> float:
    """Mean loss of all samples of a fixed batch, without a gradient."""
    num_samples = batch.plan.batch_size
    with torch.no_grad():
        parts = [
            losses_at(models, batch, 0, start, min(start + at_once, num_samples))
            for start in range(0, num_samples, at_once)
        ]
    return torch.cat(parts).mean().item()
