"""Six things of families that no training ever meets, and a gallery of 51 others: what taught words are judged by.

The bundled model is judged by words for things whose whole family it never saw: three 3-D models that no noun of the
world uses, and three from kits that `toys.BUILDERS` does not have. Each has photos as the course's concepts have, five
from different sides on different backgrounds and two more in `held_out/`. The gallery is the crowd that they must stand
out from: two pictures each of things of the world, the nouns that words start from among them (`benchmarks.witness`).

    python -m data.recipes.held_out      # after the stage collect
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from . import collect, concepts, render, toys
from .concepts import Photo

SIZE, SMALL = 256, 128  # pixels, of photos and of the gallery's pictures
HELD_OUT = Path(__file__).parents[1] / "held_out"
GALLERY = HELD_OUT / "gallery"


@dataclass(frozen=True)
class Thing:
    """A held-out thing: a model of the furniture libraries, or a kit that builds it."""

    folder: str
    source: str | Callable[[toys.Kit], None]
    initializer: str
    title: str
    what: str
    exposure: float
    photos: tuple[Photo, ...]
    held_out: tuple[Photo, ...]

    @property
    def placeholder(self) -> str:
        return f"<{self.folder}>"


WHITE, GRAY, BLACK = (0.94, 0.93, 0.90), (0.55, 0.56, 0.58), (0.08, 0.08, 0.09)
RED, YELLOW, BLUE = (0.80, 0.14, 0.12), (0.97, 0.78, 0.10), (0.10, 0.28, 0.70)
PINK, MINT, ORANGE, PURPLE = (
    (0.93, 0.50, 0.60),
    (0.35, 0.75, 0.60),
    (0.95, 0.50, 0.12),
    (0.42, 0.18, 0.55),
)
BROWN, GLASS = (0.40, 0.24, 0.13), (0.55, 0.82, 0.95)


def windmill(kit: toys.Kit) -> None:
    """A white mill with a red cap, and four blue sails before it."""
    kit.turned([(0, 0), (1.05, 0), (1.05, 0.22), (0.9, 0.25)], GRAY)
    kit.turned([(0.9, 0.25), (0.56, 2.3)], WHITE)
    kit.turned([(0.7, 2.28), (0.64, 2.55), (0.36, 2.9), (0, 3.02)], RED)
    kit.box((0, 0.62, 0.76), (0.42, 0.75, 0.2), BROWN)
    kit.ball((0, 1.5, 0.66), (0.17, 0.2, 0.06), GLASS)
    hub = (0, 2.5, 0.95)
    kit.rod((0, 2.5, 0.75), (0, 0, 1), 0.1, 0.5, BROWN)
    for turn in (30, 120, 210, 300):
        sail = kit.pv.Box(bounds=(-0.24, 0.2, 2.75, 4.1, 0.92, 0.98))
        arm = kit.pv.Box(bounds=(-0.05, 0.05, 2.5, 4.1, 0.98, 1.05))
        for board, color in ((sail, BLUE), (arm, BROWN)):
            kit.add(board.rotate_z(turn, point=hub), color, smooth=False)
    kit.ball((0, 2.5, 1.05), 0.17, YELLOW)


def submarine(kit: toys.Kit) -> None:
    """A yellow submarine, its bow to the right: red tower with periscope, portholes, fins and a propeller."""
    kit.ball((0, 1, 0), (1.75, 0.7, 0.66), YELLOW)
    kit.turned([(0.48, 0), (0.4, 0.55), (0, 0.6)], RED, at=(0.1, 1.5, 0))
    kit.rod((0.1, 2.3, 0), (0, 1, 0), 0.07, 0.5, GRAY)
    kit.rod((0.24, 2.55, 0), (1, 0, 0), 0.09, 0.42, GRAY)
    for x in (-0.75, 0.1, 0.95):
        for side in (-1, 1):
            depth = side * 0.64 * np.sqrt(1 - (x / 1.75) ** 2)
            kit.ball((x, 1.08, depth), (0.27, 0.27, 0.07), RED)
            kit.ball((x, 1.08, depth + side * 0.05), (0.18, 0.18, 0.06), GLASS)
    kit.box((-1.45, 1, 0), (0.4, 1.3, 0.08), RED)
    kit.box((-1.45, 1, 0), (0.4, 0.08, 1.3), RED)
    kit.rod((-1.85, 1, 0), (1, 0, 0), 0.1, 0.3, GRAY)
    for turn in (0, 120, 240):
        blade = kit.pv.Box(bounds=(-2.02, -1.94, 1.0, 1.55, -0.14, 0.14))
        kit.add(blade.rotate_x(turn, point=(0, 1, 0)), GRAY, smooth=False)


def gnome(kit: toys.Kit) -> None:
    """An odd creature: pink ball head with goggling eyes, arms thrown up, and a tall striped hat with a bobble."""
    kit.ball((0, 1.25, 0), (0.62, 0.72, 0.52), MINT)
    kit.ball((0, 1.2, 0.2), (0.42, 0.5, 0.38), YELLOW)
    for side in (-1, 1):
        kit.rod((side * 0.3, 0.42, 0), (0, 1, 0), 0.13, 0.6, ORANGE)
        kit.ball((side * 0.34, 0.14, 0.14), (0.26, 0.16, 0.38), PURPLE)
        kit.rod((side * 0.88, 1.75, 0), (side * 0.75, 1, 0), 0.12, 1.0, ORANGE)
        kit.ball((side * 1.22, 2.2, 0), 0.22, PURPLE)
        kit.ball((side * 0.24, 2.55, 0.42), 0.21, WHITE)
        kit.ball((side * 0.24, 2.55, 0.59), 0.1, BLACK)
    kit.ball((0, 2.4, 0), 0.58, PINK)
    kit.ball((0, 2.32, 0.6), 0.13, RED)
    kit.turned([(0, 2.8), (0.74, 2.8), (0.74, 2.88), (0.48, 2.9)], BLUE)
    for part, color in enumerate((WHITE, BLUE, WHITE, BLUE)):
        wide, narrow = (0.48 - 0.1 * (part + n) for n in (0, 1))
        kit.turned([(wide, 2.88 + 0.27 * part), (narrow, 3.15 + 0.27 * part)], color)
    kit.ball((0, 4.02, 0), 0.2, YELLOW)


# the gallery: `name | emoji, model or toy`
_OTHERS = """
wooden-car | by:carrito-de-madera
wooden-train | by:toyTrain
doll-12 | toy:doll-12
nesting-dolls | emoji:nesting dolls
figure-3 | toy:figure-03
figure-11 | toy:figure-11
doll-2 | toy:doll-02
doll-7 | toy:doll-07
stacker-1 | toy:stacker-01
blocks-2 | toy:blocks-02
wheeled-4 | toy:wheeled-04
robot-2 | toy:robot-02
robot-9 | toy:robot-09
bear-1 | toy:bear-01
bear-5 | toy:bear-05
bear-8 | toy:bear-08
horse-3 | toy:horse-03
horse-6 | toy:horse-06
bear | emoji:bear
panda | emoji:panda
horse | emoji:horse
brown-horse | by:horse
robot | emoji:robot
blender | by:kitchenblender
teapot | emoji:teapot
china-teapot | sc:teapot
bowl | sc:bowl
bowl-with-spoon | emoji:bowl with spoon
tower | emoji:Tokyo tower
castle | emoji:castle
canoe | emoji:canoe
sailboat | emoji:sailboat
speedboat | emoji:speedboat
snowman | emoji:snowman
clown | emoji:clown face
cat | sc:cat
dog | sc:dog
duck | emoji:duck
cup | zero:caffe_final
mug | kl:coffee-mug
toaster | sc:toaster
coffee-machine | sc:coffee_machine
car | kl:VW-new-beetle
helicopter | emoji:helicopter
rocket | emoji:rocket
guitar | emoji:guitar
house | emoji:house
chair | zero:oakChair
lemon | emoji:lemon
whale | emoji:whale
elf | emoji:elf
"""
OTHERS = dict(line.split(" | ") for line in _OTHERS.strip().splitlines())
PLACES = (  # of the gallery's pictures, one after another
    "on a table",
    "in a room",
    "on grass",
    "in the kitchen",
    "on a carpet",
    "in a garden",
    "on a red background",
    "on a blue background",
    "on a yellow background",
    "on a green background",
    "on a grey background",
)

THINGS = (
    Thing(
        "stand-mixer",
        "zero:kitchenaid",
        "blender",
        "Stand mixer",
        "A yellow kitchen mixer: a rounded head with a dark band on a curved foot, its beater hanging down.",
        1.45,
        (
            Photo(60, 12, "on a table", 31, 0.88),
            Photo(90, 10, "on a purple background", 32, 0.88),
            Photo(-60, 14, "in the kitchen", 33, 0.88),
            Photo(35, 20, "on a green background", 34, 0.88),
            Photo(115, 16, "on a white background", 35, 0.88),
        ),
        (Photo(75, 16, "in a room", 36, 0.88), Photo(-80, 10, "on a blue background", 37, 0.88)),
    ),
    Thing(
        "moka-pot",
        "by:espressokettle",
        "teapot",
        "Moka pot",
        "A stove-top coffee maker: two eight-sided halves of gray metal, spout, black handle and knob.",
        1.25,
        (
            Photo(0, 10, "on a table", 41, 0.88),
            Photo(35, 20, "on a yellow background", 42, 0.88),
            Photo(-30, 12, "in the kitchen", 43, 0.88),
            Photo(160, 14, "on a red background", 44, 0.88),
            Photo(20, 28, "on a green background", 45, 0.88),
        ),
        (Photo(10, 16, "in a room", 46, 0.88), Photo(-20, 20, "on a blue background", 47, 0.88)),
    ),
    Thing(
        "lemon-squeezer",
        "sc:squeezer",
        "bowl",
        "Lemon squeezer",
        "A blue lemon squeezer: a ribbed cone on a white strainer in a low bowl with spout and handle.",
        1.15,
        (
            Photo(0, 14, "on a table", 51, 0.9),
            Photo(45, 24, "on a red background", 52, 0.9),
            Photo(-40, 18, "in the kitchen", 53, 0.9),
            Photo(20, 34, "on a carpet", 54, 0.9),
            Photo(160, 16, "on a yellow background", 55, 0.9),
        ),
        (Photo(25, 18, "in a room", 56, 0.9), Photo(-60, 26, "on a green background", 57, 0.9)),
    ),
    Thing(
        "windmill",
        windmill,
        "tower",
        "Windmill",
        "A toy windmill: a white tower with a red cap, a brown door, and four blue sails.",
        1.0,
        (
            Photo(0, 8, "on grass", 61, 0.9),
            Photo(35, 16, "on a yellow background", 62, 0.9),
            Photo(-35, 12, "in a garden", 63, 0.9),
            Photo(-55, 18, "on a grey background", 64, 0.9),
            Photo(15, 24, "on a carpet", 65, 0.9),
        ),
        (Photo(20, 12, "in a room", 66, 0.9), Photo(-20, 16, "on a green background", 67, 0.9)),
    ),
    Thing(
        "submarine",
        submarine,
        "boat",
        "Submarine",
        "A yellow toy submarine: red tower with a periscope, portholes ringed in red, red fins, a propeller.",
        1.0,
        (
            Photo(0, 8, "on a table", 71, 0.92),
            Photo(35, 16, "on a blue background", 72, 0.92),
            Photo(-35, 14, "on a carpet", 73, 0.92),
            Photo(200, 12, "on a green background", 74, 0.92),
            Photo(-15, 26, "in a room", 75, 0.92),
        ),
        (
            Photo(18, 12, "in the kitchen", 76, 0.92),
            Photo(165, 18, "on a grey background", 77, 0.92),
        ),
    ),
    Thing(
        "striped-gnome",
        gnome,
        "doll",
        "Striped gnome",
        "An odd creature: pink ball head with goggling eyes, arms thrown up, tall hat in blue and white stripes.",
        1.0,
        (
            Photo(0, 8, "in a room", 81, 0.9),
            Photo(35, 16, "on a white background", 82, 0.9),
            Photo(-38, 12, "on grass", 83, 0.9),
            Photo(-65, 10, "on a yellow background", 84, 0.9),
            Photo(15, 26, "on a table", 85, 0.9),
        ),
        (Photo(20, 12, "in a garden", 86, 0.9), Photo(-25, 18, "on a red background", 87, 0.9)),
    ),
)


def mended(model: Path) -> Path:
    """A copy of the model without faces of two corners, on which VTK's importer gives up."""
    folder = collect.WORK / "held_out" / model.parent.name
    shutil.copytree(model.parent, folder, dirs_exist_ok=True)
    lines = model.read_text("latin-1").splitlines()
    whole = [line for line in lines if not line.startswith("f ") or len(line.split()) > 3]
    (folder / model.name).write_text("\n".join(whole) + "\n", "latin-1")
    return folder / model.name


