"""A model's folder: where it is, fetched from the Hub if it must be; its configurations and its tokenizer.

A model is a folder in diffusers' layout or the id of one on the Hub. Nothing here needs PyTorch or diffusers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from tiutils.errors import InputError, first_line
from tiutils.io import files, hub

# The original "runwayml/stable-diffusion-v1-5" was deleted from the Hub; this is its mirror.
DEFAULT_MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
WEIGHTS = ("text_encoder", "vae", "unet")  # the parts that have weights
PARTS = ("tokenizer", *WEIGHTS)
WORD_ENCODER = "word_encoder"  # a part that few models have
WORD_ENCODER_WEIGHTS = f"{WORD_ENCODER}/model.safetensors"
BUNDLED_MODEL = Path(__file__).resolve().parents[2] / "data" / "tiny-sd"
PREDICTION_TYPES = ("epsilon", "v_prediction")  # what a U-Net may predict, if it is to be taught


def vae_factor(vae_config: Any) -> int:
    """Pixels along one side of a latent: the VAE halves the picture between its blocks."""
    return 2 ** (len(vae_config["block_out_channels"]) - 1)


def guidance_scale(resolution: int) -> float:
    """How strongly to follow prompts unless told: Stable Diffusion's 7.5, which over-saturates a small model."""
    return 7.5 if resolution >= 256 else 2.5


def default_model(*, accelerated: bool) -> str:
    """What the variable TIUTILS_MODEL says, a folder or an id on the Hub; without it the device decides.

    Stable Diffusion 1.5 if there is an accelerator and the Hub (or its cache), else the bundled model's folder.
    """
    if chosen := os.environ.get("TIUTILS_MODEL"):
        return chosen
    if accelerated and (hub.cached(DEFAULT_MODEL) or hub.hub_answers(f"models/{DEFAULT_MODEL}")):
        return DEFAULT_MODEL
    return str(BUNDLED_MODEL)


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
    folder = files.given(name, "the model's name")
    if os.path.isdir(folder):  # false, too, for a name that is too long
        missing = [part for part in (*PARTS, "scheduler") if not (folder / part).is_dir()]
        if missing:
            raise InputError(
                f"the model folder {folder} lacks {', '.join(missing)}; it must be in diffusers' layout, "
                f"with the folders {', '.join(PARTS)} and scheduler"
            )
        return folder
    name = str(name)
    if not hub.cached(name, revision) and not hub.hub_answers(f"models/{name}"):
        raise InputError(
            f"there is no model {name!r}: no folder of that name here, and the Hub cannot be reached or has none; "
            f"check the spelling and the network, or use the bundled model, {BUNDLED_MODEL}"
        )
    try:
        parts, extra = (WEIGHTS, [WORD_ENCODER_WEIGHTS]) if weights else ((), [])
        return hub.fetch_model(name, revision, variant, parts, extra)
    except Exception as error:  # the Hub client's own errors, and its HTTP library's
        raise InputError(f"the Hub did not give the model {name!r}: {first_line(error)}") from error


def refuse_code(folder: str | Path) -> None:
    """Refuse a text encoder that names code on the Hub: transformers before 5.3 fetched and ran it (CVE-2026-4372).

    Raises:
        InputError: names the entry.
    """
    for key, value in read_config(folder, "text_encoder").items():
        if "attn_implementation" in key and "/" in str(value):
            raise InputError(
                f"{folder}: the text encoder's {key} is {value!r}, code to be fetched from the Hub and run; "
                f"no Stable Diffusion needs that: do not use this model"
            )


def load_tokenizer(folder: str | Path, *, tokenizer_name: str | None = None) -> CLIPTokenizer:
    """The tokenizer of a model's folder, or another one by its name.

    Raises:
        InputError: there is none.
    """
    source = tokenizer_name or str(Path(folder) / "tokenizer")
    source = str(files.given(source, "--tokenizer_name"))
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


def check_resolution(resolution: int | None, model_folder: Path) -> None:
    """A picture must come out of the VAE and the U-Net with whole pixels.

    Raises:
        InputError: names the next sizes that fit.
    """
    if resolution is None:
        return
    factor = vae_factor(read_config(model_folder, "vae"))
    factor *= 2 ** (len(read_config(model_folder, "unet")["block_out_channels"]) - 1)
    if resolution % factor:
        below = resolution // factor * factor
        near = " or ".join(str(size) for size in (below, below + factor) if size)
        raise InputError(
            f"--resolution is {resolution}, but this model takes multiples of {factor}: {near}"
        )


def check_prediction_type(model_folder: Path) -> None:
    """The loss is known for models that predict the noise or the velocity.

    Raises:
        InputError: the model predicts something else.
    """
    predicts = read_config(model_folder, "scheduler").get("prediction_type", "epsilon")
    if predicts not in PREDICTION_TYPES:
        raise InputError(
            f"{model_folder} predicts {predicts!r}; only models that predict "
            f"{' or '.join(PREDICTION_TYPES)} can be taught"
        )


def has_word_encoder(folder: str | Path) -> bool:
    """Whether a model's folder names the sizes of a word encoder; its weights may still be on the Hub."""
    return (Path(folder) / WORD_ENCODER / "config.json").is_file()


def no_word_encoder(name: str) -> str:
    """What to say of a model without one."""
    return (
        f"--initializer_from_photos asks a word encoder, and none came with {name} (a folder {WORD_ENCODER} beside the "
        f"others): give --initializer_token instead"
    )


def check_word_encoder(model_folder: Path, name: str) -> None:
    """A word encoder must be there, and made for this model.

    Raises:
        InputError: there is none, or its sizes are not the model's.
    """
    if not has_word_encoder(model_folder):
        raise InputError(no_word_encoder(name))
    sizes = read_config(model_folder, WORD_ENCODER)
    expected = {
        "hidden": read_config(model_folder, "text_encoder")["hidden_size"],
        "latent_channels": read_config(model_folder, "vae").get("latent_channels", 4),
    }
    for size, value in expected.items():
        if (found := sizes.get(size) if isinstance(sizes, dict) else None) != value:
            raise InputError(
                f"the word encoder of {name} is of another model: its {size} is {found!r}, where {value} is needed; "
                f"give --initializer_token instead of --initializer_from_photos"
            )
