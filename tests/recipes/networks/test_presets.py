"""The sizes of the networks."""

from __future__ import annotations

import torch

from data.recipes import make
from data.recipes.networks import presets


def test_the_model_fits_its_folder(capsys):
    preset = presets.GPU
    with torch.device("meta"):
        parts = {
            "vae": presets.vae(preset),
            "text encoder": presets.text_encoder(preset),
            "unet": presets.unet(preset),
            "evaluator": presets.evaluator(preset, 4000),
        }
    sizes = {name: 2 * sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    sizes["tokenizers, card"] = 600_000
    with capsys.disabled():
        print("\n" + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()))
    assert sum(sizes.values()) <= 33_000_000, "data/tiny-sd may hold 32 MB"
    assert (preset.size, preset.latent_size, len(preset.vae_channels)) == (128, 16, 4)


def test_both_presets_make_the_same_model():
    shapes = [f for f in vars(presets.CPU) if not f.endswith(("steps", "batch"))]
    same = [getattr(presets.CPU, f) == getattr(presets.GPU, f) for f in shapes]
    different = {f for f, equal in zip(shapes, same, strict=True) if not equal}
    assert different == {"name", "pool", "things", "minutes"}
    assert {name for name, _ in presets.GPU.minutes} <= set(make.TRAININGS)
