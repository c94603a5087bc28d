"""Small Stable Diffusion models with random weights, in the folder layout of SD 1.5, made in a second.

They generate nothing worth seeing; they are for tests of what trains, what is saved and what is refused.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from tiutils import models
from tiutils.io import pretrained

TEXT = """a an the of photo rendering cropped clean dirty dark my cool bright good one nice small
large weird toy cat dog horse red in on sand snow"""
WORDS = TEXT.split()


def save_tokenizer_files(folder: Path) -> Path:
    """Write vocab.json and merges.txt of a byte-level CLIP tokenizer in which each of WORDS is a single token."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:  # merge from the left, so that a chain of merges forms the word
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({token: index for index, token in enumerate(tokens)})
    )
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n"
    )
    return folder


# what differs in Stable Diffusion 2.1: velocity prediction, padding with "!", heads per block, linear projections
SD2 = {
    "prediction_type": "v_prediction", "hidden": 64, "pad_token": "!",
    "text": {"hidden_act": "gelu", "num_hidden_layers": 3, "num_attention_heads": 4},
    "unet": {"attention_head_dim": [2, 4], "use_linear_projection": True, "upcast_attention": True},
}  # fmt: skip


def save_small_model(
    folder: Path,
    *,
    prediction_type: str = "epsilon",
    hidden: int = 32,
    pad_token: str = "<|endoftext|>",
    text: dict[str, Any] | None = None,
    unet: dict[str, Any] | None = None,
) -> Path:
    """Build and save the model; `text` and `unet` override options of SD 1.5. Returns `folder`."""
    torch.manual_seed(0)
    files = save_tokenizer_files(folder / "tokenizer")
    tokenizer = CLIPTokenizer(
        str(files / "vocab.json"),
        str(files / "merges.txt"),
        pad_token=pad_token,
        model_max_length=77,
    )
    text = {"num_hidden_layers": 2, "num_attention_heads": 2} | (text or {})
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=64,
            max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **text,
        )
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4, norm_num_groups=4, sample_size=32, layers_per_block=1,
    )  # fmt: skip
    unet_model = UNet2DConditionModel(
        block_out_channels=(16, 32), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=hidden, norm_num_groups=4,
        layers_per_block=1, sample_size=16, **({"attention_head_dim": 2} | (unet or {})),
    )  # fmt: skip
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1,
        prediction_type=prediction_type,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae,
        text_encoder,
        tokenizer,
        unet_model,
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    save_tokenizer_files(folder / "tokenizer")  # transformers 5 only saves tokenizer.json
    set_guidance_scale(folder, 2.5)
    return folder


def set_guidance_scale(folder: Path, scale: Any) -> None:
    """Write the guidance scale into a model's index, as the bundled model has it."""
    path = folder / "model_index.json"
    index = json.loads(path.read_text()) | {"_guidance_scale": scale}
    path.write_text(json.dumps(index, indent=2))


def save_small_sdxl(folder: Path, widths: tuple[int, int] = (32, 48)) -> Path:
    """A small Stable Diffusion XL with random weights, in the folder layout of the released one.

    As there, the second tokenizer pads with "!", and the second text encoder's configuration has 2 for the end token.
    """
    torch.manual_seed(0)
    tokenizers, encoders, projection = [], [], 24
    for suffix, pad_token, hidden in zip(("", "_2"), ("<|endoftext|>", "!"), widths, strict=True):
        files = save_tokenizer_files(folder / f"tokenizer{suffix}")
        names = (str(files / "vocab.json"), str(files / "merges.txt"))
        tokenizers.append(CLIPTokenizer(*names, pad_token=pad_token, model_max_length=77))
        config = CLIPTextConfig(
            vocab_size=len(tokenizers[0]), hidden_size=hidden, intermediate_size=64, num_hidden_layers=3,
            num_attention_heads=2, max_position_embeddings=77, projection_dim=projection,
            bos_token_id=tokenizers[0].bos_token_id, hidden_act="gelu" if suffix else "quick_gelu",
            eos_token_id=2 if suffix else tokenizers[0].eos_token_id,
        )  # fmt: skip
        encoders.append((CLIPTextModelWithProjection if suffix else CLIPTextModel)(config))
    vae = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, sample_size=32,
        layers_per_block=1, scaling_factor=0.13025, force_upcast=True,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        block_out_channels=(16, 32), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=sum(widths), norm_num_groups=4,
        layers_per_block=1, sample_size=16, attention_head_dim=[2, 4], transformer_layers_per_block=[1, 2],
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=projection + 6 * 8,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )
    StableDiffusionXLPipeline(
        vae, *encoders, *tokenizers, unet, scheduler, add_watermarker=False
    ).save_pretrained(folder)
    for suffix in ("", "_2"):
        save_tokenizer_files(folder / f"tokenizer{suffix}")
    return folder


def save_sd15_shaped(folder: Path, *, resolution: int = 64) -> Path:
    """Random weights in the shape of Stable Diffusion 1.5 (hidden size 768, VAE factor 8), but with few channels.

    It has the vocabulary of the bundled model, so that the notebooks run with it.
    """
    torch.manual_seed(0)
    shutil.copytree(pretrained.BUNDLED_MODEL / "tokenizer", folder / "tokenizer")
    tokenizer = pretrained.load_tokenizer(folder)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=768, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=12, max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4,
        sample_size=resolution, layers_per_block=1,
    )  # fmt: skip
    unet = UNet2DConditionModel(  # diffusers' defaults for the blocks are those of SD 1.5
        block_out_channels=(8, 8, 16, 16), norm_num_groups=4, layers_per_block=1, attention_head_dim=2,
        cross_attention_dim=768, sample_size=resolution // 8,
    )  # fmt: skip
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )  # fmt: skip
    parts = models.Models("sd15-shaped", (tokenizer,), (text_encoder,), vae, unet, scheduler)
    parts.guidance_scale = 2.5
    return models.save(parts, folder)


def draw_photo(index: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    """An image of colored blobs, different for each index."""
    generator = np.random.default_rng(index)
    coarse = generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
