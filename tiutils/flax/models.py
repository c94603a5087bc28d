"""The frozen parts in JAX: the folders that `tiutils.models` reads, as Flax NNX modules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from transformers import CLIPTokenizer

from tiutils.errors import InputError
from tiutils.flax import schedulers
from tiutils.flax.networks import weights
from tiutils.flax.networks.text_encoder import TextEncoder
from tiutils.flax.networks.unet import UNet
from tiutils.flax.networks.vae import VAE
from tiutils.io import pretrained, single_file


@dataclass
class FlaxModels:
    """The parts of one latent diffusion model, frozen, and the rows of the words it was taught.

    The three networks are pytrees: give them to jitted functions as arguments. `tokenizer` and `rows` change when a
    word is added; no weight does.

    Attributes:
        rows: float32 `(learned tokens, hidden)`, the vectors of the ids from `first_id` on.
        first_id: the first id that the model's own tokenizer does not have.
        scheduler_config: the noise schedule's configuration, see `schedulers`.
        vae_scaling: what the VAE's latents are multiplied by, for unit variance.
        vae_factor: pixels along one side of a latent, 8 in Stable Diffusion.
        sample_size: side of the latents the model was made for.
        folder: where they were read from, which may have optional parts (see `word_encoder`); None if from no folder.
        guidance_scale: the one to use unless another is asked for.
    """

    name: str
    tokenizer: CLIPTokenizer
    text_encoder: TextEncoder
    vae: VAE
    unet: UNet
    rows: Array
    first_id: int
    scheduler_config: dict[str, Any]
    vae_scaling: float
    vae_factor: int
    sample_size: int
    folder: Path | None = None
    guidance_scale: float = pretrained.GUIDANCE_SCALES[0]

    @property
    def dtype(self) -> Any:
        """The U-Net's and the VAE's number format; the text encoder is always float32."""
        return self.unet.dtype

    @property
    def tokenizers(self) -> tuple[CLIPTokenizer, ...]:
        """One for each text encoder, of which there is one."""
        return (self.tokenizer,)

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Width of one token's vector in each text encoder."""
        return (self.hidden_size,)

    @property
    def hidden_size(self) -> int:
        """Width of one token's vector: 768 in Stable Diffusion 1.x."""
        return self.text_encoder.hidden_size

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures the model was made for."""
        return self.sample_size * self.vae_factor

    @property
    def pixel_factor(self) -> int:
        """What height and width must be multiples of: 8, as diffusers requires, and what VAE and U-Net halve."""
        return math.lcm(8, self.vae_factor * 2**self.unet.halvings)

    @property
    def at_once(self) -> int:
        """Pictures to draw at once; on a CPU one, as more are no faster and would be seen later."""
        return 1 if jax.default_backend() == "cpu" else 8

    @property
    def prediction_type(self) -> str:
        """What the U-Net predicts: "epsilon", the noise, or "v_prediction", the velocity."""
        return self.scheduler_config.get("prediction_type", "epsilon")

    def signal_levels(self) -> np.ndarray:
        """ᾱ, the share of the picture's variance left at each timestep: float32 `(timesteps,)`."""
        return schedulers.alphas_cumprod(self.scheduler_config)

    def latent_shape(self, resolution: int | None = None) -> tuple[int, int, int]:
        """Shape of one picture's latents, `(channels, height / factor, width / factor)`."""
        side = (resolution or self.resolution) // self.vae_factor
        return (self.unet.in_channels, side, side)


def default_model() -> str:
    """See `pretrained.default_model`; JAX's accelerator is a GPU or a TPU."""
    return pretrained.default_model(accelerated=jax.default_backend() != "cpu")


def load(
    name: str | Path | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    tokenizer_name: str | None = None,
    dtype: Any = jnp.float32,
) -> FlaxModels:
    """Load all parts onto the default device.

    Args:
        name: a folder in diffusers' layout or a Hub id; `default_model()` if None.
        revision: branch, tag or commit on the Hub.
        variant: suffix of the weight files, such as `"fp16"`.
        tokenizer_name: a tokenizer other than the model's own.
        dtype: of the U-Net and the VAE; the text encoder stays float32, as gradients must pass it precisely.

    Raises:
        InputError: the model is missing, incomplete or of a kind that is not supported here.
    """
    name = str(name or default_model())
    if single_file.is_one(name):
        raise InputError(
            f"the model {name!r} is one file, and JAX reads folders: `tiutils merge --pretrained_model_name_or_path "
            f"{name} --output_dir FOLDER` writes it as one"
        )
    if len(pretrained.text_encoders(pretrained.locate(name, revision=revision, weights=False))) > 1:
        raise InputError(
            f"--framework flax cannot use {name!r}, a Stable Diffusion XL: leave the flag out; PyTorch can"
        )
    folder = pretrained.locate(name, revision=revision, variant=variant)
    tokenizer = pretrained.load_tokenizer(folder, tokenizer_name=tokenizer_name)
    text_config, vae_config, unet_config = (
        pretrained.read_config(folder, part) for part in pretrained.weights_of(folder)
    )
    text_encoder = weights.load_into(
        lambda: TextEncoder(text_config), folder / "text_encoder", variant=variant
    )
    vae = weights.load_into(lambda: VAE(vae_config, dtype=dtype), folder / "vae", variant=variant)
    unet = weights.load_into(
        lambda: UNet(unet_config, dtype=dtype), folder / "unet", variant=variant
    )
    return FlaxModels(
        name=name,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae,
        unet=unet,
        rows=jnp.zeros((0, text_encoder.hidden_size)),
        first_id=len(tokenizer),
        scheduler_config=pretrained.read_config(folder, "scheduler"),
        vae_scaling=vae.scaling_factor,
        vae_factor=vae.factor,
        sample_size=unet.sample_size,
        folder=folder,
        guidance_scale=pretrained.guidance_scale(folder),
    )
