"""Places to put things in: small procedural paintings of any size, no two alike.

A place is a function of a random generator and a size; it returns the picture (size, size, 3) in 0..1 and the height of
its floor's far edge (0 top, 1 bottom), or None where things float. The names are the words that captions use.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from PIL import Image

Rng = np.random.Generator
Painting = tuple[np.ndarray, float | None]


def rgb(rng: Rng, color, spread: float = 0.06) -> np.ndarray:
    """A color near the given one."""
    return np.clip(
        np.array(color) + rng.uniform(-spread, spread, 3) + rng.uniform(-spread, spread), 0, 1
    )


def noise(rng: Rng, n: int, cells: float, wide: float | None = None) -> np.ndarray:
    """Smooth noise (n, n) in 0..1 with about `cells` bumps down and `wide` across."""
    grid = rng.random((max(2, round(cells)), max(2, round(wide or cells))), dtype=np.float32)
    return np.clip(np.asarray(Image.fromarray(grid).resize((n, n), Image.BICUBIC)), 0, 1)


def rough(rng: Rng, n: int, cells: float = 4) -> np.ndarray:
    """Noise at three scales, (n, n) in 0..1."""
    return (
        0.55 * noise(rng, n, cells)
        + 0.3 * noise(rng, n, 3 * cells)
        + 0.15 * noise(rng, n, 9 * cells)
    )


def grid(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column coordinates (n, n) in 0..1."""
    line = (np.arange(n, dtype=np.float32) + 0.5) / n
    return line[:, None].repeat(n, 1), line[None, :].repeat(n, 0)


def blend(mask: np.ndarray, front: np.ndarray, back: np.ndarray) -> np.ndarray:
    """`front` where the mask (n, n) is one; either may be a plain color."""
    return mask[..., None] * front + (1 - mask[..., None]) * back


def edge(signed: np.ndarray, n: int) -> np.ndarray:
    """An antialiased mask of where the signed distance (in picture heights) is positive."""
    return np.clip(signed * n + 0.5, 0, 1)


def fade(y: np.ndarray, top, bottom) -> np.ndarray:
    """A vertical gradient (n, n, 3)."""
    return y[..., None] * np.asarray(bottom) + (1 - y[..., None]) * np.asarray(top)


def shade(picture: np.ndarray, texture: np.ndarray, strength: float) -> np.ndarray:
    """Lighten and darken by a texture (n, n) in 0..1."""
    return picture * (1 + strength * (texture[..., None] * 2 - 1))


def sky(rng: Rng, n: int) -> np.ndarray:
    """A blue day with clouds."""
    y, _ = grid(n)
    picture = fade(y, rgb(rng, (0.35, 0.6, 0.92)), rgb(rng, (0.78, 0.9, 0.98), 0.03))
    clouds = (
        np.clip(noise(rng, n, 6, 3) + 0.4 * noise(rng, n, 14, 8) - rng.uniform(0.6, 0.95), 0, 0.35)
        / 0.35
    )
    return blend(clouds * 0.8, np.ones(3), picture)


def hills(rng: Rng, n: int, height: float, tall: float) -> np.ndarray:
    """Mask (n, n) of everything below a wavy skyline."""
    y, x = grid(n)
    line = sum(
        np.sin(x * rng.uniform(2, 14) + rng.uniform(0, 6.3)) * tall / (k + 1.5) for k in range(3)
    )
    return edge(y - height - line, n)


def ground(y: np.ndarray, horizon: float, n: int) -> np.ndarray:
    return edge(y - horizon, n)


def beach(rng: Rng, n: int) -> Painting:
    y, x = grid(n)
    horizon, shore = rng.uniform(0.28, 0.4), rng.uniform(0.52, 0.62)
    waves = (
        np.sin(np.clip(y - horizon, 0, 1) ** 0.6 * rng.uniform(60, 90) + 3 * noise(rng, n, 3)) * 0.5
        + 0.5
    )
    sea = shade(fade(y, rgb(rng, (0.05, 0.35, 0.65)), rgb(rng, (0.2, 0.75, 0.8))), waves, 0.12)
    line = shore + 0.03 * np.sin(x * rng.uniform(4, 9) + rng.uniform(0, 6))
    sand = shade(
        np.broadcast_to(rgb(rng, (0.93, 0.82, 0.58), 0.04), (n, n, 3)), noise(rng, n, n / 2), 0.08
    )
    picture = blend(ground(y, horizon, n), sea, sky(rng, n))
    picture = blend(edge(y - line + 0.025, n), np.array([0.97, 0.98, 0.98]), picture)
    return blend(edge(y - line, n), sand, picture), shore + 0.03


