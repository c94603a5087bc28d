"""Prompts to pictures in JAX: the twin of `tiutils.inference`, with the same pictures from the same seeds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from tiutils.config import SamplingConfig
from tiutils.flax import noise, schedulers, token_embedding
from tiutils.flax.models import FlaxModels
from tiutils.flax.networks.text_encoder import TextEncoder
from tiutils.flax.networks.unet import UNet
from tiutils.flax.networks.vae import VAE
from tiutils.flax.schedulers import Sampler
from tiutils.tokenizer import Placeholder, read_word, token_ids


def encode_prompts(models: FlaxModels, prompts: Sequence[str]) -> Array:
    """Text encoder output for each prompt, learned words included: float32 `(len(prompts), 77, hidden)`."""
    ids = token_ids(models.tokenizer, prompts).astype(np.int32)
    with jax.default_matmul_precision("float32"):
        return _encode(models.text_encoder, ids, models.rows, models.first_id)


def predictions(
    models: FlaxModels, prompts: Sequence[str], noise: np.ndarray, timestep: int
) -> np.ndarray:
    """What the U-Net predicts for each prompt from the same noise, as `tiutils.diffusion.predictions` does."""
    latents = np.broadcast_to(noise, (len(prompts), *noise.shape))
    timesteps = np.full(len(prompts), timestep, np.int32)
    with jax.default_matmul_precision("float32" if models.dtype == jnp.float32 else None):
        found = _predict(models.unet, latents, timesteps, encode_prompts(models, prompts))
    return np.asarray(found, np.float32)


def generate(
    models: FlaxModels,
    prompts: str | Sequence[str],
    sampling: SamplingConfig | None = None,
    *,
    on_image: Callable[[int, Image.Image], object] | None = None,
    sampler: str = "dpmsolver++",
    devices: Sequence[jax.Device] | None = None,
    **settings: Any,
) -> list[Image.Image]:
    """Generate pictures as `tiutils.inference.generate` does, which explains the arguments that both have.

    Image k of each prompt starts from the noise that PyTorch samples with seed + k. A single compiled function goes
    from noise to pixels; it is compiled again for another size, batch size, number of steps, or sampler.

    Args:
        models: the loaded parts.
        prompts: one prompt or several.
        sampling: how; `batch_size` is for all devices together, rounded up to a multiple of their number.
        on_image: called with the number of each image, from 0, and the image, as soon as it is drawn.
        sampler: `"dpmsolver++"` as in PyTorch, or another one of `schedulers.SAMPLERS`.
        devices: those that share each batch; all that JAX sees by default.
        settings: fields of `SamplingConfig` that differ from `sampling`.

    Returns:
        `len(prompts) * num_images_per_prompt` RGB images, ordered by prompt.

    Raises:
        InputError: a setting cannot work, the model cannot draw this size, or the sampler is unknown.
    """
    sampling = dataclasses.replace(sampling or SamplingConfig(), **settings)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    height, width = sampling.size_for(models)
    table = make_sampler(models, sampling.num_inference_steps, sampler)
    seeds = range(sampling.seed, sampling.seed + sampling.num_images_per_prompt)
    jobs = [(prompt, seed) for prompt in range(len(prompts)) for seed in seeds]
    if not jobs:
        return []

    scale = models.guidance_scale if sampling.guidance_scale is None else sampling.guidance_scale
    encoded = np.asarray(encode_prompts(models, [*prompts, sampling.negative_prompt]))
    unconditional = jnp.asarray(encoded[-1:]) if scale > 1 else None
    devices = list(devices or jax.devices())
    mesh = Mesh(np.array(devices), ("batch",))
    everywhere, shared = NamedSharding(mesh, P()), NamedSharding(mesh, P("batch"))
    constants = jax.device_put(
        (models.unet, models.vae, table, unconditional, jnp.float32(scale)), everywhere
    )
    at_once = -(-min(sampling.batch_size, len(jobs)) // len(devices)) * len(devices)
    shape = (models.unet.in_channels, height // models.vae_factor, width // models.vae_factor)
    images: list[Image.Image] = []
    for first in range(0, len(jobs), at_once):
        chunk = jobs[first : first + at_once]
        # full: a smaller last batch would have to be compiled again
        padded = chunk + chunk[-1:] * (at_once - len(chunk))
        start = np.stack([noise.standard_normal(shape, s) for _, s in padded])
        texts = encoded[[p for p, _ in padded]]
        with jax.default_matmul_precision("float32" if models.dtype == jnp.float32 else None):
            batch = _generate(*constants, *jax.device_put((start, texts), shared))
        for picture in np.asarray(batch)[: len(chunk)]:
            images.append(Image.fromarray(picture))
            if on_image is not None:
                on_image(len(images) - 1, images[-1])
    return images


def make_sampler(models: FlaxModels, num_inference_steps: int, kind: str) -> Sampler:
    """The sampler's table for a model's noise schedule.

    As in `tiutils.inference`, DPM-Solver++ starts at the last timestep, that of pure noise; the others take their
    timesteps from the model's configuration.
    """
    spacing = {"timestep_spacing": "linspace"} if kind == "dpmsolver++" else {}
    return schedulers.sampler({**models.scheduler_config, **spacing}, num_inference_steps, kind)


def load_embedding(models: FlaxModels, path: str | Path, token: str | None = None) -> Placeholder:
    """Read a learned embedding and add its word to `models`; see `tokenizer.read_word`."""
    learned = read_word(models, path, token)
    return token_embedding.insert_placeholder(models, learned.tokens, learned.vectors)


@functools.partial(jax.jit, static_argnums=3)
def _encode(text_encoder: TextEncoder, input_ids: Array, rows: Array, first_id: int) -> Array:
    return text_encoder(token_embedding.look_up(text_encoder, input_ids, rows, first_id))


@jax.jit
def _predict(unet: UNet, latents: Array, timesteps: Array, texts: Array) -> Array:
    return unet(latents, timesteps, texts).astype(jnp.float32)


@jax.jit
def _generate(
    unet: UNet,
    vae: VAE,
    table: Sampler,
    unconditional: Array | None,
    guidance_scale: Array,
    start: Array,
    texts: Array,
) -> Array:
    """Noise `(batch, c, h, w)` and encoded prompts `(batch, tokens, hidden)` to uint8 `(batch, H, W, 3)`.

    `unconditional`, `(1, tokens, hidden)`, is the encoded negative prompt; without it there is no guidance.
    """
    if unconditional is not None:  # interleaved, so that each device has both halves of its images
        both = jnp.stack([jnp.broadcast_to(unconditional, texts.shape), texts], axis=1)
        texts = both.reshape(-1, *texts.shape[1:])

    def predict(latents: Array, timestep: Array) -> Array:
        latents = jnp.repeat(latents, len(texts) // len(latents), axis=0)
        timesteps = jnp.full(len(latents), timestep)
        said = unet(latents, timesteps, texts).astype(jnp.float32)
        if unconditional is None:
            return said
        without, with_prompt = said[::2], said[1::2]
        return without + guidance_scale * (with_prompt - without)

    latents = schedulers.sample(table, predict, start) / vae.scaling_factor
    pixels = vae.decode(latents).astype(jnp.float32).transpose(0, 2, 3, 1)
    return jnp.round(jnp.clip(pixels / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)
