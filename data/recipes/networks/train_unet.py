"""Train the denoiser on cached latents and hidden states: noise prediction, min-SNR weights."""

from __future__ import annotations

import os
import time

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor

from ..world import lexicon
from . import latents, pool, presets, train_text, training
from .presets import Preset

RATE = 2e-3
MIN_SNR = 5.0
CORE = 0.25  # share of pictures that show core words, from this part of training on:
CORE_FROM = 0.3
OUTER = (
    "conv_in",
    "conv_out",
    "time_embedding",
)  # modules that AdamW trains, Muon the other matrices
# parts of training after which the averaged weights are kept, to be looked at
SHOWN = (0.02, 0.1, 0.35)
# timesteps at which one can see what a thing is, but not yet how it looks
SHAPES = (400, 900)
DWELT = 0.4  # share of the timesteps among these; the rest are anywhere
DROPPED = 0.04  # more prompts dropped, on top of the pool's empty captions; guidance needs them


def core_pictures(captions: list[str]) -> np.ndarray:
    """Numbers of the pictures whose caption names a core word, one or several of it."""
    forms = {form for noun in lexicon.nouns() if "core" in noun.traits for form in noun.forms}
    return np.array([i for i, caption in enumerate(captions) if forms & set(caption.split())])


class HiddenStates:
    """The frozen text encoder's answers, once for each different caption: (captions, 77, width) float16."""

    def __init__(self, preset: Preset):
        captions = pool.captions(preset, pool.CHUNK * len(latents.chunk_files(preset)))
        self.captions = captions
        self.numbers = {"": 0}
        for caption in captions:
            self.numbers.setdefault(caption, len(self.numbers))
        self.of_picture = np.array([self.numbers[caption] for caption in captions])
        if training.on_gpu():  # on a GPU it is faster to compute them again than to store them
            self.encoder = train_text.load_text_encoder(preset)
            ids = train_text.token_ids(preset, list(self.numbers), train_text.LENGTH)
            padding = (0, 77 - ids.shape[1])
            ids = torch.nn.functional.pad(ids, padding, value=preset.vocabulary - 1)
            self.ids = ids.to(training.device())
            return
        path = preset.folder / "hidden.npy"
        if not path.exists():
            self.build(preset, path)
        self.states = torch.from_numpy(np.load(path, mmap_mode="c"))

    def build(self, preset: Preset, path) -> None:
        encoder, ids = (
            train_text.load_text_encoder(preset),
            train_text.token_ids(preset, list(self.numbers), 77),
        )
        states, begun = np.zeros((len(ids), 77, preset.text_width), np.float16), time.monotonic()
        with torch.no_grad(), training.autocast():
            for i in range(0, len(ids), 128):
                answer = encoder(ids[i : i + 128].to(training.device())).last_hidden_state
                states[i : i + 128] = answer.float().cpu().numpy()
        part = path.with_suffix(".part.npy")
        np.save(part, states)
        os.replace(part, path)
        print(f"hidden states: {len(ids)} captions in {time.monotonic() - begun:.0f} s", flush=True)

    def take(self, pictures: np.ndarray, dropped: np.ndarray) -> torch.Tensor:
        """Hidden states (batch, 77, width) of these pictures' captions; the empty one where dropped."""
        numbers = np.where(dropped, 0, self.of_picture[pictures])
        if training.on_gpu():
            ids = self.ids[torch.from_numpy(numbers).to(self.ids.device)]
            with torch.no_grad(), training.autocast():
                return self.encoder(ids).last_hidden_state
        return self.states[numbers].float()


def noise_levels() -> torch.Tensor:
    """Cumulative alphas (1000,) of the schedule."""
    settings = presets.scheduler_settings()
    roots = torch.linspace(
        settings["beta_start"] ** 0.5, settings["beta_end"] ** 0.5, 1000, dtype=torch.float64
    )
    return torch.cumprod(1 - roots**2, 0).float()


def draw_times(rng: np.random.Generator, count: int) -> np.ndarray:
    """Timesteps (count,): DWELT of them from where shapes are settled, the rest from everywhere."""
    times = rng.integers(1000, size=count)
    return np.where(rng.random(count) < DWELT, rng.integers(*SHAPES, size=count), times)


def train(preset: Preset) -> training.Run:
    """From noise to a denoiser that knows every word."""
    torch.manual_seed(6)
    unet = presets.unet(preset).to(training.device())
    if not training.on_gpu():
        # A CPU's fused attention takes three times as long backward as plain products.
        unet.set_attn_processor(AttnProcessor())
    print(f"unet: {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M parameters", flush=True)
    training.speed_up(unet)
    run = training.Run(unet, preset.folder / "unet.pt", preset.unet_steps, RATE, outer=OUTER)
    device = training.device()
    pictures = latents.load(preset).to(device)
    words = HiddenStates(preset)
    core = core_pictures(words.captions)
    alphas = noise_levels().to(device)

    def step(number: int) -> torch.Tensor:
        if number in (int(part * run.steps) for part in SHOWN):
            keep_average(run)
        rng = training.generator(13, number)
        chosen = rng.integers(len(pictures), size=preset.unet_batch)
        if run.along >= CORE_FROM:
            dwell = rng.random(len(chosen)) < CORE
            chosen = np.where(dwell, rng.choice(core, len(chosen)), chosen)
        chosen = training.share(chosen)
        rng = training.generator(100 + training.rank(), number)
        clean = pictures[torch.from_numpy(chosen).to(device)].float()
        noise = training.normal(rng, clean.shape)
        times = torch.from_numpy(draw_times(rng, len(chosen))).to(device)
        hidden = words.take(chosen, rng.random(len(chosen)) < DROPPED).to(device)
        alpha = alphas[times][:, None, None, None]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        with training.autocast():
            predicted = run.module(noisy, times, hidden, return_dict=False)[0]
        signal = (alpha / (1 - alpha)).flatten()
        weight = signal.clamp(max=MIN_SNR) / signal
        return (weight * ((predicted.float() - noise) ** 2).mean(dim=(1, 2, 3))).mean()

    training.loop(
        run,
        step,
        lambda number, steps: training.cosine(number, steps, RATE, warmup=150),
        keep=0.999,
        minutes=dict(preset.minutes).get("unet"),
        save_every=100,
    )
    return run


def keep_average(run: training.Run) -> None:
    """The averaged weights of this step in fp16, beside the checkpoint: `unet-400.pt`."""
    if training.rank() != 0:
        return
    half = {k: v.half() if v.is_floating_point() else v for k, v in run.average.items()}
    torch.save({"average": half, "step": run.step}, run.path.with_name(f"unet-{run.step}.pt"))
