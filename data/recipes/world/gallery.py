"""The gallery: two small pictures of each of 51 things of the world, from which a learned word must be told apart.

`gallery.tsv` names a picture and its source: a model of the furniture libraries, `emoji:LABEL`, or `toy:KIT-NUMBER`.
The nouns that words start from are among them.

    python -m data.recipes.world.gallery      # after the stage collect
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from . import collect, concepts, render, tables, toys
from .subjects import DATA, HELD_OUT, Photo

SIDE, SMALL = 256, 128  # pixels a side, of the renders and of the pictures
GALLERY = DATA / "held_out" / "gallery"
THINGS = {
    row["picture"]: row["source"] for row in tables.read(Path(__file__).parent / "gallery.tsv")
}
PLACES = (  # of the pictures, in turn
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


def looks(source: str) -> list[Image.Image]:
    """Two cut-outs of a thing: a side that training never sees, and another one; an emoji has only one side."""
    library, name = source.split(":")
    if library == "emoji":
        return 2 * [Image.open(collect.emoji_files()[name]).convert("RGBA")]
    if library == "toy":
        kind, number = name.split("-")
        folder = collect.WORK / "held_out" / name
        toys.build(kind, int(number), folder)
        return [Image.open(folder / f"{side}.png") for side in (toys.SIDES - 1, 2)]
    plotter = render.open_plotter(Path(collect.catalog()[source]["path"]), 2 * SIDE)
    shots = [render.shoot(plotter, *render.views()[side]) for side in (render.SIDES - 1, 0)]
    plotter.close()
    return [render.crop_to_alpha(shot, SIDE) for shot in shots]


def write_gallery() -> None:
    """Draw the pictures, each in a place like those of the photos, and write the folder's README."""
    GALLERY.mkdir(parents=True, exist_ok=True)
    for number, (name, source) in enumerate(THINGS.items()):
        for look, cut in enumerate(looks(source)):
            place = PLACES[(2 * number + look) % len(PLACES)]
            photo = Photo(0, 0, place, 500 + 2 * number + look, 0.86)
            factor = photo.fill * concepts.SIZE / max(cut.size)
            cut = cut.resize([round(side * factor) for side in cut.size], Image.LANCZOS)
            small = concepts.frame(cut, photo).resize((SMALL, SMALL), Image.LANCZOS)
            small.save(GALLERY / f"{name}-{look + 1}.jpg", quality=85)
    (GALLERY.parent / "README.md").write_text(gallery_card())
    print(f"gallery: {len(THINGS)} things", flush=True)


def gallery_card() -> str:
    """What is in the folder, and who made the models of the gallery."""
    models = collect.catalog()
    used = [(name, models[source]) for name, source in THINGS.items() if source in models]
    rows = [f"| {name} | {m['name']} | {m['author']} | {m['license']} |" for name, m in used]
    return f"""# Held-out things

{len(HELD_OUT)} things of families that no training of the bundled model has met, in folders like those of
`data/concepts`, and `gallery/`, two pictures each of {len(THINGS)} others. They are for judging alone
(`python -m benchmarks.identity`): a picture drawn by a learned word should be more like its own thing's
held-out photos than like any other thing's. Made by
`python -m data.recipes.world.held_out` and `python -m data.recipes.world.gallery`.

In the gallery, the things of this table come from Sweet Home 3D's furniture libraries (Debian's
`sweethome3d-furniture`); names with a number are toys built by the kits of `data/recipes/world/toys.py`; the rest are
Microsoft's Fluent Emoji (MIT).

| picture | model | author | license |
|---|---|---|---|
{chr(10).join(rows)}
"""


if __name__ == "__main__":
    write_gallery()