def snow(rng: Rng, n: int) -> Painting:
    y, _ = grid(n)
    horizon = rng.uniform(0.4, 0.55)
    picture = fade(y, rgb(rng, (0.62, 0.7, 0.8)), (0.88, 0.91, 0.95))
    picture = blend(
        trees(rng, n, horizon, rng.integers(2, 6)), rgb(rng, (0.2, 0.33, 0.33)), picture
    )
    white = shade(fade(y, (0.97, 0.98, 1.0), (0.84, 0.89, 0.97)), rough(rng, n, 3), 0.06)
    picture = blend(hills(rng, n, horizon, 0.03), white, picture)
    flakes = dots(rng, n, rng.integers(25, 70), 0.006, 0.013)
    return blend(flakes, np.ones(3), picture), horizon + 0.05


def dots(rng: Rng, n: int, count: int, small: float, large: float) -> np.ndarray:
    """Mask (n, n) of soft round dots."""
    y, x = grid(n)
    mask = np.zeros((n, n), np.float32)
    for _ in range(count):
        radius, cy, cx = rng.uniform(small, large), rng.random(), rng.random()
        reach = int(radius * n) + 2
        rows = slice(max(0, int(cy * n) - reach), int(cy * n) + reach + 1)
        columns = slice(max(0, int(cx * n) - reach), int(cx * n) + reach + 1)
        distance = np.hypot(y[rows, columns] - cy, x[rows, columns] - cx)
        mask[rows, columns] = np.maximum(mask[rows, columns], edge(radius - distance, n))
    return mask


def trees(rng: Rng, n: int, horizon: float, count: int) -> np.ndarray:
    """Mask (n, n) of fir silhouettes standing on the horizon."""
    y, x = grid(n)
    mask = np.zeros((n, n), np.float32)
    for _ in range(count):
        at, tall = rng.random(), rng.uniform(0.15, 0.4)
        down = np.clip((y - horizon + tall) / tall, 0, 1) * (y < horizon + 0.03)
        width = 0.28 * tall * (down + 0.25 * ((down * 4) % 1))
        mask = np.maximum(mask, edge(width - np.abs(x - at), n) * (down > 0))
    return mask


def space(rng: Rng, n: int) -> Painting:
    y, x = grid(n)
    picture = np.broadcast_to(rgb(rng, (0.02, 0.02, 0.07), 0.015), (n, n, 3))
    cloud = np.clip(rough(rng, n, 3) - 0.45, 0, 1) * rng.uniform(0.5, 1.6)
    picture = picture + cloud[..., None] * np.array(
        [(0.5, 0.15, 0.6), (0.1, 0.35, 0.7), (0.6, 0.25, 0.25)][rng.integers(3)]
    )
    picture = blend(
        dots(rng, n, rng.integers(40, 90), 0.003, 0.011), np.array([1, 1, 0.92]), picture
    )
    if rng.random() < 0.6:
        cy, cx, radius = rng.uniform(0, 0.35), rng.random(), rng.uniform(0.07, 0.2)
        disc = edge(radius - np.hypot(y - cy, x - cx), n)
        planet = shade(
            np.broadcast_to(rgb(rng, (0.75, 0.5, 0.35), 0.25), (n, n, 3)),
            noise(rng, n, 12, 2),
            0.25,
        )
        light = np.clip(0.75 + (cx - x - y + cy) / radius * 0.45, 0.1, 1.15)
        picture = blend(disc, planet * light[..., None], picture)
    return np.clip(picture, 0, 1), None


def grass(rng: Rng, n: int) -> Painting:
    y, _ = grid(n)
    horizon = rng.uniform(0.2, 0.5)
    blades = 0.5 * noise(rng, n, n / 6, n / 2) + 0.5 * rough(rng, n, 4)
    green = shade(fade(y, rgb(rng, (0.5, 0.75, 0.28)), rgb(rng, (0.22, 0.52, 0.13))), blades, 0.4)
    return blend(ground(y, horizon, n), green, sky(rng, n)), horizon + 0.05


