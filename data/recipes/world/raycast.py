"""Draw things made of simple parts, on whatever device PyTorch has: no renderer, thousands of pictures a minute.

A thing is a list of ellipsoids, boxes, frustums (cones, cylinders, discs) and rings, each with a color or two. Every
ray meets every part in closed form; only rings are approached step by step (sphere tracing). The pictures are cut-outs:
RGBA with a transparent background, filled by the thing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch

BALL, BOX, FRUSTUM, RING = range(4)
FAR = 1e9
RING_STEPS = 28
DISTANCE = 4.2  # of the camera, in radii of the thing


@dataclass(frozen=True)
class Part:
    """One solid. `axes` are its own x, y and z as columns; `size` means, by kind: radii; half sides; bottom and top
    radius and half the height; ring and tube radius. The second color is laid over in stripes or patches."""

    kind: int
    at: tuple[float, float, float]
    axes: np.ndarray
    size: tuple[float, float, float]
    color: tuple[float, float, float]
    second: tuple[float, float, float] = (0.0, 0.0, 0.0)
    pattern: int = 0  # 0 none, 1 stripes, 2 patches
    frequency: float = 0.0


def axes_from(direction) -> np.ndarray:
    """Axes whose y points along `direction`."""
    y = np.asarray(direction, float)
    y = y / np.linalg.norm(y)
    helper = (1.0, 0.0, 0.0) if abs(y[0]) < 0.9 else (0.0, 0.0, 1.0)
    z = np.cross(helper, y)
    z /= np.linalg.norm(z)
    return np.stack([np.cross(y, z), y, z], axis=1)


UPRIGHT = np.eye(3)


class Parts:
    """Collects the parts of one thing; y is up, the front faces +z. The builders in `toys.py` use it as well."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.dress = (None, 0, 0.0)  # second color, pattern, frequency of what is added next

    def add(self, kind: int, at, axes, size, color) -> None:
        second, pattern, frequency = self.dress
        self.parts.append(
            Part(
                kind,
                tuple(at),
                axes,
                tuple(size),
                tuple(color),
                second or color,
                pattern,
                frequency,
            )
        )

    def ball(self, at, size, color, axes: np.ndarray = UPRIGHT) -> None:
        """An ellipsoid; `size` is a radius or three."""
        self.add(BALL, at, axes, np.broadcast_to(size, 3), color)

    def box(self, at, size, color, axes: np.ndarray = UPRIGHT) -> None:
        self.add(BOX, at, axes, np.asarray(size, float) / 2, color)

    def rod(self, at, direction, radius, length, color) -> None:
        self.add(FRUSTUM, at, axes_from(direction), (radius, radius, length / 2), color)

    def frustum(self, at, direction, bottom, top, length, color) -> None:
        self.add(FRUSTUM, at, axes_from(direction), (bottom, top, length / 2), color)

    def turned(self, profile, color, at=(0, 0, 0)) -> None:
        """A surface of revolution about y through (radius, height) pairs: what a lathe makes."""
        for (r0, h0), (r1, h1) in itertools.pairwise(profile):
            if abs(h1 - h0) > 1e-6:
                if h1 < h0:
                    (r0, h0), (r1, h1) = (r1, h1), (r0, h0)
                middle = (at[0], at[1] + (h0 + h1) / 2, at[2])
                self.add(FRUSTUM, middle, UPRIGHT, (r0, r1, (h1 - h0) / 2), color)

    def ring(self, height, radius, tube, color, at=None, axes: np.ndarray = UPRIGHT) -> None:
        self.add(RING, at or (0.0, height, 0.0), axes, (radius, tube, 0.0), color)

    def face(self, at, radius, skin) -> None:
        """A ball head with two eyes and a nose."""
        self.ball(at, radius, skin)
        x, y, z = at
        for side in (-1, 1):
            eye = (x + side * 0.35 * radius, y + 0.15 * radius, z + 0.87 * radius)
            self.ball(eye, 0.12 * radius, (0.05, 0.05, 0.05))
        self.ball((x, y - 0.1 * radius, z + radius), 0.1 * radius, (0.85, 0.35, 0.3))


def table(things: list[list[Part]]) -> dict[int, np.ndarray]:
    """The parts by kind, padded to the longest: (things, parts, 23) float32 each."""
    found = {}
    for kind in range(4):
        own = [[part for part in thing if part.kind == kind] for thing in things]
        longest = max(map(len, own))
        numbers = np.zeros((len(things), longest, 23), np.float32)
        for i, parts in enumerate(own):
            for j, p in enumerate(parts):
                numbers[i, j] = (
                    *p.at, *p.axes.ravel(), *p.size, *p.color, *p.second, p.pattern, p.frequency
                )  # fmt: skip
        found[kind] = numbers
    return found


