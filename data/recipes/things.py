"""Pictures of things that have no name: each thing several times, in other places, from other sides.

Three in four are built of simple parts (`odd_things.py`) and drawn by `raycast.py`; the others are things of the world
with all hues turned. A chunk holds what is drawn of its things, and the sentences with `{}` for a word that nobody has.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from . import compose, odd_things, pack, pool, raycast, training
from .presets import PRESETS, Preset

PER_CHUNK = 200  # things
SIDES = 4
CUT = 112  # pixels a side
SCENES = 6  # of each thing
HUED = 4  # every so many-th thing is one of the world in other hues
UNSEEN = 500  # things, the last, that no training sees
DRAWN_AT_ONCE = {"cuda": 48, "cpu": 8}


def views(number: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Azimuths and elevations (SIDES,) in degrees from which thing `number` is seen, and how bright its light is."""
    rng = np.random.default_rng([number, 3])
    spread = np.array([0, -50, 50, 90]) + rng.uniform(-22, 22, SIDES)
    if rng.random() < 0.5:
        spread = -spread
    return spread, rng.uniform(2, 28, SIDES), float(rng.uniform(0.85, 1.15))


def numbers_of(preset: Preset, chunk: int) -> range:
    return range(chunk * PER_CHUNK, min((chunk + 1) * PER_CHUNK, preset.things))


def draw_chunk(preset: Preset, chunk: int) -> dict[int, np.ndarray]:
    """Cut-outs (SIDES, CUT, CUT, 4) uint8 of the chunk's built things, by number."""
    return draw_things([number for number in numbers_of(preset, chunk) if number % HUED])


def draw_things(numbers: list[int]) -> dict[int, np.ndarray]:
    """The same of any built things.

    Things of one kit are drawn together: they have about as many parts of each kind.
    """
    device = training.device()
    built = {number: odd_things.build(number) for number in numbers}
    order = sorted(built, key=lambda n: (built[n][0], len(built[n][1])))
    step, found = DRAWN_AT_ONCE[device.type], {}
    for start in range(0, len(order), step):
        some = order[start : start + step]
        parts = raycast.table([built[n][1] for n in some])
        cuts = draw({kind: torch.from_numpy(own).to(device) for kind, own in parts.items()}, some)
        found.update(zip(some, cuts, strict=True))
    return found


def draw(parts: dict[int, torch.Tensor], numbers: list[int]) -> np.ndarray:
    """All sides of these things: (things, SIDES, CUT, CUT, 4)."""
    seen = [views(number) for number in numbers]
    azimuths, elevations, light = (
        torch.tensor(np.array(column), device=training.device()).float()
        for column in zip(*seen, strict=True)
    )
    rays = 2 if training.on_gpu() else 1
    sides = [
        raycast.draw(parts, azimuths[:, side], elevations[:, side], light, CUT, rays)
        for side in range(SIDES)
    ]
    return torch.stack(sides, 1).cpu().numpy()


def crop(cut: np.ndarray) -> Image.Image:
    """A cut-out without its empty border."""
    picture = Image.fromarray(cut)
    return picture.crop(picture.getchannel("A").getbbox() or (0, 0, *picture.size))


def turn_hue(cut: Image.Image, turn: int) -> Image.Image:
    """All hues turned alike, `turn` of 256 parts of a circle."""
    hue, saturation, value = cut.convert("RGB").convert("HSV").split()
    turned = Image.merge("HSV", (hue.point(lambda h: (h + turn) % 256), saturation, value))
    result = turned.convert("RGB").convert("RGBA")
    result.putalpha(cut.getchannel("A"))
    return result


def thing_of(
    number: int, cuts: np.ndarray | None, world: list[pack.Thing]
) -> tuple[pack.Thing, str]:
    """The thing as the composer wants it, and the noun that it could be called."""
    name = f"toy:nameless-{number}"  # a toy shows any of its sides
    if cuts is not None:
        return pack.Thing((), name, [crop(cut) for cut in cuts], []), odd_things.NOUNS[
            odd_things.kit_of(number)
        ]
    rng = np.random.default_rng([number, 5])
    own = world[rng.integers(len(world))]
    turn = int(rng.integers(40, 216))
    chosen = rng.permutation(len(own.sides))[:SIDES]
    sides = [turn_hue(own.sides[side], turn) for side in chosen]
    return pack.Thing((), name, sides, []), own.words[0]


def compose_scene(thing: pack.Thing, number: int, scene: int, size: int) -> tuple[np.ndarray, str]:
    """Scene `scene` of thing `number`: (size, size, 3) uint8, and its sentence; in the last there may be several."""
    rng = np.random.default_rng([number, scene, 11])
    count = 1 if scene < SCENES - 1 else 1 + int(rng.integers(3))
    place, empty, floor = compose.backdrop(rng, size)
    sentence, template = compose.wording(rng, count, place)
    nobody = compose.World({}, [], np.zeros(0))
    return compose.stand(nobody, rng, empty, floor, thing, count, "", template)[0], sentence


def compose_chunk(preset: Preset, chunk: int, cuts: dict[int, np.ndarray]) -> None:
    """Write pictures (things x SCENES, size, size, 3) uint8 and the words beside them."""
    folder, size = preset.folder / "things", preset.size
    world = [thing for group in pool._world.by_word.values() for thing in group if thing.sides]
    pictures, sentences, nouns = [], [], []
    for number in numbers_of(preset, chunk):
        thing, noun = thing_of(number, cuts.get(number), world)
        nouns.append(noun)
        for scene in range(SCENES):
            shown, sentence = compose_scene(thing, number, scene, size)
            pictures.append(shown)
            sentences.append(sentence)
    part = folder / f"part-{chunk:03d}.npy"
    np.save(part, np.stack(pictures))
    (folder / f"words-{chunk:03d}.json").write_text(
        json.dumps({"sentence": sentences, "noun": nouns})
    )
    os.replace(part, folder / f"pictures-{chunk:03d}.npy")


def chunk_count(preset: Preset) -> int:
    return -(-preset.things // PER_CHUNK)


def build(preset: Preset) -> None:
    """Draw and compose what is missing: this process draws, the others compose."""
    folder = preset.folder / "things"
    folder.mkdir(parents=True, exist_ok=True)
    count, begun = chunk_count(preset), time.monotonic()
    todo = [k for k in range(count) if not (folder / f"pictures-{k:03d}.npy").exists()]
    apart = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), apart, pool.start) as workers:
        jobs = []
        for chunk in todo:
            cuts = draw_chunk(preset, chunk)
            jobs.append(workers.submit(compose_chunk, preset, chunk, cuts))
        print(f"things: drawn after {time.monotonic() - begun:.0f} s", flush=True)
        for job in jobs:
            job.result()
    print(f"things: {count} chunks after {time.monotonic() - begun:.0f} s", flush=True)


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
    parser = argparse.ArgumentParser(description="Draw and compose things without names.")
    parser.add_argument("--preset", choices=PRESETS, required=True)
    parser.add_argument("--count", type=int, help="things in all")
    arguments = parser.parse_args()
    preset = PRESETS[arguments.preset]
    os.nice(10)
    build(replace(preset, things=arguments.count or preset.things))
