"""Toys, dolls, robots, bears and horses built from turned parts: the furniture libraries have only a handful.

Textual Inversion starts from words such as `toy`, `bear` and `horse`, and looks for a new one between the words that a
model knows. There must be many objects for each: a word that was only ever seen with three objects means those three.
These kits add three hundred. Each also has a name of its own, a word that means one thing from every side, as a learned
word will. None imitates a held-out concept.
"""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np

from . import collect, lexicon, render

TOYS = collect.WORK / "toys"
# Azimuths in degrees, as a child would see the toy in its hands. The last is kept out of training.
AZIMUTHS = (10, -20, 40, -50, 70, -80, 25)
SIDES = len(AZIMUTHS)
WOODS = ((0.87, 0.72, 0.50), (0.72, 0.52, 0.30), (0.55, 0.36, 0.20), (0.93, 0.86, 0.70))
FURS = (
    (0.45, 0.28, 0.14),
    (0.62, 0.42, 0.22),
    (0.30, 0.20, 0.13),
    (0.92, 0.90, 0.86),
    (0.35, 0.34, 0.36),
    (0.76, 0.55, 0.28),
    (0.82, 0.68, 0.47),
    (0.55, 0.42, 0.26),
    (0.86, 0.55, 0.58),
    (0.48, 0.58, 0.72),
)


def paint(rng: np.random.Generator, wood: float = 0.25) -> tuple[float, float, float]:
    """A bright color, or now and then bare wood."""
    if rng.random() < wood:
        return WOODS[rng.integers(len(WOODS))]
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.65, 1), rng.uniform(0.65, 1))


class Kit:
    """Collects colored parts on a plotter; y is up, the front faces +z."""

    def __init__(self, plotter):
        import pyvista

        self.pv, self.plotter = pyvista, plotter

    def add(self, mesh, color, smooth: bool = True) -> None:
        self.plotter.add_mesh(
            mesh, color=color, smooth_shading=smooth, split_sharp_edges=True, specular=0.25
        )

    def ball(self, at, size, color) -> None:
        """An ellipsoid; `size` is a radius or three."""
        size = np.broadcast_to(size, 3)
        mesh = (
            self.pv.Sphere(radius=1, theta_resolution=32, phi_resolution=24)
            .scale(size)
            .translate(at)
        )
        self.add(mesh, color)

    def turned(self, profile, color, at=(0, 0, 0)) -> None:
        """A surface of revolution about y through (radius, height) pairs, as made on a lathe."""
        curve = np.array([(r, h, 0) for r, h in profile], float)
        lathe = self.pv.lines_from_points(curve).extrude_rotate(
            resolution=40, angle=360, rotation_axis=(0, 1, 0), capping=False
        )
        self.add(lathe.translate(at), color)

    def box(self, at, size, color) -> None:
        half = np.array(size) / 2
        low, high = np.array(at) - half, np.array(at) + half
        self.add(self.pv.Box(bounds=np.stack([low, high], 1).ravel()), color, smooth=False)

    def rod(self, at, direction, radius, length, color) -> None:
        self.add(
            self.pv.Cylinder(
                center=at, direction=direction, radius=radius, height=length, resolution=32
            ),
            color,
        )

    def ring(self, height, radius, tube, color) -> None:
        mesh = self.pv.ParametricTorus(ringradius=radius, crosssectionradius=tube)
        self.add(mesh.rotate_x(90).translate((0, height, 0)), color)

    def face(self, at, radius, skin) -> None:
        """A ball head with two eyes and a nose."""
        self.ball(at, radius, skin)
        x, y, z = at
        for side in (-1, 1):
            self.ball(
                (x + side * 0.35 * radius, y + 0.15 * radius, z + 0.87 * radius),
                0.12 * radius,
                (0.05, 0.05, 0.05),
            )
        self.ball((x, y - 0.1 * radius, z + radius), 0.1 * radius, (0.85, 0.35, 0.3))