def extents(kind: int, numbers: torch.Tensor, axis: torch.Tensor) -> torch.Tensor:
    """How far parts (b, p, 23) extend from their centers along unit vectors (b, 3): (b, p)."""
    axes, size = numbers[..., 3:12].unflatten(-1, (3, 3)), numbers[..., 12:15]
    own = (axes * axis[:, None, :, None]).sum(-2)  # the direction in the part's own axes
    across = (1 - own[..., 1] ** 2).clamp(min=0).sqrt()
    if kind == BALL:
        return (own * size).norm(dim=-1)
    if kind == BOX:
        return (own.abs() * size).sum(-1)
    if kind == FRUSTUM:
        return own[..., 1].abs() * size[..., 2] + across * size[..., :2].amax(-1)
    return across * size[..., 0] + size[..., 1]


def middle_and_reach(parts: dict[int, torch.Tensor], axis: torch.Tensor) -> tuple:
    """The extent of things along unit vectors (b, 3): its center and half its length, (b,) each."""
    low, high = axis.new_full((len(axis),), FAR), axis.new_full((len(axis),), -FAR)
    for kind, numbers in parts.items():
        if numbers.shape[1]:
            there = numbers[..., 12] > 0
            along = (numbers[..., :3] * axis[:, None]).sum(-1)
            reach = extents(kind, numbers, axis)
            low = torch.minimum(low, torch.where(there, along - reach, FAR).amin(1))
            high = torch.maximum(high, torch.where(there, along + reach, -FAR).amax(1))
    return (low + high) / 2, (high - low) / 2


def camera(parts, azimuth: torch.Tensor, elevation: torch.Tensor, side: int):
    """Rays for pictures (b, side, side): origins (b, 3), unit directions (b, side², 3), camera axes (b, 3, 3).

    The window is a square around the thing, so that the longer of its sides fills it.
    """
    a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    back = torch.stack([a.sin() * e.cos(), e.sin(), a.cos() * e.cos()], -1)
    right = torch.stack([a.cos(), torch.zeros_like(a), -a.sin()], -1)
    up = torch.linalg.cross(back, right)
    spans = [middle_and_reach(parts, axis) for axis in (right, up, back)]
    middles, reaches = (torch.stack(part, -1) for part in zip(*spans, strict=True))
    frame = torch.stack([right, up, back], 1)
    center = (middles[:, :, None] * frame).sum(1)
    distance = DISTANCE * reaches.norm(dim=-1)
    half = 1.06 * reaches[:, :2].amax(-1) * distance / (distance - reaches[:, 2])
    line = (torch.arange(side, device=a.device) + 0.5) / side * 2 - 1
    v, u = torch.meshgrid(-line, line, indexing="ij")
    directions = (
        half[:, None, None] * (u.reshape(1, -1, 1) * right[:, None] + v.reshape(1, -1, 1) * up[:, None])
        - distance[:, None, None] * back[:, None]
    )  # fmt: skip
    return (
        center + distance[:, None] * back,
        torch.nn.functional.normalize(directions, dim=-1),
        frame,
    )


def meet_ball(origin, ray, size):
    o, d = origin / size, ray / size
    a, b = (d * d).sum(-1), (o * d).sum(-1)
    inside = b * b - a * ((o * o).sum(-1) - 1)
    t = (-b - inside.clamp(min=0).sqrt()) / a
    t = torch.where((inside > 0) & (t > 0), t, FAR)
    return t, (o + t[..., None].clamp(max=FAR / 2) * d) / size


def meet_box(origin, ray, size):
    ray = torch.where(ray.abs() < 1e-6, 1e-6, ray)
    first, second = (-size - origin) / ray, (size - origin) / ray
    near, where = torch.minimum(first, second).max(-1)
    far = torch.maximum(first, second).amin(-1)
    t = torch.where((near < far) & (near > 0), near, FAR)
    one = torch.nn.functional.one_hot(where, 3).to(ray.dtype)
    return t, -one * ray.sign()


def meet_frustum(origin, ray, size):
    bottom, top, half = size.unbind(-1)
    mean, slope = (bottom + top) / 2, (top - bottom) / (2 * half)
    (ox, oy, oz), (dx, dy, dz) = origin.unbind(-1), ray.unbind(-1)
    dy = torch.where(dy.abs() < 1e-6, 1e-6, dy)
    radius = mean + slope * oy
    a = dx * dx + dz * dz - (slope * dy) ** 2
    a = torch.where(a.abs() < 1e-9, 1e-9, a)
    b = ox * dx + oz * dz - slope * dy * radius
    inside = b * b - a * (ox * ox + oz * oz - radius**2)
    root = inside.clamp(min=0).sqrt()
    best, cap = torch.full_like(dx, FAR), torch.zeros_like(dx)
    for t in ((-b - root) / a, (-b + root) / a):
        y = oy + t * dy
        good = (inside > 0) & (t > 0) & (y.abs() <= half) & (mean + slope * y >= 0) & (t < best)
        best = torch.where(good, t, best)
    for side, limit in ((1.0, top), (-1.0, bottom)):
        t = (side * half - oy) / dy
        x, z = ox + t * dx, oz + t * dz
        good = (t > 0) & (x * x + z * z <= limit**2) & (t < best)
        best, cap = torch.where(good, t, best), torch.where(good, side, cap)
    t = best.clamp(max=FAR / 2)
    x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
    shell = torch.stack([x, -slope * (mean + slope * y), z], -1)
    lid = torch.stack([torch.zeros_like(cap), cap, torch.zeros_like(cap)], -1)
    return best, torch.where((cap != 0)[..., None], lid, shell)


