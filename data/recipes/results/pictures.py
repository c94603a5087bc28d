"""The five pictures of docs/bundled_model.md: world, autoencoder, denoiser over its training, road, evaluator.

    python -m data.recipes.results.pictures --model data/tiny-sd --checkpoints FOLDER --out docs

They show the first pictures of each kind; nothing is picked. `--checkpoints` names a folder of `unet-STEP.pt`.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tiutils import word_encoder

from ..networks import pool, presets, train_vae, train_words, training
from ..networks.presets import Preset
from ..world import compose, places, things
from . import sheet

PROMPTS = (
    "a photo of a robot on a red background",
    "a photo of an apple on a table",
    "a horse on the beach",
    "a blue car in the desert",
    "a house in the snow",
    "a statue in a city at night",
    "a flower in a garden",
)
SEEN = 8  # columns
ROAD = 12  # columns


def tiles(rows: list[list[np.ndarray]], titles: list[str], labels: list[str], path: Path) -> None:
    """Rows of pictures of one size; titles over the first row, labels to the left of each."""
    from matplotlib.figure import Figure

    wide, high = len(rows[0]), len(rows)
    words = 0.45 * -(-len(titles) // wide)  # inches for three lines over each row that has titles
    figure = Figure(figsize=(1.35 * wide + 0.9 * bool(labels), 1.4 * high + words), dpi=100)
    axes = figure.subplots(high, wide, squeeze=False)
    for y, x in np.ndindex(high, wide):
        axis = axes[y][x]
        axis.imshow(rows[y][x], interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        if x == 0 and labels:
            axis.set_ylabel(labels[y], rotation=0, ha="right", va="center", fontsize=9)
        if titles and (number := y * wide + x) < len(titles):
            axis.set_title(textwrap.fill(titles[number], 23), fontsize=7, pad=3)
    figure.tight_layout(pad=0.3)
    save(figure, path)


def save(figure, path: Path) -> None:
    """As a PNG of 256 colors: a third of the bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB", flush=True)


def world_picture(preset: Preset, path: Path) -> None:
    """The first compositions with their captions."""
    things = compose.World.load()
    scenes = [compose.scene(things, pool.SEED, index, preset.size) for index in range(3 * SEEN)]
    rows = [[one.picture for one in scenes[i : i + SEEN]] for i in range(0, 3 * SEEN, SEEN)]
    tiles(rows, [one.caption or "(no caption)" for one in scenes], [], path)


def latent_picture(latent: torch.Tensor) -> np.ndarray:
    """(4, side, side) as the four channels in a square of gray, (2 side, 2 side, 3) uint8."""
    gray = ((latent.float().cpu() / 6 + 0.5).clamp(0, 1) * 255).to(torch.uint8).numpy()
    square = np.block([[gray[0], gray[1]], [gray[2], gray[3]]])
    return np.repeat(square[..., None], 3, axis=2)


@torch.no_grad()
def vae_picture(preset: Preset, vae, path: Path) -> None:
    """Held-out compositions, their latents, and the decoded pictures."""
    pictures, _ = pool.held_out(preset, SEEN)
    latents = vae.encode(train_vae.to_tensor(pictures).to(vae.device)).latent_dist.mean
    latents = latents * vae.config.scaling_factor
    decoded = train_vae.psnr(vae, pictures)[1]
    labels = ["picture", "its four\nlatent\nchannels", "decoded"]
    tiles([list(pictures), [latent_picture(z) for z in latents], list(decoded)], [], labels, path)


@torch.no_grad()
def unet_picture(preset: Preset, pipeline, checkpoints: Path, path: Path) -> None:
    """The same prompts from the same noise, by the weights of earlier steps and by the finished ones."""
    torch.manual_seed(6)  # before training
    states = {0: presets.unet(preset).state_dict()}
    for file in checkpoints.glob("unet-*.pt"):
        states[int(file.stem.split("-")[1])] = training.load_average(file)
    finished = {key: value.clone() for key, value in pipeline.unet.state_dict().items()}
    labels, rows = [f"step\n{step:,}" for step in sorted(states)] + ["finished"], []
    for state in [states[step] for step in sorted(states)] + [finished]:
        pipeline.unet.load_state_dict(state)
        rows.append([np.asarray(picture) for picture in sheet.paint(pipeline, PROMPTS)])
    tiles(rows, list(PROMPTS), labels, path)


