"""Compose the training pictures once, in parallel, into chunks on disk; a chunk that exists is not made again."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from . import compose, training
from .presets import PRESETS, Preset

CHUNK = 2000
SEED = 1
_world: compose.World | None = None


def _start(name: str, calm: bool) -> None:
    global _world
    _world = compose.World.load(name=name, calm=calm)


def write_chunk(folder: Path, number: int, seed: int, size: int) -> None:
    """Scenes number * CHUNK onwards: pictures as uint8 (CHUNK, size, size, 3), captions as JSON."""
    scenes = [compose.scene(_world, seed, number * CHUNK + i, size) for i in range(CHUNK)]
    captions = folder / f"captions-{number:03d}.json"
    captions.write_text(json.dumps([caption for _, caption in scenes]))
    part = folder / f"part-{number:03d}.npy"
    np.save(part, np.stack([picture for picture, _ in scenes]))
    os.replace(part, folder / f"pictures-{number:03d}.npy")


def build(preset: Preset, count: int | None = None) -> None:
    """Compose the first `count` pictures (all of `preset.pool` by itself), on every core."""
    folder = preset.folder / "pool"
    folder.mkdir(parents=True, exist_ok=True)
    todo = [
        k
        for k in range((count or preset.pool) // CHUNK)
        if not (folder / f"pictures-{k:03d}.npy").exists()
    ]
    apart = multiprocessing.get_context("spawn")  # a process that uses a GPU must not be forked
    with ProcessPoolExecutor(os.cpu_count(), apart, _start, (preset.world, preset.calm)) as workers:
        jobs = [workers.submit(write_chunk, folder, number, SEED, preset.size) for number in todo]
        for done, job in enumerate(jobs, 1):
            job.result()
            print(f"pool: {done}/{len(jobs)} chunks of {CHUNK}", flush=True)


class Pictures:
    """The pool, or its first `count`, as one sequence of (size, size, 3) uint8: mapped from disk, or on the GPU."""

    def __init__(self, preset: Preset, count: int | None = None):
        files = sorted((preset.folder / "pool").glob("pictures-*.npy"))
        self.files = files[: count // CHUNK] if count else files
        self.chunks = [np.load(file, mmap_mode="r") for file in self.files]
        self.near: torch.Tensor | None = None
        if training.on_gpu():  # 300,000 of 128 px are 15 GB: they fit, and no step waits for them
            whole = [torch.from_numpy(np.load(file)) for file in self.files]
            self.near = torch.cat([chunk.to(training.device()) for chunk in whole])

    def __len__(self) -> int:
        return CHUNK * len(self.chunks)

    def take(self, indices: np.ndarray) -> np.ndarray | torch.Tensor:
        if self.near is not None:
            return self.near[torch.from_numpy(indices).to(self.near.device)]
        return np.stack([self.chunks[i // CHUNK][i % CHUNK] for i in indices])


def captions(preset: Preset) -> list[str]:
    files = sorted((preset.folder / "pool").glob("captions-*.json"))
    return [caption for file in files for caption in json.loads(file.read_text())]


def held_out(preset: Preset, count: int, seed: int = 99) -> tuple[np.ndarray, list[str]]:
    """Compositions of sides that training never sees."""
    things = compose.World.load(True, preset.world, preset.calm)
    scenes = [compose.scene(things, seed, i, preset.size) for i in range(count)]
    return np.stack([picture for picture, _ in scenes]), [caption for _, caption in scenes]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compose what is missing in the pool.")
    parser.add_argument("--preset", choices=PRESETS, required=True)
    preset = PRESETS[parser.parse_args().preset]
    os.nice(10)  # a training beside it goes first
    build(preset)
