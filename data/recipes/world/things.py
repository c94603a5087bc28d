"""Things without names: each is shown several times, in different places and from different sides.

Three in four are built of simple parts (`odd_things.py`) and drawn by `raycast.py`; the others are things of the world
with all hues rotated. Sentences have `{}` where a word would stand.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from . import compose, odd_things, pack, raycast

SIDES = 4
CUT = 112  # pixels a side
SCENES = 6  # for each thing
HUED = 4  # every fourth thing is one of the world with its hues rotated
DRAWN_AT_ONCE = {"cuda": 48, "cpu": 8}


def views(number: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Azimuths and elevations (SIDES,), in degrees, from which thing `number` is seen, and its light's brightness."""
    rng = np.random.default_rng([number, 3])
    spread = np.array([0, -50, 50, 90]) + rng.uniform(-22, 22, SIDES)
    if rng.random() < 0.5:
        spread = -spread
    return spread, rng.uniform(2, 28, SIDES), float(rng.uniform(0.85, 1.15))


def draw_things(numbers: list[int], device: torch.device) -> dict[int, np.ndarray]:
    """Cut-outs (SIDES, CUT, CUT, 4) uint8 of built things, by number.

    Things of one kit are drawn together, because they have about as many parts of each kind.
    """
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
    device = parts[raycast.BALL].device
    seen = [views(number) for number in numbers]
    azimuths, elevations, light = (
        torch.tensor(np.array(column), device=device).float() for column in zip(*seen, strict=True)
    )
    rays = 2 if device.type == "cuda" else 1
    sides = [
        raycast.draw(parts, azimuths[:, side], elevations[:, side], light, CUT, rays)
        for side in range(SIDES)
    ]
    return torch.stack(sides, 1).cpu().numpy()


def crop(cut: np.ndarray) -> Image.Image:
    """A cut-out without its empty border."""
    picture = Image.fromarray(cut)
    return picture.crop(picture.getchannel("A").getbbox() or (0, 0, *picture.size))


def rotate_hue(cut: Image.Image, turn: int) -> Image.Image:
    """Rotate all hues by `turn` of 256 parts of the circle."""
    hue, saturation, value = cut.convert("RGB").convert("HSV").split()
    rotated = Image.merge("HSV", (hue.point(lambda h: (h + turn) % 256), saturation, value))
    result = rotated.convert("RGB").convert("RGBA")
    result.putalpha(cut.getchannel("A"))
    return result


def thing_of(
    number: int, cuts: np.ndarray | None, known: list[pack.Thing]
) -> tuple[pack.Thing, str]:
    """Thing `number` in the form that the composer takes, and a noun that fits it.

    Args:
        number: of the thing.
        cuts: its cut-outs (SIDES, CUT, CUT, 4) if it is built; None for one of the world.
        known: the world's things.
    """
    name = f"toy:nameless-{number}"  # a toy shows any of its sides
    if cuts is not None:
        noun = odd_things.NOUNS[odd_things.kit_of(number)]
        return pack.Thing((), name, [crop(cut) for cut in cuts], []), noun
    rng = np.random.default_rng([number, 5])
    own = known[rng.integers(len(known))]
    turn = int(rng.integers(40, 216))
    chosen = rng.permutation(len(own.sides))[:SIDES]
    sides = [rotate_hue(own.sides[side], turn) for side in chosen]
    return pack.Thing((), name, sides, []), own.words[0]


def compose_scene(thing: pack.Thing, number: int, scene: int, size: int) -> tuple[np.ndarray, str]:
    """Scene `scene` of thing `number`: (size, size, 3) uint8, and its sentence. The last scene may show several."""
    rng = np.random.default_rng([number, scene, 11])
    count = 1 if scene < SCENES - 1 else 1 + int(rng.integers(3))
    place, empty, floor = compose.backdrop(rng, size)
    sentence, template = compose.wording(rng, count, place)
    nobody = compose.World({}, [], np.zeros(0))
    return compose.stand(nobody, rng, empty, floor, thing, count, "", template)[0], sentence