def forest(rng: Rng, n: int) -> Painting:
    y, x = grid(n)
    leaves = rough(rng, n, 7)
    picture = shade(fade(y, rgb(rng, (0.16, 0.36, 0.14)), rgb(rng, (0.08, 0.2, 0.08))), leaves, 0.7)
    horizon = rng.uniform(0.55, 0.68)
    for _ in range(rng.integers(4, 8)):
        at, width, foot = rng.random(), rng.uniform(0.02, 0.06), horizon + rng.uniform(0, 0.1)
        bark = shade(
            np.broadcast_to(rgb(rng, (0.33, 0.22, 0.14)), (n, n, 3)), noise(rng, n, 4, n / 3), 0.35
        )
        trunk = edge(width * (1 + 0.3 * y) - np.abs(x - at), n) * edge(foot - y, n)
        picture = blend(trunk, bark, picture)
    floor = shade(np.broadcast_to(rgb(rng, (0.3, 0.3, 0.12)), (n, n, 3)), rough(rng, n, 9), 0.5)
    mask = ground(y, horizon + 0.08, n)
    return np.clip(blend(mask, floor, picture), 0, 1), horizon + 0.08


def under_water(rng: Rng, n: int) -> Painting:
    y, x = grid(n)
    picture = fade(y, rgb(rng, (0.3, 0.75, 0.85)), rgb(rng, (0.02, 0.2, 0.45)))
    slant, rays = rng.uniform(-0.5, 0.5), noise(rng, n, 2, 12)
    beams = np.sin((x + slant * y) * rng.uniform(18, 34) + 2 * rays) * 0.5 + 0.5
    picture = picture + (beams * (1 - y) * 0.22)[..., None]
    bubbles = dots(rng, n, rng.integers(6, 20), 0.01, 0.03)
    picture = blend(bubbles * 0.55, np.array([0.85, 0.97, 1.0]), picture)
    if rng.random() < 0.6:
        bed = hills(rng, n, rng.uniform(0.85, 0.93), 0.03)
        picture = blend(bed, rgb(rng, (0.45, 0.5, 0.42)), picture)
    return np.clip(picture, 0, 1), None


def table(rng: Rng, n: int) -> Painting:
    y, _ = grid(n)
    horizon = rng.uniform(0.45, 0.65)
    wall = shade(
        np.broadcast_to(rgb(rng, WALLS[rng.integers(len(WALLS))]), (n, n, 3)),
        noise(rng, n, 2),
        0.08,
    )
    grain = 0.6 * noise(rng, n, n / 3, 3) + 0.4 * noise(rng, n, n / 8, 6)
    wood = rgb(
        rng, [(0.62, 0.42, 0.24), (0.78, 0.58, 0.36), (0.42, 0.27, 0.16)][rng.integers(3)], 0.04
    )
    board = shade(np.broadcast_to(wood, (n, n, 3)), grain, 0.22)
    depth = (y - horizon) / (1 - horizon)
    seams = edge(0.006 - np.abs((depth * rng.integers(3, 6)) % 1 - 0.5) * 0.2, n) * 0.35
    board = board * (1 - seams[..., None])
    return blend(ground(y, horizon, n), board, wall), horizon + 0.08


WALLS = [
    (0.85, 0.8, 0.7),
    (0.6, 0.72, 0.8),
    (0.8, 0.62, 0.55),
    (0.62, 0.72, 0.6),
    (0.45, 0.5, 0.58),
    (0.88, 0.86, 0.84),
]


def desert(rng: Rng, n: int) -> Painting:
    y, _ = grid(n)
    horizon = rng.uniform(0.35, 0.5)
    picture = fade(y, rgb(rng, (0.45, 0.68, 0.9)), rgb(rng, (0.98, 0.88, 0.68), 0.03))
    for layer in range(3):
        dune = shade(
            np.broadcast_to(rgb(rng, (0.88, 0.58 - 0.04 * layer, 0.28), 0.04), (n, n, 3)),
            noise(rng, n, n / 6, 3),
            0.1,
        )
        picture = blend(hills(rng, n, horizon + 0.12 * layer, 0.05), dune, picture)
    return np.clip(picture, 0, 1), horizon + 0.18


