"""Run every training of the preset `gpu` for a moment, in a folder of its own: `python -m data.recipes.rehearse`

Beside the first stages of `make`, on a machine whose minutes are counted: what would break there later breaks now, and
what has to be compiled lies in PyTorch's cache when the denoiser's training asks for it. Sizes and batches are the real
ones.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace

from . import make, pool, presets

STEPS = 12
STAGES = ("vae", "text", "latents", "unet", "refine")


def rehearsal(preset: presets.Preset) -> presets.Preset:
    """The same sizes, in another folder, for a few steps."""
    counts = {f"{name}_steps": STEPS for name in make.TRAININGS}
    return replace(preset, name=preset.name + "-rehearsal", pool=pool.CHUNK, minutes=(), **counts)


def main() -> None:
    preset = presets.GPU
    small = rehearsal(preset)
    shutil.rmtree(small.folder, ignore_errors=True)
    (small.folder / "pool").mkdir(parents=True)
    shutil.copytree(preset.folder / "tokenizer", small.folder / "tokenizer")
    pool.start()
    pool.write_chunk(small.folder / "pool", 0, pool.SEED, small.size)
    for name in STAGES:
        begun = time.monotonic()
        make.stage(name, small, 1)
        print(f"rehearsal: {name} took {time.monotonic() - begun:.0f} s", flush=True)
    shutil.rmtree(small.folder)


if __name__ == "__main__":
    main()
