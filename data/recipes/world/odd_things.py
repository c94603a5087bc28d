"""Odd assemblies: stacks of turned parts, boxes, balls, rings and cones, with limbs, eyes, hats and rods.

A model that has seen a thousand things knows a thousand points of its embedding space. Of these there is no end: each
is a function of its number, drawn by `raycast.py` from any side. Together with toys from the kits of `toys.py`, with
numbers that its three hundred named toys do not use, they teach the model the space *between* the words.
"""

from __future__ import annotations

import colorsys
import math

import numpy as np

from . import raycast, toys

KITS = (*toys.BUILDERS, "odd")
ODD_SHARE = 0.6  # share of the things; the other kits share the rest equally
FIRST = 1000  # number of a kit's first thing: lower ones are the toys that have names
NOUNS = {kit: words[0] for kit, words in toys.WORDS.items()} | {"odd": "toy"}


def color(rng: np.random.Generator) -> tuple[float, float, float]:
    """Bright, dark, pale, a wood or a gray."""
    kind = rng.random()
    if kind < 0.15:
        return toys.WOODS[rng.integers(len(toys.WOODS))]
    if kind < 0.25:
        return (float(rng.uniform(0.05, 0.95)),) * 3
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.25, 1), rng.uniform(0.3, 1))


def dress(kit: raycast.Parts, rng: np.random.Generator, odds: float = 0.3) -> None:
    """Choose stripes or patches for the parts that follow, or none."""
    if rng.random() < odds:
        kit.dress = (color(rng), int(rng.integers(1, 3)), float(rng.uniform(6, 16)))
    else:
        kit.dress = (None, 0, 0.0)


def piece(kit, rng, base: float, width: float) -> tuple[float, float]:
    """One more part on top of the stack; the height it reaches and its width up there."""
    tall, wide, paint = rng.uniform(0.25, 1.1), width * rng.uniform(0.65, 1.25), color(rng)
    dress(kit, rng)
    shape = rng.integers(6)
    if shape == 0:
        kit.ball((0, base + tall / 2, 0), (wide, tall / 2, wide * rng.uniform(0.6, 1)), paint)
        wide *= 0.6
    elif shape == 1:
        kit.box((0, base + tall / 2, 0), (2 * wide, tall, 2 * wide * rng.uniform(0.4, 1)), paint)
    elif shape == 2:
        tip = wide * rng.uniform(0.2, 1.0)
        kit.frustum((0, base + tall / 2, 0), (0, 1, 0), wide, tip, tall, paint)
        wide = max(tip, 0.2)
    elif shape == 3:
        tube = min(0.3 * wide, tall / 2)
        kit.ring(base + tube, wide, tube, paint)
        kit.rod((0, base + tube, 0), (0, 1, 0), wide * 0.5, 2 * tube, color(rng))
        tall = 2 * tube
    elif shape == 4:
        kit.ball((0, base + wide * 0.8, 0), wide * 0.8, paint)
        tall, wide = 1.5 * wide * 0.8, wide * 0.7
    else:
        kit.rod((0, base + tall / 2, 0), (0, 1, 0), wide, tall, paint)
    kit.dress = (None, 0, 0.0)
    return base + tall, wide


def limbs(kit, rng, height: float, width: float) -> None:
    """A pair of arms, fins, wings or wheels."""
    paint, other, kind = color(rng), color(rng), rng.integers(4)
    at, long, thick = rng.uniform(0.3, 0.85) * height, rng.uniform(0.5, 1.2), rng.uniform(0.08, 0.2)
    lift = rng.uniform(-1, 0.9)
    dress(kit, rng, 0.15)
    for side in (-1, 1):
        x = side * (width + 0.35 * long)
        if kind == 0:
            kit.rod((x, at + 0.35 * long * lift, 0), (side, lift, 0.2), thick, long, paint)
            end = (side * (width + 0.85 * long), at + 0.8 * long * lift, 0.1)
            kit.ball(end, 1.5 * thick, other)
        elif kind == 1:
            kit.ball((x, at, 0), (0.5 * long, 0.6 * thick + 0.1, 0.3 * long), paint)
        elif kind == 2:
            kit.box((x, at, 0), (long, 2.2 * thick, 2 * thick), paint)
            kit.box((side * (width + 0.8 * long), at - 0.2, 0), (0.3, 0.5, 0.3), other)
        else:
            radius = min(0.3 + thick, 0.6)
            for z in (-0.45, 0.45):
                spot = (side * width * 1.05, radius, z * max(1, width))
                kit.rod(spot, (1, 0, 0), radius, 0.2, paint)
                kit.rod(spot, (1, 0, 0), radius * 0.4, 0.28, other)