def figure(kit: Kit, rng: np.random.Generator) -> None:
    """A turned figure: foot, body, head, hat; painted, or of bare wood in two tones."""
    width, tall = rng.uniform(0.45, 0.75), rng.uniform(1.0, 1.8)
    bare = 1.0 if rng.random() < 0.4 else 0.2
    body, trim, skin = paint(rng, bare), paint(rng, bare), WOODS[rng.choice([0, 3])]
    waist = rng.uniform(0.4, 1.0)
    kit.turned([(0, 0), (width * 1.15, 0), (width * 1.15, 0.15), (width, 0.2)], trim)
    kit.turned(
        [
            (width, 0.2),
            (width * waist, 0.2 + tall * 0.55),
            (width * 0.45, 0.2 + tall),
            (0, 0.2 + tall),
        ],
        body,
    )
    if rng.random() < 0.6:
        kit.ring(0.2 + tall * 0.5, width * waist, 0.09, trim)
    head = rng.uniform(0.35, 0.5)
    kit.face((0, 0.2 + tall + head * 0.85, 0), head, skin)
    top = 0.2 + tall + head * 1.5
    hat = rng.integers(4)
    if hat == 0:
        kit.turned(
            [(head * 1.1, top), (head * 0.5, top + 0.25), (0, top + rng.uniform(0.5, 0.9))], trim
        )
    elif hat == 1:
        kit.turned(
            [
                (head * 1.5, top),
                (head * 1.5, top + 0.06),
                (head * 0.8, top + 0.06),
                (head * 0.8, top + 0.5),
                (0, top + 0.5),
            ],
            trim,
        )
    elif hat == 2:
        kit.ball((0, top, 0), (head * 0.95, head * 0.5, head * 0.95), body)
    else:
        tall_hat = top + rng.uniform(0.3, 0.6)
        kit.turned([(head * 0.95, top - 0.1), (head * 0.8, tall_hat), (0, tall_hat)], trim)
    if rng.random() < 0.5:
        for side in (-1, 1):
            kit.rod(
                (side * width * 0.85, 0.2 + tall * 0.6, 0),
                (side * 0.4, -1, 0),
                0.11,
                tall * 0.6,
                body,
            )


def doll(kit: Kit, rng: np.random.Generator) -> None:
    """A doll in a wide dress, with hair and arms."""
    dress, hair, skin = (
        paint(rng, 0),
        paint(rng, 0.6),
        [(0.96, 0.80, 0.68), (0.78, 0.56, 0.42), (0.5, 0.33, 0.24)][rng.integers(3)],
    )
    wide, tall = rng.uniform(0.7, 1.0), rng.uniform(1.1, 1.5)
    kit.turned(
        [
            (0, 0),
            (wide, 0),
            (wide * 0.8, tall * 0.35),
            (0.28, tall * 0.7),
            (0.38, tall),
            (0, tall + 0.1),
        ],
        dress,
    )
    for side in (-1, 1):
        kit.rod((side * 0.55, tall * 0.78, 0.1), (side * 0.8, -0.8, 0.2), 0.1, 0.6, skin)
        kit.ball((side * 0.8, tall * 0.55, 0.16), 0.12, skin)
    head = rng.uniform(0.45, 0.6)
    at = (0, tall + head * 0.95, 0)
    kit.face(at, head, skin)
    kit.ball((0, at[1] + 0.12, -0.1), head * 1.05, hair)
    if rng.random() < 0.6:
        for side in (-1, 1):
            kit.ball((side * head * 1.15, at[1], -0.1), head * rng.uniform(0.3, 0.45), hair)


def stacker(kit: Kit, rng: np.random.Generator) -> None:
    """Rings of falling size on a rod."""
    count, height = rng.integers(4, 7), 0.15
    kit.turned([(0, 0), (1.0, 0), (1.0, 0.12), (0, 0.15)], WOODS[rng.integers(4)])
    for ring in range(count):
        radius = 0.75 - 0.5 * ring / count
        kit.ring(height + 0.2, radius, 0.22, paint(rng, 0.05))
        height += 0.4
    kit.ball((0, height + 0.2, 0), 0.32, paint(rng, 0))


def blocks(kit: Kit, rng: np.random.Generator) -> None:
    """A small building of colored blocks."""
    base = 0.0
    for floor in range(rng.integers(2, 4)):
        for x in (-0.5, 0.5) if floor == 0 else (0.0,):
            size = rng.uniform(0.75, 1.0)
            kit.box((x, base + size / 2, 0), (size, size, size), paint(rng, 0.15))
        base += size
    if rng.random() < 0.5:
        kit.turned([(0.6, base), (0, base + 0.8)], paint(rng, 0))
    else:
        kit.ball((0, base + 0.4, 0), 0.42, paint(rng, 0))


def wheeled(kit: Kit, rng: np.random.Generator) -> None:
    """A car, truck or duck on four wooden wheels."""
    body, wheel = paint(rng), paint(rng)
    kit.box((0, 0.55, 0), (0.9, 0.4, 2.0), body)
    for x in (-0.5, 0.5):
        for z in (-0.65, 0.65):
            kit.rod((x, 0.35, z), (1, 0, 0), 0.35, 0.18, wheel)
            kit.rod((x * 1.2, 0.35, z), (1, 0, 0), 0.12, 0.1, paint(rng))
    kind = rng.integers(3)
    if kind == 0:
        kit.box((0, 1.0, rng.uniform(-0.3, 0.3)), (0.8, 0.5, rng.uniform(0.8, 1.2)), paint(rng))
    elif kind == 1:
        kit.box((0, 1.05, 0.6), (0.85, 0.65, 0.6), paint(rng))
        for z in (-0.6, -0.1):
            kit.rod((0, 0.95, z), (0, 1, 0), 0.22, 0.5, paint(rng))
    else:
        skin = paint(rng)
        kit.ball((0, 1.2, -0.1), (0.45, 0.5, 0.8), skin)
        kit.face((0, 1.85, 0.55), 0.4, skin)
        kit.rod((0, 1.75, 1.0), (0, 0, 1), 0.13, 0.3, (0.95, 0.6, 0.1))


