"""The frozen parts: a Stable Diffusion's tokenizer, text encoder, VAE, U-Net and noise schedule.

A model is a folder in diffusers' layout or the id of one on the Hub. Nothing in it is ever trained.
"""

from __future__ import annotations

import contextlib
import json
import os
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from tiutils.errors import InputError, first_line

# The original "runwayml/stable-diffusion-v1-5" was deleted from the Hub; this is its mirror.
DEFAULT_MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
PARTS = ("tokenizer", "text_encoder", "vae", "unet")
BUNDLED_MODEL = Path(__file__).resolve().parent.parent / "data" / "tiny-sd"


@dataclass
class Models:
    """The parts of one latent diffusion model, frozen.

    `tokenizer` and the text encoder's input embedding change when `tokens.add_placeholder` adds a word; no weight does.
    """

    name: str
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    noise_scheduler: DDPMScheduler

    @property
    def device(self) -> torch.device:
        """Where the U-Net and the text encoder are."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """The U-Net's and the VAE's number format; the text encoder is always float32."""
        return self.unet.dtype

    @property
    def hidden_size(self) -> int:
        """Width of one token's vector: 768 in Stable Diffusion 1.x."""
        return self.text_encoder.config.hidden_size

    @property
    def vae_factor(self) -> int:
        """Pixels along one side of a latent: 8 in Stable Diffusion."""
        return vae_factor(self.vae.config)

    @property
    def resolution(self) -> int:
        """Side in pixels of the pictures the model was made for."""
        return self.unet.config.sample_size * self.vae_factor

    def latent_shape(self, resolution: int | None = None) -> tuple[int, int, int]:
        """Shape of one picture's latents, `(channels, height / factor, width / factor)`."""
        side = (resolution or self.resolution) // self.vae_factor
        return (self.vae.config.latent_channels, side, side)


def vae_factor(vae_config: Any) -> int:
    """Pixels along one side of a latent: the VAE halves the picture between its blocks."""
    return 2 ** (len(vae_config["block_out_channels"]) - 1)


def default_model() -> str:
    """Stable Diffusion 1.5 where there is a GPU and the Hub (or its cache), else the bundled model's folder."""
    if torch.cuda.is_available() and (
        _cached(DEFAULT_MODEL) or hub_answers(f"models/{DEFAULT_MODEL}")
    ):
        return DEFAULT_MODEL
    return str(BUNDLED_MODEL)


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def hub_answers(path: str, *, timeout: float = 5.0) -> bool:
    """Whether the Hub says within `timeout` seconds that it has `models/<id>` or `datasets/<id>`.

    One request, because the Hub's own client tries again for minutes before it gives up.
    """
    from huggingface_hub import constants, utils

    if constants.HF_HUB_OFFLINE:
        return False
    url = f"{constants.ENDPOINT}/api/{urllib.parse.quote(path)}"
    # with the token of `hf auth login`, if there is one: a private model is there for its owner
    request = urllib.request.Request(url, method="HEAD", headers=utils.build_hf_headers())
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            return True
    except OSError:  # no network, no such model, another's private one: it cannot be had
        return False


def locate(
    name: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    weights: bool = True,
) -> Path:
    """The local folder of a model; fetched from the Hub into its cache if it is not a folder here.

    With `weights=False` only tokenizer and configuration files are fetched (about 2 MB), so that mistakes in words and
    sizes are found before gigabytes travel.

    Raises:
        InputError: there is no such folder and the Hub has none or cannot be reached.
    """
    folder = Path(name)
    if os.path.isdir(folder):  # false, too, for a name that is too long
        missing = [part for part in (*PARTS, "scheduler") if not (folder / part).is_dir()]
        if missing:
            raise InputError(
                f"the model folder {folder} lacks {', '.join(missing)}; it must be in diffusers' layout, "
                f"with the folders {', '.join(PARTS)} and scheduler"
            )
        return folder
    name = str(name)
    if not _cached(name, revision) and not hub_answers(f"models/{name}"):
        raise InputError(
            f"there is no model {name!r}: no folder of that name here, and the Hub cannot be reached or has none; "
            f"check the spelling and the network, or use the bundled model, {BUNDLED_MODEL}"
        )
    import huggingface_hub

    try:
        if weights:
            return Path(
                diffusers.DiffusionPipeline.download(
                    name,
                    revision=revision,
                    variant=variant,
                    safety_checker=None,
                    feature_extractor=None,
                )
            )
        small_files = ["*.json", "tokenizer/*"]
        return Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=small_files)
        )
    except Exception as error:  # the Hub client's own errors, and its HTTP library's
        raise InputError(f"the Hub did not give the model {name!r}: {first_line(error)}") from error