def head(kit, rng, base: float, width: float) -> float:
    """A ball or a box with eyes, perhaps a nose or a mouth; the height it reaches."""
    size, paint, eye = max(0.35, width * rng.uniform(0.7, 1.15)), color(rng), color(rng)
    dress(kit, rng, 0.15)
    if rng.random() < 0.65:
        kit.ball((0, base + 0.9 * size, 0), size, paint)
        front = 0.9 * size
    else:
        kit.box((0, base + size, 0), (1.9 * size, 1.9 * size, 1.7 * size), paint)
        front = 0.87 * size
    kit.dress = (None, 0, 0.0)
    big = rng.uniform(0.1, 0.24) * size
    for side in (-1, 1):
        kit.ball((side * 0.36 * size, base + 1.15 * size, front), big, eye)
        kit.ball(
            (side * 0.36 * size, base + 1.15 * size, front + 0.7 * big), 0.5 * big, (0.03,) * 3
        )
    if rng.random() < 0.5:
        kit.frustum((0, base + 0.8 * size, front + 0.15), (0, 0, 1), 0.15, 0.04, 0.4, color(rng))
    if rng.random() < 0.4:
        for side in (-1, 1):
            kit.ball((side * 0.8 * size, base + 1.7 * size, 0), rng.uniform(0.2, 0.4) * size, paint)
    return base + 1.8 * size


def hat(kit, rng, base: float, width: float) -> None:
    paint, trim, kind, tall = color(rng), color(rng), rng.integers(6), rng.uniform(0.4, 1.1)
    dress(kit, rng, 0.2)
    if kind == 0:
        kit.frustum((0, base + tall / 2, 0), (0, 1, 0), width, 0.02, tall, paint)
    elif kind == 1:
        kit.rod((0, base + 0.04, 0), (0, 1, 0), 1.5 * width, 0.1, trim)
        kit.rod((0, base + tall / 2, 0), (0, 1, 0), 0.85 * width, tall, paint)
    elif kind == 2:
        kit.rod((0, base + tall / 2, 0), (0, 1, 0), 0.06, tall, trim)
        kit.ball((0, base + tall, 0), rng.uniform(0.12, 0.3), paint)
    elif kind == 3:
        kit.ball((0, base, 0), (width, 0.5 * width, width), paint)
    elif kind == 4:
        for side in (-1, 1):
            spot = (side * 0.6 * width, base + 0.2 * tall, 0)
            kit.frustum(spot, (0.5 * side, 1, 0), 0.25 * width + 0.05, 0.02, tall, paint)
    else:
        kit.ring(base, 0.8 * width, 0.2 * width, paint)


def odd(kit: raycast.Parts, rng: np.random.Generator) -> None:
    """One odd assembly."""
    legs, height, width = rng.random() < 0.4, 0.0, rng.uniform(0.45, 0.95)
    if legs:
        height, paint, foot = rng.uniform(0.4, 1.0), color(rng), color(rng)
        for x in (-0.5 * width, 0.5 * width):
            for z in (0.0,) if rng.random() < 0.7 else (-0.4 * width, 0.4 * width):
                kit.rod((x, height / 2, z), (0, 1, 0), rng.uniform(0.1, 0.2), height, paint)
                kit.ball((x, 0.08, z + 0.08), (0.22, 0.1, 0.28), foot)
    wide = width
    for _ in range(rng.integers(1, 4)):
        height, wide = piece(kit, rng, height, wide)
    if rng.random() < 0.75:
        limbs(kit, rng, height, width)
    if rng.random() < 0.6:
        height, wide = head(kit, rng, height, wide), 0.7 * wide
    if rng.random() < 0.7:
        hat(kit, rng, height, max(0.25, wide))
    if rng.random() < 0.3:  # a tail or a handle behind
        turn = rng.uniform(-1, 1)
        kit.rod((0.5 * turn, 0.5 * height, -width - 0.2), (turn, 0.6, -1), 0.08, 0.9, color(rng))


def kit_of(number: int, seed: int = 0) -> str:
    """Which kit builds thing `number`."""
    rng = np.random.default_rng([number, seed, 7])
    if rng.random() < ODD_SHARE:
        return "odd"
    return KITS[rng.integers(len(KITS) - 1)]


def build(number: int) -> tuple[str, list[raycast.Part]]:
    """The kit and parts of thing `number`; the thing is a function of its number."""
    name, kit = kit_of(number), raycast.Parts()
    rng = np.random.default_rng([FIRST + number, KITS.index(name)])
    if name == "odd":
        odd(kit, rng)
    else:
        toys.BUILDERS[name](kit, rng)
        if rng.random() < 0.5:  # other colors than the kit's own
            kit.parts = rotate_hue(kit.parts, rng.random())
    return name, kit.parts


def rotate_hue(parts: list[raycast.Part], turn: float) -> list[raycast.Part]:
    """The same thing with all hues rotated by `turn` of a circle."""

    def other(rgb) -> tuple[float, float, float]:
        h, s, v = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb(math.fmod(h + turn, 1), s, v)

    return [
        raycast.Part(p.kind, p.at, p.axes, p.size, other(p.color), other(p.second), p.pattern, p.frequency)
        for p in parts
    ]  # fmt: skip