def city_at_night(rng: Rng, n: int) -> Painting:
    y, x = grid(n)
    picture = fade(y, rgb(rng, (0.03, 0.04, 0.13), 0.02), rgb(rng, (0.2, 0.14, 0.32)))
    horizon, at = rng.uniform(0.68, 0.78), -0.05
    while at < 1:
        width, top = rng.uniform(0.1, 0.22), rng.uniform(0.08, 0.5)
        house = ((x >= at) & (x < at + width) & (y > top)).astype(np.float32)
        picture = blend(house, rgb(rng, (0.08, 0.08, 0.14), 0.03), picture)
        cells = ((x - at) / 0.045 % 1 > 0.45) & ((y - top) / 0.06 % 1 > 0.5) & (y > top + 0.03)
        lit = np.asarray(
            Image.fromarray((rng.random((24, 24)) < 0.6).astype(np.uint8)).resize(
                (n, n), Image.NEAREST
            )
        )
        picture = blend(house * cells * lit, rgb(rng, (1.0, 0.85, 0.4), 0.08), picture)
        at += width + rng.uniform(0, 0.02)
    street = shade(fade(y, (0.16, 0.15, 0.2), (0.08, 0.08, 0.12)), noise(rng, n, 8), 0.2)
    return blend(ground(y, horizon, n), street, picture), horizon + 0.03


def street(rng: Rng, n: int) -> Painting:
    y, x = grid(n)
    horizon, at = rng.uniform(0.48, 0.58), -0.05
    picture = sky(rng, n)
    while at < 1:
        width, top = rng.uniform(0.18, 0.35), rng.uniform(0.05, 0.25)
        house = ((x >= at) & (x < at + width) & (y > top)).astype(np.float32)
        picture = blend(
            house,
            rgb(rng, [(0.7, 0.4, 0.32), (0.85, 0.78, 0.62), (0.6, 0.6, 0.64)][rng.integers(3)]),
            picture,
        )
        cells = ((x - at) / 0.08 % 1 > 0.5) & ((y - top) / 0.11 % 1 > 0.45)
        picture = blend(house * cells, rgb(rng, (0.3, 0.4, 0.5)), picture)
        at += width
    asphalt = shade(
        np.broadcast_to(rgb(rng, (0.38, 0.38, 0.4), 0.04), (n, n, 3)), noise(rng, n, n / 2), 0.1
    )
    picture = blend(ground(y, horizon, n), rgb(rng, (0.68, 0.66, 0.62), 0.03), picture)
    picture = blend(ground(y, horizon + 0.07, n), asphalt, picture)
    depth = np.clip(y - horizon - 0.07, 0, 1)
    dash = (
        edge(0.05 * (depth + 0.15) - np.abs(x - 0.5), n)
        * ((depth * 6) % 1 > 0.5)
        * ground(y, horizon + 0.1, n)
    )
    return blend(dash, np.array([0.95, 0.95, 0.9]), picture), horizon + 0.12


def mountains(rng: Rng, n: int) -> Painting:
    y, x = grid(n)
    picture = sky(rng, n)
    for _ in range(rng.integers(2, 4)):
        top, at, slope = rng.uniform(0.08, 0.28), rng.random(), rng.uniform(0.7, 1.3)
        height = y - top - slope * np.abs(x - at) - 0.06 * (noise(rng, n, 9) - 0.5)
        rock = shade(
            np.broadcast_to(rgb(rng, (0.42, 0.43, 0.5)), (n, n, 3)), rough(rng, n, 5), 0.25
        )
        picture = blend(edge(height, n), rock, picture)
        picture = blend(
            edge(height, n) * edge(top + 0.14 + 0.06 * noise(rng, n, 2, 12) - y, n),
            np.ones(3) * 0.97,
            picture,
        )
    horizon = rng.uniform(0.55, 0.65)
    meadow = shade(np.broadcast_to(rgb(rng, (0.36, 0.56, 0.25)), (n, n, 3)), rough(rng, n, 8), 0.2)
    return blend(hills(rng, n, horizon, 0.03), meadow, picture), horizon + 0.08


