"""Train the autoencoder on crops of composed pictures, and finally on whole ones."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from . import pool, presets, training
from .presets import Preset

RATE = 1.2e-3
# The last part of training sees whole pictures. Before that, crops of half their side teach the network, which is
# convolutional, four times as fast.
WHOLE = 0.12


def to_tensor(pictures: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 (batch, height, width, 3) to float (batch, 3, height, width) in -1..1."""
    if not isinstance(pictures, torch.Tensor):
        pictures = torch.from_numpy(np.ascontiguousarray(pictures))
    tensor = pictures.to(training.device())
    return (tensor.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(
        memory_format=torch.channels_last
    )


def crops(pictures, rng: np.random.Generator):
    """A crop of half the side from each of (batch, side, side, 3), array or tensor."""
    side = pictures.shape[1] // 2
    at = rng.integers(0, side + 1, (len(pictures), 2))
    cut = [p[y : y + side, x : x + side] for p, (y, x) in zip(pictures, at, strict=True)]
    return torch.stack(cut) if isinstance(pictures, torch.Tensor) else np.stack(cut)


def gradients(picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return picture[..., 1:, :] - picture[..., :-1, :], picture[..., :, 1:] - picture[..., :, :-1]


def reconstruction_loss(vae, pictures: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """L1 on pixels, on their gradients (edges) and on 4 x 4 means (color), and a tiny KL term for smooth latents."""
    with training.autocast():
        posterior = vae.encode(pictures).latent_dist
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
    decoded = decoded.float()
    edges = sum(
        F.l1_loss(a, b) for a, b in zip(gradients(decoded), gradients(pictures), strict=True)
    )
    color = F.l1_loss(F.avg_pool2d(decoded, 4), F.avg_pool2d(pictures, 4))
    return F.l1_loss(decoded, pictures) + 0.5 * edges + color + 2e-6 * posterior.kl().float().mean()


def psnr(vae, pictures: np.ndarray) -> tuple[float, np.ndarray]:
    """The PSNR in decibels over a set of pictures, and the decoded pictures as uint8."""
    with torch.no_grad(), training.autocast():
        decoded = [
            vae.decode(vae.encode(to_tensor(part)).latent_dist.mean).sample.float().cpu()
            for part in np.array_split(pictures, max(1, len(pictures) // 32))
        ]
    pixels = ((torch.cat(decoded) + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    error = ((pixels - pictures) ** 2).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / error))), pixels.astype(np.uint8)


def train(preset: Preset) -> training.Run:
    torch.manual_seed(4)
    vae = presets.vae(preset).to(training.device(), memory_format=torch.channels_last)
    run = training.Run(vae, preset.folder / "vae.pt", preset.vae_steps, RATE)
    pictures = pool.Pictures(preset)
    test, _ = pool.held_out(preset, 128)

    def step(number: int) -> torch.Tensor:
        rng = training.generator(11, number)
        whole = run.along >= 1 - WHOLE
        batch = preset.vae_batch // 4 if whole else preset.vae_batch
        chosen = pictures.take(training.share(rng.integers(len(pictures), size=batch)))
        rng = training.generator(100 + training.rank(), number)
        x = to_tensor(chosen if whole else crops(chosen, rng))
        side = x.shape[-1] // 2 ** (len(preset.vae_channels) - 1)
        return reconstruction_loss(vae, x, training.normal(rng, (len(x), 4, side, side)))

    def watch(run: training.Run) -> None:
        shadow = presets.vae(preset).to(training.device())
        shadow.load_state_dict(run.average)
        decibels, decoded = psnr(shadow, test)
        pairs = np.concatenate([np.concatenate([test[i], decoded[i]], 0) for i in range(16)], 1)
        Image.fromarray(pairs).save(preset.folder / "vae.png")
        print(f"vae {run.step}: held-out PSNR {decibels:.2f} dB", flush=True)

    training.loop(
        run,
        step,
        lambda number, steps: training.cosine(number, steps, RATE),
        keep=0.99,
        minutes=dict(preset.minutes).get("vae"),
        save_every=100,
        watch=watch,
    )
    return run