@torch.no_grad()
def road_picture(preset: Preset, pipeline, model: Path, path: Path) -> None:
    """Things that no training saw, and pictures drawn with the row predicted from one look; then plain nouns."""
    numbers = [n for n in range(preset.things - 1, 0, -1) if n % things.HUED][:ROAD]
    cuts = things.draw_things(numbers, training.device())
    seen = np.stack(
        [
            things.compose_scene(things.thing_of(n, cuts[n], [])[0], n, 0, preset.size)[0]
            for n in numbers
        ]
    )
    factor = pipeline.vae.config.scaling_factor
    words = word_encoder.load(model)
    table = pipeline.text_encoder.get_input_embeddings().weight
    mean = pipeline.vae.encode(train_vae.to_tensor(seen)).latent_dist.mean
    rows = words(mean * factor) * table.norm(dim=1).median()
    stand_in = pipeline.tokenizer.get_vocab()[train_words.STAND_IN + "</w>"]
    before = table[stand_in].clone()
    columns = []
    for row in rows:
        table[stand_in] = row
        asked = [sentence.format(train_words.STAND_IN) for sentence in train_words.SAID]
        columns.append(drawn(pipeline, asked))
    table[stand_in] = before
    lines = [list(seen), *(list(line) for line in zip(*columns, strict=True))]
    lines.append(drawn(pipeline, [f"a {noun} on the beach" for noun in train_words.NOUNS[:ROAD]]))
    tiles(lines, [], ["seen", "anywhere", "on grass", "on red", "nouns"], path)


def drawn(pipeline, prompts: list[str]) -> list[np.ndarray]:
    """A picture for each prompt, with seeds 0, 1, 2 ..., by stock diffusers."""
    seeds = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
    answer = pipeline(
        prompts,
        generator=seeds,
        num_inference_steps=30,
        guidance_scale=sheet.GUIDANCE,
        output_type="np",
    )
    return [(picture * 255).round().astype(np.uint8) for picture in answer.images]


def evaluator_picture(preset: Preset, folder: Path, path: Path) -> None:
    """How well the evaluator finds each of some held-out pictures to match each of their captions."""
    from matplotlib.figure import Figure

    from tiutils.evaluation import clip as clip_model

    clip = clip_model.load(folder)
    pictures, captions = pool.held_out(preset, 4 * SEEN)
    named = [i for i, c in enumerate(captions) if any(place in c for place in places.PLACES)]
    captions, pictures = [captions[i] for i in named[:SEEN]], pictures[named[:SEEN]]
    seen = clip.encode_images([Image.fromarray(picture) for picture in pictures])
    alike = (clip.encode_text(captions) @ seen.T).numpy()
    figure = Figure(figsize=(8.6, 5.6), dpi=100)
    axis = figure.subplots()
    axis.imshow(alike, cmap="viridis", aspect="auto")
    axis.set_yticks(range(len(captions)), [textwrap.fill(c, 34) for c in captions], fontsize=8)
    axis.set_xticks([])
    axis.set_xlabel(
        "cosine of each picture (column) and caption (row); bold: the caption that fits best"
    )
    for y, x in np.ndindex(alike.shape):
        dark = alike[y, x] < (alike.min() + alike.max()) / 2
        axis.text(
            *(x, y, f"{alike[y, x]:.2f}"),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
            weight="bold" if alike[y, x] == alike[:, x].max() else "normal",
        )
    figure.tight_layout(rect=(0, 0, 1, 0.86))
    box = axis.get_position()
    each = box.width / len(captions)
    for number, picture in enumerate(pictures):
        spot = figure.add_axes((box.x0 + (number + 0.06) * each, 0.855, 0.88 * each, 0.14))
        spot.imshow(picture)
        spot.axis("off")
    save(figure, path)


def draw_all(preset: Preset, out: Path, model: Path | None = None, checkpoints: Path | None = None):
    """Draw every picture for which the files exist, into `out`."""
    from diffusers import StableDiffusionPipeline

    model = model or preset.folder / "tiny-sd"
    pipeline = StableDiffusionPipeline.from_pretrained(model).to(training.device())
    pipeline.set_progress_bar_config(disable=True)
    world_picture(preset, out / "bundled_world.png")
    vae_picture(preset, pipeline.vae, out / "bundled_vae.png")
    unet_picture(preset, pipeline, checkpoints or preset.folder, out / "bundled_unet.png")
    if (model / "word_encoder").exists():
        road_picture(preset, pipeline, model, out / "bundled_road.png")
    if (model / "evaluator").exists():
        evaluator_picture(preset, model / "evaluator", out / "bundled_evaluator.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=presets.PRESETS, default=presets.BUNDLED)
    parser.add_argument("--model", type=Path, help="a folder like data/tiny-sd")
    parser.add_argument("--checkpoints", type=Path, help="folder of unet-STEP.pt")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    preset = presets.PRESETS[arguments.preset]
    draw_all(preset, arguments.out, arguments.model, arguments.checkpoints)


if __name__ == "__main__":
    main()