def sunset(rng: Rng, n: int) -> Painting:
    y, x = grid(n)
    horizon = rng.uniform(0.55, 0.7)
    picture = fade(
        np.clip(y / horizon, 0, 1), rgb(rng, (0.32, 0.18, 0.45)), rgb(rng, (1.0, 0.6, 0.22))
    )
    at = rng.uniform(0.15, 0.85)
    glow = np.hypot(y - horizon + 0.03, x - at)
    picture = picture + np.exp(-glow * 7)[..., None] * np.array([0.35, 0.25, 0.05])
    picture = blend(edge(rng.uniform(0.07, 0.12) - glow, n), np.array([1.0, 0.93, 0.6]), picture)
    land = shade(
        np.broadcast_to(rgb(rng, (0.2, 0.12, 0.15), 0.04), (n, n, 3)), rough(rng, n, 5), 0.3
    )
    return np.clip(blend(hills(rng, n, horizon, 0.02), land, picture), 0, 1), horizon + 0.06


def room(rng: Rng, n: int) -> Painting:
    y, x = grid(n)
    horizon = rng.uniform(0.55, 0.68)
    picture = np.broadcast_to(rgb(rng, WALLS[rng.integers(len(WALLS))], 0.08), (n, n, 3))
    if rng.random() < 0.5:
        stripes = np.sin(x * rng.uniform(35, 60)) > 0
        picture = shade(picture, stripes.astype(np.float32), 0.04)
    left, wide, tall = rng.uniform(0.02, 0.65), rng.uniform(0.22, 0.34), rng.uniform(0.25, 0.38)
    inside = np.minimum(
        np.minimum(x - left, left + wide - x), np.minimum(y - 0.07, 0.07 + tall - y)
    )
    picture = blend(edge(inside, n), np.array([0.97, 0.96, 0.93]), picture)
    pane = edge(inside - 0.018, n) * (np.abs(x - left - wide / 2) > 0.01)
    picture = blend(pane, sky(rng, n), picture)
    floor = rgb(rng, [(0.6, 0.4, 0.22), (0.72, 0.55, 0.36), (0.55, 0.5, 0.48)][rng.integers(3)])
    boards = shade(np.broadcast_to(floor, (n, n, 3)), noise(rng, n, n / 8, 4), 0.15)
    return blend(ground(y, horizon, n), boards, picture), horizon + 0.06


def kitchen(rng: Rng, n: int) -> Painting:
    y, x = grid(n)
    horizon, tile = rng.uniform(0.5, 0.62), rng.uniform(0.11, 0.17)
    color = rgb(
        rng, [(0.92, 0.92, 0.9), (0.6, 0.78, 0.8), (0.95, 0.85, 0.6)][rng.integers(3)], 0.04
    )
    shift = rng.random()
    joint = (
        np.minimum(np.abs((x / tile + shift) % 1 - 0.5), np.abs((y / tile + shift) % 1 - 0.5))
        < 0.05
    )
    picture = np.broadcast_to(color, (n, n, 3)) * (1 - 0.25 * joint[..., None])
    top = rgb(rng, [(0.35, 0.35, 0.37), (0.75, 0.73, 0.7), (0.55, 0.38, 0.25)][rng.integers(3)])
    counter = shade(np.broadcast_to(top, (n, n, 3)), noise(rng, n, n / 2), 0.12)
    return blend(ground(y, horizon, n), counter, picture), horizon + 0.07


def garden(rng: Rng, n: int) -> Painting:
    y, _ = grid(n)
    picture, floor = grass(rng, n)
    for color in ((0.95, 0.2, 0.3), (1.0, 0.85, 0.2), (0.95, 0.95, 0.95), (0.7, 0.3, 0.85)):
        flowers = dots(rng, n, rng.integers(6, 14), 0.012, 0.024) * (y > floor)
        picture = blend(flowers, rgb(rng, color, 0.04), picture)
    return picture, floor


