"""A model's files: finding or downloading them, checking the kind of model, reading configurations and tokenizers.

A model is a folder in diffusers' layout, its id on the Hub, or a single file (see `single_file`). Nothing here needs
PyTorch or diffusers.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiutils.errors import InputError, first_line, printable
from tiutils.io import files, hub, single_file

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

# a mirror: the original, "runwayml/stable-diffusion-v1-5", was deleted from the Hub
DEFAULT_MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"
TOKENIZERS = ("tokenizer", "tokenizer_2")  # the second is SDXL's
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
PARTS = (*TOKENIZERS, *TEXT_ENCODERS, "vae", "unet", "scheduler")  # of whichever model
WORD_ENCODER = "word_encoder"  # an optional part
WORD_ENCODER_WEIGHTS = f"{WORD_ENCODER}/model.safetensors"
BUNDLED_MODEL = Path(__file__).resolve().parents[2] / "data" / "tiny-sd"
# suffixes of whole models in one file
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx")
KINDS_BY_CHANNELS = {5: "a depth", 7: "an upscaling", 8: "an image-editing", 9: "an inpainting"}
EXPECTED_MODEL = (
    "only text-to-image models of Stable Diffusion 1.x, 2.x and XL can be used: give one of them, "
    f"such as {DEFAULT_MODEL}, or the bundled model"
)
INDEX = "model_index.json"
GUIDANCE_ENTRY = "_guidance_scale"  # in the index; diffusers ignores it, and drops it when it saves
GUIDANCE_SCALES = (7.5, 5.0)  # diffusers' own defaults: of Stable Diffusion, of SDXL
PREDICTION_TYPES = ("epsilon", "v_prediction")  # supported in training


def vae_factor(vae_config: Any) -> int:
    """The width in pixels of one latent: the VAE halves the image after all but its last block."""
    return 2 ** (len(vae_config["block_out_channels"]) - 1)


def text_encoders(folder: str | Path) -> tuple[str, ...]:
    """The names of a model's text encoders: one, or SDXL's two."""
    return TEXT_ENCODERS[: 1 + (Path(folder) / TEXT_ENCODERS[1]).is_dir()]


def tokenizers(folder: str | Path) -> tuple[str, ...]:
    """The names of a model's tokenizers, one for each text encoder."""
    return TOKENIZERS[: len(text_encoders(folder))]


def weights_of(folder: str | Path) -> tuple[str, ...]:
    """The names of a model's parts that have weights."""
    return (*text_encoders(folder), "vae", "unet")


def hidden_sizes(folder: str | Path) -> tuple[int, ...]:
    """Width of one token's vector in each of a model's text encoders.

    Raises:
        InputError: a configuration is damaged, or has no such number.
    """
    sizes = tuple(read_config(folder, part)["hidden_size"] for part in text_encoders(folder))
    if not all(type(size) is int for size in sizes):
        raise InputError(
            f"a text encoder of {folder} has hidden_size {sizes[-1]!r}; expected a number"
        )
    return sizes


def guidance_scale(folder: str | Path) -> float:
    """The guidance scale that suits a model: what its index says, otherwise diffusers' default.

    Raises:
        InputError: the index has something other than a finite number.
    """
    path = Path(folder) / INDEX
    scale = _config_or_nothing(path).get(
        GUIDANCE_ENTRY, GUIDANCE_SCALES[len(text_encoders(folder)) - 1]
    )
    if type(scale) not in (int, float) or not math.isfinite(scale):
        raise InputError(f"{path} has {GUIDANCE_ENTRY} {scale!r}; expected a number such as 7.5")
    return float(scale)


def default_model(*, accelerated: bool) -> str:
    """The model to use by default: a folder or Hub id in the environment variable TIUTILS_MODEL, if it is set.

    Otherwise Stable Diffusion 1.5, if there is an accelerator and the Hub or its cache has it; else the bundled model.
    """
    if chosen := os.environ.get("TIUTILS_MODEL"):
        return chosen
    if accelerated and hub.has_model(DEFAULT_MODEL):
        return DEFAULT_MODEL
    return str(BUNDLED_MODEL)


