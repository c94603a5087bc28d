"""Sizes and step counts of the model, and the modules they describe."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import torch

from . import collect


@dataclass(frozen=True)
class Preset:
    """One edition of the bundled model. `size` and the VAE's levels fix the latents: size / 2 ** (levels - 1)."""

    name: str
    size: int
    vae_channels: tuple[int, ...]
    unet_channels: tuple[int, ...]
    unet_layers: int
    unet_heads: int
    text_layers: int
    text_width: int
    vocabulary: int
    pool: int  # composed pictures
    vae_steps: int
    vae_batch: int
    text_steps: int
    text_batch: int
    unet_steps: int
    unet_batch: int
    unet_rate: float
    evaluator_steps: int
    evaluator_batch: int
    evaluator_rate: float
    world: str = "small"  # or "wide"
    calm: bool = False  # things in their usual pose: see compose.py
    begins: str = (
        ""  # the preset whose trained parts this one goes on from; its VAE is taken as it is
    )
    vae_pool: int | None = (
        None  # how many of the pool the VAE learns from, first ones first; None: all
    )
    text_side: int = 32  # pixels a side for the text encoder's picture tower
    unet_shapes: float = 0.0  # share of its timesteps that dwell on where shapes are settled
    unet_muon: bool = False  # Muon instead of AdamW for the denoiser's matrices
    unet_cross: int = 1  # the first level of the denoiser that attends to the words
    unet_core: float = (
        0.7  # share of core words' pictures in the later part of the denoiser's training
    )
    evaluator_width: int = 96
    minutes: tuple[tuple[str, float], ...] = ()  # what `plan` aims at, by stage

    @property
    def folder(self):
        return collect.WORK / self.name

    @property
    def base(self) -> Preset | None:
        """The preset that this one goes on from."""
        return PRESETS[self.begins] if self.begins else None

    @property
    def latent_size(self) -> int:
        return self.size // 2 ** (len(self.vae_channels) - 1)


CPU = Preset(
    name="cpu",
    size=64,
    vae_channels=(32, 64, 128),
    unet_channels=(64, 128, 144),
    unet_layers=1,
    unet_heads=4,
    text_layers=3,
    text_width=256,
    vocabulary=8192,
    pool=60_000,
    vae_steps=1700,
    vae_batch=32,
    text_steps=900,
    text_batch=96,
    unet_steps=10_000,
    unet_batch=48,
    unet_rate=1e-3,
    evaluator_steps=1800,
    evaluator_batch=192,
    evaluator_rate=2e-3,
)
# The second edition of the 64 px model: the wide world, calm, learnt by what already knows places and colours.
WIDE = replace(
    CPU,
    name="wide",
    begins="cpu",
    world="wide",
    calm=True,
    text_steps=700,
    unet_steps=3500,
    unet_batch=96,
    unet_muon=True,
    unet_shapes=0.4,
    unet_rate=2e-3,
    unet_core=0.35,
    evaluator_steps=900,
)
# For one H100: about 24 minutes in all. Steps are a guess from the operations each needs (README.md says how);
# the stage `plan` measures a few dozen of each there and writes down how many fit into `minutes`.
GPU = Preset(
    name="gpu",
    world="wide",
    size=128,
    vae_channels=(32, 64, 96, 96),
    unet_channels=(96, 128, 112),
    unet_layers=1,
    unet_heads=4,
    unet_cross=0,
    unet_core=0.3,
    text_layers=3,
    text_width=256,
    text_side=64,
    vocabulary=8192,
    pool=300_000,
    vae_pool=60_000,
    vae_steps=9_000,
    vae_batch=256,
    text_steps=4000,
    text_batch=1024,
    unet_steps=19_000,
    unet_batch=512,
    unet_rate=1e-3,
    evaluator_steps=4000,
    evaluator_batch=512,
    evaluator_rate=1e-3,
    evaluator_width=144,
    minutes=(("vae", 4.0), ("text", 1.3), ("evaluator", 1.7), ("unet", 10.0)),
)
PRESETS = {"cpu": CPU, "wide": WIDE, "gpu": GPU}
BUNDLED = "wide"  # the one that lies in data/tiny-sd


def get(name: str) -> Preset:
    """The preset, with the step counts that `plan` found for this machine, if it was run."""
    preset = PRESETS[name]
    plan = preset.folder / "plan.json"
    return replace(preset, **json.loads(plan.read_text())) if plan.exists() else preset


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
        norm_num_groups=8,  # 32 groups on 32 channels normalise each channel by itself, which erases colour
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
        vision_config={**tower, **picture, "image_size": preset.size, "patch_size": 8},
        projection_dim=64,
        attn_implementation=attention,
    )
    return CLIPModel(config)


def unet(preset: Preset):
    """The denoiser: latents (batch, 4, side, side), timesteps and hidden states to the noise in the latents."""
    from diffusers import UNet2DConditionModel

    # On a CPU, attention on the finest level costs 40 % of a step and decides little at 16 x 16.
    cross = [level >= preset.unet_cross for level in range(len(preset.unet_channels))]
    return UNet2DConditionModel(
        sample_size=preset.latent_size,
        block_out_channels=preset.unet_channels,
        layers_per_block=preset.unet_layers,
        down_block_types=tuple("CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross),
        up_block_types=tuple("CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross)),
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
