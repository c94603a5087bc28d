"""Photos encoded once, and the loss, in JAX: the twin of `tiutils.diffusion`, with the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tiutils import concept as concepts
from tiutils.batches import BatchPlan
from tiutils.concept import Concept
from tiutils.config import TrainingConfig
from tiutils.dataset import make_dataset
from tiutils.flax import schedulers, token_embedding
from tiutils.flax.models import FlaxModels


class Samples(NamedTuple):
    """Batches of several steps: `batches.Batch` with axes `(steps, micro-batches, batch, …)`."""

    views: np.ndarray
    prompts: np.ndarray
    timesteps: np.ndarray
    latent_noise: np.ndarray
    noise: np.ndarray


class LatentDataset(NamedTuple):
    """What a run trains on: `diffusion.LatentDataset` as JAX arrays, on every device."""

    mean: jax.Array
    std: jax.Array
    prompt_ids: jax.Array
    plan: BatchPlan
    captions: jax.Array | None = None
    masks: jax.Array | None = None


def encode_views(
    models: FlaxModels, concept: Concept, views: Sequence[concepts.View], resolution: int
) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of each view's scaled latents, as in `tiutils.diffusion.encode_views`.

    Returns:
        two arrays, float32 `(views, channels, height, width)`.
    """
    encode = jax.jit(lambda vae, pixels: vae.encode(pixels))
    moments = [
        encode(models.vae, concepts.render_view(concept, view, resolution)[None]) for view in views
    ]
    mean, std = (
        jnp.concatenate(part).astype(jnp.float32) * models.vae_scaling
        for part in zip(*moments, strict=True)
    )
    return mean, std


def encode_dataset(
    models: FlaxModels, concept: Concept, word: str, config: TrainingConfig
) -> LatentDataset:
    """Encode the photos once; `dataset.make_dataset` prepares the rest."""
    made = make_dataset(models, concept, word, config)
    mean, std = encode_views(models, concept, made.views, made.resolution)
    prompt_ids, *rest = (
        None if array is None else jnp.asarray(array)
        for array in (made.prompt_ids, made.captions, made.masks)
    )
    assert prompt_ids is not None
    return LatentDataset(mean, std, prompt_ids, made.plan, *rest)


def batch_loss(
    rows: jax.Array,
    frozen: Any,
    batch: Samples,
    *,
    place: slice,
    first_id: int,
    prediction_type: str,
) -> jax.Array:
    """The summed loss of a micro-batch, a scalar: the sum of what `tiutils.diffusion.losses_at` returns."""
    text_encoder, unet = frozen["text_encoder"], frozen["unet"]
    latents = frozen["mean"][batch.views] + frozen["std"][batch.views] * batch.latent_noise
    prompts = batch.prompts
    if (captions := frozen["captions"]) is not None:
        own = captions[batch.views]
        prompts = jnp.where(own < 0, prompts, own)
    input_ids = frozen["prompt_ids"][prompts]
    all_rows = frozen["rows"].at[place].set(rows)
    vectors = token_embedding.look_up(text_encoder, input_ids, all_rows, first_id)
    keep = jax.checkpoint if unet.gradient_checkpointing else lambda function: function
    encoder_hidden_states = keep(lambda vectors: text_encoder(vectors))(vectors)
    scale = frozen["alphas_cumprod"], batch.timesteps
    noisy_latents = schedulers.add_noise(*scale, latents, batch.noise)
    target = batch.noise
    if prediction_type == "v_prediction":
        target = schedulers.velocity(*scale, latents, batch.noise)
    prediction = unet(noisy_latents, batch.timesteps, encoder_hidden_states)
    errors = jnp.square(prediction.astype(jnp.float32) - target)
    if (masks := frozen["masks"]) is not None:
        errors *= masks[batch.views]
    return errors.mean(axis=(1, 2, 3)).sum()
