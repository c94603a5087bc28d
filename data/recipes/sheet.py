"""Draw the fixed prompts with stock diffusers: `python -m data.recipes.sheet`, then look at the picture.

Nothing of the recipes is used but the list of prompts: what this draws is what anybody gets.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import torch
from PIL import Image, ImageDraw

PROMPTS = (
    "a photo of a toy",
    "a toy on the beach",
    "two toys in the snow",
    "a photo of a toy in space",
    "a photo of a doll",
    "a photo of a robot on a red background",
    "a photo of a bear",
    "a bear in the forest",
    "a photo of a horse on grass",
    "a horse on the beach",
    "a photo of a figure on a table",
    "a statue in a city at night",
    "a photo of a cat",
    "a red car on the street",
    "a blue car in the desert",
    "a photo of an apple on a table",
    "three apples on a white background",
    "a fish under water",
    "a house in the snow",
    "a chair in a room",
    "a photo of a duck on grass",
    "a tower at sunset",
    "a rocket in space",
    "a flower in a garden",
)


def draw(folder: Path, seed: int, steps: int, scale: float, cell: int = 128) -> Image.Image:
    """One picture a prompt, its words below it."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(PROMPTS))]
    pictures = pipeline(
        list(PROMPTS), num_inference_steps=steps, guidance_scale=scale, generator=generators
    ).images
    columns, row = 8, cell + 28
    sheet = Image.new("RGB", (columns * (cell + 4), -(-len(PROMPTS) // columns) * row), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (prompt, picture) in enumerate(zip(PROMPTS, pictures, strict=True)):
        x, y = number % columns * (cell + 4), number // columns * row
        sheet.paste(picture.resize((cell, cell), Image.LANCZOS), (x, y))
        words = textwrap.fill(prompt.removeprefix("a photo of "), 22)
        pen.text((x, y + cell + 1), words, fill="black", spacing=1)
    # 256 colours take a fifth of the space, which the model's folder needs for the model
    return sheet.quantize(palette=sheet.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("data/tiny-sd"))
    parser.add_argument("--out", type=Path, default=Path("data/recipes/work/sheet.png"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    draw(arguments.model, arguments.seed, arguments.steps, arguments.guidance).save(
        arguments.out, optimize=True
    )
    print(arguments.out)


if __name__ == "__main__":
    main()