def locate(
    name: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    weights: bool = True,
) -> Path:
    """The local folder of a model, downloaded into the Hub client's cache if necessary.

    For a model in a single file, it is a folder with configuration and tokenizer only.

    Args:
        name: a folder, a Hub id or a `.safetensors` file.
        revision: branch, tag or commit on the Hub.
        variant: of the weights, such as "fp16".
        weights: whether to download the weights. The other files, about 2 MB, are enough to notice a wrong word, size,
            or kind of model before gigabytes are downloaded.

    Raises:
        InputError: it is neither here nor on the Hub, is incomplete, or is not Stable Diffusion 1.x, 2.x or XL.
    """
    folder = files.given(name, "the model's name")
    if single_file.is_one(folder):
        return single_file.small_files(folder)
    if os.path.isdir(folder):  # also False for a name that is too long
        check_kind(folder, name)
        expected = (*tokenizers(folder), *weights_of(folder), "scheduler")
        missing = [part for part in expected if not (folder / part).is_dir()]
        if missing:
            whole = sorted(path for path in folder.iterdir() if _is_single_file(path.name))
            single = f"; {_advice(whole[0])}" if whole else ""
            raise InputError(
                f"the model folder {folder} lacks {', '.join(missing)}; expected diffusers' layout, "
                f"with the folders {', '.join(expected[:-1])} and scheduler{single}"
            )
        return folder
    name = str(name)
    _refuse_single_file(name)
    if not hub.has_model(name, revision):
        raise InputError(
            f"there is no model {name!r}: no such folder here, and the Hub cannot be reached or has none; "
            f"check the spelling and the network, or use the bundled model, {BUNDLED_MODEL}"
        )
    folder = hub.fetch_model(name, revision, variant)
    check_kind(folder, name)
    if weights:
        parts = weights_of(folder)
        folder = hub.fetch_model(name, revision, variant, parts, [WORD_ENCODER_WEIGHTS])
    return folder


def check_kind(folder: Path, name: str | Path) -> None:
    """Refuse a model whose configurations show that it is not Stable Diffusion 1.x, 2.x or XL.

    Missing or damaged configurations are ignored here; they are reported when they are read.

    Raises:
        InputError: says what kind of model it is.
    """
    if kind := _other_kind(folder):
        raise InputError(f"the model {str(name)!r} is {printable(kind[:200])}; {EXPECTED_MODEL}")


def _other_kind(folder: Path) -> str | None:
    """What kind of model it is, in words; None for Stable Diffusion 1.x, 2.x and XL."""
    index = _config_or_nothing(folder / INDEX)
    unet, vae, *encoders = (
        _config_or_nothing(folder / part / "config.json")
        for part in ("unet", "vae", *text_encoders(folder))
    )
    pipeline = index.get("_class_name")

    def has(part: str) -> bool:
        entry = index.get(part)
        named = isinstance(entry, list) and any(word is not None for word in entry)
        return named or (folder / part).is_dir()

    if has("text_encoder_2") and has("transformer"):
        return f"SD 3 or Flux ({pipeline or 'it has a second text encoder'})"
    if has("transformer") and not has("unet"):
        return f"built on a transformer ({pipeline or 'it has no U-Net'})"
    for part in ("prior", "image_encoder_2", "movq", "vqvae", "super_res_first", "decoder"):
        if has(part):
            return f"of another architecture ({pipeline or f'it has a {part}'})"
    for config, expected in ((unet, "UNet2DConditionModel"), (vae, "AutoencoderKL")):
        found = str(config.get("_class_name", expected))
        if found.removeprefix("Flax") != expected:
            return f"built on a {found} where {expected} was expected"
    for encoder in (str(config.get("model_type", "clip_text_model")) for config in encoders):
        if not encoder.startswith("clip"):
            return f"a model whose text encoder is {encoder!r} where CLIP's was expected"
    takes, gives = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if unet and vae and takes != gives:
        kind = KINDS_BY_CHANNELS.get(takes if type(takes) is int else 0, "another")
        return f"{kind} model (its U-Net takes {takes} channels, its VAE gives {gives})"
    is_xl = unet.get("addition_embed_type") == "text_time"
    if is_xl and has("text_encoder_2") and not has("text_encoder"):
        return (
            f"Stable Diffusion XL's refiner ({pipeline or 'it has'}; only the second text encoder)"
        )
    if unet and is_xl != has("text_encoder_2"):
        return (
            f"Stable Diffusion XL in part ({'no' if is_xl else 'it has a'} second text encoder, and "
            f"{'SDXL' if is_xl else 'another'}'s U-Net)"
        )
    conditions = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim")
    for option in conditions[is_xl:]:  # in SDXL the first one is expected
        if unet.get(option) is not None:
            return f"a model that needs more than text (its U-Net's {option} is {unet[option]!r})"
    width: Any = unet.get("cross_attention_dim")
    given: list[Any] = [config.get("hidden_size") for config in encoders]
    if all(type(number) is int for number in (width, *given)) and width != sum(given):
        return (
            f"a combination of parts that do not fit (its U-Net takes text embeddings {width} wide, its text "
            f"encoder gives {' + '.join(map(str, given))})"
        )
    return None