def robot(kit: Kit, rng: np.random.Generator) -> None:
    """A tin robot of boxes."""
    tin = [(0.7, 0.72, 0.76), (0.5, 0.55, 0.62), paint(rng, 0), paint(rng, 0)][rng.integers(4)]
    trim, wide = paint(rng, 0), rng.uniform(0.9, 1.2)
    for side in (-1, 1):
        kit.box((side * 0.3, 0.35, 0), (0.32, 0.7, 0.4), trim)
        kit.box((side * 0.3, 0.08, 0.1), (0.38, 0.16, 0.6), tin)
        kit.box((side * (wide / 2 + 0.18), 1.2, 0), (0.24, 0.9, 0.3), trim)
        kit.ball((side * (wide / 2 + 0.18), 0.7, 0), 0.2, tin)
    kit.box((0, 1.2, 0), (wide, 1.1, 0.65), tin)
    kit.box((0, 1.3, 0.34), (wide * 0.6, 0.45, 0.05), paint(rng, 0))
    head = rng.uniform(0.6, 0.85)
    kit.box((0, 1.8 + head / 2, 0), (head, head * 0.85, 0.6), tin)
    for side in (-1, 1):
        kit.ball(
            (side * head * 0.24, 1.85 + head / 2, 0.32),
            0.11,
            (0.98, 0.9, 0.2) if rng.random() < 0.7 else trim,
        )
    kit.box((0, 1.62 + head / 2, 0.31), (head * 0.5, 0.07, 0.04), (0.1, 0.1, 0.1))
    kit.rod((0, 1.95 + head, 0), (0, 1, 0), 0.04, 0.4, trim)
    kit.ball((0, 2.15 + head, 0), 0.11, trim)


def bear(kit: Kit, rng: np.random.Generator) -> None:
    """A bear on all fours, standing, or sitting: with the emoji alone, `bear` would be a face without a body."""
    fur = FURS[rng.integers(len(FURS))]
    light = tuple(np.clip(np.array(fur) * rng.uniform(1.0, 1.45), 0, 1))
    plump = rng.uniform(0.85, 1.15)
    pose = rng.integers(3)
    if pose == 0:
        kit.ball((0, 1.15, -0.2), (0.7 * plump, 0.68, 1.2), fur)
        head = (0, 1.65, 1.15)
        for x in (-0.4, 0.4):
            for z in (-0.95, 0.6):
                kit.ball((x, 0.45, z), (0.26, 0.55, 0.28), fur)
    else:
        base = 0.35 * (pose == 1)
        kit.ball((0, 0.85 + base, 0), (0.72 * plump, 0.95, 0.6 * plump), fur)
        kit.ball((0, 0.75 + base, 0.2), (0.5, 0.65, 0.45 * plump), light)
        head = (0, 2.1 + base, 0.1)
        lift = rng.uniform(-0.3, 0.5)  # of the arms
        for side in (-1, 1):
            kit.ball((side * 0.82, 1.15 + base, 0.2), (0.3, 0.5, 0.22), fur)
            kit.ball((side * 1.0, 0.95 + base + lift, 0.3), 0.22, fur)
            if pose == 1:
                kit.ball((side * 0.42, 0.3, 0.1), (0.28, 0.45, 0.35), fur)
            else:  # legs forward, the soles to be seen
                kit.ball((side * 0.5, 0.28, 0.6), (0.3, 0.28, 0.65), fur)
                kit.ball((side * 0.55, 0.38, 1.2), (0.3, 0.36, 0.14), fur)
                kit.ball((side * 0.55, 0.38, 1.3), (0.2, 0.25, 0.08), light)
    x, y, z = head
    size = rng.uniform(0.52, 0.72)
    kit.ball(head, size, fur)
    kit.ball((x, y - 0.15, z + 0.8 * size), (0.28, 0.24, 0.3), light)
    kit.ball((x, y - 0.05, z + 0.8 * size + 0.28), 0.1, (0.05, 0.04, 0.04))
    for side in (-1, 1):
        kit.ball((side * 0.78 * size, y + 0.85 * size, z - 0.05), 0.34 * size, fur)
        kit.ball((side * 0.38 * size, y + 0.3 * size, z + 0.88 * size), 0.09, (0.04, 0.03, 0.03))


