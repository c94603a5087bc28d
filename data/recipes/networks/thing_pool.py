"""Draw and compose the pictures of things without names, in chunks on disk; existing chunks are not made again."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np

from ..world import things
from . import pool, training
from .presets import PRESETS, Preset

PER_CHUNK = 200  # things
UNSEEN = 500  # the last things, which no training sees


def numbers_of(preset: Preset, chunk: int) -> range:
    """The numbers of the chunk's things."""
    return range(chunk * PER_CHUNK, min((chunk + 1) * PER_CHUNK, preset.things))


def draw_chunk(preset: Preset, chunk: int) -> dict[int, np.ndarray]:
    """Cut-outs of the chunk's built things, by number."""
    built = [number for number in numbers_of(preset, chunk) if number % things.HUED]
    return things.draw_things(built, training.device())


def compose_chunk(preset: Preset, chunk: int, cuts: dict[int, np.ndarray]) -> None:
    """Write pictures (things × SCENES, size, size, 3) uint8, and sentences and nouns beside them."""
    folder, size = preset.folder / "things", preset.size
    known = pool.known_things()
    pictures, sentences, nouns = [], [], []
    for number in numbers_of(preset, chunk):
        thing, noun = things.thing_of(number, cuts.get(number), known)
        nouns.append(noun)
        for scene in range(things.SCENES):
            shown, sentence = things.compose_scene(thing, number, scene, size)
            pictures.append(shown)
            sentences.append(sentence)
    part = folder / f"part-{chunk:03d}.npy"
    np.save(part, np.stack(pictures))
    (folder / f"words-{chunk:03d}.json").write_text(
        json.dumps({"sentence": sentences, "noun": nouns})
    )
    os.replace(part, folder / f"pictures-{chunk:03d}.npy")


def chunk_count(preset: Preset) -> int:
    """The number of chunks for all things."""
    return -(-preset.things // PER_CHUNK)


def build(preset: Preset) -> None:
    """Make the missing chunks: this process draws the cut-outs, others compose scenes."""
    folder = preset.folder / "things"
    folder.mkdir(parents=True, exist_ok=True)
    count, start = chunk_count(preset), time.monotonic()
    todo = [k for k in range(count) if not (folder / f"pictures-{k:03d}.npy").exists()]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawn, pool.start) as workers:
        jobs = []
        for chunk in todo:
            cuts = draw_chunk(preset, chunk)
            jobs.append(workers.submit(compose_chunk, preset, chunk, cuts))
        print(f"things: drawn after {time.monotonic() - start:.0f} s", flush=True)
        for job in jobs:
            job.result()
    print(f"things: {count} chunks after {time.monotonic() - start:.0f} s", flush=True)


def words(preset: Preset, name: str) -> list[str]:
    """`sentence` of every picture or `noun` of every thing, in order."""
    folder = preset.folder / "things"
    files = [folder / f"words-{k:03d}.json" for k in range(chunk_count(preset))]
    return [entry for file in files for entry in json.loads(file.read_text())[name]]


def chunks(preset: Preset) -> list[np.ndarray]:
    """Pictures of every chunk, mapped from disk."""
    folder = preset.folder / "things"
    files = [folder / f"pictures-{k:03d}.npy" for k in range(chunk_count(preset))]
    return [np.load(file, mmap_mode="r") for file in files]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--count", type=int, help="things in all (default: the preset's)")
    arguments = parser.parse_args()
    preset = PRESETS[arguments.preset]
    os.nice(10)  # a training running at the same time goes first
    build(replace(preset, things=arguments.count or preset.things))
