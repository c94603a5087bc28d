"""The frozen parts: a Stable Diffusion's tokenizers, text encoders, VAE, U-Net and noise schedule.

A model is a folder in diffusers' layout or the id of one on the Hub. Nothing in it is ever trained.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import safetensors.torch
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tiutils.errors import InputError, first_line, out_of_memory
from tiutils.io import pretrained, quantized, single_file

# by the number of text encoders
PIPELINES = {1: diffusers.StableDiffusionPipeline, 2: diffusers.StableDiffusionXLPipeline}
ENCODER_KINDS = (CLIPTextModel, CLIPTextModelWithProjection)  # the first, the second


@dataclass
class Models:
    """The parts of one latent diffusion model, frozen.

    Most models have one text encoder with a tokenizer, SDXL has two. What belongs to several is kept side by side, in
    their order: the columns of a word's rows, the ids of a prompt, the hidden states.

    `tokenizers` and the text encoders' input embeddings change when `token_embedding.add_placeholder` adds a word; no
    weight does.

    Attributes:
        tokenizers: one for each text encoder; they share a vocabulary and differ at most in how they pad.
        folder: where they were read from, which may have optional parts (see `word_encoder`); None if from no folder.
        guidance_scale: the one to use unless another is asked for.
    """

    name: str
    tokenizers: tuple[CLIPTokenizer, ...]
    text_encoders: tuple[CLIPTextModel, ...]
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    noise_scheduler: DDPMScheduler
    folder: Path | None = None
    guidance_scale: float = pretrained.GUIDANCE_SCALES[0]

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The first tokenizer, whose vocabulary is that of all."""
        return self.tokenizers[0]

    @property
    def text_encoder(self) -> CLIPTextModel:
        """The first text encoder, the only one in Stable Diffusion 1.x and 2.x."""
        return self.text_encoders[0]

    @property
    def device(self) -> torch.device:
        """The device of the text encoders, and of the U-Net while it is in use."""
        return self.text_encoder.device

    @property
    def dtype(self) -> torch.dtype:
        """The U-Net's and the VAE's number format; text encoders are always float32."""
        return self.unet.dtype

    @property
    def vae_dtype(self) -> torch.dtype:
        """The number format that the VAE computes in: the U-Net's, but SDXL's overflows in float16."""
        overflows = len(self.text_encoders) > 1 and self.vae.config.force_upcast
        return torch.float32 if overflows and self.dtype == torch.float16 else self.dtype

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """Width of one token's vector in each text encoder: 768 in Stable Diffusion 1.x."""
        return tuple(encoder.config.hidden_size for encoder in self.text_encoders)

    @property
    def hidden_size(self) -> int:
        """Width of one token's vectors side by side."""
        return sum(self.hidden_sizes)

    @property
    def vae_factor(self) -> int:
        """Pixels along one side of a latent: 8 in Stable Diffusion."""
        return pretrained.vae_factor(self.vae.config)

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures the model was made for."""
        return self.unet.config.sample_size * self.vae_factor

    @property
    def pixel_factor(self) -> int:
        """What height and width must be multiples of: 8, as diffusers requires, and what VAE and U-Net halve."""
        halvings = len(self.unet.config.block_out_channels) - 1
        return math.lcm(8, self.vae_factor * 2**halvings)

    @property
    def at_once(self) -> int:
        """Pictures to draw at once. On a CPU few, so that the first ones are seen sooner.

        There, four pictures of 128 pixels take 0.73 times as long as four one by one; larger ones gain less.
        """
        if self.device.type == "cpu":
            return 4 if self.resolution <= 128 else 1
        return 8

    @property
    def prediction_type(self) -> str:
        """What the U-Net predicts: "epsilon", the noise, or "v_prediction", the velocity."""
        return self.noise_scheduler.config.prediction_type

    def signal_levels(self) -> np.ndarray:
        """ᾱ, the share of the picture's variance left at each timestep: float32 `(timesteps,)`."""
        return self.noise_scheduler.alphas_cumprod.cpu().numpy()

    def latent_shape(self, resolution: int | None = None) -> tuple[int, int, int]:
        """Shape of one picture's latents, `(channels, height / factor, width / factor)`."""
        side = (resolution or self.resolution) // self.vae_factor
        return (self.vae.config.latent_channels, side, side)


def default_model() -> str:
    """See `pretrained.default_model`; an accelerator is any device that PyTorch has besides the CPU."""
    return pretrained.default_model(accelerated=best_device().type != "cpu")


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def load(
    name: str | Path | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    tokenizer_name: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    quantize: str | None = None,
) -> Models:
    """Load all parts, frozen and in evaluation mode.

    Args:
        name: a folder in diffusers' layout, a whole model in one `.safetensors` file, or a Hub id; `default_model()`
            if None.
        revision: branch, tag or commit on the Hub.
        variant: suffix of the weight files, such as `"fp16"`.
        tokenizer_name: a tokenizer other than the model's own.
        device: where U-Net, VAE and text encoder go.
        dtype: of the U-Net and the VAE; text encoders stay float32, as gradients must pass them precisely.
        quantize: "8bit" or "4bit" for the U-Net's linear layers, through bitsandbytes.

    Raises:
        InputError: the model is missing, incomplete or of another kind, or the Hub cannot be reached.
        MemoryError: it does not fit.
    """
    name = str(name or default_model())
    folder = pretrained.locate(name, revision=revision, variant=variant)
    tokenizers = pretrained.load_tokenizers(folder, tokenizer_name=tokenizer_name)
    guidance_scale = pretrained.guidance_scale(folder)
    try:
        pretrained.refuse_code(folder)
        with no_progress_bars():
            read = _read_file if single_file.is_one(name) else _read_folder
            text_encoders, vae, unet = read(name, folder, variant, dtype)
            noise_scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    except InputError:
        raise
    except Exception as error:  # over a damaged folder, three libraries raise anything
        if found := out_of_memory(error):
            raise MemoryError(first_line(found)) from error
        raise InputError(
            f"cannot read the weights of the model {name!r}: {first_line(error)}"
        ) from error
    if quantize is not None:
        quantized.quantize(
            unet, quantize
        )  # on the CPU, so that the device never holds all of them unpacked
    for part in (*text_encoders, vae, unet):
        part.to(device).requires_grad_(False).eval()
    text_encoders = tuple(encoder.float() for encoder in text_encoders)
    return Models(
        name, tokenizers, text_encoders, vae, unet, noise_scheduler, folder, guidance_scale
    )