def _config_or_nothing(path: Path) -> dict[str, Any]:
    try:
        return _read(path)
    except InputError:
        return {}


def _is_single_file(name: str) -> bool:
    return name.lower().endswith(SINGLE_FILES)


def _advice(file: Path) -> str:
    """What to do with a single file that is in a folder, or in an unsupported format."""
    if single_file.is_one(file):
        return f"{file.name} may be a whole model: give the file itself, {str(file)!r}"
    return (
        f"{file.name} is a single file of a format that may contain code: get the model as .safetensors, or as a "
        f"folder in diffusers' layout, such as {DEFAULT_MODEL} on the Hub"
    )


def _refuse_single_file(name: str) -> None:
    """Refuse a file or web address; says what to give instead."""
    on_hub = r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)"
    if match := re.match(on_hub, name):
        raise InputError(f"the model {name!r} is a web address; give the Hub id alone: {match[1]}")
    if re.match(r"[A-Za-z][\w+.-]*://", name):
        raise InputError(
            f"the model {name!r} is a web address; give a folder in diffusers' layout or a Hub id (owner/name)"
        )
    if not _is_single_file(name):
        return
    file = Path(name)
    if not os.path.lexists(file):
        raise InputError(
            f"there is no model {name!r}: no file of that name exists; give a folder in diffusers' layout, a "
            f".safetensors file or a Hub id (owner/name), or use the bundled model, {BUNDLED_MODEL}"
        )
    raise InputError(f"the model {name!r} cannot be used: {_advice(file)}")


def refuse_code(folder: str | Path) -> None:
    """Refuse a text encoder that refers to code on the Hub, which transformers before 5.3 ran (CVE-2026-4372).

    Raises:
        InputError: names the entry.
    """
    for part in text_encoders(folder):
        for key, value in read_config(folder, part).items():
            if "attn_implementation" in key and "/" in str(value):
                raise InputError(
                    f"{folder}: the text encoder's {key} is {value!r}, code to be downloaded from the Hub and run; "
                    f"no Stable Diffusion needs that: do not use this model"
                )


def load_tokenizers(
    folder: str | Path, *, tokenizer_name: str | None = None
) -> tuple[CLIPTokenizer, ...]:
    """A model's tokenizers, one for each text encoder.

    Raises:
        InputError: one is missing or damaged; or there are two, and their vocabularies differ or one name is given.
    """
    first, *others = (
        load_tokenizer(folder, part, tokenizer_name=tokenizer_name) for part in tokenizers(folder)
    )
    if others and tokenizer_name:
        raise InputError(
            f"--tokenizer_name names one tokenizer, but {folder} has {1 + len(others)}; leave it out"
        )
    if any(other.get_vocab() != first.get_vocab() for other in others):
        raise InputError(
            f"the tokenizers of {folder} have different vocabularies; in SDXL, both have CLIP's"
        )
    return first, *others