def studio(thing: Thing):
    """The thing on a plotter, in the light of the concepts' photos."""
    import pyvista

    if isinstance(thing.source, str):
        model = Path(collect.catalogue()[thing.source]["path"])
        plotter = render.open_plotter(mended(model), 2 * concepts.SIZE)
    else:
        plotter = pyvista.Plotter(off_screen=True, window_size=(2 * concepts.SIZE,) * 2)
        thing.source(toys.Kit(plotter))
    concepts.light(plotter, thing.exposure)
    for actor in plotter.renderer.GetActors():  # some models' shadows are black, others' white
        shade = actor.GetProperty()
        shade.SetAmbientColor(shade.GetDiffuseColor())
    return plotter


def origin(thing: Thing) -> dict[str, str]:
    """Author, license and source of a thing, as its card and JSON name them."""
    if not isinstance(thing.source, str):
        kit = f"the kit `{thing.source.__name__}` of data/recipes/held_out.py"
        return {"licence": "CC0-1.0", "author": "this course", "source": kit}
    model = collect.catalogue()[thing.source]
    packaged = f"{model['library']}, in Debian's sweethome3d-furniture"
    return {
        "licence": "CC0-1.0" if model["licence"].startswith("CC0") else "CC-BY-3.0",
        "author": model["author"],
        "source": f"3-D model “{model['name']}”, {packaged}",
    }


