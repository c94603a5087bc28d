"""Encode the pool once: latents (pictures, 4, side, side) scaled to unit deviation, in float16."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from . import pool, presets, training
from .presets import Preset
from .train_vae import to_tensor


def load_vae(preset: Preset):
    """The trained autoencoder (averaged weights)."""
    if preset.start:
        vae = AutoencoderKL.from_pretrained(preset.start, subfolder="vae")
    else:
        vae = presets.vae(preset)
        vae.load_state_dict(training.load_average(preset.folder / "vae.pt"))
    return vae.to(training.device(), memory_format=torch.channels_last).eval().requires_grad_(False)


def encode(vae, pictures: np.ndarray | torch.Tensor, batch: int) -> torch.Tensor:
    """Unscaled latent means (count, 4, side, side), float32 on the CPU."""
    with torch.no_grad(), training.autocast():
        parts = [
            vae.encode(to_tensor(pictures[i : i + batch])).latent_dist.mean.float().cpu()
            for i in range(0, len(pictures), batch)
        ]
    return torch.cat(parts)


def build(preset: Preset) -> None:
    """Write one file for each chunk of the pool, keeping existing ones. Of n processes, each takes every n-th chunk."""
    vae, pictures = load_vae(preset), pool.Pictures(preset)
    folder = preset.folder / "latents"
    folder.mkdir(parents=True, exist_ok=True)
    todo = [
        k
        for k in training.share(np.arange(len(pictures.chunks)))
        if not (folder / f"{k:03d}.npy").exists()
    ]
    batch = 500 if training.on_gpu() else 50
    begun = time.monotonic()
    for done, number in enumerate(todo, 1):
        if time.monotonic() > training.UNTIL:
            raise training.OutOfTime(f"latents: stopped with {len(todo) - done + 1} chunks to go")
        part = folder / f"part{training.rank()}.npy"
        chunk = pictures.take(np.arange(number * pool.CHUNK, (number + 1) * pool.CHUNK))
        np.save(part, encode(vae, chunk, batch).numpy().astype(np.float16))
        os.replace(part, folder / f"{number:03d}.npy")
        left = (len(todo) - done) * (time.monotonic() - begun) / done
        print(f"latents: {done}/{len(todo)} chunks, {left / 60:.1f} min left", flush=True)


def cached(preset: Preset, vae, name: str, chunks: list[np.ndarray]) -> list[torch.Tensor]:
    """Unscaled latents of chunks of pictures, float16; cached beside them on a CPU, while a GPU needs only seconds."""
    found, batch = [], 500 if training.on_gpu() else 50
    for number, chunk in enumerate(chunks):
        path = preset.folder / name / f"latents-{number:03d}.npy"
        if path.exists():
            found.append(torch.from_numpy(np.load(path)))
            continue
        found.append(encode(vae, np.array(chunk), batch).half())
        if not training.on_gpu():
            np.save(path, found[-1].numpy())
            print(f"{name}: {number + 1} of {len(chunks)} chunks encoded", flush=True)
    return found


def scaling_factor(preset: Preset) -> float:
    """The factor that gives latents unit deviation (Stable Diffusion's is 0.18215); kept in a file, to be copied."""
    if preset.start:
        return AutoencoderKL.load_config(preset.start, subfolder="vae")["scaling_factor"]
    path = preset.folder / "scaling.txt"
    if not path.exists():
        first = np.load(preset.folder / "latents" / "000.npy").astype(np.float32)
        path.write_text(f"{1 / first.std():.5f}\n")
    return float(path.read_text())


def load(preset: Preset) -> torch.Tensor:
    """All latents, scaled, float16 (count, 4, side, side)."""
    factor = scaling_factor(preset)
    chunks = [torch.from_numpy(np.load(file)) for file in chunk_files(preset)]
    return torch.cat([(chunk.float() * factor).half() for chunk in chunks])


def chunk_files(preset: Preset) -> list[Path]:
    """The encoded chunks from the first up to any gap: a training may begin before the last is done."""
    folder, files = preset.folder / "latents", []
    while (file := folder / f"{len(files):03d}.npy").exists():
        files.append(file)
    return files