def moon(rng: Rng, n: int) -> Painting:
    y, x = grid(n)
    horizon = rng.uniform(0.5, 0.62)
    picture = np.broadcast_to(np.array([0.02, 0.02, 0.04]), (n, n, 3))
    picture = blend(dots(rng, n, 40, 0.003, 0.009), np.ones(3), picture)
    dust = shade(fade(y, (0.68, 0.68, 0.68), (0.5, 0.5, 0.52)), rough(rng, n, 5), 0.15)
    for _ in range(rng.integers(5, 10)):
        cy, cx, radius = rng.uniform(horizon + 0.05, 1), rng.random(), rng.uniform(0.03, 0.09)
        distance = np.hypot((y - cy) * 2, x - cx)
        dust = (
            dust
            * (
                1
                - 0.3 * edge(radius - distance, n)
                + 0.25 * edge(0.012 - np.abs(distance - radius), n)
            )[..., None]
        )
    return np.clip(blend(hills(rng, n, horizon, 0.02), dust, picture), 0, 1), horizon + 0.05


def clouds(rng: Rng, n: int) -> Painting:
    picture = sky(rng, n)
    fluff = np.clip(rough(rng, n, 3) * 2.2 - 0.75, 0, 1)
    return blend(fluff, shade(np.ones((n, n, 3)) * 0.95, noise(rng, n, 5), 0.05), picture), None


def carpet(rng: Rng, n: int) -> Painting:
    y, x = grid(n)
    horizon = rng.uniform(0.25, 0.4)
    wall = np.broadcast_to(rgb(rng, WALLS[rng.integers(len(WALLS))], 0.08), (n, n, 3))
    one, two = rng.uniform(0.2, 0.85, 3), rng.uniform(0.2, 0.85, 3)
    depth = np.clip(y - horizon, 0, 1) + 0.25
    if rng.random() < 0.5:
        pattern = np.sin(14 / depth) > 0
    else:
        pattern = (np.sin((x - 0.5) * 9 / depth) > 0) ^ (np.sin(10 / depth) > 0)
    rug = shade(blend(pattern.astype(np.float32), one, two), noise(rng, n, n / 2), 0.1)
    return blend(ground(y, horizon, n), rug, wall), horizon + 0.1


PLACES: dict[str, Callable[[Rng, int], Painting]] = {
    "on the beach": beach,
    "in the snow": snow,
    "in space": space,
    "on grass": grass,
    "in the forest": forest,
    "under water": under_water,
    "on a table": table,
    "in the desert": desert,
    "in a city at night": city_at_night,
    "on the street": street,
    "in the mountains": mountains,
    "at sunset": sunset,
    "in a room": room,
    "in the kitchen": kitchen,
    "in a garden": garden,
    "on the moon": moon,
    "in the clouds": clouds,
    "on a carpet": carpet,
}


COLORS = {  # the colors that captions name: hue in degrees, saturation, value
    "red": (0, 0.82, 0.836),
    "orange": (28, 0.82, 0.88),
    "yellow": (52, 0.82, 0.88),
    "green": (125, 0.738, 0.748),
    "blue": (218, 0.82, 0.836),
    "purple": (278, 0.697, 0.792),
    "pink": (335, 0.82 * 0.6, 0.88),
    "brown": (25.2, 0.6, 0.42),
    "white": (0, 0, 0.97),
    "black": (0, 0, 0.06),
    "grey": (0, 0, 0.55),
    "golden": (43, 0.697, 0.88),
}


def plain_color(rng: Rng, name: str) -> np.ndarray:
    """A color that the name fits, for `on a red background`."""
    hue, saturation, value = COLORS[name]
    return rgb(rng, colorsys.hsv_to_rgb(hue / 360, saturation, value), 0.03)


def background(rng: Rng, n: int, name: str) -> Painting:
    """A plain wall in one color, lit unevenly, with or without a floor."""
    y, x = grid(n)
    light = 1.06 - 0.16 * np.hypot(x - rng.random(), y - rng.uniform(0, 0.6))
    picture = np.broadcast_to(plain_color(rng, name), (n, n, 3)) * light[..., None]
    return np.clip(picture, 0, 1), 0.6


def place(rng: Rng, n: int, name: str) -> Painting:
    """The painting that a caption's place words ask for."""
    if name in PLACES:
        picture, floor = PLACES[name](rng, n)
        return np.clip(picture, 0, 1).astype(np.float32), floor
    return background(
        rng, n, name.removeprefix("on a ").removeprefix("on an ").removesuffix(" background")
    )
