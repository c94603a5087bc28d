"""Train the text encoder as CLIP was: captions and pictures of the same scene must find each other.

trained from scratch together with the denoiser, it would tell nothing of the prompt for thousands of steps;
contrastively it does within minutes. The picture tower is a small convolutional network on small pictures, discarded
afterwards.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from . import pool, presets, tokenizer, training
from .presets import Preset
from .train_vae import to_tensor

RATE = 7e-4
# captions are shorter; the text model is causal, so padding after the end changes nothing
LENGTH = 20


class Pair(nn.Module):
    """Text encoder and picture tower with their projections into one space."""

    def __init__(self, preset: Preset):
        super().__init__()
        width = preset.text_width
        self.text = presets.text_encoder(preset)
        self.text_projection = nn.Linear(width, width, bias=False)
        layers, channels = [nn.Conv2d(3, 64, 4, padding=1, stride=2)], 64
        for out in (96, 160, 256):
            layers += [
                nn.GroupNorm(16, channels),
                nn.SiLU(),
                nn.Conv2d(channels, out, 3, padding=1, stride=2),
            ]
            layers += [nn.GroupNorm(16, out), nn.SiLU(), nn.Conv2d(out, out, 3, padding=1)]
            channels = out
        self.tower = nn.Sequential(
            *layers, nn.GroupNorm(16, channels), nn.SiLU(), nn.Flatten(), nn.LazyLinear(width)
        )
        self.temperature = nn.Parameter(torch.tensor(np.log(10.0), dtype=torch.float32))
        self.tower(
            torch.zeros(1, 3, preset.text_side, preset.text_side)
        )  # gives the lazy layer its size

    def forward(self, ids: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """Similarity of each caption (rows) with each picture (columns), times the temperature."""
        words = self.text_projection(self.text(ids).pooler_output).float()
        views = self.tower(pictures).float()
        scale = self.temperature.clamp(max=np.log(60.0)).exp()
        return scale * F.normalize(words, dim=-1) @ F.normalize(views, dim=-1).T


def shrink(pictures: np.ndarray | torch.Tensor, side: int) -> torch.Tensor:
    """uint8 (batch, size, size, 3) to (batch, 3, side, side) in -1..1."""
    return F.interpolate(to_tensor(pictures), size=(side, side), mode="area")


def token_ids(preset: Preset, captions: list[str], length: int) -> torch.Tensor:
    """(captions, length) ids, padded with the end token as Stable Diffusion does."""
    words = tokenizer.load(preset)
    encoded = words(captions, padding="max_length", truncation=True, max_length=length)
    return torch.tensor(encoded["input_ids"])


def contrast(similarity: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in both directions; equal captions share the credit."""
    target = same / same.sum(1, keepdim=True)
    rows = -(target * similarity.log_softmax(1)).sum(1).mean()
    columns = -(target * similarity.log_softmax(0)).sum(0).mean()
    return (rows + columns) / 2


def top_one(pair: Pair, ids: torch.Tensor, pictures: torch.Tensor, choices: int = 200) -> float:
    """How often a held-out picture finds its caption among `choices`."""
    pair.eval()
    with torch.no_grad(), training.autocast():
        similarity = pair(ids[:choices], pictures[:choices])
    pair.train()
    found = similarity.argmax(0).cpu()
    return float(np.mean([bool((ids[found[i]] == ids[i]).all()) for i in range(len(found))]))


def train(preset: Preset) -> training.Run:
    device = training.device()
    pictures = pool.Pictures(preset)
    captions = pool.captions(preset, len(pictures))
    spoken = np.array([number for number, caption in enumerate(captions) if caption])
    ids = token_ids(preset, captions, LENGTH).to(device)
    test, test_captions = pool.held_out(preset, 260)
    keep = [i for i, caption in enumerate(test_captions) if caption][:200]
    test_ids = token_ids(preset, [test_captions[i] for i in keep], LENGTH).to(device)
    test_pictures = shrink(test[keep], preset.text_side)

    torch.manual_seed(5)
    pair = Pair(preset).to(device)
    run = training.Run(pair, preset.folder / "text.pt", preset.text_steps, RATE)

    def step(number: int) -> torch.Tensor:
        rng = training.generator(12, number)
        chosen = rng.choice(spoken, preset.text_batch, replace=False)
        words, views = (
            ids[torch.from_numpy(chosen)],
            shrink(pictures.take(chosen), preset.text_side),
        )
        views = views + 0.1 * training.normal(rng, views.shape)
        same = (words[:, None] == words[None]).all(-1).float()
        with training.autocast():
            similarity = pair(words, views)
        return contrast(similarity, same)

    def watch(run: training.Run) -> None:
        print(
            f"text {run.step}: held-out top-1 of 200 {top_one(pair, test_ids, test_pictures):.1%}",
            flush=True,
        )

    training.loop(
        run,
        step,
        lambda number, steps: training.cosine(number, steps, RATE),
        keep=0.99,
        minutes=dict(preset.minutes).get("text"),
        watch=watch,
    )
    return run


def load_pair(preset: Preset) -> Pair:
    """The trained text encoder and picture net (averaged weights)."""
    pair = Pair(preset)
    pair.load_state_dict(training.load_average(preset.folder / "text.pt"))
    return pair.to(training.device()).eval().requires_grad_(False)


def load_text_encoder(preset: Preset):
    """The trained text encoder alone."""
    return load_pair(preset).text
