"""Photograph the six held-out things that the bundled model is judged by: no training has seen their families.

Three are 3-D models that no noun of the world uses; three are built here, from kits that `toys.BUILDERS` lacks.
Like the course's concepts, each gets five photos from different sides on different backgrounds, and two more in
`held_out/`.

    python -m data.recipes.world.held_out      # after the stage collect
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from . import collect, concepts, render, toys
from .subjects import HELD_OUT, Subject

SIZE = 256  # pixels a side
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
    """An odd creature: a round pink head with goggle eyes, raised arms, and a tall striped hat with a bobble."""
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


KITS = {"windmill": windmill, "submarine": submarine, "gnome": gnome}


def without_broken_faces(model: Path) -> Path:
    """A copy of the model without faces of only two corners, which VTK's importer cannot read."""
    folder = collect.WORK / "held_out" / model.parent.name
    shutil.copytree(model.parent, folder, dirs_exist_ok=True)
    lines = model.read_text("latin-1").splitlines()
    whole = [line for line in lines if not line.startswith("f ") or len(line.split()) > 3]
    (folder / model.name).write_text("\n".join(whole) + "\n", "latin-1")
    return folder / model.name


def studio(subject: Subject):
    """The subject on a plotter, lit as the concepts are."""
    import pyvista

    library, kit = subject.source.split(":")
    if library == "kit":
        plotter = pyvista.Plotter(off_screen=True, window_size=(2 * concepts.SIZE,) * 2)
        KITS[kit](toys.Kit(plotter))
    else:
        model = Path(collect.catalog()[subject.source]["path"])
        plotter = render.open_plotter(without_broken_faces(model), 2 * concepts.SIZE)
    concepts.light(plotter, subject.exposure)
    for (
        actor
    ) in plotter.renderer.GetActors():  # the ambient color is black in some models, white in others
        shade = actor.GetProperty()
        shade.SetAmbientColor(shade.GetDiffuseColor())
    return plotter


def origin(subject: Subject) -> dict[str, str]:
    """Author, license and source of a subject, as its card and JSON name them."""
    library, kit = subject.source.split(":")
    if library == "kit":
        built = f"the kit `{kit}` of data/recipes/world/held_out.py"
        return {"licence": "CC0-1.0", "author": "this course", "source": built}
    model = collect.catalog()[subject.source]
    packaged = f"{model['library']}, in Debian's sweethome3d-furniture"
    return {
        "licence": "CC0-1.0" if model["license"].startswith("CC0") else "CC-BY-3.0",
        "author": model["author"],
        "source": f"3-D model “{model['name']}”, {packaged}",
    }


def card(subject: Subject, facts: dict[str, str]) -> str:
    """The README of the subject's folder."""
    return f"""# {subject.title}

{subject.description}

Five photos of {SIZE} × {SIZE} for `{subject.placeholder}` (initializer `{subject.initializer}`), and two more sides in
`held_out/`, for scores only: never train on them. No training of the bundled model has seen this thing or its kind.

Source: {facts["source"]}; by {facts["author"]}, {facts["licence"]}.
Rendered with VTK on painted backgrounds by `python -m data.recipes.world.held_out`; the photos have the same license.
"""


def write(subject: Subject) -> None:
    """Photos, card and JSON of one subject."""
    folder, plotter, facts = subject.folder, studio(subject), origin(subject)
    (folder / "held_out").mkdir(parents=True, exist_ok=True)
    for where, photos in ((folder, subject.photos), (folder / "held_out", subject.held_out)):
        for number, photo in enumerate(photos, 1):
            small = concepts.take(plotter, photo).resize((SIZE, SIZE), Image.LANCZOS)
            small.save(where / f"{number}.jpg", quality=88)
    plotter.close()
    tokens = {
        "placeholder_token": subject.placeholder,
        "initializer_token": subject.initializer,
        "learnable_property": "object",
    }
    text = json.dumps(tokens | facts, indent=2, ensure_ascii=False)
    (folder / "concept.json").write_text(text + "\n")
    (folder / "README.md").write_text(card(subject, facts))
    print(f"{subject.name}: {len(subject.photos)} photos, {len(subject.held_out)} held out")


if __name__ == "__main__":
    for subject in HELD_OUT:
        write(subject)