def card(thing: Thing, facts: dict[str, str]) -> str:
    return f"""# {thing.title}

{thing.what}

Five photos of {SIZE} × {SIZE} for `{thing.placeholder}` (initializer `{thing.initializer}`); two more sides in
`held_out/`, for scores only: never train on them. No training of the bundled model has seen this thing or its kind.

Source: {facts["source"]}; by {facts["author"]}, {facts["licence"]}.
Rendered with VTK on painted backgrounds by `python -m data.recipes.held_out`; the photos have the same license.
"""


def write(thing: Thing) -> None:
    """Photos, card and JSON of one thing."""
    folder, plotter, facts = HELD_OUT / thing.folder, studio(thing), origin(thing)
    (folder / "held_out").mkdir(parents=True, exist_ok=True)
    for where, photos in ((folder, thing.photos), (folder / "held_out", thing.held_out)):
        for number, photo in enumerate(photos, 1):
            small = concepts.take(plotter, photo).resize((SIZE, SIZE), Image.LANCZOS)
            small.save(where / f"{number}.jpg", quality=88)
    plotter.close()
    words = {
        "placeholder_token": thing.placeholder,
        "initializer_token": thing.initializer,
        "learnable_property": "object",
    }
    text = json.dumps(words | facts, indent=2, ensure_ascii=False)
    (folder / "concept.json").write_text(text + "\n")
    (folder / "README.md").write_text(card(thing, facts))
    print(f"{thing.folder}: {len(thing.photos)} photos, {len(thing.held_out)} held out", flush=True)


