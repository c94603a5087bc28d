"""Render the course's concepts as photos: things the bundled model has never seen, each from several sides.

The background changes from photo to photo: what all photos share is what Textual Inversion puts into the word.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from . import collect, compose, places, render
from .subjects import CONCEPTS, Photo, Subject

SIZE = 512  # pixels a side


def studio(subject: Subject):
    """The model under a soft key light from the upper left, a fill light and a little light from behind."""
    plotter = render.open_plotter(Path(collect.catalog()[subject.source]["path"]), 2 * SIZE)
    light(plotter, subject.exposure)
    return plotter


def light(plotter, exposure: float) -> None:
    """Light the scene of a plotter as in the concepts' photos, brighter by `exposure`."""
    import pyvista as pv

    plotter.remove_all_lights()
    for position, strength in (
        ((-1.2, 1.4, 1.5), 0.85),
        ((1.5, 0.3, 1.2), 0.35),
        ((0.4, 1.5, -1.5), 0.25),
    ):
        plotter.add_light(
            pv.Light(position=position, light_type="camera light", intensity=strength * exposure)
        )
    for actor in plotter.renderer.GetActors():
        actor.GetProperty().SetAmbient(0.25 * exposure)


def lens(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Darker corners and film grain."""
    array = np.asarray(picture).astype(np.float32)
    y, x = places.grid(SIZE)
    array *= (1.04 - 0.22 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))[..., None]
    array += rng.normal(0, 2.2, (SIZE, SIZE, 1))
    return Image.fromarray(np.clip(array, 0, 255).astype(np.uint8))


def take(plotter, photo: Photo) -> Image.Image:
    """One photo (SIZE, SIZE) of the scene of a plotter."""
    shot = render.shoot(plotter, photo.azimuth, photo.elevation)
    return frame(render.crop_to_alpha(shot, round(photo.fill * SIZE)), photo)


def frame(cut: Image.Image, photo: Photo) -> Image.Image:
    """The thing in focus in front of a slightly blurred place, with its shadow: (SIZE, SIZE)."""
    rng = np.random.default_rng(photo.seed)
    picture, _ = places.place(rng, SIZE, photo.place)
    canvas = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(2.5)
    )
    bottom = SIZE * (0.5 + photo.fill / 2 * min(1, cut.height / max(cut.size)) + 0.02)
    compose.paste(
        canvas, cut, SIZE * (0.5 + photo.off_center), max(bottom, 0.84 * SIZE), 0.6, behind=0.85
    )
    return lens(canvas, rng)


def card(subject: Subject, model: dict) -> str:
    return f"""# {subject.title}

{subject.description}

Five photos of 512 × 512 from different sides, on different backgrounds, for `{subject.placeholder}`
(initializer `{subject.initializer}`); two more sides in `held_out/`, for scores only: never train on them.
The bundled model has never seen this thing.

Source: the 3-D model “{model["name"]}” by {model["author"]}, CC0 1.0 (public domain), from Blend Swap, as packaged in
Sweet Home 3D's furniture library BlendSwap-CC-0 (Debian package `sweethome3d-furniture`). Rendered with VTK on painted
backgrounds by `python -m data.recipes.world.concepts`; the photos are CC0 1.0 as well.
"""


def write(subject: Subject) -> None:
    """Photos, card and JSON of one concept."""
    model, folder = collect.catalog()[subject.source], subject.folder
    (folder / "held_out").mkdir(parents=True, exist_ok=True)
    plotter = studio(subject)
    for where, photos in ((folder, subject.photos), (folder / "held_out", subject.held_out)):
        for number, photo in enumerate(photos, 1):
            take(plotter, photo).save(where / f"{number}.jpg", quality=88)
    facts = {
        "placeholder_token": subject.placeholder,
        "initializer_token": subject.initializer,
        "learnable_property": "object",
        "licence": "CC0-1.0",
        "author": model["author"],
        "source": f"3-D model “{model['name']}”, Blend Swap CC0, in Debian's sweethome3d-furniture",
    }
    (folder / "concept.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    (folder / "README.md").write_text(card(subject, model))
    print(
        f"{subject.name}: {len(subject.photos)} photos, {len(subject.held_out)} held out",
        flush=True,
    )


if __name__ == "__main__":
    for subject in CONCEPTS:
        write(subject)