def meet_ring(origin, ray, size):
    ring, tube = size[..., 0], size[..., 1]
    reach = ring + tube
    t = (-(origin * ray).sum(-1) - reach).clamp(min=0)
    for _ in range(RING_STEPS):
        p = origin + t[..., None] * ray
        around = (p[..., 0] ** 2 + p[..., 2] ** 2).sqrt() - ring
        t = t + ((around**2 + p[..., 1] ** 2).sqrt() - tube)
    p = origin + t[..., None] * ray
    flat = (p[..., 0] ** 2 + p[..., 2] ** 2).sqrt().clamp(min=1e-6)
    around = flat - ring
    gap = (around**2 + p[..., 1] ** 2).sqrt() - tube
    hit = (gap < 0.03 * tube) & (t < FAR / 2)
    normal = torch.stack([p[..., 0] * around / flat, p[..., 1], p[..., 2] * around / flat], -1)
    return torch.where(hit, t, FAR), normal


MEET = {BALL: meet_ball, BOX: meet_box, FRUSTUM: meet_frustum, RING: meet_ring}


def paint(numbers: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    """Colors (b, n, 3) of surfaces at points (b, n, 3) in their parts' own axes; `numbers` are (b, n, 23)."""
    waves = (point * numbers[..., 22:]).sin()
    stripes = (0.5 + 4 * waves[..., 1]).clamp(0, 1)
    patches = (0.5 + 6 * waves.prod(-1)).clamp(0, 1)
    pattern = numbers[..., 21]
    share = torch.where(pattern == 1, stripes, torch.where(pattern == 2, patches, 0.0))
    return torch.lerp(numbers[..., 15:18], numbers[..., 18:21], share[..., None])


def shade(color, normal, ray, frame, strength: torch.Tensor) -> torch.Tensor:
    """A key light from the camera's left and above, a fill light, a headlight, and a highlight. (b, n, 3)."""
    normal = torch.nn.functional.normalize(normal, dim=-1)
    key, fill, head = (
        torch.nn.functional.normalize((color.new_tensor(at) @ frame), dim=-1)[:, None]
        for at in ((-0.6, 0.75, 0.7), (0.9, 0.1, 0.6), (0.0, 0.0, 1.0))
    )
    lit = sum(
        weight * (normal * light).sum(-1).clamp(min=0)
        for weight, light in ((0.55, key), (0.2, fill), (0.35, head))
    )
    mirrored = ray - 2 * (ray * normal).sum(-1, keepdim=True) * normal
    gleam = 0.22 * (mirrored * key).sum(-1).clamp(min=0) ** 24
    return (color * (0.22 + lit * strength)[..., None] + gleam[..., None]).clamp(0, 1)


@torch.no_grad()
def draw(
    parts: dict[int, torch.Tensor],
    azimuth: torch.Tensor,
    elevation: torch.Tensor,
    strength: torch.Tensor,
    size: int,
    rays: int = 2,
) -> torch.Tensor:
    """Cut-outs (b, size, size, 4) uint8 of things (see `table`), with `rays`² rays per pixel."""
    origin, ray, frame = camera(parts, azimuth, elevation, size * rays)
    nearest, normals = ray.new_full(ray.shape[:2], FAR), torch.zeros_like(ray)
    slots = [own for numbers in parts.values() for own in numbers.unbind(1)]
    kinds = [kind for kind, numbers in parts.items() for _ in range(numbers.shape[1])]
    owner = torch.zeros(ray.shape[:2], dtype=torch.int64, device=ray.device)
    for slot, (kind, own) in enumerate(zip(kinds, slots, strict=True)):
        axes, extent = own[:, 3:12].unflatten(-1, (3, 3)), own[:, None, 12:15]
        there = own[:, 12] + own[:, 13] > 0
        local = ((origin - own[:, :3])[:, None] @ axes).expand_as(ray)
        t, normal = MEET[kind](local, ray @ axes, torch.where(there[:, None, None], extent, 1.0))
        front = (t < nearest) & there[:, None]
        owner = torch.where(front, slot, owner)
        normals = torch.where(front[..., None], normal @ axes.mT, normals)
        nearest = torch.where(front, t, nearest)
    hit = torch.stack(slots, 1).gather(1, owner[..., None].expand(-1, -1, slots[0].shape[-1]))
    at = origin[:, None] + nearest.clamp(max=1e4)[..., None] * ray - hit[..., :3]
    own_point = (at[..., None, :] @ hit[..., 3:12].unflatten(-1, (3, 3)))[..., 0, :]
    colors = paint(hit, own_point)
    solid = (nearest < FAR / 2).to(ray.dtype)[..., None]
    seen = shade(colors, normals, ray, frame, strength[:, None]) * solid
    layers = torch.cat([seen, solid], -1).unflatten(1, (size, rays, size, rays)).mean((2, 4))
    layers[..., :3] /= layers[..., 3:].clamp(min=1e-3)
    return (layers * 255).round().to(torch.uint8)