def horse(kit: Kit, rng: np.random.Generator) -> None:
    """A toy horse seen from its side, alone or on a board with wheels: one turned of balls and rods, or of boards."""
    coat, mane, trim = paint(rng, 0.5), paint(rng, 0.4), paint(rng)
    long, tall, lean = rng.uniform(0.75, 1.05), rng.uniform(0.8, 1.15), rng.uniform(0.55, 0.95)
    flat = rng.random() < 0.4  # cut from boards
    belly, neck = tall + 0.35, (long * 0.8, tall + 0.85)
    if flat:
        kit.box((0, belly, 0), (2 * long, 0.55, 0.3), coat)
    else:
        kit.ball((0, belly, 0), (long * 1.1, 0.42, 0.4), coat)
    for x in (-0.75 * long, 0.75 * long):
        for z in (-0.22, 0.22):
            if flat:
                kit.box((x, tall / 2, z), (0.26, tall + 0.2, 0.12), coat)
            else:
                kit.rod((x, tall / 2, z), (0.12 * np.sign(x), 1, 0), 0.13, tall + 0.3, coat)
            kit.ball((x + 0.05 * np.sign(x), 0.06, z), (0.18, 0.12, 0.14), trim)
    kit.rod((*neck, 0), (lean, 1, 0), 0.24, 0.95, coat)
    head = (neck[0] + 0.4 * lean + 0.3, neck[1] + 0.4)
    kit.ball((*head, 0), (0.5, 0.25, 0.24), coat)
    kit.ball((head[0] + 0.36, head[1] - 0.08, 0), (0.2, 0.2, 0.2), coat)
    for z in (-0.14, 0.14):
        kit.ball((head[0] - 0.25, head[1] + 0.28, z), (0.08, 0.2, 0.07), coat)
        kit.ball((head[0] + 0.1, head[1] + 0.1, 1.5 * z), 0.07, (0.05, 0.05, 0.05))
    for part in range(5):  # down the neck
        along = 0.5 - 0.25 * part
        kit.ball((neck[0] + lean * along - 0.27, neck[1] + along, 0), (0.2, 0.2, 0.13), mane)
    kit.ball((-long * 1.12, belly - 0.1, 0), (0.16, 0.5, 0.13), mane)
    if rng.random() < 0.6:
        kit.ball((-0.05, belly + 0.3, 0), (0.38, 0.16, 0.42), trim)
    if rng.random() < 0.5:
        kit.box((0, -0.12, 0), (2.6 * long, 0.14, 0.8), paint(rng, 0.5))
        for x in (-long, long):
            for z in (-0.45, 0.45):
                kit.rod((x, -0.25, z), (0, 0, 1), 0.3, 0.15, trim)


BUILDERS = {
    "figure": figure,
    "doll": doll,
    "stacker": stacker,
    "blocks": blocks,
    "wheeled": wheeled,
    "robot": robot,
    "bear": bear,
    "horse": horse,
}
# which words of the world each kit stands for, the most fitting first
WORDS = {
    "figure": ("toy", "figure", "doll"),
    "doll": ("doll", "toy"),
    "stacker": ("toy",),
    "blocks": ("toy",),
    "wheeled": ("toy",),
    "robot": ("robot", "toy"),
    "bear": ("bear",),
    "horse": ("horse", "toy"),
}


def build(kind: str, number: int, out: Path) -> None:
    """All sides of one toy; the toy is a function of its kind and number."""
    import pyvista as pv

    rng = np.random.default_rng([number, sorted(BUILDERS).index(kind)])
    plotter = pv.Plotter(off_screen=True, window_size=(320, 320), lighting="light kit")
    plotter.add_light(pv.Light(light_type="headlight", intensity=0.3))
    BUILDERS[kind](Kit(plotter), rng)
    out.mkdir(parents=True, exist_ok=True)
    for side, azimuth in enumerate(AZIMUTHS):
        elevation = 20 if side % 2 else 8
        cut = render.crop_to_alpha(render.shoot(plotter, azimuth, elevation), 192)
        if cut is not None:
            cut.save(out / f"{side}.png")
    plotter.close()
    (out / "done").write_text("ok")


def main() -> None:
    """Build every toy of the table that does not exist yet."""
    for toy in lexicon.toys().values():
        kind, number = toy.split("-")
        if not (TOYS / toy / "done").exists():
            build(kind, int(number), TOYS / toy)
    print(f"toys: {len(lexicon.toys())} in {TOYS}", flush=True)