def load_tokenizer(
    folder: str | Path, part: str = "tokenizer", *, tokenizer_name: str | None = None
) -> CLIPTokenizer:
    """One tokenizer of a model's folder, or another one by name.

    Raises:
        InputError: it is missing or damaged.
    """
    from transformers import CLIPTokenizer  # takes a second, and most callers want no tokenizer

    source = tokenizer_name or str(Path(folder) / part)
    source = str(files.given(source, "--tokenizer_name"))
    try:
        tokenizer = CLIPTokenizer.from_pretrained(source)
    except Exception as error:  # `tokenizers` raises plain Exception
        raise InputError(f"cannot read the tokenizer {source}: {first_line(error)}") from error
    if len(tokenizer) < 100:  # without files, transformers 5 creates an empty tokenizer
        raise InputError(
            f"cannot read the tokenizer {source}: it is empty; vocab.json and merges.txt are missing"
        )
    return tokenizer


def read_config(folder: str | Path, part: str) -> dict[str, Any]:
    """The configuration of one part of a model, in which access to a missing entry raises an `InputError`.

    Raises:
        InputError: it is missing or damaged.
    """
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    return _read(Path(folder) / part / name)


class _Config(dict[str, Any]):
    """The content of a configuration file; a missing entry raises an `InputError` that names the file."""

    def __init__(self, path: Path, entries: dict[str, Any]):
        super().__init__(entries)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise InputError(f"{self.path} lacks {key!r}: the model is incomplete, download it again")


def _read(path: Path) -> _Config:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"expected a JSON object, found a {type(content).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from error
    return _Config(path, content)


def resolution(model_folder: Path) -> int:
    """The side in pixels of the images that the model was trained on."""
    factor = vae_factor(read_config(model_folder, "vae"))
    return read_config(model_folder, "unet")["sample_size"] * factor


def check_resolution(resolution: int | None, model_folder: Path) -> None:
    """Refuse a resolution that the VAE and the U-Net cannot halve as often as they must.

    Raises:
        InputError: names the nearest sizes that fit.
    """
    if resolution is None:
        return
    factor = vae_factor(read_config(model_folder, "vae"))
    factor *= 2 ** (len(read_config(model_folder, "unet")["block_out_channels"]) - 1)
    if resolution % factor:
        below = resolution // factor * factor
        near = " or ".join(str(size) for size in (below, below + factor) if size)
        raise InputError(
            f"--resolution is {resolution}, but this model needs a multiple of {factor}: give {near}"
        )


def check_prediction_type(model_folder: Path) -> None:
    """Refuse a model that predicts neither the noise nor the velocity.

    Raises:
        InputError: says what it predicts.
    """
    predicts = read_config(model_folder, "scheduler").get("prediction_type", "epsilon")
    if predicts not in PREDICTION_TYPES:
        raise InputError(
            f"{model_folder} predicts {predicts!r}; only models that predict "
            f"{' or '.join(PREDICTION_TYPES)} can learn a word"
        )


def has_word_encoder(folder: str | Path) -> bool:
    """Whether a model has a word encoder's configuration; its weights may still be on the Hub."""
    return (Path(folder) / WORD_ENCODER / "config.json").is_file()


def no_word_encoder(name: str) -> str:
    """The error message for a model without a word encoder."""
    return (
        f"--initializer_from_photos needs a word encoder, but {name} has none (a folder {WORD_ENCODER}): "
        f"give --initializer_token instead"
    )


def check_word_encoder(model_folder: Path, name: str) -> None:
    """Refuse a model without a word encoder, or with one whose sizes do not match.

    Raises:
        InputError: says which.
    """
    if not has_word_encoder(model_folder):
        raise InputError(no_word_encoder(name))
    sizes = read_config(model_folder, WORD_ENCODER)
    expected = {
        "hidden": sum(hidden_sizes(model_folder)),
        "latent_channels": read_config(model_folder, "vae").get("latent_channels", 4),
    }
    for size, value in expected.items():
        if (found := sizes.get(size)) != value:
            raise InputError(
                f"the word encoder of {name} is for another model: its {size} is {found!r}, expected {value}; "
                f"give --initializer_token instead of --initializer_from_photos"
            )
