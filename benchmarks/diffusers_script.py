"""Runs diffusers' own `textual_inversion.py`, unchanged, where torchvision cannot be installed.

    python -m benchmarks.diffusers_script CHECKOUT --max_train_steps 10 ...

The script takes one thing from torchvision, a random mirror; a stand-in for it is put in place
before the script starts. CHECKOUT is a checkout of github.com/huggingface/diffusers.
"""

from __future__ import annotations

import runpy
import sys
import types
from pathlib import Path

SCRIPT = Path("examples", "textual_inversion", "textual_inversion.py")


def torchvision_stand_in() -> types.ModuleType:
    """A module with `transforms.RandomHorizontalFlip` and nothing else."""
    import torch
    from PIL import ImageOps

    class RandomHorizontalFlip:
        def __init__(self, p):
            self.p = p

        def __call__(self, image):
            return ImageOps.mirror(image) if torch.rand(1).item() < self.p else image

    module = types.ModuleType("torchvision")
    module.transforms = types.SimpleNamespace(RandomHorizontalFlip=RandomHorizontalFlip)
    return module


def main() -> None:
    """Put the stand-in in place and become the script."""
    import diffusers  # noqa: F401  both look for the real torchvision when they are imported
    import transformers  # noqa: F401

    checkout, *flags = sys.argv[1:]
    sys.modules["torchvision"] = torchvision_stand_in()
    sys.argv = [str(Path(checkout) / SCRIPT), *flags]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
