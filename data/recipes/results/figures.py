"""The figures of the model card, from `data/tiny-sd` itself: `python -m data.recipes.results.figures`.

Held-out compositions show sides of the 3-D models that training never saw. The last three figures ask whether
the prompt matters: the noise in the same latents is predicted under the right caption, under one whose noun was
changed, under one whose place was changed, and under none.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
import torch

from ..networks import pool, train_vae
from ..networks.presets import BUNDLED, PRESETS
from ..world import lexicon, places

COUNT = 256
TIMES = (200, 400, 600, 800)


def swap(rng: np.random.Generator, caption: str, words: list[str]) -> str:
    """The caption with the first of `words` that it contains replaced by another of them."""
    for word in sorted(words, key=len, reverse=True):
        if re.search(rf"\b{word}\b", caption):
            other = words[rng.integers(len(words))]
            return re.sub(rf"\b{word}\b", other, caption, count=1)
    return caption


def hidden_states(pipeline, captions: list[str]) -> torch.Tensor:
    """(captions, 77, width), as the stock pipeline makes them."""
    ids = pipeline.tokenizer(
        captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    return pipeline.text_encoder(ids.input_ids)[0]


def noise_errors(pipeline, pictures: np.ndarray, captions: list[str]) -> dict[str, list[float]]:
    """Mean squared error of the predicted noise at each of TIMES, under each kind of caption."""
    rng = np.random.default_rng(3)
    nouns = [noun.word for noun in lexicon.nouns()]
    kinds = {
        "right caption": captions,
        "another noun": [swap(rng, caption, nouns) for caption in captions],
        "another place": [swap(rng, caption, list(places.PLACES)) for caption in captions],
        "no caption": [""] * len(captions),
    }
    latents = pipeline.vae.encode(train_vae.to_tensor(pictures)).latent_dist.mean
    latents = latents * pipeline.vae.config.scaling_factor
    noise = torch.from_numpy(rng.standard_normal(latents.shape, np.float32))
    errors = {}
    for kind, words in kinds.items():
        hidden, errors[kind] = hidden_states(pipeline, words), []
        for time in TIMES:
            times = torch.full((len(words),), time)
            noisy = pipeline.scheduler.add_noise(latents, noise, times)
            predicted = pipeline.unet(noisy, times, hidden).sample
            errors[kind].append(float(((predicted - noise) ** 2).mean()))
    return errors


def main() -> None:
    from diffusers import StableDiffusionPipeline

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default=BUNDLED)
    parser.add_argument("--model", type=Path, default=Path("data/tiny-sd"))
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.model)
    preset = PRESETS[arguments.preset]
    pictures, captions = pool.held_out(preset, COUNT)
    with torch.no_grad():
        print(f"VAE: {train_vae.psnr(pipeline.vae, pictures)[0]:.2f} dB held out")
        both = [i for i, caption in enumerate(captions) if any(p in caption for p in places.PLACES)]
        print("noise error at timestep", *TIMES, sep="\t")
        for kind, row in noise_errors(
            pipeline, pictures[both], [captions[i] for i in both]
        ).items():
            print(f"{kind:<16}", *(f"{error:.4f}" for error in row), sep="\t")


if __name__ == "__main__":
    main()