def looks(source: str) -> list[Image.Image]:
    """Two cut-outs of a thing of the world: a side that training never sees and another; of an emoji, its only one."""
    library, name = source.split(":")
    if library == "emoji":
        return 2 * [Image.open(collect.emoji_files()[name]).convert("RGBA")]
    if library == "toy":
        kind, number = name.split("-")
        folder = collect.WORK / "held_out" / name
        toys.build(kind, int(number), folder)
        return [Image.open(folder / f"{side}.png") for side in (toys.SIDES - 1, 2)]
    plotter = render.open_plotter(Path(collect.catalogue()[source]["path"]), 2 * SIZE)
    shots = [render.shoot(plotter, *render.views()[side]) for side in (render.SIDES - 1, 0)]
    plotter.close()
    return [render.crop_to_alpha(shot, SIZE) for shot in shots]


def write_gallery() -> None:
    """Two small pictures of each other thing, set in places as the photos are."""
    GALLERY.mkdir(parents=True, exist_ok=True)
    for number, (name, source) in enumerate(OTHERS.items()):
        for look, cut in enumerate(looks(source)):
            place = PLACES[(2 * number + look) % len(PLACES)]
            photo = Photo(0, 0, place, 500 + 2 * number + look, 0.86)
            factor = photo.fill * concepts.SIZE / max(cut.size)
            cut = cut.resize([round(side * factor) for side in cut.size], Image.LANCZOS)
            small = concepts.frame(cut, photo).resize((SMALL, SMALL), Image.LANCZOS)
            small.save(GALLERY / f"{name}-{look + 1}.jpg", quality=85)
    (HELD_OUT / "README.md").write_text(gallery_card())
    print(f"gallery: {len(OTHERS)} things", flush=True)


def gallery_card() -> str:
    """What lies in the folder, and whose the models of the gallery are."""
    models = collect.catalogue()
    used = [(name, models[source]) for name, source in OTHERS.items() if source in models]
    rows = [f"| {name} | {m['name']} | {m['author']} | {m['licence']} |" for name, m in used]
    return f"""# Held-out things

{len(THINGS)} things of families that no training of the bundled model has met, in folders like those of
`data/concepts`, and `gallery/`, two pictures each of {len(OTHERS)} others. They are for judging alone
(`python -m benchmarks.identity`): a picture drawn by a learned word should be more like its own thing's
held-out photos than like any other thing's. Made by `python -m data.recipes.held_out`.

In the gallery, what stands in this table comes from Sweet Home 3D's furniture libraries (Debian's
`sweethome3d-furniture`); names with a number are toys from the kits of `data/recipes/toys.py`; the rest are
Microsoft's Fluent Emoji (MIT).

| picture | model | author | license |
|---|---|---|---|
{chr(10).join(rows)}
"""


if __name__ == "__main__":
    for thing in THINGS:
        write(thing)
    write_gallery()
