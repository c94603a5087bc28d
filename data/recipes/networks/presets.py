"""Sizes and step counts of the model, and the modules they describe."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..world import collect


@dataclass(frozen=True)
class Preset:
    """One way to make the bundled model. `size` and the VAE's levels fix the latents: size / 2 ** (levels - 1)."""

    name: str
    size: int = 128
    vae_channels: tuple[int, ...] = (32, 64, 96, 96)
    unet_channels: tuple[int, ...] = (80, 128, 160)
    unet_heads: int = 4
    text_layers: int = 2
    text_width: int = 256
    text_side: int = 64  # pixels a side for the text encoder's picture tower
    vocabulary: int = 6144
    evaluator_width: int = 96
    pool: int = 60_000  # composed pictures
    vae_steps: int = 4000
    vae_batch: int = 64  # crops; whole pictures are a quarter as many
    text_steps: int = 2000
    text_batch: int = 192
    unet_steps: int = 20_000
    unet_batch: int = 96
    things: int = 2500  # without names, for the last training
    words_steps: int = 4000
    words_batch: int = 64
    evaluator_steps: int = 2000
    evaluator_batch: int = 192
    start: str = ""  # a model folder whose autoencoder, text encoder and denoiser to start from
    minutes: tuple[tuple[str, float], ...] = ()
    # A training named here takes as many steps as fit, whatever its count above says.

    @property
    def folder(self):
        return collect.WORK / self.name

    @property
    def latent_size(self) -> int:
        return self.size // 2 ** (len(self.vae_channels) - 1)


CPU = Preset(name="cpu")  # two cores, most of a day
GPU = Preset(  # one H100, a quarter of an hour
    name="gpu",
    pool=240_000,
    vae_batch=256,
    text_batch=1024,
    unet_batch=1024,
    evaluator_batch=1024,
    things=18_000,
    words_batch=1024,
    minutes=(("vae", 1.5), ("text", 0.7), ("evaluator", 0.7), ("unet", 8.0), ("words", 8.0)),
)
PRESETS = {"cpu": CPU, "gpu": GPU}
BUNDLED = "gpu"  # the preset of the model in data/tiny-sd


def vae(preset: Preset):
    """The picture autoencoder: (batch, 3, size, size) to (batch, 4, latent, latent)."""
    from diffusers import AutoencoderKL

    levels = len(preset.vae_channels)
    return AutoencoderKL(
        sample_size=preset.size,
        block_out_channels=preset.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,  # 32 groups of 32 channels would normalize each channel separately, which erases color
    )


def text_encoder(preset: Preset):
    """CLIP's text model, small: (batch, 77) token ids to hidden states (batch, 77, width)."""
    from transformers import CLIPTextConfig, CLIPTextModel

    end = preset.vocabulary - 1
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=preset.vocabulary,
            hidden_size=preset.text_width,
            intermediate_size=4 * preset.text_width,
            num_hidden_layers=preset.text_layers,
            num_attention_heads=preset.text_width // 64,
            max_position_embeddings=77,
            projection_dim=preset.text_width,
            bos_token_id=end - 1,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def evaluator(preset: Preset, vocabulary: int):
    """CLIP, small: pictures (batch, 3, size, size) and token ids (batch, 77) to one space of 64 numbers."""
    from transformers import CLIPConfig, CLIPModel

    end = vocabulary - 1
    ends = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    width = preset.evaluator_width
    picture = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 4}
    tower = {"num_attention_heads": 4, "projection_dim": 64, "hidden_act": "gelu"}
    # On a CPU the backward pass of plain attention takes half the time of the fused one.
    attention = "sdpa" if torch.cuda.is_available() else "eager"
    config = CLIPConfig(
        text_config={**tower, **text, **ends, "vocab_size": vocabulary},
        vision_config={
            **tower,
            **picture,
            "image_size": preset.size,
            "patch_size": preset.size // 8,
        },
        projection_dim=64,
        attn_implementation=attention,
    )
    return CLIPModel(config)


def unet(preset: Preset):
    """The denoiser: latents (batch, 4, side, side), timesteps and hidden states to the noise in the latents."""
    from diffusers import UNet2DConditionModel

    # On the finest level pixels attend to the sentence only: attention among them would cost a CPU 23 % more per step.
    levels = len(preset.unet_channels)
    return UNet2DConditionModel(
        sample_size=preset.latent_size,
        block_out_channels=preset.unet_channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        only_cross_attention=tuple(level == 0 for level in range(levels)),
        cross_attention_dim=preset.text_width,
        attention_head_dim=preset.unet_heads,
        norm_num_groups=16,
    )


def scheduler_settings() -> dict:
    """Stable Diffusion's noise schedule. `clip_sample` must be off: latents are not pictures in -1..1."""
    return {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
