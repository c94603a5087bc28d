"""Compose the training pictures once, in parallel, into chunks on disk; existing chunks are not made again."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..world import compose, pack
from . import training
from .presets import PRESETS, Preset

CHUNK = 2000
WORDS = ("caption", "sentence", "side")  # of each picture: see compose.Scene
SEED = 1
_world: compose.World | None = None


def start() -> None:
    """Load the world, once in each process that composes."""
    global _world
    _world = compose.World.load()


def known_things() -> list[pack.Thing]:
    """The things of the loaded world that training may show."""
    return [thing for group in _world.by_word.values() for thing in group if thing.sides]


def write_chunk(folder: Path, number: int, seed: int, size: int) -> None:
    """Scenes number * CHUNK onwards: pictures as uint8 (CHUNK, size, size, 3), words as JSON, first."""
    scenes = [compose.scene(_world, seed, number * CHUNK + i, size) for i in range(CHUNK)]
    words = {name: [getattr(one, name) for one in scenes] for name in WORDS}
    (folder / f"words-{number:03d}.json").write_text(json.dumps(words))
    part = folder / f"part-{number:03d}.npy"
    np.save(part, np.stack([one.picture for one in scenes]))
    os.replace(part, folder / f"pictures-{number:03d}.npy")


def files(preset: Preset) -> list[Path]:
    """The chunks that exist, from the first up to any gap: a training may begin before the last is made."""
    folder, found = preset.folder / "pool", []
    while (file := folder / f"pictures-{len(found):03d}.npy").exists():
        found.append(file)
    return found


def build(preset: Preset) -> None:
    """Compose the missing chunks, on every core."""
    folder = preset.folder / "pool"
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(preset.pool // CHUNK)
    todo = [k for k in numbers if not (folder / f"pictures-{k:03d}.npy").exists()]
    apart = multiprocessing.get_context("spawn")  # a process that uses a GPU must not be forked
    with ProcessPoolExecutor(os.cpu_count(), apart, start) as workers:
        jobs = [workers.submit(write_chunk, folder, number, SEED, preset.size) for number in todo]
        for done, job in enumerate(jobs, 1):
            job.result()
            if done % 10 == 0 or done == len(jobs):
                print(f"pool: {done}/{len(jobs)} chunks of {CHUNK}", flush=True)


def chunks(preset: Preset) -> list[np.ndarray]:
    """Pictures of every chunk that exists, mapped from disk."""
    return [np.load(file, mmap_mode="r") for file in files(preset)]


class Pictures:
    """What exists of the pool as one sequence of (size, size, 3) uint8: mapped from disk, or on the GPU."""

    def __init__(self, preset: Preset):
        self.chunks = chunks(preset)
        self.near: torch.Tensor | None = None
        if training.on_gpu():  # 240,000 of 128 px are 12 GB: they fit, and no step waits for them
            device = training.device()
            self.near = torch.cat([torch.from_numpy(np.array(c)).to(device) for c in self.chunks])

    def __len__(self) -> int:
        return CHUNK * len(self.chunks)

    def take(self, indices: np.ndarray) -> np.ndarray | torch.Tensor:
        if self.near is not None:
            return self.near[torch.from_numpy(indices).to(self.near.device)]
        return np.stack([self.chunks[i // CHUNK][i % CHUNK] for i in indices])


def words(preset: Preset, count: int, name: str) -> list:
    """One of WORDS for each of the first `count` pictures of the pool."""
    folder = preset.folder / "pool"
    parts = [folder / f"words-{number:03d}.json" for number in range(-(-count // CHUNK))]
    return [entry for part in parts for entry in json.loads(part.read_text())[name]][:count]


def captions(preset: Preset, count: int) -> list[str]:
    """Of the first `count` pictures of the pool."""
    return words(preset, count, "caption")


def held_out(preset: Preset, count: int, seed: int = 99) -> tuple[np.ndarray, list[str]]:
    """Compositions of sides that training never sees."""
    things = compose.World.load(held_out=True)
    scenes = [compose.scene(things, seed, i, preset.size) for i in range(count)]
    return np.stack([one.picture for one in scenes]), [one.caption for one in scenes]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compose the missing chunks of the pool.")
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--count", type=int, help="pictures in all")
    arguments = parser.parse_args()
    preset = PRESETS[arguments.preset]
    preset = replace(preset, pool=arguments.count or preset.pool)
    os.nice(10)  # a training that runs at the same time goes first
    build(preset)
