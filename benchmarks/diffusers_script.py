"""Run diffusers' own `textual_inversion.py`, unchanged, where torchvision cannot be installed.

    python -m benchmarks.diffusers_script CHECKOUT [--sdxl] --max_train_steps 10 ...

With `--sdxl` it is `textual_inversion_sdxl.py`. The scripts use a random horizontal flip and a crop from torchvision;
substitutes are installed before the script starts. If the environment variable LOSSES names a file, each step's loss is
appended to it. CHECKOUT is a checkout of github.com/huggingface/diffusers.
"""

from __future__ import annotations

import os
import runpy
import sys
import types
from pathlib import Path

FOLDER = Path("examples", "textual_inversion")


def torchvision_stand_in() -> types.ModuleType:
    """A module with the three transforms that the scripts use; a crop is of a picture that has the size already."""
    import torch
    from PIL import ImageOps

    class RandomHorizontalFlip:
        def __init__(self, p):
            self.p = p

        def __call__(self, image):
            return ImageOps.mirror(image) if torch.rand(1).item() < self.p else image

    class RandomCrop:
        def __init__(self, size):
            pass

        def get_params(self, image, size):
            assert image.size == size
            return 0, 0, *size

    functional = types.SimpleNamespace(crop=lambda image, *box: image)
    module = types.ModuleType("torchvision")
    module.transforms = types.SimpleNamespace(
        RandomHorizontalFlip=RandomHorizontalFlip, RandomCrop=RandomCrop, functional=functional
    )
    return module


def note_losses(path: str) -> None:
    """Add the loss of each step to a file, as the script's trackers are told it."""
    import accelerate

    def log(self, values, step=None, **_):
        if "loss" in values:
            with open(path, "a") as file:
                print(values["loss"], file=file)

    accelerate.Accelerator.log = log


def main() -> None:
    """Install the substitute, then run the script in this process."""
    import diffusers  # noqa: F401  both look for the real torchvision when they are imported
    import transformers  # noqa: F401

    checkout, *flags = sys.argv[1:]
    name = "textual_inversion.py"
    if flags[:1] == ["--sdxl"]:
        name, flags = "textual_inversion_sdxl.py", flags[1:]
    if path := os.environ.get("LOSSES"):
        note_losses(path)
    sys.modules["torchvision"] = torchvision_stand_in()
    sys.argv = [str(Path(checkout) / FOLDER / name), *flags]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
