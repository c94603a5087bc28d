"""Compose the training pictures once, in parallel, into chunks on disk; a chunk that exists is not made again."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from . import compose
from .presets import Preset

CHUNK = 2000
SEED = 1
_world: compose.World | None = None


def _start(held_out: bool) -> None:
    global _world
    _world = compose.World.load(held_out)


def write_chunk(folder: Path, number: int, seed: int, size: int) -> None:
    """Scenes number * CHUNK onwards: pictures as uint8 (CHUNK, size, size, 3), captions as JSON."""
    scenes = [compose.scene(_world, seed, number * CHUNK + i, size) for i in range(CHUNK)]
    captions = folder / f"captions-{number:03d}.json"
    captions.write_text(json.dumps([caption for _, caption in scenes]))
    part = folder / f"part-{number:03d}.npy"
    np.save(part, np.stack([picture for picture, _ in scenes]))
    os.replace(part, folder / f"pictures-{number:03d}.npy")


def build(preset: Preset) -> None:
    folder = preset.folder / "pool"
    folder.mkdir(parents=True, exist_ok=True)
    todo = [
        k for k in range(preset.pool // CHUNK) if not (folder / f"pictures-{k:03d}.npy").exists()
    ]
    with ProcessPoolExecutor(os.cpu_count(), initializer=_start, initargs=(False,)) as workers:
        jobs = [workers.submit(write_chunk, folder, number, SEED, preset.size) for number in todo]
        for done, job in enumerate(jobs, 1):
            job.result()
            print(f"pool: {done}/{len(jobs)} chunks of {CHUNK}", flush=True)


class Pictures:
    """The pool as one sequence of (size, size, 3) uint8 pictures, mapped from disk."""

    def __init__(self, preset: Preset):
        self.files = sorted((preset.folder / "pool").glob("pictures-*.npy"))
        self.chunks = [np.load(file, mmap_mode="r") for file in self.files]

    def __len__(self) -> int:
        return CHUNK * len(self.chunks)

    def take(self, indices: np.ndarray) -> np.ndarray:
        return np.stack([self.chunks[i // CHUNK][i % CHUNK] for i in indices])


def captions(preset: Preset) -> list[str]:
    files = sorted((preset.folder / "pool").glob("captions-*.json"))
    return [caption for file in files for caption in json.loads(file.read_text())]


def held_out(preset: Preset, count: int, seed: int = 99) -> tuple[np.ndarray, list[str]]:
    """Compositions of sides that training never sees."""
    things = compose.World.load(held_out=True)
    scenes = [compose.scene(things, seed, i, preset.size) for i in range(count)]
    return np.stack([picture for picture, _ in scenes]), [caption for _, caption in scenes]
