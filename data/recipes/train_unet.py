"""Train the denoiser on cached latents and hidden states: noise prediction, min-SNR weights."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor

from . import latents, pool, presets, train_text, training, world
from .made_words import Sentences
from .presets import Preset

RATE, REFINE_RATE = 2e-3, 6e-4
MADE = 0.4  # of the captions in the last training are said with made words
MIN_SNR = 5.0
CORE = 0.25  # of the pictures show core words, from this part of training on:
CORE_FROM = 0.3
OUTER = (
    "conv_in",
    "conv_out",
    "time_embedding",
)  # modules that AdamW trains, Muon the other matrices
SHOWN = (0.02, 0.1, 0.35)  # parts of training after which the averaged weights are kept, to look at
SHAPES = (
    400,
    900,
)  # timesteps at which what a thing is can be seen, and how it looks is still open
DWELT = 0.4  # of the timesteps are among these, the rest anywhere
DROPPED = 0.04  # more prompts dropped, on top of the pool's empty captions; guidance needs them


def core_pictures(captions: list[str]) -> np.ndarray:
    """Numbers of the pictures whose caption names a core word, one or several of it."""
    forms = {form for n in world.nouns() if n.word in world.CORE for form in (n.word, n.plural)}
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
        if training.on_gpu():  # there it is quicker to ask again than to remember
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
    run = begin(preset, "unet", RATE)
    return descend(preset, run, "unet", RATE, made=0.0)


def refine(preset: Preset) -> training.Run:
    """Go on from there more slowly, with made words among the captions."""
    run = begin(preset, "refine", REFINE_RATE, weights=preset.folder / "unet.pt")
    return descend(preset, run, "refine", REFINE_RATE, made=MADE)


def begin(preset: Preset, name: str, rate: float, weights: Path | None = None) -> training.Run:
    """The run called `name`, from the averaged weights of another, or from nothing."""
    torch.manual_seed(6)
    unet = presets.unet(preset).to(training.device())
    if weights:
        unet.load_state_dict(training.load_average(weights))
    if (
        not training.on_gpu()
    ):  # a CPU's fused attention takes three times as long backward as plain products
        unet.set_attn_processor(AttnProcessor())
    print(f"{name}: {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M parameters", flush=True)
    training.speed_up(unet)
    steps = getattr(preset, f"{name}_steps")
    return training.Run(unet, preset.folder / f"{name}.pt", steps, rate, outer=OUTER)


def descend(
    preset: Preset, run: training.Run, name: str, top_rate: float, made: float
) -> training.Run:
    """Train to the end; `made` is the share of captions that are said with made words."""
    device, batch = training.device(), getattr(preset, f"{name}_batch")
    pictures = latents.load(preset).to(device)
    words = HiddenStates(preset)
    strange = Sentences(preset, len(pictures)) if made else None
    core = core_pictures(words.captions)
    alphas = noise_levels().to(device)

    def hidden_states(rng: np.random.Generator, chosen: np.ndarray) -> torch.Tensor:
        hidden = words.take(chosen, rng.random(len(chosen)) < DROPPED).to(device)
        if strange is not None:
            swapped = (rng.random(len(chosen)) < made) & (strange.sides[chosen] >= 0)
            if swapped.any():
                hidden[torch.from_numpy(swapped).to(device)] = strange.take(rng, chosen[swapped])
        return hidden

    def step(number: int) -> torch.Tensor:
        if name == "unet" and number in (int(part * run.steps) for part in SHOWN):
            keep_average(run)
        rng = training.generator(13, number)
        chosen = rng.integers(len(pictures), size=batch)
        if made or run.along >= CORE_FROM:
            dwell = rng.random(len(chosen)) < CORE
            chosen = np.where(dwell, rng.choice(core, len(chosen)), chosen)
        chosen = training.share(chosen)
        rng = training.generator(100 + training.rank(), number)
        clean = pictures[torch.from_numpy(chosen).to(device)].float()
        noise = training.normal(rng, clean.shape)
        times = torch.from_numpy(draw_times(rng, len(chosen))).to(device)
        hidden = hidden_states(rng, chosen)
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
        lambda number, steps: training.cosine(number, steps, top_rate, warmup=150),
        keep=0.999,
        minutes=dict(preset.minutes).get(name),
        save_every=100,
    )
    return run


def keep_average(run: training.Run) -> None:
    """The averaged weights of this step in fp16, beside the checkpoint: `unet-400.pt`."""
    if training.rank() != 0:
        return
    half = {k: v.half() if v.is_floating_point() else v for k, v in run.average.items()}
    torch.save({"average": half, "step": run.step}, run.path.with_name(f"unet-{run.step}.pt"))


def load_unet(preset: Preset):
    """The refined denoiser (averaged weights)."""
    unet = presets.unet(preset)
    unet.load_state_dict(training.load_average(preset.folder / "refine.pt"))
    return unet.eval().requires_grad_(False)