def _cached(name: str, revision: str | None = None) -> bool:
    """Whether the model's index lies in the local Hub cache."""
    import huggingface_hub

    try:
        return isinstance(
            huggingface_hub.try_to_load_from_cache(name, "model_index.json", revision=revision), str
        )
    except huggingface_hub.errors.HFValidationError:  # a path, or another word that can be no id
        return False


def load(
    name: str | Path | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    tokenizer_name: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Models:
    """Load all parts, frozen and in evaluation mode.

    Args:
        name: a folder in diffusers' layout or a Hub id; `default_model()` if None.
        revision: branch, tag or commit on the Hub.
        variant: suffix of the weight files, such as `"fp16"`.
        tokenizer_name: a tokenizer other than the model's own.
        device: where U-Net, VAE and text encoder go.
        dtype: of the U-Net and the VAE; the text encoder, which the gradient must cross precisely, stays float32.

    Raises:
        InputError: the model is missing or incomplete, or the Hub cannot be reached.
    """
    name = str(name or default_model())
    folder = locate(name, revision=revision, variant=variant)
    tokenizer = load_tokenizer(folder, tokenizer_name=tokenizer_name)
    try:
        with _no_progress_bars():
            text_encoder, report = CLIPTextModel.from_pretrained(
                folder, subfolder="text_encoder", variant=variant, output_loading_info=True
            )
            vae, unet = (
                part.from_pretrained(
                    folder, subfolder=subfolder, variant=variant, torch_dtype=dtype
                )
                for part, subfolder in ((AutoencoderKL, "vae"), (UNet2DConditionModel, "unet"))
            )
            noise_scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    except Exception as error:  # over a damaged folder, three libraries raise anything
        raise InputError(
            f"cannot read the weights of the model {name!r}: {first_line(error)}"
        ) from error
    if report["missing_keys"]:  # transformers would go on with random weights
        raise InputError(
            f"the text encoder of {name!r} lacks {sorted(report['missing_keys'])[0]}: its file was saved for another "
            f"version of transformers than {transformers.__version__}; save it again with the `text_model.` prefix"
        )
    text_encoder.float()
    for part in (text_encoder, vae, unet):
        part.to(device).requires_grad_(False).eval()
    return Models(name, tokenizer, text_encoder, vae, unet, noise_scheduler)


def load_tokenizer(folder: str | Path, *, tokenizer_name: str | None = None) -> CLIPTokenizer:
    """The tokenizer of a model's folder, or another one by its name.

    Raises:
        InputError: there is none.
    """
    source = tokenizer_name or str(Path(folder) / "tokenizer")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(source)
    except Exception as error:  # `tokenizers` itself raises no less general a type
        raise InputError(f"cannot read the tokenizer {source}: {first_line(error)}") from error
    if len(tokenizer) < 100:  # transformers 5 makes an empty tokenizer where it finds no file
        raise InputError(
            f"cannot read the tokenizer {source}: it holds no words; vocab.json and merges.txt are missing"
        )
    return tokenizer


def read_config(folder: str | Path, part: str) -> dict[str, Any]:
    """The configuration of one part of a model's folder.

    Raises:
        InputError: there is none, or it is not JSON.
    """
    path = Path(folder) / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from error


def save(models: Models, folder: str | Path) -> Path:
    """Write the whole model in diffusers' layout, so that old and new versions of transformers read it.

    transformers 5 leaves out the `text_model.` prefix of the text encoder's weights and the tokenizer's vocab.json and
    merges.txt; transformers 4 then loads random weights with a mere warning. Both are put back. The text encoder must
    have a plain embedding table: see `tokens.merged`.
    """
    folder = Path(folder)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=models.vae,
        text_encoder=models.text_encoder,
        tokenizer=models.tokenizer,
        unet=models.unet,
        scheduler=models.noise_scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with _no_progress_bars():
        pipeline.save_pretrained(folder)
    weights = folder / "text_encoder" / "model.safetensors"
    tensors = {
        f"text_model.{name.removeprefix('text_model.')}": tensor
        for name, tensor in safetensors.torch.load_file(weights).items()
    }
    safetensors.torch.save_file(tensors, weights, metadata={"format": "pt"})
    tokenizer = json.loads(models.tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "tokenizer" / "vocab.json").write_text(
        json.dumps(tokenizer["vocab"], ensure_ascii=False), encoding="utf-8"
    )
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8"
    )
    return folder


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Silence the libraries' loading bars: a model of this project loads in a second."""
    logs = [transformers.utils.logging, diffusers.utils.logging]
    shown = [log for log in logs if log.is_progress_bar_enabled()]
    try:
        for log in shown:
            log.disable_progress_bar()
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()
