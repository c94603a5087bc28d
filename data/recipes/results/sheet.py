"""Draw the fixed prompts with stock diffusers: `python -m data.recipes.results.sheet`, then look at the picture.

Of the recipes, only the list of prompts is used: anybody gets the same pictures.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

GUIDANCE = 2.5  # a model that knows its words needs little guidance
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
    # the second half asks for nouns beyond those of toys
    "a panda in the forest",
    "a castle in the mountains",
    "a fire truck on the street",
    "a photo of an astronaut on the moon",
    "a guitar on a carpet",
    "a red umbrella on the beach",
    "a green chair in the kitchen",
    "two penguins in the snow",
    "a fox on grass",
    "a hamburger on a table",
    "a pizza on a yellow background",
    "a sailboat at sunset",
    "an airplane in the clouds",
    "a washing machine in a room",
    "a cactus in the desert",
    "a pink heart on a black background",
    "three balloons in the clouds",
    "a wizard in the mountains",
    "a camera on a table",
    "a crab under water",
    "a dinosaur in the forest",
    "a clock on a blue background",
    "a sofa on a carpet",
    "a unicorn in a garden",
)


def paint(
    pipeline, prompts: Sequence[str], seed: int = 0, steps: int = 30, scale: float = GUIDANCE
):
    """One picture for each prompt, from the noise of a seed of its own."""
    seeds = [torch.Generator().manual_seed(seed + number) for number in range(len(prompts))]
    return pipeline(
        list(prompts), num_inference_steps=steps, guidance_scale=scale, generator=seeds
    ).images


def draw(
    folder: Path, prompts: Sequence[str], seeds: Sequence[int], steps: int, scale: float, cell=128
) -> Image.Image:
    """A cell for each prompt, with its text below; in the cell a picture for each seed, side by side."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    drawn = [paint(pipeline, prompts, seed, steps, scale) for seed in seeds]
    columns, wide, high = 8 if len(seeds) == 1 else 6, cell * len(seeds) + 4, cell + 28
    sheet = Image.new("RGB", (columns * wide, -(-len(prompts) // columns) * high), "white")
    pen = ImageDraw.Draw(sheet)
    for number, prompt in enumerate(prompts):
        x, y = number % columns * wide, number // columns * high
        for place, pictures in enumerate(drawn):
            picture = pictures[number].resize((cell, cell), Image.LANCZOS)
            sheet.paste(picture, (x + place * cell, y))
        words = textwrap.fill(prompt.removeprefix("a photo of "), 22 * len(seeds))
        pen.text((x, y + cell + 1), words, fill="black", spacing=1)
    # 256 colors take a fifth of the space
    return sheet.quantize(palette=sheet.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("data/tiny-sd"))
    parser.add_argument("--out", type=Path, default=Path("data/recipes/work/sheet.png"))
    parser.add_argument(
        "--prompts", type=int, default=48, help="how many of the 48 prompts to draw"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    prompts = PROMPTS[: arguments.prompts]
    sheet = draw(arguments.model, prompts, arguments.seeds, arguments.steps, arguments.guidance)
    sheet.save(arguments.out, optimize=True)
    print(arguments.out)


if __name__ == "__main__":
    main()