def _read_folder(
    name: str, folder: Path, variant: str | None, dtype: torch.dtype
) -> tuple[tuple[CLIPTextModel, ...], AutoencoderKL, UNet2DConditionModel]:
    """The parts with weights, from a folder in diffusers' layout; text encoders in the dtype of their files.

    Raises:
        InputError: a text encoder's file lacks weights: transformers would go on with random ones.
    """
    encoders = []
    for part, kind in zip(pretrained.text_encoders(folder), ENCODER_KINDS, strict=False):
        encoder, report = kind.from_pretrained(
            folder, subfolder=part, variant=variant, output_loading_info=True
        )
        encoders.append(encoder)
        if report["missing_keys"]:
            raise InputError(
                f"the text encoder of {name!r} lacks {sorted(report['missing_keys'])[0]}: its file was saved for "
                f"another version of transformers than {transformers.__version__}; save it again with the "
                f"`text_model.` prefix"
            )
    options = {"variant": variant, "torch_dtype": dtype}
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", **options)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **options)
    return tuple(encoders), vae, unet


def _read_file(
    name: str, folder: Path, variant: str | None, dtype: torch.dtype
) -> tuple[tuple[CLIPTextModel, ...], AutoencoderKL, UNet2DConditionModel]:
    """The parts with weights, from a whole model in one file; `folder` has their configurations."""
    parts = pretrained.text_encoders(folder)
    pipeline = PIPELINES[len(parts)].from_single_file(
        str(Path(name).expanduser()), config=str(folder), local_files_only=True
    )
    encoders = tuple(getattr(pipeline, part) for part in parts)
    for part in (pipeline.vae, pipeline.unet):
        cast(part, dtype)
    return encoders, pipeline.vae, pipeline.unet


def cast(part: torch.nn.Module, dtype: torch.dtype) -> None:
    """Change the number format of a part's weights, without the warning that diffusers' own `to` gives for any part."""
    torch.nn.Module.to(part, dtype)


def as_pipeline(models: Models, scheduler: Any = None) -> diffusers.DiffusionPipeline:
    """The pipeline of diffusers, made of the parts in memory; nothing is read from disk or copied."""
    count = len(models.text_encoders)
    parts = {
        **dict(zip(pretrained.TEXT_ENCODERS, models.text_encoders, strict=False)),
        **dict(zip(pretrained.TOKENIZERS, models.tokenizers, strict=False)),
        "vae": models.vae,
        "unet": models.unet,
        "scheduler": scheduler or models.noise_scheduler,
    }
    without: dict[str, Any] = {"add_watermarker": False}
    if count == 1:
        without = {"safety_checker": None, "requires_safety_checker": False}
    return PIPELINES[count](**parts, feature_extractor=None, **without)


def save(models: Models, folder: str | Path) -> Path:
    """Write the whole model in diffusers' layout, so that old and new versions of transformers read it.

    transformers 5 omits the `text_model.` prefix of a text encoder's weights and the tokenizer's vocab.json and
    merges.txt; transformers 4 then loads random weights with a mere warning. Both are restored, as is the guidance
    scale, which diffusers omits. The text encoders must have plain embedding tables: see `token_embedding.merged`.
    A word encoder or an evaluator beside the model is not written.
    """
    folder = Path(folder)
    with no_progress_bars():
        as_pipeline(models).save_pretrained(folder)
    if pretrained.guidance_scale(folder) != models.guidance_scale:
        index = folder / pretrained.INDEX
        entries = json.loads(index.read_text(encoding="utf-8"))
        entries[pretrained.GUIDANCE_ENTRY] = models.guidance_scale
        index.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for part in pretrained.text_encoders(folder):
        weights = folder / part / "model.safetensors"
        tensors = {
            name
            if name.startswith(("text_model.", "text_projection."))
            else f"text_model.{name}": t
            for name, t in safetensors.torch.load_file(weights).items()
        }
        safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})
    for part, tokenizer in zip(pretrained.tokenizers(folder), models.tokenizers, strict=True):
        known = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        (folder / part / "vocab.json").write_text(
            json.dumps(known["vocab"], ensure_ascii=False), encoding="utf-8"
        )
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in known["merges"]]
        (folder / part / "merges.txt").write_text(
            "\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8"
        )
    for part in pretrained.weights_of(folder):
        path = folder / part / "config.json"
        known = json.loads(path.read_text(encoding="utf-8"))
        known.pop(
            "_name_or_path", None
        )  # names a folder of this machine, which is not to be shared
        path.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        for weights in path.parent.glob("*.safetensors"):  # safetensors makes its files private
            shutil.copymode(path, weights)
    return folder


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Silence the libraries' loading bars."""
    logs = [transformers.utils.logging, diffusers.utils.logging]
    shown = [log for log in logs if log.is_progress_bar_enabled()]
    try:
        for log in shown:
            log.disable_progress_bar()
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()
