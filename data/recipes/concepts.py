"""Render the course's concepts as photos: things the bundled model has never seen, each from several sides.

The background changes from photo to photo: what all photos share is what Textual Inversion puts into the word.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from . import collect, compose, places, render

SIZE = 512
CONCEPTS = Path(__file__).parents[1] / "concepts"


@dataclass(frozen=True)
class Photo:
    """One photo: where the camera stands, where the thing stands, how much of the frame it fills."""

    azimuth: float
    elevation: float
    place: str
    seed: int
    fill: float = 0.84
    off_centre: float = 0.0


@dataclass(frozen=True)
class Subject:
    folder: str
    model: str
    placeholder: str
    initializer: str
    title: str
    what: str
    exposure: float
    photos: tuple[Photo, ...]
    held_out: tuple[Photo, ...]


SUBJECTS = (
    Subject(
        "wood-toy",
        "zero:woodToy",
        "<wood-toy>",
        "toy",
        "Wood toy",
        "A small turned wooden figure: pale ash body, a ball for a nose, and a mahogany hat cut to a V.",
        1.1,
        (
            Photo(0, 8, "on a table", 1, 0.86),
            Photo(38, 20, "on grass", 2, 0.84, -0.02),
            Photo(-42, 12, "on a blue background", 3, 0.88),
            Photo(85, 10, "on a carpet", 18, 0.82, 0.02),
            Photo(-20, 28, "in the kitchen", 5, 0.84),
        ),
        (Photo(20, 14, "on a purple background", 6, 0.86), Photo(-65, 18, "in a room", 7, 0.84)),
    ),
    Subject(
        "rocking-horse",
        "zero:caballito",
        "<rocking-horse>",
        "horse",
        "Rocking horse",
        "A painted rocking horse: a flat olive and yellow body edged in orange on two bowed golden runners.",
        1.25,
        (
            Photo(0, 8, "in a room", 11, 0.92),
            Photo(35, 16, "on a green background", 12, 0.9),
            Photo(145, 14, "on grass", 13, 0.9),
            Photo(215, 20, "on a grey background", 14, 0.9),
            Photo(-30, 10, "on a carpet", 15, 0.9),
        ),
        (
            Photo(180, 10, "on a blue background", 16, 0.92),
            Photo(20, 24, "in the kitchen", 17, 0.9),
        ),
    ),
    Subject(
        "teddy-bear",
        "zero:teddyBear",
        "<teddy-bear>",
        "bear",
        "Teddy bear",
        "An old brown teddy bear sitting with its arms out, worn, with mossy patches and small dark eyes.",
        1.7,
        (
            Photo(0, 8, "on a red background", 21, 0.88),
            Photo(35, 14, "in a garden", 22, 0.86),
            Photo(-38, 18, "on a carpet", 25, 0.86),
            Photo(-75, 8, "on a table", 24, 0.84),
            Photo(15, 30, "on a white background", 29, 0.84),
        ),
        (Photo(-18, 12, "in a room", 26, 0.86), Photo(55, 20, "on a yellow background", 27, 0.86)),
    ),
)


def studio(subject: Subject):
    """The model under a soft key light from the upper left, a fill light and a little light from behind."""
    plotter = render.open_plotter(Path(collect.catalogue()[subject.model]["path"]), 2 * SIZE)
    light(plotter, subject.exposure)
    return plotter


def light(plotter, exposure: float) -> None:
    """Light what stands on a plotter as the concepts' photos are lit, brighter by `exposure`."""
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
    """One photo (SIZE, SIZE) of what stands on the plotter."""
    shot = render.shoot(plotter, photo.azimuth, photo.elevation)
    return frame(render.crop_to_alpha(shot, round(photo.fill * SIZE)), photo)


def frame(cut: Image.Image, photo: Photo) -> Image.Image:
    """The thing, sharp, before a slightly unsharp place, with its shadow: (SIZE, SIZE)."""
    rng = np.random.default_rng(photo.seed)
    picture, _ = places.place(rng, SIZE, photo.place)
    canvas = Image.fromarray((np.clip(picture, 0, 1) * 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(2.5)
    )
    bottom = SIZE * (0.5 + photo.fill / 2 * min(1, cut.height / max(cut.size)) + 0.02)
    compose.paste(
        canvas, cut, SIZE * (0.5 + photo.off_centre), max(bottom, 0.84 * SIZE), 0.6, behind=0.85
    )
    return lens(canvas, rng)


def card(subject: Subject, model: dict) -> str:
    return f"""# {subject.title}

{subject.what}

Five photos of 512 × 512 from different sides, on different backgrounds, for `{subject.placeholder}`
(initializer `{subject.initializer}`); two more sides in `held_out/`, for scores only: never train on them.
The bundled model has never seen this thing.

Source: the 3-D model “{model["name"]}” by {model["author"]}, CC0 1.0 (public domain), from Blend Swap, as packaged in
Sweet Home 3D's furniture library BlendSwap-CC-0 (Debian package `sweethome3d-furniture`). Rendered with VTK on painted
backgrounds by `python -m data.recipes.concepts`; the photos are CC0 1.0 as well.
"""


def write(subject: Subject) -> None:
    """Photos, card and JSON of one concept."""
    model, folder = collect.catalogue()[subject.model], CONCEPTS / subject.folder
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
        f"{subject.folder}: {len(subject.photos)} photos, {len(subject.held_out)} held out",
        flush=True,
    )


if __name__ == "__main__":
    for subject in SUBJECTS:
        write(subject)
