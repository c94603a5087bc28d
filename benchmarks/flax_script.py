"""Run diffusers 0.39's own `textual_inversion_flax.py`, unchanged, in an environment that still has Flax.

    OLD_PYTHON -m benchmarks.flax_script CHECKOUT --pretrained_model_name_or_path MODEL ...

OLD_PYTHON has diffusers 0.39 and transformers 4.57, the last versions that include Flax, and jax, flax, optax and
torch. CHECKOUT is github.com/huggingface/diffusers at v0.39.0. MODEL is a folder of safetensors files; the Flax weights
that the script needs are converted from them once, into the folder MODEL-flax. After the last step the script asks the
Hub for a safety checker; without a network it ends there, when training is done.
"""

from __future__ import annotations

import runpy
import shutil
import sys
import traceback
from pathlib import Path

from benchmarks.diffusers_script import torchvision_stand_in

SCRIPT = Path("examples", "textual_inversion", "textual_inversion_flax.py")
MODEL_FLAG = "--pretrained_model_name_or_path"
AFTER_TRAINING = "FlaxStableDiffusionSafetyChecker.from_pretrained"  # the script's line


def with_flax_weights(model: Path) -> Path:
    """A copy of a model with the weight files that Flax reads, made once and moved into place when complete."""
    import torch
    from diffusers import FlaxAutoencoderKL, FlaxUNet2DConditionModel
    from safetensors.torch import load_file
    from transformers import FlaxCLIPTextModel

    folder = model.with_name(f"{model.name}-flax")
    if folder.exists():
        return folder
    half = model.with_name(f"{model.name}-flax-unfinished")
    shutil.rmtree(half, ignore_errors=True)
    shutil.copytree(model, half)
    FlaxCLIPTextModel.from_pretrained(half / "text_encoder", from_pt=True).save_pretrained(
        half / "text_encoder"
    )
    for part, network in (("vae", FlaxAutoencoderKL), ("unet", FlaxUNet2DConditionModel)):
        weights = half / part / "diffusion_pytorch_model.safetensors"
        torch.save(load_file(weights), weights.with_suffix(".bin"))  # from_pt needs this
        network_, parameters = network.from_pretrained(half / part, from_pt=True)
        network_.save_pretrained(half / part, params=parameters)
    half.rename(folder)
    return folder


def main() -> None:
    """Convert the weights, install the substitute, then run the script in this process."""
    import diffusers  # noqa: F401  both look for the real torchvision when they are imported
    import transformers  # noqa: F401

    checkout, *flags = sys.argv[1:]
    place = flags.index(MODEL_FLAG) + 1
    flags[place] = str(with_flax_weights(Path(flags[place])))
    sys.modules["torchvision"] = torchvision_stand_in()
    sys.argv = [str(Path(checkout) / SCRIPT), *flags]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except OSError:
        if AFTER_TRAINING not in traceback.format_exc():
            raise
        print("trained; no safety checker without the Hub")


if __name__ == "__main__":
    main()
