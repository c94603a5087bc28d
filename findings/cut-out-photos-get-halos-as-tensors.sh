#!/usr/bin/env bash
# A photo cut out of its background keeps the background's color under the transparent pixels. Training photos are often
# resized first and put on white later. Pillow weights colors by alpha while it resizes, and no trace of the background
# appears. torch and kornia resize the four channels alike: the hidden color bleeds into the edge, and a word that learns
# from such photos learns a green rim. You might expect the same picture from the same photo.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 pillow==13.0.0 kornia==0.9.0
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import kornia
import numpy as np
import torch
from PIL import Image

size = 512
y, x = np.mgrid[:size, :size] - size / 2
thing = x**2 + y**2 < 180**2
photo = np.zeros((size, size, 4), np.uint8)
photo[..., :3] = np.where(thing[..., None], 128, (0, 255, 0))  # a gray disk, cut out of a green room
photo[..., 3] = 255 * thing
tensor = torch.tensor(photo).movedim(-1, 0)[None].float()


def on_white(pixels):
    pixels = np.asarray(pixels, float)
    alpha = pixels[..., 3:] / 255
    return pixels[..., :3] * alpha + 255 * (1 - alpha)


def as_pixels(tensor):
    return tensor[0].movedim(0, -1).numpy().clip(0, 255)


def by_torch(edge):
    return as_pixels(torch.nn.functional.interpolate(tensor, (edge, edge), mode="bilinear", antialias=True))


ways = {
    "Pillow": lambda edge: Image.fromarray(photo).resize((edge, edge), Image.Resampling.BILINEAR),
    "torch": by_torch,
    "kornia": lambda edge: as_pixels(kornia.geometry.resize(tensor, (edge, edge), antialias=True)),
    "torch, after laying it on white": None,
}
print(*(f"{name} {version(name)}" for name in ("torch", "pillow", "kornia")), sep=", ")
green = {}
for name, way in ways.items():
    for edge in (256, 128):
        if way is None:
            flat = torch.tensor(on_white(photo)).movedim(-1, 0)[None].float()
            picture = as_pixels(torch.nn.functional.interpolate(flat, (edge, edge), mode="bilinear", antialias=True))
        else:
            picture = on_white(way(edge))
        excess = picture[..., 1] - picture[..., [0, 2]].mean(-1)
        green[name, edge] = excess.max()
        print(f"{name:32} {edge} pixels: greenest pixel +{excess.max():5.1f} of 255, {(excess > 16).sum():4} pixels above +16")
for (name, edge), excess in green.items():
    assert (excess > 50) == (name in ("torch", "kornia")) and (excess > 50 or excess < 1), green
print("as described: a tensor's edge takes on the color that was cut away; lay it on white first")
PYTHON
